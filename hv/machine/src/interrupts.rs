//! Interrupt specifiers, and the controller they are for.

use alloc::vec::Vec;
use core::fmt;

use types::{Pa, Span};

use crate::{
    Error, NodePath, Problem,
    bus::{first_register, registers},
    tree::{Cells, Node},
};

/// When an interrupt line is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// On a rising edge.
    EdgeRising,
    /// On a falling edge.
    EdgeFalling,
    /// While high.
    LevelHigh,
    /// While low.
    LevelLow,
    /// The tree does not say.
    Unspecified,
}

impl Trigger {
    fn from_flags(flags: u32) -> Self {
        match flags & 0xf {
            1 => Self::EdgeRising,
            2 => Self::EdgeFalling,
            4 => Self::LevelHigh,
            8 => Self::LevelLow,
            _ => Self::Unspecified,
        }
    }

    /// Whether the interrupt controller has to be programmed for edges.
    #[must_use]
    pub fn is_edge(self) -> bool {
        matches!(self, Self::EdgeRising | Self::EdgeFalling)
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EdgeRising => "edge",
            Self::EdgeFalling => "falling edge",
            Self::LevelHigh => "level",
            Self::LevelLow => "low level",
            Self::Unspecified => "unspecified trigger",
        })
    }
}

/// An interrupt: the INTID on a GIC [IHI 0069 §2.2], the source number on POWER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// INTID or source number.
    pub number: u32,
    /// When it is active.
    pub trigger: Trigger,
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.trigger)
    }
}

/// A `GICv3` or `GICv4` [IHI 0069].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// The distributor's registers.
    pub distributor: Span<Pa>,
    /// The regions with redistributors, in the order of the tree.
    pub redistributors: Vec<Span<Pa>>,
    /// Bytes from one redistributor to the next, when the tree sets it; else GICR_TYPER.VLPIS
    /// tells (2 or 4 frames of 64 KiB).
    pub redistributor_stride: Option<u64>,
    /// The maintenance interrupt of the virtual interface.
    pub maintenance: Option<Interrupt>,
}

/// What delivers interrupts to CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterruptController {
    /// `GICv3` or later.
    GicV3(GicV3),
    /// `GICv2` or earlier: recognised, not supported.
    GicV2 {
        /// The distributor's registers.
        distributor: Span<Pa>,
    },
    /// PAPR's XICS, reached by hcalls and RTAS.
    Xics,
    /// PAPR's XIVE exploitation mode.
    Xive(Xive),
}

/// What a partition needs to take interrupts by XIVE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xive {
    /// The thread interrupt management area: one span a page, the operating system's last.
    pub tima: Vec<Span<Pa>>,
    /// The first source for interprocessor interrupts, and how many there are.
    pub ipis: Option<(u32, u32)>,
    /// The least favoured priority that the platform does not keep for itself.
    pub priority: Option<u8>,
}

/// An interrupt translation service [IHI 0069 §5].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Its {
    /// Its registers; `GITS_TRANSLATER` is in the second 64 KiB.
    pub registers: Span<Pa>,
    /// What `msi-map` and `msi-parent` refer to it by.
    pub phandle: Option<u32>,
    /// Whether its tables and queue need cache maintenance.
    pub coherency: Coherency,
    /// Where it is in the tree.
    pub path: NodePath,
}

/// Whether a device sees the CPUs' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherency {
    /// It does.
    Coherent,
    /// Memory shared with it needs cache maintenance.
    NonCoherent,
}

impl fmt::Display for Coherency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coherent => "coherent",
            Self::NonCoherent => "not coherent",
        })
    }
}

/// The interrupts of the architected timer [DDI 0487 D12], by the timer they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    /// Secure EL1 physical timer.
    pub secure_physical: Option<Interrupt>,
    /// Non-secure EL1 physical timer (CNTP).
    pub physical: Option<Interrupt>,
    /// EL1 virtual timer (CNTV).
    pub virtual_: Option<Interrupt>,
    /// EL2 physical timer (CNTHP).
    pub hyp_physical: Option<Interrupt>,
    /// EL2 virtual timer (CNTHV).
    pub hyp_virtual: Option<Interrupt>,
    /// Ticks a second, when firmware could not set CNTFRQ.
    pub frequency_hz: Option<u32>,
}

const GIC_V3: &str = "arm,gic-v3";
const GIC_V2: [&str; 7] = [
    "arm,gic-400",
    "arm,cortex-a15-gic",
    "arm,cortex-a9-gic",
    "arm,cortex-a7-gic",
    "arm,pl390",
    "arm,arm11mp-gic",
    "qcom,msm-qgic2",
];

enum Controller {
    Gic,
    Papr,
    Other,
}

impl Controller {
    fn of(node: Node<'_, '_>) -> Self {
        if node.is_compatible(GIC_V3) || GIC_V2.iter().any(|gic| node.is_compatible(gic)) {
            Self::Gic
        } else if is_xics(node) || is_xive(node) || node.is_compatible("IBM,vdevice") {
            Self::Papr
        } else {
            Self::Other
        }
    }
}

fn is_xics(node: Node<'_, '_>) -> bool {
    node.is_compatible("IBM,ppc-xicp")
        || node.is_device_type("PowerPC-External-Interrupt-Presentation")
}

fn is_xive(node: Node<'_, '_>) -> bool {
    node.is_compatible("ibm,power-ivpe")
}

/// The most interrupts of a node that are looked at; none that is read here has as many.
const MAX_INTERRUPTS: usize = 64;

/// One specifier for `controller`, taken from the front of `cells`. The inner `None` is an
/// interrupt of a controller that is not known.
pub(crate) fn specifier(
    user: Node<'_, '_>,
    property: &'static str,
    controller: Node<'_, '_>,
    cells: &mut Cells<'_>,
) -> Result<Option<Interrupt>, Error> {
    let count = controller.u32("#interrupt-cells")?.unwrap_or_default();
    if !(1..=4).contains(&count) {
        return Err(controller.error("#interrupt-cells", Problem::Cells { cells: count }));
    }
    let bytes = cells.bytes();
    let mut specifier = [0u32; 4];
    for cell in specifier
        .iter_mut()
        .take(usize::try_from(count).unwrap_or(0))
    {
        *cell = cells.next().ok_or_else(|| {
            let unit = usize::try_from(count).unwrap_or(0).saturating_mul(4);
            user.error(property, Problem::Length { bytes, unit })
        })?;
    }
    let [first, second, third, _] = specifier;
    match (Controller::of(controller), count) {
        (Controller::Gic, 3 | 4) => {
            // Type and number to INTID: the GIC binding, ranges as in [IHI 0069 §2.2.1].
            let (base, limit) = match first {
                0 => (32, 988),
                1 => (16, 16),
                2 => (4096, 1024),
                3 => (1056, 64),
                kind => return Err(user.error(property, Problem::Value(kind.into()))),
            };
            if second >= limit {
                return Err(user.error(property, Problem::Value(second.into())));
            }
            Ok(Some(Interrupt {
                number: second.saturating_add(base),
                trigger: Trigger::from_flags(third),
            }))
        }
        // The sense cell: bit 0 set for level [LoPAPR, "interrupts" property].
        (Controller::Papr, 2) => Ok(Some(Interrupt {
            number: first,
            trigger: if second & 1 == 0 {
                Trigger::EdgeRising
            } else {
                Trigger::LevelLow
            },
        })),
        _ => Ok(None),
    }
}

/// The interrupts of a node, in order. `None` for one of a controller that is not known.
pub(crate) fn interrupts(node: Node<'_, '_>) -> Result<Vec<Option<Interrupt>>, Error> {
    let mut found = Vec::new();
    if node.has("interrupts-extended") {
        let mut cells = node.cells("interrupts-extended")?;
        while let Some(phandle) = cells.next().filter(|_| found.len() < MAX_INTERRUPTS) {
            let controller = node
                .tree()
                .by_phandle(phandle)
                .ok_or_else(|| node.error("interrupts-extended", Problem::Phandle(phandle)))?;
            found.push(specifier(
                node,
                "interrupts-extended",
                controller,
                &mut cells,
            )?);
        }
        return Ok(found);
    }
    let mut cells = node.cells("interrupts")?;
    if cells.is_empty() {
        return Ok(found);
    }
    let controller = interrupt_parent(node)?;
    while !cells.is_empty() && found.len() < MAX_INTERRUPTS {
        found.push(specifier(node, "interrupts", controller, &mut cells)?);
    }
    Ok(found)
}

fn interrupt_parent<'t, 'a>(node: Node<'t, 'a>) -> Result<Node<'t, 'a>, Error> {
    let mut here = Some(node);
    while let Some(at) = here {
        if let Some(phandle) = at.u32("interrupt-parent")? {
            return at
                .tree()
                .by_phandle(phandle)
                .ok_or_else(|| at.error("interrupt-parent", Problem::Phandle(phandle)));
        }
        here = at.parent();
        // A node above that takes interrupts is the parent when nothing else is said.
        if let Some(above) = here
            && above.has("#interrupt-cells")
        {
            return Ok(above);
        }
    }
    Err(node.error("interrupt-parent", Problem::Missing))
}

/// The interrupt with this name, by `interrupt-names`.
pub(crate) fn named(
    node: Node<'_, '_>,
    interrupts: &[Option<Interrupt>],
    name: &str,
) -> Option<Interrupt> {
    let index = node
        .strings("interrupt-names")
        .position(|candidate| candidate == name)?;
    interrupts.get(index).copied().flatten()
}

pub(crate) fn controller(node: Node<'_, '_>) -> Result<Option<InterruptController>, Error> {
    if !node.has_compatible() && !is_xics(node) {
        return Ok(None);
    }
    if node.is_compatible(GIC_V3) {
        let mut spans = registers(node)?.into_iter();
        let missing = || node.error("reg", Problem::Missing);
        let distributor = spans.next().ok_or_else(missing)?;
        let regions = node.u32("#redistributor-regions")?.unwrap_or(1);
        let regions_usize = usize::try_from(regions).unwrap_or(usize::MAX);
        let redistributors: Vec<_> = spans.take(regions_usize).collect();
        if redistributors.len() != regions_usize || redistributors.is_empty() {
            return Err(node.error("#redistributor-regions", Problem::Value(regions.into())));
        }
        let maintenance = interrupts(node)?.first().copied().flatten();
        return Ok(Some(InterruptController::GicV3(GicV3 {
            distributor,
            redistributors,
            redistributor_stride: node.number("redistributor-stride")?,
            maintenance,
        })));
    }
    if GIC_V2.iter().any(|gic| node.is_compatible(gic)) {
        return Ok(Some(InterruptController::GicV2 {
            distributor: first_register(node)?,
        }));
    }
    if is_xive(node) {
        return Ok(Some(InterruptController::Xive(Xive {
            tima: registers(node)?,
            ipis: ranges(node, "ibm,xive-lisn-ranges")?.first().copied(),
            priority: free_priority(&ranges(
                // Not the controller's: the whole platform's.
                node.tree().root(),
                "ibm,plat-res-int-priorities",
            )?),
        })));
    }
    Ok(is_xics(node).then_some(InterruptController::Xics))
}

/// A property of pairs: a first number, and how many. No more than a few are looked at.
fn ranges(node: Node<'_, '_>, property: &'static str) -> Result<Vec<(u32, u32)>, Error> {
    let mut cells = node.cells(property)?;
    let mut found = Vec::new();
    while let Some(first) = cells.next().filter(|_| found.len() < MAX_INTERRUPTS) {
        found.push((first, cells.next().unwrap_or(0)));
    }
    Ok(found)
}

/// The least favoured of the priorities 0 to 7 that is in none of these ranges.
fn free_priority(reserved: &[(u32, u32)]) -> Option<u8> {
    (0..8).rev().find(|priority| {
        let priority = u32::from(*priority);
        let is_in = |(first, count): &(u32, u32)| {
            priority.checked_sub(*first).is_some_and(|at| at < *count)
        };
        !reserved.iter().any(is_in)
    })
}

/// Machines whose ITS and redistributors do not snoop, whatever their registers take and an older tree
/// leaves out [Linux, Documentation/arch/arm64/silicon-errata.rst: `ROCKCHIP_ERRATUM_3588001`].
const SNOOPLESS: [&str; 2] = ["rockchip,rk3588", "rockchip,rk3588s"];

/// The ITS has tables of its own, and the redistributors below the same controller have some, too.
fn is_noncoherent(its: Node<'_, '_>) -> bool {
    let above = core::iter::successors(Some(its), |node| node.parent());
    let (gic, root) = (its.parent(), above.last());
    its.has("dma-noncoherent")
        || gic.is_some_and(|gic| gic.has("dma-noncoherent"))
        || root.is_some_and(|root| SNOOPLESS.iter().any(|name| root.is_compatible(name)))
}

pub(crate) fn its(node: Node<'_, '_>) -> Result<Option<Its>, Error> {
    if !node.is_compatible("arm,gic-v3-its") {
        return Ok(None);
    }
    Ok(Some(Its {
        registers: first_register(node)?,
        phandle: node.u32("phandle")?,
        coherency: if is_noncoherent(node) {
            Coherency::NonCoherent
        } else {
            Coherency::Coherent
        },
        path: node.path(),
    }))
}

pub(crate) fn timer(node: Node<'_, '_>) -> Result<Option<Timer>, Error> {
    if !node.is_compatible("arm,armv8-timer") && !node.is_compatible("arm,armv7-timer") {
        return Ok(None);
    }
    let interrupts = interrupts(node)?;
    let by_name = node.has("interrupt-names");
    let get = |name, index: usize| {
        if by_name {
            named(node, &interrupts, name)
        } else {
            interrupts.get(index).copied().flatten()
        }
    };
    Ok(Some(Timer {
        secure_physical: get("sec-phys", 0),
        physical: get("phys", 1),
        virtual_: get("virt", 2),
        hyp_physical: get("hyp-phys", 3),
        hyp_virtual: get("hyp-virt", 4),
        frequency_hz: node.u32("clock-frequency")?,
    }))
}
