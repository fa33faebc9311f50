//! Addresses of devices, in the machine and in a guest.

use core::{fmt, str::FromStr};

use types::Bdf;

/// A device to give to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostDevice {
    /// A PCI function: `SSSS:BB:DD.F`, hexadecimal.
    Pci {
        /// The segment (PCI domain) of its host bridge.
        segment: u16,
        /// Bus, device, function.
        bdf: Bdf,
    },
    /// A whole PAPR host bridge, by its bus unit ID: `phb:800000020000001`, hexadecimal. All devices
    /// behind it go together.
    Phb {
        /// The bus unit ID.
        buid: u64,
    },
}

/// Where a guest sees a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestDevice {
    /// A PCI function of the guest's segment 0: `BB:DD.F`, hexadecimal.
    Pci(Bdf),
    /// The guest's host bridge of this number: `phb:N`, decimal.
    Phb(u16),
}

/// Text that is not the address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceAddressError {
    /// Not an address in the machine.
    #[error("not a device: write SSSS:BB:DD.F (0000:00:02.0) or phb:BUID (phb:800000020000001)")]
    Host,
    /// Not an address in a guest.
    #[error("not an address in a guest: write BB:DD.F (00:02.0) or phb:N (phb:0)")]
    Guest,
}

fn hex(text: &str, digits: usize) -> Option<u64> {
    (text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u64::from_str_radix(text, 16).ok())?
}

fn bdf(text: &str) -> Option<Bdf> {
    let (bus, rest) = text.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let number = |text, digits| u8::try_from(hex(text, digits)?).ok();
    Bdf::new(number(bus, 2)?, number(device, 2)?, number(function, 1)?).ok()
}

impl FromStr for HostDevice {
    type Err = DeviceAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_prefix("phb:") {
            Some(buid) => hex(buid.trim_start_matches("0x"), 16).map(|buid| Self::Phb { buid }),
            None => text.split_once(':').and_then(|(segment, rest)| {
                Some(Self::Pci {
                    segment: u16::try_from(hex(segment, 4)?).ok()?,
                    bdf: bdf(rest)?,
                })
            }),
        };
        parsed.ok_or(DeviceAddressError::Host)
    }
}

impl FromStr for GuestDevice {
    type Err = DeviceAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_prefix("phb:") {
            Some(number) => number.parse().ok().map(Self::Phb),
            None => bdf(text).map(Self::Pci),
        };
        parsed.ok_or(DeviceAddressError::Guest)
    }
}

impl fmt::Display for HostDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci { segment, bdf } => write!(f, "{segment:04x}:{bdf}"),
            Self::Phb { buid } => write!(f, "phb:{buid:x}"),
        }
    }
}

impl fmt::Display for GuestDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(bdf) => write!(f, "{bdf}"),
            Self::Phb(number) => write!(f, "phb:{number}"),
        }
    }
}
