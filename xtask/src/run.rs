//! `cargo xtask run`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::board::Board;
use crate::build::{self, Built};
use crate::cli::RunOptions;
use crate::manifest::{self, Overrides};
use crate::provide::disk::{self, Work};
use crate::provide::{self, toolchain};
use crate::qemu::{self, Files, Line, Start, Threads, Time, Variation};
use crate::session::{self, Input, Output, Plan, Until};
use crate::terminal::Raw;
use crate::watch::Watch;

use crate::{output, say, show, workspace};

/// Provides, builds and runs a board.
///
/// # Errors
/// An unknown board or firmware, a missing file or tool, a failed build.
pub(crate) fn run(options: &RunOptions) -> Result<u8> {
    let board = Board::load(&workspace::root().join("boards"), &options.board)?;
    let vary = variation(options);
    // What can be refused is refused before anything is downloaded or built.
    board.firmware(vary.firmware.as_deref())?;
    for file in [&options.guest, &options.kernel, &options.initrd]
        .into_iter()
        .flatten()
    {
        if !file.is_file() {
            bail!("there is no file {}", file.display());
        }
    }
    let manifest = manifest(options, &board);
    if let Some((file, overrides)) = &manifest {
        manifest::check(file, overrides)?;
    }
    disk::ensure_room(Work::Run, options.profile())?;
    provide::permission::ensure(&[board.arch])?;
    let qemu = provide::qemu::provide(board.arch)?;
    let toolchain = toolchain::provide()?;
    let (profile, contents) = (options.profile(), options.contents());
    let built = build::build_with(&toolchain, board.arch, profile, contents)?;
    build::report(board.arch, &built);
    let mut files = files(&board, &built)?;
    files.bundle = manifest
        .map(|(file, overrides)| make_bundle(&board, &file, &overrides))
        .transpose()?;
    let line = qemu::line(&qemu, &board, &vary, &files)?;
    if options.dry_run {
        show!("{line}");
        return Ok(0);
    }
    if options.gdb {
        say!(
            "waiting for a debugger: gdb-multiarch {} -ex 'target remote :1234'",
            built.elf.display()
        );
    }
    start(options, &line)
}

fn start(options: &RunOptions, line: &Line) -> Result<u8> {
    let outcome = {
        let _raw = Raw::enter();
        session::run(Plan {
            line,
            watch: Watch::new(options.expect.clone(), Vec::new()),
            until: Until::LastExpectation,
            timeout: options.timeout,
            input: Input::Standard,
            output: Output::Standard,
            log: options.log.as_deref(),
        })?
    };
    // The guest may have left the cursor inside a line.
    output::message(format_args!(""));
    say!("{}", outcome.reason);
    Ok(outcome.status)
}

/// What the options change of the board.
fn variation(options: &RunOptions) -> Variation {
    Variation {
        smp: options.smp,
        memory: options.memory.clone(),
        cpu: options.cpu.clone(),
        firmware: options.firmware.clone(),
        time: if options.icount {
            Time::Instructions
        } else {
            Time::Wall
        },
        start: if options.gdb {
            Start::ByDebugger
        } else {
            Start::AtOnce
        },
        threads: Threads::Each,
        args: options.qemu_args.clone(),
    }
}

/// The manifest that the options or the board name, and what the options change of it.
fn manifest(options: &RunOptions, board: &Board) -> Option<(PathBuf, Overrides)> {
    let default = board
        .guest
        .as_ref()
        .map(|path| workspace::root().join(path));
    let overrides = Overrides {
        kernel: options.kernel.clone(),
        initrd: options.initrd.clone(),
        append: options.append.clone(),
        console: Some(board.arch.console()),
    };
    Some((options.guest.clone().or(default)?, overrides))
}

/// Makes the boot bundle of a manifest, under the board's name in the build directory.
///
/// # Errors
/// A faulty manifest, or a file that cannot be had.
pub(crate) fn make_bundle(
    board: &Board,
    manifest: &Path,
    overrides: &Overrides,
) -> Result<PathBuf> {
    let bundle = bundle_of(board, manifest, overrides)?;
    let name = manifest.file_stem().unwrap_or_default().to_string_lossy();
    let path = workspace::target_dir()
        .join("boards")
        .join(&board.name)
        .join(format!("{name}.bundle"));
    workspace::write_whole(&path, &bundle)?;
    say!(
        "boot bundle: {} KiB, {}",
        bundle.len().div_ceil(1024),
        path.display()
    );
    Ok(path)
}

/// The boot bundle of a manifest for a board.
///
/// # Errors
/// A faulty manifest, or a file that cannot be had.
pub(crate) fn bundle_of(board: &Board, manifest: &Path, overrides: &Overrides) -> Result<Vec<u8>> {
    let overrides = Overrides {
        console: Some(board.arch.console()),
        ..overrides.clone()
    };
    manifest::build_bundle(manifest, &overrides, &|name, series| {
        provide::payload::file(board.arch, name, series)
    })
}

/// The files a board is started with; generated ones are made.
///
/// # Errors
/// Those of the file system.
pub(crate) fn files(board: &Board, built: &Built) -> Result<Files> {
    let disks: PathBuf = workspace::target_dir().join("boards").join(&board.name);
    qemu::make_disks(board, &disks)?;
    Ok(Files {
        hypervisor: built.load.clone(),
        bundle: None,
        disks,
    })
}
