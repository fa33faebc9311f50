//! Register offsets from the base of page 0. All registers are 32 bits wide unless said otherwise.
//! [IHI 0070 §6.2]

/// Features: stages, tables, attributes.
pub const IDR0: usize = 0x00;
/// Sizes of stream IDs, substream IDs and queues.
pub const IDR1: usize = 0x04;
/// ATOS page offset.
pub const IDR2: usize = 0x08;
/// Features added by later minor versions.
pub const IDR3: usize = 0x0c;
/// Implementation defined.
pub const IDR4: usize = 0x10;
/// Address sizes and granules.
pub const IDR5: usize = 0x14;
/// Implementer, product, revision.
pub const IIDR: usize = 0x18;
/// Architecture version: bits 3:0 are the minor of 3.x.
pub const AIDR: usize = 0x1c;
/// Enables of the SMMU and its queues.
pub const CR0: usize = 0x20;
/// `CR0` as it has taken effect.
pub const CR0ACK: usize = 0x24;
/// What the SMMU does with traffic while it is disabled.
pub const GBPA: usize = 0x44;
/// Enables of interrupts.
pub const IRQ_CTRL: usize = 0x50;
/// `IRQ_CTRL` as it has taken effect.
pub const IRQ_CTRLACK: usize = 0x54;
/// Global errors: a bit that differs from [`GERRORN`] is active.
pub const GERROR: usize = 0x60;
/// Global errors acknowledged.
pub const GERRORN: usize = 0x64;
/// Attributes of table and queue accesses.
pub const CR1: usize = 0x28;
/// `PTM`, `RECINVSID`, `E2H`.
pub const CR2: usize = 0x2c;
/// Message of the global error interrupt: address (64 bits).
pub const GERROR_IRQ_CFG0: usize = 0x68;
/// `GERROR`'s message: the data.
pub const GERROR_IRQ_CFG1: usize = 0x70;
/// `GERROR`'s message: its attributes.
pub const GERROR_IRQ_CFG2: usize = 0x74;
/// The stream table's base (64 bits).
pub const STRTAB_BASE: usize = 0x80;
/// The stream table's size and format.
pub const STRTAB_BASE_CFG: usize = 0x88;
/// The command queue's base (64 bits).
pub const CMDQ_BASE: usize = 0x90;
/// Where commands are written next.
pub const CMDQ_PROD: usize = 0x98;
/// Which command is consumed next, and the error that stops it.
pub const CMDQ_CONS: usize = 0x9c;
/// The event queue's base (64 bits).
pub const EVENTQ_BASE: usize = 0xa0;
/// Message of the event queue's interrupt: address (64 bits).
pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
/// The event queue's message: the data.
pub const EVENTQ_IRQ_CFG1: usize = 0xb8;
/// The event queue's message: its attributes.
pub const EVENTQ_IRQ_CFG2: usize = 0xbc;
/// Where the SMMU writes the next record; on page 1.
pub const EVENTQ_PROD: usize = 0x1_00a8;
/// Which record is read next; on page 1.
pub const EVENTQ_CONS: usize = 0x1_00ac;
