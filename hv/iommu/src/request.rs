//! Requests from outside as records, decoded by one rule.

mod handle;

use types::{Iova, PageSize};

use crate::area::Permissions;
use crate::backend::DirtyTracking;
use crate::codec::{CodecError, Declared};
use crate::domain::DomainOptions;
use crate::event::EventKind;
use crate::map::Placement;
use crate::nested::NestedConfig;
pub use handle::Reply;

/// The most ranges in one list of allowed ranges.
pub const MAX_RANGES: usize = 64;
/// How many ranges one answer carries.
pub const RANGES_IN_REPLY: usize = 8;

/// What is asked for. The numbers are those of the records' operation field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[expect(missing_docs, reason = "each is the method of `Iommu` of that name")]
pub enum Operation {
    Destroy = 0x80,
    CreateIoas = 0x81,
    Allow = 0x82,
    Copy = 0x83,
    Ranges = 0x84,
    Map = 0x85,
    Unmap = 0x86,
    Option = 0x87,
    Default = 0x88,
    CreateDomain = 0x89,
    SetDirtyTracking = 0x8a,
    Attach = 0x8b,
    Replace = 0x8c,
    Detach = 0x8d,
    CreateViommu = 0x90,
    CreateVdevice = 0x91,
    CreateNested = 0x92,
    Invalidate = 0x93,
    CreateEventQueue = 0x94,
    QueryWindow = 0x98,
    CreateWindow = 0x99,
    RemoveWindow = 0x9a,
    ResetWindows = 0x9b,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 23] = [
        Self::Destroy,
        Self::CreateIoas,
        Self::Allow,
        Self::Copy,
        Self::Ranges,
        Self::Map,
        Self::Unmap,
        Self::Option,
        Self::Default,
        Self::CreateDomain,
        Self::SetDirtyTracking,
        Self::Attach,
        Self::Replace,
        Self::Detach,
        Self::CreateViommu,
        Self::CreateVdevice,
        Self::CreateNested,
        Self::Invalidate,
        Self::CreateEventQueue,
        Self::QueryWindow,
        Self::CreateWindow,
        Self::RemoveWindow,
        Self::ResetWindows,
    ];

    /// The operation with this number.
    ///
    /// # Errors
    /// [`CodecError::UnknownOperation`].
    pub fn new(number: u32) -> Result<Self, CodecError> {
        let mut all = Self::ALL.into_iter();
        all.find(|known| *known as u32 == number)
            .ok_or(CodecError::UnknownOperation(number))
    }

    /// Bytes of the first version of its record, without a list that may follow.
    #[must_use]
    pub const fn least(self) -> usize {
        match self {
            Self::Destroy | Self::CreateIoas | Self::Detach => 8,
            Self::QueryWindow | Self::ResetWindows => 8,
            Self::Allow | Self::Ranges | Self::Default | Self::SetDirtyTracking => 16,
            Self::Attach | Self::Replace | Self::CreateViommu | Self::CreateNested => 16,
            Self::Invalidate | Self::CreateEventQueue | Self::RemoveWindow => 16,
            Self::Unmap | Self::Option | Self::CreateDomain | Self::CreateVdevice => 24,
            Self::CreateWindow => 24,
            Self::Copy | Self::Map => 48,
        }
    }
}

/// What an option is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Huge pages of an address space: 0 or 1.
    HugePages,
    /// The start of a device's interrupt window.
    MsiStart,
    /// Its size in MiB.
    MsiSize,
    /// Peer-to-peer in an address space: 0 or 1.
    PeerToPeer,
}

/// A decoded request. Ids are still numbers: they mean something only together with a sender.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "see the records in `decode` and the methods of `Iommu`"
)]
pub enum Request<'a> {
    Destroy {
        id: u64,
    },
    CreateIoas,
    Allow {
        ioas: u64,
        ranges: &'a [u8],
    },
    Copy {
        from: u64,
        to: u64,
        start: u64,
        bytes: u64,
        place: Placement,
        permissions: Permissions,
    },
    Ranges {
        ioas: u64,
        skip: u32,
    },
    Map {
        ioas: u64,
        memory: u64,
        offset: u64,
        bytes: u64,
        place: Placement,
        permissions: Permissions,
    },
    Unmap {
        ioas: u64,
        start: u64,
        bytes: u64,
    },
    GetOption {
        setting: Setting,
        object: u64,
    },
    SetOption {
        setting: Setting,
        object: u64,
        value: u64,
    },
    GetDefault,
    SetDefault {
        ioas: u64,
    },
    ClearDefault,
    CreateDomain {
        device: u64,
        ioas: u64,
        options: DomainOptions,
    },
    SetDirtyTracking {
        domain: u64,
        tracking: DirtyTracking,
    },
    Attach {
        device: u64,
        target: u64,
    },
    Replace {
        device: u64,
        target: u64,
    },
    Detach {
        device: u64,
    },
    CreateViommu {
        device: u64,
        parent: u64,
    },
    CreateVdevice {
        viommu: u64,
        device: u64,
        virtual_id: u64,
    },
    CreateNested {
        viommu: u64,
        config: NestedConfig,
    },
    Invalidate {
        viommu: u64,
        each: usize,
        count: usize,
        records: &'a [u8],
    },
    CreateEventQueue {
        viommu: u64,
        kind: EventKind,
        depth: u32,
    },
    QueryWindow {
        domain: u64,
    },
    CreateWindow {
        domain: u64,
        page: PageSize,
        bytes: u64,
    },
    RemoveWindow {
        domain: u64,
        base: u64,
    },
    ResetWindows {
        domain: u64,
    },
}

const FIXED: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

fn mapping_flags(record: &Declared<'_>) -> Result<(Placement, Permissions), CodecError> {
    let flags = record.flags(0, FIXED | WRITE | READ)?;
    record.reserved_u32(4)?;
    let permissions = match (flags & READ != 0, flags & WRITE != 0) {
        (true, true) => Permissions::ReadWrite,
        (true, false) => Permissions::Read,
        (false, true) => Permissions::Write,
        (false, false) => {
            return Err(CodecError::BadValue {
                at: 0,
                value: flags.into(),
            });
        }
    };
    let place = if flags & FIXED != 0 {
        Placement::Fixed(Iova::truncated(record.u64(40)))
    } else {
        Placement::Auto
    };
    Ok((place, permissions))
}

fn switch(record: &Declared<'_>, at: usize) -> Result<bool, CodecError> {
    Ok(record.flags(at, 1)? != 0)
}

fn count(record: &Declared<'_>, at: usize) -> Result<usize, CodecError> {
    let value = record.u32(at);
    usize::try_from(value).map_err(|_| CodecError::BadValue {
        at,
        value: value.into(),
    })
}

impl<'a> Request<'a> {
    /// Decodes the record of an operation. Fields are little-endian; a list follows at 16.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode(operation: u32, declared: usize, passed: &'a [u8]) -> Result<Self, CodecError> {
        let operation = Operation::new(operation)?;
        let least = operation.least();
        let tail = |bytes: usize| least.saturating_add(bytes);
        // How long the list is stands in the record, which is judged again with it.
        let head = Declared::new(declared.min(least), passed, least, least)?;
        let list = match operation {
            Operation::Allow => count(&head, 8)?.saturating_mul(16),
            Operation::CreateNested => count(&head, 8)?,
            Operation::Invalidate => count(&head, 8)?.saturating_mul(count(&head, 12)?),
            _ => 0,
        };
        let record = Declared::new(declared, passed, tail(list), tail(list))?;
        let list = passed.get(least..tail(list)).unwrap_or_default();
        Ok(match operation {
            Operation::Destroy => Self::Destroy { id: record.u64(0) },
            Operation::CreateIoas => {
                record.flags(0, 0)?;
                record.reserved_u32(4)?;
                Self::CreateIoas
            }
            Operation::Allow => {
                record.reserved_u32(12)?;
                Self::Allow {
                    ioas: record.u64(0),
                    ranges: list,
                }
            }
            Operation::Copy => {
                let (place, permissions) = mapping_flags(&record)?;
                Self::Copy {
                    from: record.u64(8),
                    to: record.u64(16),
                    start: record.u64(24),
                    bytes: record.u64(32),
                    place,
                    permissions,
                }
            }
            Operation::Ranges => {
                record.reserved_u32(12)?;
                Self::Ranges {
                    ioas: record.u64(0),
                    skip: record.u32(8),
                }
            }
            Operation::Map => {
                let (place, permissions) = mapping_flags(&record)?;
                Self::Map {
                    ioas: record.u64(8),
                    memory: record.u64(16),
                    offset: record.u64(24),
                    bytes: record.u64(32),
                    place,
                    permissions,
                }
            }
            Operation::Unmap => Self::Unmap {
                ioas: record.u64(0),
                start: record.u64(8),
                bytes: record.u64(16),
            },
            Operation::Option => {
                let number = record.u32(0);
                let setting = match number {
                    1 => Setting::HugePages,
                    2 => Setting::MsiStart,
                    3 => Setting::MsiSize,
                    4 => Setting::PeerToPeer,
                    other => {
                        return Err(CodecError::Unsupported {
                            at: 0,
                            value: other.into(),
                        });
                    }
                };
                let (object, value) = (record.u64(8), record.u64(16));
                match record.u32(4) {
                    0 => Self::SetOption {
                        setting,
                        object,
                        value,
                    },
                    1 if value == 0 => Self::GetOption { setting, object },
                    1 => return Err(CodecError::Unsupported { at: 16, value }),
                    other => {
                        return Err(CodecError::Unsupported {
                            at: 4,
                            value: other.into(),
                        });
                    }
                }
            }
            Operation::Default => {
                record.reserved_u32(4)?;
                let ioas = record.u64(8);
                match (record.u32(0), ioas) {
                    (0, 0) => Self::GetDefault,
                    (1, ioas) => Self::SetDefault { ioas },
                    (2, 0) => Self::ClearDefault,
                    (0 | 2, value) => return Err(CodecError::Unsupported { at: 8, value }),
                    (other, _) => {
                        return Err(CodecError::Unsupported {
                            at: 0,
                            value: other.into(),
                        });
                    }
                }
            }
            Operation::CreateDomain => {
                let flags = record.flags(0, 3)?;
                record.reserved_u32(4)?;
                Self::CreateDomain {
                    device: record.u64(8),
                    ioas: record.u64(16),
                    options: DomainOptions {
                        nest_parent: flags & 1 != 0,
                        dirty_tracking: flags & 2 != 0,
                    },
                }
            }
            Operation::SetDirtyTracking => {
                let on = switch(&record, 0)?;
                record.reserved_u32(4)?;
                Self::SetDirtyTracking {
                    domain: record.u64(8),
                    tracking: if on {
                        DirtyTracking::On
                    } else {
                        DirtyTracking::Off
                    },
                }
            }
            Operation::Attach => Self::Attach {
                device: record.u64(0),
                target: record.u64(8),
            },
            Operation::Replace => Self::Replace {
                device: record.u64(0),
                target: record.u64(8),
            },
            Operation::Detach => Self::Detach {
                device: record.u64(0),
            },
            Operation::CreateViommu => Self::CreateViommu {
                device: record.u64(0),
                parent: record.u64(8),
            },
            Operation::CreateVdevice => Self::CreateVdevice {
                viommu: record.u64(0),
                device: record.u64(8),
                virtual_id: record.u64(16),
            },
            Operation::CreateNested => {
                record.reserved_u32(12)?;
                Self::CreateNested {
                    viommu: record.u64(0),
                    config: NestedConfig::decode(list.len(), list)?,
                }
            }
            Operation::Invalidate => Self::Invalidate {
                viommu: record.u64(0),
                each: count(&record, 8)?,
                count: count(&record, 12)?,
                records: list,
            },
            Operation::CreateEventQueue => Self::CreateEventQueue {
                viommu: record.u64(0),
                kind: match record.u32(8) {
                    0 => EventKind::Fault,
                    1 => EventKind::PageRequest,
                    other => {
                        return Err(CodecError::Unsupported {
                            at: 8,
                            value: other.into(),
                        });
                    }
                },
                depth: record.u32(12),
            },
            Operation::QueryWindow => Self::QueryWindow {
                domain: record.u64(0),
            },
            Operation::CreateWindow => {
                let shift = record.u32(8);
                record.reserved_u32(12)?;
                let page = u8::try_from(shift)
                    .ok()
                    .and_then(|shift| PageSize::from_shift(shift).ok());
                Self::CreateWindow {
                    domain: record.u64(0),
                    page: page.ok_or(CodecError::BadValue {
                        at: 8,
                        value: shift.into(),
                    })?,
                    bytes: record.u64(16),
                }
            }
            Operation::RemoveWindow => Self::RemoveWindow {
                domain: record.u64(0),
                base: record.u64(8),
            },
            Operation::ResetWindows => Self::ResetWindows {
                domain: record.u64(0),
            },
        })
    }
}
