//! A function behind a guest's host bridge: which calls there are about its configuration space and its messages,
//! and what of a write to the former reaches it.

/// A service for configuration space or messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionService {
    /// `ibm,read-pci-config`: configuration address, unique id (2 cells), bytes → value.
    Read,
    /// `ibm,write-pci-config`: configuration address, unique id (2), bytes, value.
    Write,
    /// `ibm,query-interrupt-source-number`: configuration address, unique id (2), number → source, edge.
    Source,
    /// `ibm,change-msi`: configuration address, unique id (2), function, count, sequence → count, sequence (, kind).
    ChangeMessages,
}

/// What a call of one asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionCall {
    /// The function, and the register where there is one, as the guest writes it.
    pub at: u32,
    /// The unique id of its host bridge.
    pub buid: [u32; 2],
    /// What is to be done.
    pub what: FunctionRequest,
}

/// What is to be done to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionRequest {
    /// Read so many bytes.
    Read {
        /// 1, 2 or 4.
        bytes: u32,
    },
    /// Write so many bytes.
    Write {
        /// 1, 2 or 4.
        bytes: u32,
        /// What.
        value: u32,
    },
    /// Name the source of a message.
    Source {
        /// Which message.
        number: u32,
    },
    /// Change messages: function, count, sequence number.
    ChangeMessages([u32; 3]),
}

impl FunctionService {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Source, Self::ChangeMessages];

    /// What the device tree calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "ibm,read-pci-config",
            Self::Write => "ibm,write-pci-config",
            Self::Source => "ibm,query-interrupt-source-number",
            Self::ChangeMessages => "ibm,change-msi",
        }
    }

    /// The token that QEMU gives it.
    #[must_use]
    pub const fn token(self) -> u32 {
        match self {
            Self::Read => 0x2016,
            Self::Write => 0x2017,
            Self::Source => 0x2018,
            Self::ChangeMessages => 0x2019,
        }
    }

    /// A call with these argument cells and room for as many results, the status included. `None` for a number of
    /// either that the service does not have, and for a width that there is none of: status −3.
    #[must_use]
    pub fn call(self, arguments: &[u32], results: usize) -> Option<FunctionCall> {
        let [at, high, low, rest @ ..] = arguments else {
            return None;
        };
        let is_width = |bytes| matches!(bytes, 1 | 2 | 4);
        let what = match (self, rest, results) {
            (Self::Read, &[bytes], 2) if is_width(bytes) => FunctionRequest::Read { bytes },
            (Self::Write, &[bytes, value], 1) if is_width(bytes) => {
                FunctionRequest::Write { bytes, value }
            }
            (Self::Source, &[number], 3) => FunctionRequest::Source { number },
            (Self::ChangeMessages, &[function, count, sequence], 3 | 4) => {
                FunctionRequest::ChangeMessages([function, count, sequence])
            }
            _ => return None,
        };
        Some(FunctionCall {
            at: *at,
            buid: [*high, *low],
            what,
        })
    }
}

impl FunctionCall {
    /// The register, 12 bits: those above the first eight are the address's topmost. [LoPAPR §7.3.5]
    #[must_use]
    pub const fn register(&self) -> u32 {
        self.at & 0xff | self.at >> 20 & 0xf00
    }
}

/// The command register. [PCI Local Bus 3.0 §6.2.2]
const COMMAND: u32 = 0x04;
/// Its bit for bus mastering.
pub const COMMAND_MASTER: u32 = 1 << 2;
/// Its bit for registers in memory.
pub const COMMAND_MEMORY: u32 = 1 << 1;
/// I/O, memory, bus mastering, no interrupt pin.
const COMMAND_ENABLES: u32 = 0x0407;
/// On, and all vectors masked.
const MSIX_ENABLES: u32 = 0xc000;
/// On, and how many vectors.
const MSI_ENABLES: u32 = 0x0071;

/// What a function is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It is a device.
    #[default]
    Device,
    /// It forwards to devices: that it does so for registers is no guest's to change, because the next one finds it
    /// as this one leaves it.
    Bridge,
}

/// Where the control registers of a function's messages are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controls {
    /// What it is for.
    pub role: Role,
    /// Of MSI.
    pub msi: Option<u32>,
    /// Of MSI-X.
    pub msix: Option<u32>,
}

/// What of a write reaches a register of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    mask: u32,
    value: u32,
    /// What the guest wants of the command register, when it is that.
    pub command: Option<u32>,
}

/// Whether devices may master the bus now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mastering {
    /// As their guest wants it.
    AsWanted,
    /// Not, whatever it wants.
    Stopped,
}

impl Controls {
    /// What of a write reaches the 16 bits at its register: the enables. `None`: nothing.
    #[must_use]
    pub fn write(self, register: u32, bytes: u32, value: u32) -> Option<Change> {
        let (mask, command) = match (register, bytes) {
            // With the status register behind it, of which nothing is written.
            (COMMAND, 2 | 4) if self.role == Role::Bridge => (COMMAND_MASTER, None),
            (COMMAND, 2 | 4) => (COMMAND_ENABLES, Some(value)),
            _ if self.role == Role::Bridge => return None,
            (control, 2) if Some(control) == self.msix => (MSIX_ENABLES, None),
            (control, 2) if Some(control) == self.msi => (MSI_ENABLES, None),
            _ => return None,
        };
        Some(Change {
            mask,
            value,
            command,
        })
    }
}

impl Change {
    /// The 16 bits, of what they were.
    #[must_use]
    pub const fn applied(&self, old: u32, mastering: Mastering) -> u32 {
        let new = old & !self.mask | self.value & self.mask;
        match (self.command, mastering) {
            (Some(_), Mastering::Stopped) => new & !COMMAND_MASTER,
            _ => new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_cells_that_they_have() {
        let cells = [0x3000_0844, 1, 2, 4, 5, 6];
        for service in FunctionService::ALL {
            for arguments in 0..=6 {
                for results in 0..8 {
                    let call = service.call(&cells[..arguments], results);
                    let wanted = match service {
                        FunctionService::Read => (arguments, results) == (4, 2),
                        FunctionService::Write => (arguments, results) == (5, 1),
                        FunctionService::Source => (arguments, results) == (4, 3),
                        FunctionService::ChangeMessages => {
                            arguments == 6 && (3..5).contains(&results)
                        }
                    };
                    assert_eq!(call.is_some(), wanted, "{service:?} {arguments} {results}");
                    assert!(
                        call.is_none_or(|call| call.register() == 0x344 && call.buid == [1, 2])
                    );
                }
            }
        }
        for bytes in [0, 3, 5, 8, u32::MAX] {
            assert_eq!(FunctionService::Read.call(&[0, 1, 2, bytes], 2), None);
            assert_eq!(FunctionService::Write.call(&[0, 1, 2, bytes, 0], 1), None);
        }
    }

    #[test]
    fn the_enables_are_written_and_nothing_else() {
        let controls = Controls {
            role: Role::Device,
            msi: Some(0x52),
            msix: Some(0x72),
        };
        let write = |register, bytes, old, value| {
            let change = controls.write(register, bytes, value);
            change.map(|change| change.applied(old, Mastering::AsWanted))
        };
        assert_eq!(write(4, 2, 0x0140, 0xffff), Some(0x0547));
        assert_eq!(write(4, 4, 0x0547, 0), Some(0x0140));
        assert_eq!(write(0x52, 2, 0x0180, 0xffff), Some(0x01f1));
        assert_eq!(write(0x72, 2, 0x0003, 0xffff), Some(0xc003));
        for (register, bytes) in [
            (4, 1),
            (5, 1),
            (6, 2),
            (0x52, 1),
            (0x52, 4),
            (0x50, 4),
            (0x73, 1),
            (0x10, 4),
            (0x104, 2),
        ] {
            assert_eq!(
                write(register, bytes, 0, u32::MAX),
                None,
                "{register:#x} {bytes}"
            );
        }
        let change = controls.write(4, 2, 7).unwrap();
        assert_eq!(
            (change.applied(0, Mastering::Stopped), change.command),
            (3, Some(7))
        );
        assert_eq!(Controls::default().write(0x52, 2, 1), None);
    }

    #[test]
    fn a_bridge_forwards_to_registers_whatever_is_written() {
        let bridge = Controls {
            role: Role::Bridge,
            msi: Some(0x52),
            msix: Some(0x72),
        };
        for (bytes, old, value, new) in [(2, 0x0107, 0, 0x0103), (4, 0x0103, 0xffff, 0x0107)] {
            let change = bridge.write(4, bytes, value).unwrap();
            // Devices behind it do not master the bus where that is stopped.
            assert_eq!(change.applied(old, Mastering::Stopped), new);
            assert_eq!(change.command, None);
        }
        for (register, bytes) in [
            (0x52, 2),
            (0x72, 2),
            (4, 1),
            (0x1c, 2),
            (0x20, 4),
            (0x3e, 2),
        ] {
            assert_eq!(
                bridge.write(register, bytes, u32::MAX),
                None,
                "{register:#x}"
            );
        }
    }
}
