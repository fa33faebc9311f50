//! What the manual defines, and nothing else. [IHI 0070]

pub mod cd;
pub mod command;
pub mod event;
mod idr;
pub mod queue;
pub mod regs;
mod ste;

pub use cd::{Cd, L1Cd};
pub use command::{Command, Completion, Depth, Illegal, Range};
pub use event::{Class, Event, EventId};
pub use idr::{Cr0, Gbpa, Idr0, Idr1, Idr3, Idr5, Iidr, IrqCtrl};
pub use ste::{L1Std, Recording, Stage1, Stage2, Ste, SteConfig, Walks};
