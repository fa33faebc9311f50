//! What the manual defines, and nothing else. [IHI 0070]

mod idr;
pub mod regs;

pub use idr::{Cr0, Gbpa, Idr0, Idr1, Idr3, Idr5, Iidr, IrqCtrl};
