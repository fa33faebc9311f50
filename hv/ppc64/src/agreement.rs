//! What is agreed on with the platform before its device tree is read.

use core::ffi::CStr;

use boot::Interrupts;
use xive::{Agreement, NotOffered, Support, Wish};

use crate::of::{self, Firmware, Node};
use crate::spr;

/// No agreement.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Firmware(#[from] of::Error),
    #[error("{0}")]
    NotOffered(NotOffered),
    #[error("the platform refuses what it has offered")]
    Refused,
}

/// The longest command line that is looked at before the tree is read.
const MOST: usize = 1024;

/// Agrees on an interrupt controller. The CPU stays as it is, so no other one may run yet.
#[optimize(size)]
pub(crate) fn reach(firmware: Firmware) -> Result<Agreement, Failure> {
    let mut buffer = [0; MOST];
    let chosen = firmware.find(c"/chosen")?;
    let arguments = property(firmware, chosen, c"bootargs", &mut buffer)?;
    let arguments = CStr::from_bytes_until_nul(arguments).unwrap_or_default();
    // What is no option is told of when all of them are read.
    let options = boot::Options::parse(arguments.to_str().unwrap_or_default(), |_| {});
    let wish = match options.interrupts {
        Interrupts::Best => Wish::Best,
        Interrupts::Xics => Wish::Xics,
        Interrupts::Xive => Wish::Xive,
        Interrupts::AsFound => Wish::AsFound,
    };
    let name = c"ibm,arch-vec-5-platform-support";
    let support = Support::parse(property(firmware, chosen, name, &mut buffer)?);
    let agreement = support.agree(wish).map_err(Failure::NotOffered)?;
    let pvr = u32::try_from(spr::pvr()).unwrap_or(0);
    match xive::request(pvr, support, agreement) {
        Some(request) if !firmware.agree(&request)? => Err(Failure::Refused),
        _ => Ok(agreement),
    }
}

/// A property of a node, as far as the buffer goes; nothing when there is none.
fn property<'a>(
    firmware: Firmware,
    node: Option<Node>,
    name: &CStr,
    buffer: &'a mut [u8; MOST],
) -> Result<&'a [u8], Failure> {
    let length = match node {
        Some(node) => firmware.property(node, name, buffer)?,
        None => None,
    };
    Ok(buffer
        .get(..length.unwrap_or(0).min(MOST))
        .unwrap_or_default())
}
