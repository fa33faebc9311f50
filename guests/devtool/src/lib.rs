//! What the program `devtool` decides without asking its kernel: which events of an SMMU the kernel's log
//! tells of, where in memory this kernel and its RAM disk were put, what its device tree says, how QEMU's `edu` is used, what is
//! written to disks and sent to networks.
//!
//! The program itself (`main.rs`, feature `program`) runs in a Linux guest, without a C library. Tests of
//! this part run on the host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod blocks;
pub mod echo;
pub mod edu;
pub mod event;
pub mod image;
pub mod iomem;
pub mod text;
pub mod tree;
