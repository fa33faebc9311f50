//! A64 loads and stores [DDI 0487 C4.1.94, "Loads and Stores"].

use super::{
    Access, Address, Base, DecodeError, Direction, Extension, IndexExtend, Offset, Register, Size,
    WriteBack, field, number, sign_extend,
};

/// Instructions that access memory, but not in a way a device register can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// `LDXR`, `STXR`, `LDXP`, `STXP` and their acquire and release forms: a device has no
    /// exclusive monitor.
    Exclusive,
    /// `CAS`, `CASP` and their forms.
    CompareAndSwap,
    /// `LDADD`, `SWP` and the other atomic memory operations; 64-byte loads and stores.
    Atomic,
    /// `LDLAR`, `STLLR`: limited ordering regions.
    LimitedOrdering,
    /// `LDR` with an address relative to the program counter.
    Literal,
    /// `PRFM`: a prefetch reports no abort.
    Prefetch,
    /// `LD1` to `LD4`, `ST1` to `ST4` and their single-element forms.
    VectorStructure,
    /// `LDG`, `STG`, `STGP` and the other accesses to allocation tags.
    MemoryTag,
    /// `CPY*` and `SET*`: copies and fills of memory.
    MemoryCopy,
    /// `LDRAA`, `LDRAB`: loads through a signed pointer.
    PointerAuthentication,
    /// Loads and stores of SVE and SME registers.
    ScalableVector,
    /// `DC ZVA` and its tag forms.
    CacheZero,
    /// Any other instruction of the system group.
    System,
}

/// Reads the access from the instruction that was to make it.
///
/// # Errors
/// [`DecodeError::Unsupported`] by name, [`DecodeError::Unpredictable`], and
/// [`DecodeError::NotAnAccess`] for everything else: the guest changed the instruction while it was
/// trapping, or the architecture has grown.
pub fn from_instruction(word: u32) -> Result<Access, DecodeError> {
    let vector = field(word, 26, 26) != 0;
    match (field(word, 29, 27), field(word, 25, 24)) {
        (0b001, 0b00 | 0b01) if vector => Err(unsupported(Unsupported::VectorStructure)),
        (0b001, 0b00) => ordered(word),
        (0b011, 0b00) => Err(literal(word, vector)),
        (0b011, 0b01) => unscaled_ordered_or_memory(word, vector),
        (0b101, 0b00 | 0b01) => pair(word, vector),
        (0b111, 0b01) => unsigned_immediate(word, vector),
        (0b111, 0b00) if field(word, 21, 21) == 0 => signed_immediate(word, vector),
        (0b111, 0b00) => match (field(word, 11, 10), vector) {
            (0b10, _) => register_offset(word, vector),
            (0b00, false) => atomic(word),
            (0b01 | 0b11, false) if field(word, 31, 30) == 3 => {
                Err(unsupported(Unsupported::PointerAuthentication))
            }
            _ => Err(DecodeError::NotAnAccess(word)),
        },
        _ => Err(other(word)),
    }
}

fn unsupported(what: Unsupported) -> DecodeError {
    DecodeError::Unsupported(what)
}

/// What one element is: the same two fields say it in every class with one register.
struct Element {
    direction: Direction,
    size: Size,
    extension: Extension,
}

impl Element {
    /// From `size` (31:30) and `opc` (23:22).
    fn new(word: u32, vector: bool) -> Result<Self, DecodeError> {
        let size = field(word, 31, 30);
        let opc = field(word, 23, 22);
        let log2 = match (vector, opc) {
            (true, 2 | 3) if size == 0 => 4,
            (true, 2 | 3) => return Err(DecodeError::NotAnAccess(word)),
            _ => size,
        };
        let (direction, extension) = match (vector, opc) {
            (_, 0) | (true, 2) => (Direction::Store, Extension::Zero),
            (_, 1) | (true, _) => (Direction::Load, Extension::Zero),
            (false, 2) if size == 3 => return Err(unsupported(Unsupported::Prefetch)),
            (false, 2) => (Direction::Load, Extension::SignTo64),
            (false, _) if size < 2 => (Direction::Load, Extension::SignTo32),
            _ => return Err(DecodeError::NotAnAccess(word)),
        };
        Ok(Self {
            direction,
            size: Size::from_log2(log2).ok_or(DecodeError::NotAnAccess(word))?,
            extension,
        })
    }

    /// The access of one element. Prefetches have no indexed forms, so those never come here.
    fn access(self, word: u32, vector: bool, offset: Offset) -> Access {
        Access {
            direction: self.direction,
            size: self.size,
            extension: self.extension,
            first: data_register(number(word, 0), vector),
            second: None,
            address: Some(Address {
                base: base(word),
                offset,
            }),
            write_back: None,
        }
    }
}

fn base(word: u32) -> Base {
    match number(word, 5) {
        31 => Base::StackPointer,
        number => Base::General(number),
    }
}

fn data_register(number: u8, vector: bool) -> Register {
    if vector {
        Register::Vector(number)
    } else {
        Register::general(number)
    }
}

/// Whether the base register is this data register, which no indexed form may say.
fn is_base(word: u32, register: Register) -> bool {
    matches!((base(word), register), (Base::General(a), Register::General(b)) if a == b)
}

/// The immediate in bits `high` to `low` as a signed number.
fn signed_field(word: u32, high: u32, low: u32) -> i64 {
    let bits = high.wrapping_sub(low).wrapping_add(1);
    sign_extend(u64::from(field(word, high, low)), bits).cast_signed()
}

/// How an indexed form changes the base register, and from where it starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Indexing {
    Offset,
    PreIndex,
    PostIndex,
}

impl Indexing {
    /// The offset of the access and the change of the base register.
    fn apply(self, word: u32, bytes: i64) -> (Offset, Option<WriteBack>) {
        let write_back = WriteBack {
            base: base(word),
            delta: bytes,
        };
        match self {
            Self::Offset => (Offset::Bytes(bytes), None),
            Self::PreIndex => (Offset::Bytes(bytes), Some(write_back)),
            Self::PostIndex => (Offset::Bytes(0), Some(write_back)),
        }
    }
}

/// "Load/store register (unsigned immediate)".
fn unsigned_immediate(word: u32, vector: bool) -> Result<Access, DecodeError> {
    let element = Element::new(word, vector)?;
    let units = i64::from(field(word, 21, 10));
    let offset = Offset::Bytes(units.wrapping_shl(u32::from(element.size.log2())));
    Ok(element.access(word, vector, offset))
}

/// "Load/store register" (unscaled immediate), (immediate post-indexed), (unprivileged) and
/// (immediate pre-indexed).
fn signed_immediate(word: u32, vector: bool) -> Result<Access, DecodeError> {
    let (indexing, prefetches) = match field(word, 11, 10) {
        0b00 => (Indexing::Offset, true),
        0b01 => (Indexing::PostIndex, false),
        0b10 if vector => return Err(DecodeError::NotAnAccess(word)),
        0b10 => (Indexing::Offset, false),
        _ => (Indexing::PreIndex, false),
    };
    let element = match Element::new(word, vector) {
        Err(DecodeError::Unsupported(Unsupported::Prefetch)) if !prefetches => {
            return Err(DecodeError::NotAnAccess(word));
        }
        element => element?,
    };
    let (offset, write_back) = indexing.apply(word, signed_field(word, 20, 12));
    let access = element.access(word, vector, offset);
    if write_back.is_some() && is_base(word, access.first) {
        return Err(DecodeError::Unpredictable(word));
    }
    Ok(Access {
        write_back,
        ..access
    })
}

/// "Load/store register (register offset)".
fn register_offset(word: u32, vector: bool) -> Result<Access, DecodeError> {
    let extend = match field(word, 15, 13) {
        0b010 => IndexExtend::Uxtw,
        0b110 => IndexExtend::Sxtw,
        0b011 | 0b111 => IndexExtend::Full,
        _ => return Err(DecodeError::NotAnAccess(word)),
    };
    let element = Element::new(word, vector)?;
    let shift = if field(word, 12, 12) == 0 {
        0
    } else {
        element.size.log2()
    };
    let index = Register::general(number(word, 16));
    let offset = Offset::Register {
        index,
        extend,
        shift,
    };
    Ok(element.access(word, vector, offset))
}

/// "Load/store register pair" in its four forms.
fn pair(word: u32, vector: bool) -> Result<Access, DecodeError> {
    const NO_ALLOCATE: u32 = 0b00;
    let mode = field(word, 24, 23);
    let indexing = match mode {
        0b01 => Indexing::PostIndex,
        0b11 => Indexing::PreIndex,
        _ => Indexing::Offset,
    };
    let direction = if field(word, 22, 22) == 0 {
        Direction::Store
    } else {
        Direction::Load
    };
    let (size, extension) = match (field(word, 31, 30), vector) {
        (0, _) => (Size::Word, Extension::Zero),
        (1, true) | (2, false) => (Size::Double, Extension::Zero),
        (2, true) => (Size::Quad, Extension::Zero),
        (1, false) if mode != NO_ALLOCATE => match direction {
            Direction::Load => (Size::Word, Extension::SignTo64),
            Direction::Store => return Err(unsupported(Unsupported::MemoryTag)),
        },
        _ => return Err(DecodeError::NotAnAccess(word)),
    };
    let units = signed_field(word, 21, 15);
    let bytes = units.wrapping_shl(u32::from(size.log2()));
    let (offset, write_back) = indexing.apply(word, bytes);
    let first = data_register(number(word, 0), vector);
    let second = data_register(number(word, 10), vector);
    let twice = direction == Direction::Load && first == second;
    if twice || write_back.is_some() && (is_base(word, first) || is_base(word, second)) {
        return Err(DecodeError::Unpredictable(word));
    }
    Ok(Access {
        direction,
        size,
        extension,
        first,
        second: Some(second),
        address: Some(Address {
            base: base(word),
            offset,
        }),
        write_back,
    })
}

/// "Load/store exclusive", "Load/store ordered" and "Compare and swap".
fn ordered(word: u32) -> Result<Access, DecodeError> {
    let status = field(word, 20, 16);
    let second = field(word, 14, 10);
    match (
        field(word, 23, 23),
        field(word, 21, 21),
        field(word, 15, 15),
    ) {
        (0, 0, _) => Err(unsupported(Unsupported::Exclusive)),
        (0, 1, _) if field(word, 31, 31) != 0 => Err(unsupported(Unsupported::Exclusive)),
        (_, 1, _) if second == 31 => Err(unsupported(Unsupported::CompareAndSwap)),
        (1, 0, 0) => Err(unsupported(Unsupported::LimitedOrdering)),
        (1, 0, _) if status == 31 && second == 31 => {
            // Acquire and release order the access against others of this processor, which a trap
            // does by itself.
            let log2 = field(word, 31, 30);
            let element = Element {
                direction: if field(word, 22, 22) == 0 {
                    Direction::Store
                } else {
                    Direction::Load
                },
                size: Size::from_log2(log2).ok_or(DecodeError::NotAnAccess(word))?,
                extension: Extension::Zero,
            };
            Ok(element.access(word, false, Offset::Bytes(0)))
        }
        (1, 0, _) => Err(DecodeError::Unpredictable(word)),
        _ => Err(DecodeError::NotAnAccess(word)),
    }
}

/// "Load register (literal)".
fn literal(word: u32, vector: bool) -> DecodeError {
    match (field(word, 31, 30), vector) {
        (3, false) => unsupported(Unsupported::Prefetch),
        (3, true) => DecodeError::NotAnAccess(word),
        _ => unsupported(Unsupported::Literal),
    }
}

/// "LDAPR/STLR (unscaled immediate)", memory copies, and memory tags: bits 29:24 are 011x01.
fn unscaled_ordered_or_memory(word: u32, vector: bool) -> Result<Access, DecodeError> {
    let size = field(word, 31, 30);
    match (field(word, 21, 21), field(word, 11, 10)) {
        (0, 0b00) if !vector => match Element::new(word, false) {
            Err(_) => Err(DecodeError::NotAnAccess(word)),
            Ok(element) => {
                let offset = Offset::Bytes(signed_field(word, 20, 12));
                Ok(element.access(word, false, offset))
            }
        },
        (0, 0b01) if size == 0 => Err(unsupported(Unsupported::MemoryCopy)),
        (1, _) if size == 3 && !vector => Err(unsupported(Unsupported::MemoryTag)),
        _ => Err(DecodeError::NotAnAccess(word)),
    }
}

/// "Atomic memory operations", among which `LDAPR` is the one plain load.
fn atomic(word: u32) -> Result<Access, DecodeError> {
    const LDAPR_MASK: u32 = 0x3fff_fc00;
    const LDAPR: u32 = 0x38bf_c000;
    if word & LDAPR_MASK != LDAPR {
        return Err(unsupported(Unsupported::Atomic));
    }
    let log2 = field(word, 31, 30);
    let element = Element {
        direction: Direction::Load,
        size: Size::from_log2(log2).ok_or(DecodeError::NotAnAccess(word))?,
        extension: Extension::Zero,
    };
    Ok(element.access(word, false, Offset::Bytes(0)))
}

/// What lies outside the load and store group.
fn other(word: u32) -> DecodeError {
    /// `SYS`: the opcode without op1, CRn, CRm, op2 and Rt.
    const SYS: u32 = 0xd508_0000;
    const SYS_MASK: u32 = 0xfff8_0000;
    // DC ZVA, DC GVA and DC GZVA: op1 3, CRn 7, CRm 4, op2 1, 3, 4.
    const DC_ZERO: u32 = 0x000b_7400;
    const DC_ZERO_MASK: u32 = 0x000f_ff00;
    if word & SYS_MASK == SYS {
        let zeroes =
            word & DC_ZERO_MASK == DC_ZERO & DC_ZERO_MASK && matches!(field(word, 7, 5), 1 | 3 | 4);
        return unsupported(if zeroes {
            Unsupported::CacheZero
        } else {
            Unsupported::System
        });
    }
    if field(word, 28, 25) == 0b0010 && field(word, 31, 31) != 0 {
        return unsupported(Unsupported::ScalableVector);
    }
    DecodeError::NotAnAccess(word)
}
