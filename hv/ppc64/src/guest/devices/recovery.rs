//! Errors of devices, and how a guest recovers them: what `eeh` decides is done here.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use eeh::{Cause, Effect, ErrorService, Frozen, Service};
use hal::Clock;
use papr::Served;
use pci::{Progress, Reset};
use types::Bdf;

use super::config::MASTER;
use super::{Devices, HARDWARE, Held, PARAMETER, View, address};
use crate::config::RtasConfig;
use crate::console::TimeBase;
use crate::spr;

/// "Call again in 100 ms". [LoPAPR §7.2.8]
pub(super) const LATER: i32 = 9902;
/// The longest that a device's reset is waited for where nobody can call again.
pub(super) const RESET_US: u64 = 2_000_000;
/// `ibm,set-slot-reset`: the end of a reset.
const END: u32 = 0;

/// Seconds since some beginning.
fn now() -> u64 {
    spr::timebase() / TimeBase.frequency().max(1)
}

impl Held {
    /// What the monitor says of its errors.
    pub(super) fn line(&self) -> String {
        let (state, errors) = (self.pe.state(), self.pe.freezes());
        format!("PE {:08x}: {state:?}, {errors} errors", self.pe.address())
    }
}

impl Devices {
    /// Serves one of the services for errors.
    pub(super) fn recover(
        &self,
        view: View<'_>,
        service: Service,
        arguments: &[u32],
        results: usize,
    ) -> Served {
        let mut all = self.held.lock();
        let mut found = all.iter_mut();
        let Some(held) = found.find(|held| !held.returns && held.pe.is_meant(arguments)) else {
            return self.recover_away(view, service, arguments, results);
        };
        let ends = service == Service::SetReset && arguments.get(3) == Some(&END);
        if ends && held.pe.state() == eeh::State::Reset && !self.poll_resets(held) {
            return Served::new(LATER, &[]);
        }
        let bridge = held.bridge;
        let exists = |config| self.exists(bridge, config);
        let outcome = held.pe.service(service, arguments, results, exists);
        if outcome.effect != Effect::None && self.may_tell() {
            log::info!("vm {}: {} {arguments:x?}", self.vm, service.name());
        }
        if !self.carry_out(held, outcome.effect, view) {
            log::error!("vm {}: devices do not follow, and are given up", self.vm);
            let effect = held.pe.fail();
            let _ = self.carry_out(held, effect, view);
            return Served::new(HARDWARE, &[]);
        }
        // What an access finds that the guest turned off depends on whether it wants to hear of it.
        if service == Service::SetOption {
            self.show(held, view);
        }
        answer(&held.pe, &outcome, arguments, view)
    }

    /// Whether a configuration address names a function.
    pub(super) fn exists(&self, bridge: usize, config: u32) -> bool {
        let topology = &self.hardware.bridges[bridge].topology;
        let bits = u16::try_from(config >> 8 & 0xffff);
        bits.is_ok_and(|bits| topology.function(Bdf::from_bits(bits)).is_some())
    }

    /// An error of a device's. Nothing of its PE does anything more when this returns.
    pub(super) fn stop(&self, held: &mut Held, cause: Cause, view: View<'_>) {
        let (frozen, effect) = held.pe.freeze(cause, now());
        if frozen == Frozen::Already {
            return;
        }
        let buid = self.hardware.bridges[held.bridge].buid;
        let end = if frozen == Frozen::TooMany {
            ", for good"
        } else {
            ""
        };
        log::info!("vm {}: phb:{buid:x}: {cause:x?}: stopped{end}", self.vm);
        if !self.carry_out(held, effect, view) {
            log::error!("vm {}: phb:{buid:x} does not stop", self.vm);
            let _ = held.pe.fail();
        }
    }

    /// Serves one of the services by which a guest injects errors, into PEs of its own.
    pub(super) fn inject_error(
        &self,
        view: View<'_>,
        service: ErrorService,
        arguments: &[u32],
        results: usize,
    ) -> Served {
        match (service, arguments, results) {
            (ErrorService::Open, &[], 2) => {
                let [token, status] = self.injection.lock().open();
                // The token is where others have the status.
                Served::new(token, &[status.cast_unsigned()])
            }
            (ErrorService::Close, &[token], 1) => {
                Served::new(self.injection.lock().close(token), &[])
            }
            (ErrorService::Inject, &[kind, token, at], 1) => {
                let length = self.injection.lock().work_area(kind, token);
                let status = match length {
                    Ok(length) => self.inject_into(view, at, length),
                    Err(status) => status,
                };
                Served::new(status, &[])
            }
            (ErrorService::Open, ..) => Served::new(0, &[PARAMETER.cast_unsigned()]),
            _ => Served::new(PARAMETER, &[]),
        }
    }

    /// The error is there at once, whatever address the guest names.
    fn inject_into(&self, view: View<'_>, at: u32, length: usize) -> i32 {
        let mut area = [0; eeh::WORK_AREA];
        let Some(area) = area.get_mut(..length) else {
            return PARAMETER;
        };
        if view.memory.read(at.into(), area).is_err() {
            return PARAMETER;
        }
        let Some(victim) = eeh::victim(area) else {
            return PARAMETER;
        };
        let mut all = self.held.lock();
        let meant = |held: &&mut Held| {
            let [config, ..] = victim;
            let its = config == held.pe.address() || self.exists(held.bridge, config);
            its && !held.returns && held.pe.is_meant(&victim)
        };
        let Some(held) = all.iter_mut().find(meant) else {
            return PARAMETER;
        };
        let before = held.pe.freezes();
        self.stop(held, Cause::Injected, view);
        if held.pe.freezes() == before {
            // It is stopped already: no access is left to go wrong.
            return HARDWARE;
        }
        0
    }

    /// Stops all devices, as an error would.
    pub(crate) fn inject(&self, view: View<'_>) -> usize {
        let mut all = self.held.lock();
        for held in all.iter_mut() {
            self.stop(held, Cause::Injected, view);
        }
        all.len()
    }

    /// Does to the hardware what is to be done; false when it does not follow.
    fn carry_out(&self, held: &mut Held, effect: Effect, view: View<'_>) -> bool {
        let buid = self.hardware.bridges[held.bridge].buid;
        let messages = &self.hardware.messages;
        match effect {
            Effect::None => true,
            Effect::Stop => {
                messages.stop_pins(buid);
                let off = self.set_masters(held, Masters::None);
                self.show(held, view);
                off
            }
            Effect::AllowRegisters | Effect::DeassertReset => {
                self.restore_messages(held);
                self.show(held, view);
                if !held.isolated {
                    messages.allow_pins(buid);
                }
                true
            }
            Effect::AllowDma => self.set_masters(held, Masters::AsWanted),
            Effect::AssertReset(_) => {
                messages.stop_pins(buid);
                let off = self.set_masters(held, Masters::None);
                self.show(held, view);
                self.keep_messages(held);
                self.begin_resets(held);
                off
            }
        }
    }

    /// Lets devices master the bus as their guest wants it, or none. False when one does not follow.
    pub(super) fn set_masters(&self, held: &Held, which: Masters) -> bool {
        let rtas = self.hardware.rtas;
        let buid = self.hardware.bridges[held.bridge].buid;
        let mut sure = true;
        for function in &held.functions {
            let command = address(function.bdf) | 4;
            let Ok(old) = rtas.read_config(buid, command, 2) else {
                sure = false;
                continue;
            };
            let new = match which {
                Masters::AsWanted if function.masters && !held.isolated => old | MASTER,
                Masters::AsWanted | Masters::None => old & !MASTER,
            };
            // SAFETY: the device is the VM's, and its DMA reaches what the VM mapped.
            sure &= unsafe { rtas.write_config(buid, command, 2, new) }.is_ok();
        }
        sure
    }

    /// Begins to reset every function that can be reset, by itself or by the bus it is on; the others have
    /// lost their bus mastering and their interrupts.
    pub(super) fn begin_resets(&self, held: &mut Held) {
        let bridge = &self.hardware.bridges[held.bridge];
        let topology = &bridge.topology;
        // SAFETY: the devices are the VM's, which reaches them by way of us.
        let space = unsafe { RtasConfig::new(self.hardware.rtas, bridge.buid) };
        held.resets.clear();
        let mut buses: Vec<Bdf> = Vec::new();
        for function in &mut held.functions {
            (function.masters, function.decodes) = (false, true);
            let Some(described) = topology.function(function.bdf) else {
                continue;
            };
            match described.parent {
                // All below it are the VM's: the bridge on the host bridge's own bus is enough.
                Some(parent) => {
                    let mut top = parent;
                    while let Some(above) = topology.function(top).and_then(|top| top.parent) {
                        top = above;
                    }
                    if !buses.contains(&top) {
                        buses.push(top);
                    }
                }
                None => match Reset::function(&space, topology, function.bdf, &TimeBase) {
                    Ok(reset) => held.resets.push(reset),
                    Err(_) => silence(&space, described),
                },
            }
        }
        for bus in buses {
            match Reset::bus(&space, topology, bus, &TimeBase) {
                Ok(reset) => held.resets.push(reset),
                Err(error) => log::warn!("vm {}: {bus}: {error}", self.vm),
            }
        }
        let _ = self.poll_resets(held);
    }

    /// A device behind a bridge that cannot be reset.
    pub(super) fn without_reset(&self, at: usize) -> Option<Bdf> {
        let bridge = &self.hardware.bridges[at];
        let mut functions = bridge.topology.functions().iter();
        let without = functions.find(|function| {
            function.bridge().is_none()
                && function.parent.is_none()
                && !super::node::is_reset_alone(function)
        });
        without.map(|function| function.bdf)
    }

    /// Moves resets on. True when none is under way.
    pub(super) fn poll_resets(&self, held: &mut Held) -> bool {
        let bridge = &self.hardware.bridges[held.bridge];
        // SAFETY: as above.
        let space = unsafe { RtasConfig::new(self.hardware.rtas, bridge.buid) };
        held.resets.retain_mut(
            |reset| match reset.poll(&space, &bridge.topology, &TimeBase) {
                Ok(Progress::Wait(_)) => true,
                Ok(Progress::Done) => false,
                Err(error) => {
                    log::warn!("vm {}: phb:{:x}: {error}", self.vm, bridge.buid);
                    false
                }
            },
        );
        held.resets.is_empty()
    }

    /// Resets all devices of a bridge and waits for it.
    pub(super) fn reset_all(&self, held: &mut Held) {
        self.begin_resets(held);
        let end = spr::timebase() + TimeBase.ticks_of_us(RESET_US);
        while !self.poll_resets(held) {
            if spr::timebase() > end {
                log::warn!("vm {}: a device's reset does not end", self.vm);
                return;
            }
            hal::relax();
        }
    }

    /// As [`Devices::restart`], but that nobody waits for resets: nothing answers until they are over.
    pub(super) fn begin_return(&self, held: &mut Held, view: View<'_>) {
        (held.isolated, held.returns) = (true, true);
        while held.pe.restart() != Effect::None {}
        let _ = self.set_masters(held, Masters::None);
        self.begin_resets(held);
        self.show(held, view);
    }

    /// All is well again, as far as devices are not given up: a VM starts. No vCPU of it runs. False when
    /// a device still masters the bus.
    pub(super) fn restart(&self, held: &mut Held, view: View<'_>) -> bool {
        (held.isolated, held.returns) = (false, false);
        // What it asks for is part of what is done here anyway.
        while held.pe.restart() != Effect::None {}
        let off = self.set_masters(held, Masters::None);
        self.reset_all(held);
        self.show(held, view);
        off
    }
}

/// Which devices master the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Masters {
    /// Those that their guest lets.
    AsWanted,
    /// None.
    None,
}

/// What a service comes to, with the log where the guest wants it.
pub(super) fn answer(
    pe: &eeh::Pe,
    outcome: &eeh::Outcome,
    arguments: &[u32],
    view: View<'_>,
) -> Served {
    if outcome.has_log()
        && let Some((at, room)) = eeh::log_buffer(arguments)
    {
        let log = pe.log();
        let log = log.get(..room).unwrap_or(&log);
        if view.memory.write(at.into(), log).is_err() {
            return Served::new(PARAMETER, &[]);
        }
    }
    Served::new(outcome.status, outcome.values())
}

/// What can be taken from a function that has no reset: interrupts; bus mastering is off.
fn silence(space: &RtasConfig<'_>, function: &pci::Function) {
    use pci::ConfigSpace as _;
    const ENABLE_MSIX: u16 = 1 << 15;
    const ENABLE_MSI: u16 = 1;
    let controls = [
        (
            function.capabilities.msix.as_ref().map(|msix| msix.offset),
            ENABLE_MSIX,
        ),
        (
            function.capabilities.msi.as_ref().map(|msi| msi.offset),
            ENABLE_MSI,
        ),
    ];
    for (offset, enable) in controls {
        if let Some(control) = offset.and_then(|offset| offset.checked_add(2)) {
            let old = space.read16(function.bdf, control);
            space.write16(function.bdf, control, old & !enable);
        }
    }
}
