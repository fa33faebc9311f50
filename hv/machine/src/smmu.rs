//! SMMUs, and the devices outside PCI that sit behind them.

use alloc::vec::Vec;

use types::{Pa, Span, StreamId};

use crate::{
    Coherency, Error, Interrupt, NodePath, Note, Problem,
    bus::first_register,
    interrupts::{interrupts, named},
    note,
    tree::Node,
};

/// An `SMMUv3` [IHI 0070].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smmu {
    /// Its registers: page 0, and page 1 at 64 KiB.
    pub registers: Span<Pa>,
    /// Where those of page 1 are.
    pub pages: RegisterPages,
    /// Its wired interrupts.
    pub interrupts: SmmuInterrupts,
    /// Whether its table walks see the CPUs' caches. IDR0.COHACC says the same.
    pub coherency: Coherency,
    /// What `iommu-map` and `iommus` refer to it by.
    pub phandle: Option<u32>,
    /// Index of the ITS it may send its own interrupts to.
    pub msi_parent: Option<usize>,
    /// Where it is in the tree.
    pub path: NodePath,
}

/// Where an SMMU's registers of page 1 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterPages {
    /// In page 1.
    Two,
    /// In page 0, at the same offsets: Cavium's ThunderX2
    /// [Linux, Documentation/arch/arm64/silicon-errata.rst: 74].
    One,
}

impl RegisterPages {
    /// The bytes of the registers.
    const fn bytes(self) -> u64 {
        match self {
            Self::One => 0x1_0000,
            Self::Two => 0x2_0000,
        }
    }
}

/// The wired interrupts of an SMMU [IHI 0070 §3.18].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmmuInterrupts {
    /// The event queue is no longer empty.
    pub event_queue: Option<Interrupt>,
    /// The PRI queue is no longer empty.
    pub pri_queue: Option<Interrupt>,
    /// `CMD_SYNC` completed.
    pub command_sync: Option<Interrupt>,
    /// GERROR changed.
    pub global_error: Option<Interrupt>,
    /// One line for all of them.
    pub combined: Option<Interrupt>,
}

impl SmmuInterrupts {
    /// What says that there are events.
    #[must_use]
    pub fn of_events(&self) -> Option<Interrupt> {
        self.combined.or(self.event_queue)
    }

    /// What says that there are global errors.
    #[must_use]
    pub fn of_errors(&self) -> Option<Interrupt> {
        self.combined.or(self.global_error)
    }
}

/// A device outside PCI that masters the bus through an SMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Where it is in the tree.
    pub path: NodePath,
    /// Index of the SMMU.
    pub smmu: usize,
    /// The stream it uses.
    pub stream: StreamId,
}

/// An SMMU; its `msi_parent` is set later, when all ITSs are known.
pub(crate) fn smmu(node: Node<'_, '_>) -> Result<Option<Smmu>, Error> {
    if !node.is_compatible("arm,smmu-v3") {
        return Ok(None);
    }
    let lines = interrupts(node)?;
    let get = |name| named(node, &lines, name);
    let registers = first_register(node)?;
    let pages = match node.has("cavium,cn9900-broken-page1-regspace") {
        true => RegisterPages::One,
        false => RegisterPages::Two,
    };
    // An access beyond would meet whatever is there.
    if registers.len().is_some_and(|bytes| bytes < pages.bytes()) {
        let bytes = registers.len().unwrap_or(0);
        return Err(node.error("reg", Problem::Value(bytes)));
    }
    Ok(Some(Smmu {
        registers,
        pages,
        interrupts: SmmuInterrupts {
            event_queue: get("eventq"),
            pri_queue: get("priq"),
            command_sync: get("cmdq-sync"),
            global_error: get("gerror"),
            combined: get("combined"),
        },
        coherency: if node.has("dma-coherent") {
            Coherency::Coherent
        } else {
            Coherency::NonCoherent
        },
        phandle: node.u32("phandle")?,
        msi_parent: None,
        path: node.path(),
    }))
}

/// IOMMUs that are recognised and cannot be driven.
pub(crate) fn is_foreign_iommu(node: Node<'_, '_>) -> bool {
    node.has("#iommu-cells") && !node.is_compatible("arm,smmu-v3")
}

/// Adds the streams of a node's `iommus`.
pub(crate) fn masters(
    node: Node<'_, '_>,
    smmus: &[Smmu],
    masters: &mut Vec<Master>,
    notes: &mut Vec<Note>,
) -> Result<(), Error> {
    let mut cells = node.cells("iommus")?;
    let bytes = cells.bytes();
    while let Some(phandle) = cells.next() {
        // What cannot be followed is not assigned; it is no reason not to boot.
        let Some(iommu) = node.tree().by_phandle(phandle) else {
            note(notes, || Note::UnknownIommu(node.path()));
            return Ok(());
        };
        let count = iommu.u32("#iommu-cells")?.unwrap_or_default();
        if count > 4 {
            return Err(iommu.error("#iommu-cells", Problem::Cells { cells: count }));
        }
        let mut first = None;
        for _ in 0..count {
            let cell = cells
                .next()
                .ok_or_else(|| node.error("iommus", Problem::Length { bytes, unit: 4 }))?;
            first = first.or(Some(cell));
        }
        let smmu = smmus.iter().position(|smmu| smmu.phandle == Some(phandle));
        match (smmu, first.and_then(|stream| StreamId::new(stream).ok())) {
            (Some(smmu), Some(stream)) => {
                let path = node.path();
                let master = Master { path, smmu, stream };
                node.push("iommus", masters, master)?;
            }
            _ => note(notes, || Note::UnknownIommu(node.path())),
        }
    }
    Ok(())
}

/// The description of something recognised and not supported.
pub(crate) fn unsupported(node: Node<'_, '_>) -> Note {
    Note::Unsupported {
        path: node.path(),
        compatible: node
            .compatible()
            .next()
            .unwrap_or_default()
            .chars()
            .take(64)
            .collect(),
    }
}
