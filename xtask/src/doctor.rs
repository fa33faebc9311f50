//! `cargo xtask doctor`.

use anyhow::Result;

use crate::board::{self, Arch, Board};
use crate::{provide, show, workspace};

/// Lists every need, what was found and the cure. The status is 1 when something is missing.
///
/// # Errors
/// A faulty board.
pub(crate) fn doctor() -> Result<u8> {
    let needs = [
        provide::disk::need(),
        provide::toolchain::need(),
        provide::qemu::need(Arch::Aarch64),
        provide::qemu::need(Arch::Ppc64),
        provide::payload::need(Arch::Aarch64, "6.12"),
        provide::payload::need(Arch::Ppc64, "6.12"),
    ];
    let mut status = 0;
    for need in needs {
        match need.cure {
            None => show!("ok       {}: {}", need.what, need.found),
            Some(cure) => {
                status = 1;
                show!(
                    "missing  {}: {}\n         cure: {cure}",
                    need.what,
                    need.found
                );
            }
        }
    }
    show!("\nboards:");
    let boards = workspace::root().join("boards");
    for name in board::names(&boards)? {
        show!("{name:8} {}", Board::load(&boards, &name)?.summary);
    }
    Ok(status)
}
