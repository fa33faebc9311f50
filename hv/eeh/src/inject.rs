//! Errors that a guest injects into its own PEs: `ibm,open-errinjct`, `ibm,errinjct`, `ibm,close-errinjct`.
//!
//! One user at a time, who has a token for it. What is injected is an error of a PCI bus, of a PE that the guest
//! names; all others that PAPR knows are errors of the machine, which is not the guest's.

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorService {
    /// `ibm,open-errinjct` → token, status: in this order.
    Open,
    /// `ibm,errinjct`: what, token, address of the work area.
    Inject,
    /// `ibm,close-errinjct`: token.
    Close,
}

impl ErrorService {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Open, Self::Inject, Self::Close];

    /// What the device tree calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "ibm,open-errinjct",
            Self::Inject => "ibm,errinjct",
            Self::Close => "ibm,close-errinjct",
        }
    }

    /// Its token, behind those of QEMU's services.
    #[must_use]
    pub const fn token(self) -> u32 {
        match self {
            Self::Open => 0x2040,
            Self::Inject => 0x2041,
            Self::Close => 0x2042,
        }
    }
}

/// Kinds of errors, as `ibm,errinjct-tokens` names them.
pub const ERRORS: [(&str, u32); 2] = [("ioa-bus-error", BUS), ("ioa-bus-error-64", BUS_64)];
const BUS: u32 = 7;
const BUS_64: u32 = 15;
/// Functions: loads, stores and DMA, of memory, I/O and configuration space. [Linux
/// arch/powerpc/include/uapi/asm/eeh.h]
const FUNCTIONS: u32 = 20;

const SUCCESS: i32 = 0;
const PARAMETER: i32 = -3;
/// It is open already, or not by this token.
const CALL: i32 = -4;

/// Bytes of the larger work area.
pub const WORK_AREA: usize = 32;

/// Which PE an error is to happen in: its configuration address, and its host bridge's unique id in two cells.
pub type Victim = [u32; 3];

/// Whether somebody injects errors, and by which token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    open: bool,
    /// Each opening has another.
    token: u32,
}

impl Injection {
    /// `ibm,open-errinjct`: the token, and the status.
    pub fn open(&mut self) -> [i32; 2] {
        if self.open {
            return [0, CALL];
        }
        self.open = true;
        // Positive, as whoever takes it for a status expects.
        self.token = self.token.wrapping_add(1) & 0x7fff_ffff;
        [self.token.cast_signed(), SUCCESS]
    }

    /// `ibm,close-errinjct`: the status.
    pub fn close(&mut self, token: u32) -> i32 {
        if !self.open || token != self.token {
            return CALL;
        }
        self.open = false;
        SUCCESS
    }

    /// How much of the work area an error of a kind has.
    ///
    /// # Errors
    /// The status: of a kind that is not injected, or not by this token.
    pub fn work_area(&self, kind: u32, token: u32) -> Result<usize, i32> {
        if !self.open || token != self.token {
            return Err(CALL);
        }
        match kind {
            BUS => Ok(24),
            BUS_64 => Ok(WORK_AREA),
            _ => Err(PARAMETER),
        }
    }
}

/// Whose PE the work area names, which is as long as [`Injection::work_area`] says: address and mask, which are of
/// no account here, configuration address, unique id, function. `None` for a function that there is none of.
#[must_use]
pub fn victim(area: &[u8]) -> Option<Victim> {
    let cells = area.as_chunks::<4>().0;
    let [.., config, high, low, function] = cells else {
        return None;
    };
    let [config, high, low, function] =
        [config, high, low, function].map(|c| u32::from_be_bytes(*c));
    (function < FUNCTIONS).then_some([config, high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_injects_and_only_by_its_token() {
        let mut injection = Injection::default();
        assert_eq!(injection.work_area(BUS, 0), Err(CALL));
        assert_eq!(injection.close(0), CALL);
        let [token, status] = injection.open();
        assert_eq!((token, status), (1, SUCCESS));
        assert_eq!(injection.open(), [0, CALL]);
        assert_eq!(injection.work_area(BUS, 1), Ok(24));
        assert_eq!(injection.work_area(BUS_64, 1), Ok(32));
        assert_eq!(injection.work_area(BUS, 2), Err(CALL));
        for kind in (0..64).filter(|kind| ![BUS, BUS_64].contains(kind)) {
            assert_eq!(injection.work_area(kind, 1), Err(PARAMETER), "{kind}");
        }
        assert_eq!(injection.close(2), CALL);
        assert_eq!(injection.close(1), SUCCESS);
        assert_eq!(injection.work_area(BUS, 1), Err(CALL));
        assert_eq!(injection.open(), [2, SUCCESS], "an old token opens nothing");
        injection.token = 0x7fff_ffff;
        injection.open = false;
        assert_eq!(injection.open(), [0, SUCCESS]);
    }

    #[test]
    fn a_work_area_names_a_pe_and_a_function() {
        let cells = [1_u32, 2, 0x1_0800, 0x800_0000, 0x2000_0001, 19];
        let area: std::vec::Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        assert_eq!(victim(&area), Some([0x1_0800, 0x800_0000, 0x2000_0001]));
        let mut wide = std::vec![0; 8];
        wide.extend(&area);
        assert_eq!(victim(&wide), victim(&area));
        wide[31] = 20;
        assert_eq!(victim(&wide), None);
        assert_eq!(victim(&area[..12]), None);
        assert_eq!(victim(&[]), None);
    }
}
