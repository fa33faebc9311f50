//! The description as lines for a person: one line a fact.

use core::fmt;

use types::{Pa, Span};

use crate::{
    ConfigAccess, Cpu, CpuStatus, EnableMethod, GicV3, HostBridge, Interrupt, InterruptController,
    Machine, PsciVersion, Smmu, WindowKind,
};

/// A size in the largest unit that keeps it whole.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0.trailing_zeros() {
            _ if self.0 == 0 => (0, "bytes"),
            40.. => (40, "TiB"),
            30.. => (30, "GiB"),
            20.. => (20, "MiB"),
            10.. => (10, "KiB"),
            _ => (0, "bytes"),
        };
        write!(f, "{} {unit}", self.0 >> shift)
    }
}

fn size(span: Span<Pa>) -> Size {
    Size(span.len().unwrap_or(u64::MAX))
}

/// An optional fact, or a dash.
struct OrDash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(fact) => fact.fmt(f),
            None => f.write_str("-"),
        }
    }
}

type Line<'a> = &'a mut dyn FnMut(fmt::Arguments<'_>);

impl Machine {
    /// Gives every line of the report to `line`, without line ends.
    pub fn report(&self, line: Line<'_>) {
        line(format_args!(
            "machine: {} ({})",
            OrDash(self.model.as_deref()),
            List(&self.compatible),
        ));
        for span in &self.memory {
            line(format_args!("memory: {span}, {}", size(*span)));
        }
        for reservation in &self.reservations {
            let span = reservation.span;
            line(format_args!(
                "reserved: {span}, {}, {}",
                size(span),
                reservation.source
            ));
        }
        match self.chosen.initrd {
            Some(span) => line(format_args!(
                "initrd: {span}, {} bytes",
                span.len().unwrap_or(0)
            )),
            None => line(format_args!("initrd: none")),
        }
        if let Some(bootargs) = &self.chosen.bootargs {
            line(format_args!("command line: {bootargs}"));
        }
        self.report_cpus(line);
        self.report_interrupts(line);
        if self.smmus.is_empty() && self.rtas.is_none() {
            line(format_args!(
                "smmu: none described: no device can be isolated"
            ));
        }
        for (index, smmu) in self.smmus.iter().enumerate() {
            report_smmu(index, smmu, line);
        }
        for master in &self.masters {
            line(format_args!(
                "stream: {} is stream {} of smmu {}",
                master.path, master.stream, master.smmu
            ));
        }
        if self.host_bridges.is_empty() {
            line(format_args!("pci: no host bridge described"));
        }
        for bridge in &self.host_bridges {
            report_bridge(bridge, line);
        }
        for (number, uart) in self.uarts.iter().enumerate() {
            let console = if self.chosen.stdout.as_ref() == Some(&uart.path) {
                ", console"
            } else {
                ""
            };
            line(format_args!(
                "uart {number}: {}, interrupt {}{console}",
                uart.kind,
                OrDash(uart.interrupt)
            ));
        }
        if let Some(clock) = self.clock {
            line(format_args!("rtc: PL031 at {clock}"));
        }
        if let Some(rtas) = &self.rtas {
            line(format_args!(
                "rtas: {} calls, {} groups of hcalls",
                rtas.tokens().count(),
                rtas.hypertas.len()
            ));
        }
        for note in &self.notes {
            line(format_args!("note: {note}"));
        }
    }

    fn report_cpus(&self, line: Line<'_>) {
        if self.cpus.is_empty() {
            line(format_args!("cpus: none described"));
        }
        // CPUs that are alike share a line.
        let mut rest = self.cpus.as_slice();
        while let Some(first) = rest.first() {
            let alike = rest
                .iter()
                .take_while(|cpu| is_like(first, cpu))
                .count()
                .max(1);
            let (group, tail) = rest.split_at_checked(alike).unwrap_or((rest, &[]));
            line(format_args!(
                "cpus: {} {}{}{}: {}",
                group.len(),
                OrDash(first.compatible.as_deref()),
                Method(&first.enable_method),
                match first.status {
                    CpuStatus::Okay => "",
                    CpuStatus::Disabled => ", disabled",
                    CpuStatus::Failed => ", failed",
                },
                Ids(group),
            ));
            rest = tail;
        }
        if let Some(power) = &self.power {
            line(format_args!(
                "timebase: {} Hz, decrementer of {} bits",
                power.timebase_hz,
                power.decrementer_bits.unwrap_or(32)
            ));
        }
        if let Some(psci) = &self.psci {
            let method = match psci.method {
                crate::Conduit::Smc => "SMC",
                crate::Conduit::Hvc => "HVC",
            };
            let version = match psci.version {
                PsciVersion::V0_1 { .. } => "0.1",
                PsciVersion::V0_2 => "0.2",
                PsciVersion::V1_0 => "1.0",
            };
            line(format_args!("psci: {version} or later by {method}"));
        }
        if let Some(timer) = &self.timer {
            line(format_args!(
                "timer: CNTP {}, CNTV {}, CNTHP {}, CNTHV {}",
                OrDash(timer.physical),
                OrDash(timer.virtual_),
                OrDash(timer.hyp_physical),
                OrDash(timer.hyp_virtual),
            ));
        }
    }

    fn report_interrupts(&self, line: Line<'_>) {
        match &self.interrupt_controller {
            None => line(format_args!("interrupt controller: none described")),
            Some(InterruptController::GicV3(gic)) => report_gic(gic, line),
            Some(InterruptController::GicV2 { distributor }) => line(format_args!(
                "gic: GICv2, distributor {distributor}: not supported"
            )),
            Some(InterruptController::Xics) => line(format_args!("interrupt controller: XICS")),
            Some(InterruptController::Xive(xive)) => {
                line(format_args!(
                    "interrupt controller: XIVE, TIMA {}",
                    List(&xive.tima)
                ));
            }
        }
        for (index, its) in self.itss.iter().enumerate() {
            line(format_args!(
                "its {index}: {}, {}",
                its.registers, its.coherency
            ));
        }
    }
}

fn report_gic(gic: &GicV3, line: Line<'_>) {
    line(format_args!(
        "gic: GICv3, distributor {}, maintenance interrupt {}",
        gic.distributor,
        OrDash(gic.maintenance)
    ));
    for region in &gic.redistributors {
        line(format_args!(
            "gic: redistributors {region}, stride {}",
            OrDash(gic.redistributor_stride.map(Size))
        ));
    }
}

fn report_smmu(index: usize, smmu: &Smmu, line: Line<'_>) {
    line(format_args!(
        "smmu {index}: {}, table walks {}",
        smmu.registers, smmu.coherency
    ));
    let lines = &smmu.interrupts;
    let show = |interrupt: Option<Interrupt>| OrDash(interrupt);
    if let Some(combined) = lines.combined {
        line(format_args!("smmu {index}: one interrupt {combined}"));
    } else {
        line(format_args!(
            "smmu {index}: interrupts eventq {}, gerror {}, cmdq-sync {}, priq {}",
            show(lines.event_queue),
            show(lines.global_error),
            show(lines.command_sync),
            show(lines.pri_queue),
        ));
    }
}

fn report_bridge(bridge: &HostBridge, line: Line<'_>) {
    let segment = bridge.segment;
    let (first, last) = bridge.buses;
    match bridge.config {
        ConfigAccess::Ecam(span) => line(format_args!(
            "pci {segment:04x}: ECAM {span}, buses {first:02x}-{last:02x}, {}",
            bridge.coherency
        )),
        ConfigAccess::Rtas { buid } => line(format_args!(
            "pci {segment:04x}: BUID {buid:#x}, buses {first:02x}-{last:02x}"
        )),
    }
    for window in &bridge.windows {
        let end = window.kind != WindowKind::Io && window.bus == window.cpu.start().bits();
        if end {
            line(format_args!(
                "pci {segment:04x}: {} {}, {}",
                window.kind,
                window.cpu,
                size(window.cpu)
            ));
        } else {
            line(format_args!(
                "pci {segment:04x}: {} {}, {}, on the bus at {:#x}",
                window.kind,
                window.cpu,
                size(window.cpu),
                window.bus
            ));
        }
    }
    for (name, unit, ranges) in [
        ("stream", "smmu", bridge.streams.ranges()),
        ("device", "its", bridge.msis.ranges()),
    ] {
        for range in ranges {
            line(format_args!(
                "pci {segment:04x}: requesters {:#06x}+{:#x} are {name} {:#x}+ of {unit} {}",
                range.requester,
                range.count,
                range.output,
                OrDash(range.unit)
            ));
        }
    }
    if let Some(window) = bridge.dma_window {
        line(format_args!(
            "pci {segment:04x}: DMA window LIOBN {} at {:#x}, {}, {}",
            window.liobn,
            window.base,
            Size(window.bytes),
            if bridge.ddw.is_some() {
                "more by DDW"
            } else {
                "no DDW"
            }
        ));
    }
}

fn is_like(a: &Cpu, b: &Cpu) -> bool {
    let method = matches!(
        (&a.enable_method, &b.enable_method),
        (
            EnableMethod::SpinTable { .. },
            EnableMethod::SpinTable { .. }
        )
    ) || a.enable_method == b.enable_method;
    method && a.compatible == b.compatible && a.status == b.status
}

struct Method<'a>(&'a EnableMethod);

impl fmt::Display for Method<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            EnableMethod::Psci => ", started by PSCI",
            EnableMethod::Rtas => ", started by RTAS",
            EnableMethod::SpinTable { .. } => ", started by spin table",
            EnableMethod::Unknown => "",
        })
    }
}

struct Ids<'a>(&'a [Cpu]);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cpu) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{:#x}", cpu.id)?;
        }
        Ok(())
    }
}

struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{item}")?;
        }
        Ok(())
    }
}

/// The report, a line a fact.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut result = Ok(());
        self.report(&mut |line| {
            if result.is_ok() {
                result = fmt::Write::write_fmt(f, line).and_then(|()| f.write_str("\n"));
            }
        });
        result
    }
}
