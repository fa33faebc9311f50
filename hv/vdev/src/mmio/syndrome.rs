//! The instruction specific syndrome of a data abort [DDI 0487 D24.2.37, "ISS encoding for an
//! exception from a Data Abort"].

use super::{Access, DecodeError, Direction, Extension, Register, Size, field, number};

const ISV: u32 = 1 << 24;
const SSE: u32 = 1 << 21;
const SF: u32 = 1 << 15;
const EA: u32 = 1 << 9;
const CM: u32 = 1 << 8;
const S1PTW: u32 = 1 << 7;
const WNR: u32 = 1 << 6;

/// Reads the access from the low 25 bits of `ESR_EL2`; `None` when the syndrome does not hold one
/// and the instruction must be read.
///
/// # Errors
/// [`DecodeError::External`], [`DecodeError::TableWalk`] and [`DecodeError::CacheMaintenance`] for
/// aborts that are no load or store of the guest.
pub fn from_syndrome(iss: u32) -> Result<Option<Access>, DecodeError> {
    if iss & EA != 0 {
        return Err(DecodeError::External);
    }
    if iss & S1PTW != 0 {
        return Err(DecodeError::TableWalk);
    }
    if iss & CM != 0 {
        return Err(DecodeError::CacheMaintenance);
    }
    if iss & ISV == 0 {
        return Ok(None);
    }
    let direction = if iss & WNR == 0 {
        Direction::Load
    } else {
        Direction::Store
    };
    let extension = match (direction, iss & SSE != 0, iss & SF != 0) {
        (Direction::Load, true, true) => Extension::SignTo64,
        (Direction::Load, true, false) => Extension::SignTo32,
        _ => Extension::Zero,
    };
    let size = match field(iss, 23, 22) {
        0 => Size::Byte,
        1 => Size::Half,
        2 => Size::Word,
        _ => Size::Double,
    };
    Ok(Some(Access {
        direction,
        size,
        extension,
        first: Register::general(number(iss, 16)),
        second: None,
        address: None,
        write_back: None,
    }))
}
