//! A core driven by bytes: for fuzzing, and for the stored sequences that tests replay.
//!
//! The bytes are a sequence of steps. The first byte of a step chooses what is done, the following
//! ones are its arguments; missing bytes read as zero. After every step [`check`](super::check)
//! holds, or the run panics.

use alloc::vec::Vec;

use types::{Iova, Pa, Span};

use super::{APERTURE_START, Dma, Leaves, Mock};
use crate::{
    Access, Ats, Coherence, ContextFormat, DefaultSubstream, DeviceDescription, DeviceId, Endpoint,
    EventData, Extent, Hold, Id, Intent, Iommu, Kind, Listener, MemoryId, MsiRoute, NestedConfig,
    ObjectId, Operation, OwnerId, PAGE, Path, PeerToPeer, Pin, Region, RegionKind, Reply, Request,
    Residence, Revocation, StageOne, Target, Translate, UnitId, Unmapping,
};

const OWNERS: [OwnerId; 2] = [OwnerId::new(1), OwnerId::new(2)];

const TRANSLATE: NestedConfig = NestedConfig {
    stage_one: StageOne::Translate(Translate {
        format: ContextFormat::Linear,
        default_substream: DefaultSubstream::Terminate,
        substream_bits: 0,
        base: 0,
    }),
    ats: Ats::On,
};

/// What a double word of a record holds.
enum Field {
    Flags,
    Number,
    Place,
    Id(Kind),
    /// An address space or a domain.
    Target,
}

const fn fields(operation: Operation) -> &'static [Field] {
    use Field::{Flags, Id, Number, Place, Target};
    use Kind::{Device, Domain, Ioas, Memory, Viommu};
    match operation {
        Operation::Destroy => &[Target],
        Operation::CreateIoas => &[Flags],
        Operation::Allow => &[Id(Ioas), Flags],
        Operation::Copy => &[Flags, Id(Ioas), Id(Ioas), Place, Number, Place],
        Operation::Ranges => &[Id(Ioas), Flags],
        Operation::Map => &[Flags, Id(Ioas), Id(Memory), Number, Number, Place],
        Operation::Unmap => &[Id(Ioas), Place, Number],
        Operation::Option => &[Flags, Id(Ioas), Flags],
        Operation::Default => &[Flags, Id(Ioas)],
        Operation::CreateDomain => &[Flags, Id(Device), Id(Ioas)],
        Operation::SetDirtyTracking => &[Flags, Id(Domain)],
        Operation::Attach | Operation::Replace => &[Id(Device), Target],
        Operation::Detach => &[Id(Device)],
        Operation::CreateViommu => &[Id(Device), Id(Domain)],
        Operation::CreateVdevice => &[Id(Viommu), Id(Device), Number],
        Operation::CreateNested | Operation::Invalidate => &[Id(Viommu), Number],
        Operation::CreateEventQueue => &[Id(Viommu), Number],
        Operation::QueryWindow | Operation::ResetWindows => &[Id(Domain)],
        Operation::CreateWindow => &[Id(Domain), Number, Number],
        Operation::RemoveWindow => &[Id(Domain), Number],
    }
}

/// Reads a sequence byte by byte.
struct Bytes<'a> {
    rest: &'a [u8],
}

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::from(self.u8());
        from.get(at.checked_rem(from.len())?).copied()
    }

    /// A place and length: in small pages near a few bases, with now and then an odd byte.
    fn range(&mut self) -> (u64, u64) {
        let bases = [
            APERTURE_START,
            APERTURE_START,
            APERTURE_START,
            APERTURE_START,
            0,
            1 << 59,
            u64::MAX - 16 * PAGE + 1,
            0x0800_0000,
        ];
        let base = self.pick(&bases).unwrap_or(0);
        let (start, len, odd) = (self.u8(), self.u8(), self.u8());
        let start = base.wrapping_add(u64::from(start % 64) * 2048);
        let len = u64::from(len % 32) * 2048;
        match odd {
            1 => (start + 1, len),
            2 => (start, len + 1),
            3 => (start, u64::MAX - u64::from(odd)),
            _ => (start, len),
        }
    }

    fn span(&mut self) -> Option<Span<Iova>> {
        let (start, len) = self.range();
        if self.u8() == 7 {
            return Some(crate::area::span(0, u64::MAX));
        }
        Span::from_len(Iova::truncated(start), len)
    }
}

/// The world of one run.
struct World {
    core: Iommu<Mock>,
    /// Ids, with whose they are.
    objects: Vec<(u64, OwnerId)>,
    devices: Vec<DeviceId>,
    memory: Vec<MemoryId>,
    accesses: Vec<Id<Access>>,
    pins: Vec<Pin>,
    waiting: Vec<Revocation>,
}

fn world() -> Option<World> {
    let units = [UnitId::new(0), UnitId::new(1), UnitId::new(2)];
    let mock = Mock::new()
        .with_smmu(units[0], Leaves::SmallAndHuge)
        .with_smmu(units[1], Leaves::Small)
        .with_tce(units[2]);
    let mut core = Iommu::new(mock);
    let (mut devices, mut memory, mut accesses) = (Vec::new(), Vec::new(), Vec::new());
    let region = [Region {
        span: crate::area::span(APERTURE_START + 8 * PAGE, APERTURE_START + 9 * PAGE - 1),
        kind: RegionKind::Reserved,
    }];
    for (n, owner) in [0, 0, 0, 1, 0, 1].into_iter().enumerate() {
        let unit = units[n % 3];
        let group = core.add_group(unit, Residence::Free).ok()?;
        for member in 0..=(n % 2) {
            let source = u32::try_from(10 * n + member).ok()?;
            let description = DeviceDescription {
                group,
                sources: &[source],
                aliases: &[],
                reserved: if n == 1 { &region } else { &[] },
                path: if n == 4 {
                    Path::Open(1)
                } else {
                    Path::Redirected
                },
                msi: if unit == units[2] {
                    MsiRoute::Checked
                } else {
                    MsiRoute::Doorbell
                },
                coherence: Coherence::CoherentAlways,
                ats: if n == 3 { Ats::Off } else { Ats::On },
            };
            let device = core.add_device(&description).ok()?;
            core.bind(device, OWNERS[owner]).ok()?;
            devices.push(device);
        }
    }
    for (n, owner) in OWNERS.into_iter().enumerate() {
        let base = (n as u64 + 1) << 32;
        let extents =
            [(0, 64), (1 << 20, 2), (2 << 20, 1), (16 << 20, 512)].map(|(at, pages)| Extent {
                pa: Pa::truncated(base + at),
                bytes: pages * PAGE,
            });
        memory.push(core.add_ram(owner, &extents).ok()?);
        accesses.push(core.create_access(owner).ok()?);
    }
    let bar = Pa::truncated(1 << 40);
    memory.push(core.add_bar(*devices.first()?, bar, 8 * PAGE, &[]).ok()?);
    let mut world = World {
        core,
        objects: Vec::new(),
        devices,
        memory,
        accesses,
        pins: Vec::new(),
        waiting: Vec::new(),
    };
    for owner in OWNERS {
        let ioas = world.core.create_ioas(owner).ok()?;
        world
            .core
            .set_peer_to_peer(ioas, PeerToPeer::Enabled)
            .ok()?;
        world.objects.push((ioas.bits(), owner));
    }
    for id in &world.devices {
        let owner = world.core.device(*id).ok()?.owner()?;
        world.objects.push((id.bits(), owner));
    }
    for id in &world.memory {
        let owner = world.core.memory(*id).ok()?.owner();
        world.objects.push((id.bits(), owner));
    }
    Some(world)
}

impl World {
    /// A record whose ids are replaced by those of objects there are: every byte pair `0xee n` at
    /// a multiple of eight stands for object n.
    fn record(&self, bytes: &mut Bytes<'_>) -> Vec<u8> {
        let len = usize::from(bytes.u8() % 96);
        let mut record: Vec<u8> = (0..len).map(|_| bytes.u8()).collect();
        for word in record.chunks_exact_mut(8) {
            if let [0xee, n, ..] = *word {
                let at = usize::from(n) % self.objects.len().max(1);
                let id = self.objects.get(at).map_or(0, |(id, _)| *id);
                word.copy_from_slice(&id.to_le_bytes());
            }
        }
        record
    }

    fn request(&mut self, bytes: &mut Bytes<'_>) {
        let owner = OWNERS[usize::from(bytes.u8().is_multiple_of(8))];
        let operation = 0x80 + u32::from(bytes.u8() % 32);
        let record = self.record(bytes);
        let declared = record.len() + usize::from(bytes.u8() == 1);
        let reply = Request::decode(operation, declared, &record)
            .map_err(crate::Error::from)
            .and_then(|request| self.core.handle(owner, &request));
        if let Ok(Reply::Object(id)) = reply {
            self.learn(id, owner);
        }
    }

    /// A record of the right length, with ids where ids belong and small numbers elsewhere.
    fn plausible(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let operation = bytes.pick(&Operation::ALL)?;
        let owner = OWNERS[usize::from(bytes.u8().is_multiple_of(4))];
        let mut record = Vec::new();
        for field in fields(operation) {
            let choice = bytes.u8();
            let value = match field {
                Field::Flags => u64::from(choice % 8),
                Field::Number => u64::from(choice % 64) * 2048,
                Field::Place => APERTURE_START + u64::from(choice % 64) * 2048,
                Field::Id(_) if choice == 255 => {
                    self.objects[usize::from(choice) % self.objects.len()].0
                }
                Field::Id(kind) => {
                    let known: Vec<_> = self
                        .objects
                        .iter()
                        .filter(|(bits, of)| {
                            let id = ObjectId::from_bits(*bits);
                            *of == owner && id.is_some_and(|id| id.kind() == *kind)
                        })
                        .collect();
                    known.get(usize::from(choice).checked_rem(known.len())?)?.0
                }
                Field::Target => {
                    let known: Vec<_> = self
                        .objects
                        .iter()
                        .filter(|(bits, of)| {
                            let kind = ObjectId::from_bits(*bits).map(ObjectId::kind);
                            *of == owner && matches!(kind, Some(Kind::Ioas | Kind::Domain))
                        })
                        .collect();
                    known.get(usize::from(choice).checked_rem(known.len())?)?.0
                }
            };
            record.extend(value.to_le_bytes());
        }
        match operation {
            Operation::CreateNested => {
                let configs = [
                    NestedConfig::ABORT,
                    NestedConfig::BYPASS,
                    NestedConfig::INVALID,
                    TRANSLATE,
                ];
                record.truncate(8);
                record.extend([32, 0, 0, 0, 0, 0, 0, 0]);
                record.extend(bytes.pick(&configs)?.encode());
            }
            Operation::CreateEventQueue => {
                record.truncate(8);
                record.extend([bytes.u8() % 2, 0, 0, 0, bytes.u8() % 8, 0, 0, 0]);
            }
            Operation::Invalidate => {
                record.truncate(8);
                record.extend([40, 0, 0, 0, 1, 0, 0, 0]);
                record.extend([bytes.u8() % 5, 0, 0, 0, 0, 0, 0, 0]);
                record.extend([bytes.u8() % 4, 0, 0, 0, 0, 0, 0, 0]);
                record.extend([0; 24]);
            }
            Operation::CreateWindow => {
                record.truncate(8);
                record.extend([12 + bytes.u8() % 10, 0, 0, 0, 0, 0, 0, 0]);
                record.extend((1_u64 << (16 + bytes.u8() % 32)).to_le_bytes());
            }
            Operation::CreateVdevice => {
                record.truncate(16);
                record.extend([bytes.u8() % 4, 0, 0, 0, 0, 0, 0, 0]);
            }
            _ => {}
        }
        let request = Request::decode(operation as u32, record.len(), &record).ok()?;
        if let Reply::Object(id) = self.core.handle(owner, &request).ok()? {
            self.learn(id, owner);
        }
        Some(())
    }

    /// A span made of areas there are, most of the time.
    fn areas(&self, ioas: crate::IoasId, bytes: &mut Bytes<'_>) -> Option<Span<Iova>> {
        let span = bytes.span()?;
        let choice = bytes.u8();
        let space = self.core.ioas(ioas).ok()?;
        let first = space.areas.at_or_after(span.start().bits());
        match first {
            Some(area) if choice < 200 => Some(area.span()),
            Some(area) if choice < 230 => {
                let half = area.start + (area.last - area.start) / 2;
                Some(crate::area::span(area.start, half))
            }
            _ => Some(span),
        }
    }

    fn learn(&mut self, id: ObjectId, owner: OwnerId) {
        let entry = (id.bits(), owner);
        if !self.objects.contains(&entry) && self.objects.len() < 200 {
            self.objects.push(entry);
        }
    }

    fn ioas(&self, bytes: &mut Bytes<'_>) -> Option<crate::IoasId> {
        let spaces: Vec<_> = self
            .objects
            .iter()
            .filter_map(|(bits, _)| ObjectId::from_bits(*bits)?.typed())
            .filter(|id| self.core.ioas(*id).is_ok())
            .collect();
        bytes.pick(&spaces)
    }

    fn map(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let ioas = self.ioas(bytes)?;
        let memory = bytes.pick(&self.memory)?;
        let (start, len) = bytes.range();
        let flags = bytes.u8();
        let request = crate::Map {
            placement: if flags & 1 == 0 {
                crate::Placement::Fixed(Iova::truncated(start))
            } else {
                crate::Placement::Auto
            },
            memory,
            offset: u64::from(bytes.u8() % 80) * 2048,
            bytes: len,
            permissions: match flags & 6 {
                2 => crate::Permissions::Read,
                4 => crate::Permissions::Write,
                _ => crate::Permissions::ReadWrite,
            },
        };
        self.core.map(ioas, &request).ok().map(|_| ())
    }

    fn pin(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let access = bytes.pick(&self.accesses)?;
        let ioas = self.core.access(access).ok()?.ioas()?;
        let span = self.areas(ioas, bytes)?;
        let flags = bytes.u8();
        let intent = if flags & 1 == 0 {
            Intent::Read
        } else {
            Intent::Write
        };
        let hold = if flags & 6 == 6 {
            Hold::Hardware
        } else {
            Hold::Revocable
        };
        let pin = self.core.pin(access, span, intent, hold).ok()?;
        self.pins.push(pin);
        Some(())
    }

    fn unpin(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let at = usize::from(bytes.u8()).checked_rem(self.pins.len())?;
        let pin = self.pins.swap_remove(at);
        self.core.unpin(pin).ok()
    }

    fn poll(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let revocation = self.waiting.pop()?;
        if bytes.u8().is_multiple_of(4) {
            return self.core.abort_unmap(revocation).ok();
        }
        if let Ok(Unmapping::Waiting(again)) = self.core.poll_unmap(revocation) {
            self.waiting.push(again);
        }
        Some(())
    }

    fn dma(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let device = self.core.device(bytes.pick(&self.devices)?).ok()?;
        let endpoint = Endpoint {
            unit: device.unit(),
            source: device.sources().next()?,
        };
        let (start, _) = bytes.range();
        let access = if bytes.u8().is_multiple_of(2) {
            Dma::Read
        } else {
            Dma::Write
        };
        let mock = self.core.backend_mut();
        let _ = mock.dma(endpoint, Iova::truncated(start), access);
        let _ = self.core.report(endpoint, EventData::Smmu([0x10; 4]));
        Some(())
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match bytes.u8() % 24 {
            0 => self.request(bytes),
            1..=3 => self.plausible(bytes)?,
            4..=7 => self.map(bytes)?,
            8 | 9 => {
                let ioas = self.ioas(bytes)?;
                let span = self.areas(ioas, bytes)?;
                self.core.unmap(ioas, span).ok()?;
            }
            10 => {
                let ioas = self.ioas(bytes)?;
                let span = self.areas(ioas, bytes)?;
                if let Ok(Unmapping::Waiting(wait)) = self.core.begin_unmap(ioas, span) {
                    self.waiting.push(wait);
                }
            }
            11 => self.poll(bytes)?,
            12 => self.pin(bytes)?,
            13 => self.unpin(bytes)?,
            14 => {
                let (access, ioas) = (bytes.pick(&self.accesses)?, self.ioas(bytes)?);
                self.core.attach_access(access, ioas).ok()?;
            }
            15 => {
                let device = bytes.pick(&self.devices)?;
                let ioas = self.ioas(bytes)?;
                let domain = self.core.attach(device, Target::Ioas(ioas)).ok()?;
                let owner = self.core.device(device).ok()?.owner()?;
                self.learn(domain.any(), owner);
            }
            16 => {
                let device = bytes.pick(&self.devices)?;
                let ioas = self.ioas(bytes)?;
                self.core.replace(device, Target::Ioas(ioas)).ok()?;
            }
            17 => {
                let device = bytes.pick(&self.devices)?;
                self.core.detach(device).ok()?;
            }
            18 => {
                let device = bytes.pick(&self.devices)?;
                let page = Pa::truncated(u64::from(bytes.u8() % 4) << 16);
                self.core.map_doorbell(device, page).ok()?;
            }
            19 => {
                let device = bytes.pick(&self.devices)?;
                if bytes.u8().is_multiple_of(2) {
                    self.core.begin_reset(device).ok()?;
                } else {
                    self.core.end_reset(device).ok()?;
                }
            }
            20 => {
                let device = bytes.pick(&self.devices)?;
                if self.core.unbind(device).is_err() {
                    let owner = bytes.pick(&OWNERS)?;
                    self.core.bind(device, owner).ok()?;
                }
            }
            21 => self.dma(bytes)?,
            22 => {
                // One failure in the next step: of the core's memory, the tables', or of an
                // installation.
                let after = Some(u64::from(bytes.u8() % 8));
                match bytes.u8() % 3 {
                    0 => self.core.budget_mut().limit(after),
                    1 => self.core.backend_mut().fail_allocations_after(after),
                    _ => self.core.backend_mut().fail_install_after(after),
                }
                self.step(bytes);
                self.core.budget_mut().limit(None);
                let mock = self.core.backend_mut();
                mock.fail_allocations_after(None);
                mock.fail_install_after(None);
            }
            _ => return self.rarer(bytes),
        }
        Some(())
    }

    /// What is not asked for as often as the rest.
    fn rarer(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match bytes.u8() % 8 {
            0 => {
                let owner = bytes.pick(&OWNERS)?;
                let listener = Listener::Owner(owner);
                let queue = self
                    .core
                    .create_event_queue(listener, crate::EventKind::Fault, 2);
                self.learn(queue.ok()?.any(), owner);
            }
            1 => {
                let ioas = self.ioas(bytes)?;
                let (at, _) = bytes.range();
                self.core.split(ioas, Iova::truncated(at)).ok()?;
            }
            2 => {
                let ioas = self.ioas(bytes)?;
                let memory = bytes.pick(&self.memory)?;
                let span = self.areas(ioas, bytes)?;
                let request = crate::Map {
                    placement: crate::Placement::Fixed(span.start()),
                    memory,
                    offset: u64::from(bytes.u8() % 80) * 2048,
                    bytes: span.len()?,
                    permissions: crate::Permissions::Read,
                };
                self.core.exchange(ioas, &request).ok()?;
            }
            3 => self.dirty(bytes)?,
            4 => {
                let device = bytes.pick(&self.devices)?;
                let start = u64::from(bytes.u8() % 5) << 19;
                let _ = self.core.set_msi_start(device, 0x0800_0000 + start);
                let size = u64::from(bytes.u8() % 3);
                self.core.set_msi_size(device, size).ok()?;
            }
            5 => {
                let device = bytes.pick(&self.devices)?;
                let (at, _) = bytes.range();
                let page = Pa::truncated(u64::from(bytes.u8() % 4) << 16);
                let at = Iova::truncated(at);
                self.core.map_doorbell_at(device, at, page).ok()?;
            }
            6 => self.pages(bytes)?,
            _ => {
                let (from, to) = (self.ioas(bytes)?, self.ioas(bytes)?);
                let span = self.areas(from, bytes)?;
                let placement = match bytes.u8() % 4 {
                    0 => crate::Placement::Auto,
                    _ => crate::Placement::Fixed(Iova::truncated(bytes.range().0)),
                };
                let request = crate::Copy {
                    from,
                    span,
                    to,
                    placement,
                    permissions: crate::Permissions::Read,
                };
                self.core.copy(&request).ok()?;
            }
        }
        Some(())
    }

    /// Page by page, as an operating system maps: enough that areas are kept as a grid.
    fn pages(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let ioas = self.ioas(bytes)?;
        let memory = bytes.pick(&self.memory)?;
        let flags = bytes.u8();
        let start = APERTURE_START + u64::from(bytes.u8()) * PAGE;
        for page in 0..u64::from(bytes.u8()) {
            let at = match flags & 1 {
                0 => start + page * PAGE,
                _ => start + (255 - page) * PAGE,
            };
            let offset = match flags & 6 {
                0 => page % 64,
                2 => page * 7 % 64,
                _ => 0,
            };
            let at = Iova::truncated(at);
            if flags & 8 == 0 {
                let request = crate::Map {
                    placement: crate::Placement::Fixed(at),
                    memory,
                    offset: offset * PAGE,
                    bytes: PAGE,
                    permissions: crate::Permissions::ReadWrite,
                };
                let _ = self.core.map(ioas, &request);
            } else if let Some(span) = Span::from_len(at, PAGE) {
                let _ = self.core.unmap(ioas, span);
            }
        }
        Some(())
    }

    fn dirty(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let domains: Vec<crate::DomainId> = self
            .objects
            .iter()
            .filter_map(|(bits, _)| ObjectId::from_bits(*bits)?.typed())
            .collect();
        let domain = bytes.pick(&domains)?;
        let (start, len) = bytes.range();
        let span = Span::from_len(Iova::truncated(start), len)?;
        let mut bitmap = [0; 8];
        let flags = bytes.u8();
        if flags & 1 == 0 {
            let tracking = crate::DirtyTracking::On;
            self.core.set_dirty_tracking(domain, tracking).ok()?;
        }
        let read = match flags & 2 {
            0 => crate::DirtyRead::Keep,
            _ => crate::DirtyRead::Clear,
        };
        let page = 1024 << (flags >> 6);
        self.core
            .read_dirty(domain, span, page, read, &mut bitmap)
            .ok()
    }
}

/// Runs a sequence of steps, and returns how many there were.
///
/// # Panics
/// When an invariant does not hold.
pub fn exercise(sequence: &[u8]) -> usize {
    let Some(mut world) = world() else {
        assert!(sequence.is_empty(), "the world cannot be made");
        return 0;
    };
    let mut bytes = Bytes { rest: sequence };
    let mut steps = 0;
    while !bytes.rest.is_empty() && steps < 400 {
        world.step(&mut bytes);
        super::check(&world.core);
        steps += 1;
    }
    steps
}
