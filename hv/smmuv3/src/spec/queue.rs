//! Queues: a ring whose indices have one bit more than its entries need. [IHI 0070 §3.5]

/// `EVENTQ_PROD.OVFLG` and `EVENTQ_CONS.OVACKFLG`.
pub const OVERFLOW: u32 = 1 << 31;

/// The size of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    log2: u8,
}

impl Shape {
    /// A queue of `1 << log2` entries; at most 19, the most the architecture has.
    #[must_use]
    pub const fn new(log2: u8) -> Self {
        Self {
            log2: if log2 > 19 { 19 } else { log2 },
        }
    }

    /// Log2 of the number of entries.
    #[must_use]
    pub const fn log2(self) -> u8 {
        self.log2
    }

    /// The number of entries.
    #[must_use]
    pub const fn entries(self) -> u32 {
        1 << self.log2
    }

    /// The index bits of a register, wrap bit included.
    #[must_use]
    pub const fn mask(self, register: u32) -> u32 {
        register & (self.entries() << 1).wrapping_sub(1)
    }

    /// Which entry an index is.
    #[must_use]
    pub const fn entry(self, index: u32) -> u32 {
        index & self.entries().wrapping_sub(1)
    }

    /// The index after `by` more entries.
    #[must_use]
    pub const fn advance(self, index: u32, by: u32) -> u32 {
        self.mask(index.wrapping_add(by))
    }

    /// How many entries are between two indices. More than there are entries means that one index is
    /// nonsense.
    #[must_use]
    pub const fn between(self, consumer: u32, producer: u32) -> u32 {
        self.mask(producer.wrapping_sub(consumer))
    }

    /// Whether nothing is in the queue.
    #[must_use]
    pub const fn is_empty(self, consumer: u32, producer: u32) -> bool {
        self.between(consumer, producer) == 0
    }

    /// Whether nothing more goes into it.
    #[must_use]
    pub const fn is_full(self, consumer: u32, producer: u32) -> bool {
        self.between(consumer, producer) >= self.entries()
    }
}

/// The value of a `*Q_BASE` register: allocating accesses, the base, the size.
#[must_use]
pub const fn base(base: u64, shape: Shape) -> u64 {
    1 << 62 | base & 0x000f_ffff_ffff_ffe0 | shape.log2 as u64
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn a_queue_is_full_when_the_wrap_bits_differ() {
        for log2 in [0, 1, 8, 19] {
            let shape = Shape::new(log2);
            let entries = shape.entries();
            assert!(shape.is_empty(0, 0) && !shape.is_full(0, 0));
            assert!(shape.is_full(0, entries) && !shape.is_empty(0, entries));
            let last = shape.advance(0, 2 * entries - 1);
            assert_eq!(shape.advance(last, 1), 0);
            assert_eq!(shape.between(last, shape.advance(last, entries)), entries);
            assert_eq!(shape.entry(last), entries - 1);
        }
    }
}
