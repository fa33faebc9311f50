//! Where things are on QEMU's `virt` machine, and so on our guests'.

use types::Ipa;

/// RAM.
pub const RAM: Ipa = Ipa::truncated(0x4000_0000);
/// The GIC's distributor.
pub const DISTRIBUTOR: Ipa = Ipa::truncated(0x0800_0000);
/// The ITS; `GITS_TRANSLATER` is at +0x1_0040.
pub const ITS: Ipa = Ipa::truncated(0x0808_0000);
/// The redistributors; room for 123 vCPUs below the console.
pub const REDISTRIBUTORS: Ipa = Ipa::truncated(0x080a_0000);
/// The PL011.
pub const UART: Ipa = Ipa::truncated(0x0900_0000);
/// The PL031.
pub const RTC: Ipa = Ipa::truncated(0x0901_0000);
/// The SMMU.
pub const SMMU: Ipa = Ipa::truncated(0x0905_0000);
/// The PCI memory window below 4 GiB.
pub const PCI_WINDOW32: Ipa = Ipa::truncated(0x1000_0000);
/// Its length in bytes.
pub const PCI_WINDOW32_BYTES: u64 = 0x2eff_0000;
/// The configuration space of 256 buses.
pub const ECAM: Ipa = Ipa::truncated(0x40_1000_0000);
/// The PCI memory window above RAM.
pub const PCI_WINDOW64: Ipa = Ipa::truncated(0x80_0000_0000);
/// Its length in bytes.
pub const PCI_WINDOW64_BYTES: u64 = 0x80_0000_0000;
