//! A guest's stream table written down plainly: where an entry is, and what it asks for.
//!
//! From the manual and the crate's page alone: no field, no table and no rule is taken from the code
//! under test. Where that has types, this has shifts and masks of the manual's bit numbers.

/// Where the guest's RAM begins.
pub(crate) const RAM: u64 = 0x4000_0000;
/// How much there is: nothing else is memory.
pub(crate) const RAM_BYTES: u64 = 0x1_0000;

/// The register that takes messages.
pub(crate) const DOORBELL: u64 = 0x0809_0040;

/// The guest's memory, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl Memory {
    pub(crate) fn new() -> Self {
        Self(vec![0; RAM_BYTES as usize])
    }

    fn place(at: u64, bytes: u64) -> Option<usize> {
        let offset = at.checked_sub(RAM)?;
        (offset.checked_add(bytes)? <= RAM_BYTES).then_some(offset as usize)
    }

    /// Words in memory; `None` when any byte is not.
    pub(crate) fn words<const N: usize>(&self, at: u64) -> Option<[u64; N]> {
        let from = Self::place(at, 8 * N as u64)?;
        Some(std::array::from_fn(|i| {
            let word = &self.0[from + 8 * i..from + 8 * i + 8];
            u64::from_le_bytes(word.try_into().unwrap())
        }))
    }

    /// Whether a word of 32 bits was written.
    pub(crate) fn put_word(&mut self, at: u64, word: u32) -> bool {
        let Some(from) = Self::place(at, 4) else {
            return false;
        };
        self.0[from..from + 4].copy_from_slice(&word.to_le_bytes());
        true
    }

    /// Whether it was written: all of it, or nothing.
    pub(crate) fn put(&mut self, at: u64, words: &[u64]) -> bool {
        let Some(from) = Self::place(at, 8 * words.len() as u64) else {
            return false;
        };
        for (i, word) in words.iter().enumerate() {
            self.0[from + 8 * i..from + 8 * i + 8].copy_from_slice(&word.to_le_bytes());
        }
        true
    }
}

/// What the identification registers say, and what was chosen for the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    pub(crate) idr0: u64,
    pub(crate) idr1: u64,
    pub(crate) idr3: u64,
    pub(crate) idr5: u64,
    /// Out of reset every stream aborts; else it bypasses.
    pub(crate) aborts: bool,
    /// An invalidation of one address without a range must become everything.
    pub(crate) widens: bool,
}

impl Promise {
    pub(crate) fn substream_bits(&self) -> u64 {
        self.idr1 >> 6 & 0x1f
    }

    pub(crate) fn ats(&self) -> bool {
        self.idr0 >> 10 & 1 == 1
    }

    pub(crate) fn messages(&self) -> bool {
        self.idr0 >> 13 & 1 == 1
    }

    /// An address of the SMMU's own, cut to the promised size.
    pub(crate) fn cut(&self, address: u64) -> u64 {
        address & ((1 << self.address_bits()) - 1)
    }

    pub(crate) fn address_bits(&self) -> u32 {
        [32, 36, 40, 42, 44, 48, 52, 56][(self.idr5 & 7) as usize]
    }

    /// Log2 of the largest command and event queue.
    pub(crate) fn queues(&self) -> (u64, u64) {
        (self.idr1 >> 21 & 0x1f, self.idr1 >> 16 & 0x1f)
    }
}

/// What the hardware does with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    Abort,
    /// It aborts, and says so.
    Invalid,
    Bypass,
    Translate {
        format: u64,
        default: u64,
        bits: u64,
        base: u64,
        ats: bool,
    },
}

/// What the tables say of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Off,
    Good,
    NoEntry,
    NotFetched(u64),
    NotValid,
    Bad,
}

/// An address with its low bits cleared.
pub(crate) fn aligned(address: u64, log2: u64) -> u64 {
    match log2 {
        64.. => 0,
        log2 => address >> log2 << log2,
    }
}

/// A stream table as two registers describe it.
pub(crate) fn entry(
    memory: &Memory,
    promise: &Promise,
    (base, config): (u64, u64),
    stream: u32,
) -> Result<[u64; 8], Says> {
    let stream = u64::from(stream);
    // The alignment is that of the size as it was written.
    let written = config & 0x3f;
    let size = written.min(promise.idr1 & 0x3f);
    if stream >> size != 0 {
        return Err(Says::NoEntry);
    }
    let base = base & 0x000f_ffff_ffff_ffc0;
    if config >> 16 & 3 != 1 {
        let at = aligned(base, written + 6) + stream * 64;
        return memory.words(at).ok_or(Says::NotFetched(at));
    }
    let split = match config >> 6 & 0x1f {
        8 => 8,
        10 => 10,
        _ => 6,
    };
    let level1 = (written.saturating_sub(split) + 3).max(6);
    let at = aligned(base, level1) + (stream >> split) * 8;
    let Some([descriptor]) = memory.words(at) else {
        return Err(Says::NotFetched(at));
    };
    let span = descriptor & 0x1f;
    if span == 0 || span > split + 1 {
        return Err(Says::NoEntry);
    }
    let index = stream & ((1 << split) - 1);
    if index >= 1 << (span - 1) {
        return Err(Says::NoEntry);
    }
    let at = aligned(descriptor & 0x000f_ffff_ffff_ffc0, span - 1 + 6) + index * 64;
    memory.words(at).ok_or(Says::NotFetched(at))
}

/// What an entry asks for.
pub(crate) fn judge(ste: &[u64; 8], promise: &Promise) -> Result<Does, Says> {
    if ste[0] & 1 == 0 {
        return Err(Says::NotValid);
    }
    match ste[0] >> 1 & 7 {
        0..=3 => return Ok(Does::Abort),
        4 => return Ok(Does::Bypass),
        5 => {}
        _ => return Err(Says::Bad),
    }
    let ats = ste[1] >> 28 & 3;
    let base = ste[0] & 0x000f_ffff_ffff_ffc0;
    let two_levels = promise.idr0 >> 19 & 1 == 1;
    // Without substreams nothing is said of them; reserved values are as 0.
    let bits = match promise.substream_bits() {
        0 => 0,
        _ => ste[0] >> 59,
    };
    let known = |value: u64| if bits == 0 || value == 3 { 0 } else { value };
    let (format, default) = (known(ste[0] >> 4 & 3), known(ste[1] & 3));
    if bits > promise.substream_bits()
        || format != 0 && !two_levels
        || ste[1] >> 27 & 1 == 1
        || promise.ats() && ats == 2
        || base >> promise.address_bits() != 0
    {
        return Err(Says::Bad);
    }
    Ok(Does::Translate {
        format,
        default,
        bits,
        base,
        ats: promise.ats() && ats == 1,
    })
}
