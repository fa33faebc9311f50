//! What enumeration found below one host bridge.

use alloc::vec::Vec;

use types::Bdf;

use crate::function::Function;
use crate::host::BusRange;
use crate::order::ordered;

/// The pin of the bridge above that a function's pin (1 to 4) comes out at.
pub(crate) fn swizzle(bdf: Bdf, pin: u8) -> u8 {
    (pin.wrapping_sub(1).wrapping_add(bdf.device()) & 3).wrapping_add(1)
}

/// Every function below one host bridge, in the order of their bus numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    segment: u16,
    buses: BusRange,
    roots: Vec<u8>,
    functions: Vec<Function>,
    not_ready: Vec<Bdf>,
    ignored: usize,
}

impl Topology {
    pub(crate) fn new(
        segment: u16,
        buses: BusRange,
        roots: Vec<u8>,
        functions: Vec<Function>,
        not_ready: Vec<Bdf>,
        ignored: usize,
    ) -> Self {
        Self {
            segment,
            buses,
            roots,
            functions: ordered(functions, |function| function.bdf.bits().into()),
            not_ready,
            ignored,
        }
    }

    /// The segment of the host bridge.
    #[must_use]
    pub fn segment(&self) -> u16 {
        self.segment
    }

    /// The buses of the host bridge.
    #[must_use]
    pub fn buses(&self) -> BusRange {
        self.buses
    }

    /// The root buses, ascending.
    #[must_use]
    pub fn roots(&self) -> &[u8] {
        &self.roots
    }

    /// All functions, ascending by [`Bdf`]: a bridge comes before what is below it.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    pub(crate) fn functions_mut(&mut self) -> &mut [Function] {
        &mut self.functions
    }

    /// Places that answered "try again later" and are not described.
    #[must_use]
    pub fn not_ready(&self) -> &[Bdf] {
        &self.not_ready
    }

    /// How many functions beyond the policy's bound were silenced and not described.
    #[must_use]
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The index of a function in [`Topology::functions`].
    #[must_use]
    pub fn index(&self, bdf: Bdf) -> Option<usize> {
        self.functions.binary_search_by_key(&bdf, |f| f.bdf).ok()
    }

    /// One function.
    #[must_use]
    pub fn function(&self, bdf: Bdf) -> Option<&Function> {
        self.functions.get(self.index(bdf)?)
    }

    /// Where the interrupt pin of a function comes out on the root bus: the function there whose
    /// pin it is, and which pin (1 is INTA). At each bridge a pin moves on by the device number
    /// below it.
    #[must_use]
    pub fn root_pin(&self, bdf: Bdf) -> Option<(Bdf, u8)> {
        let pin = self.function(bdf)?.interrupt_pin?;
        let above = self.bridges_above(bdf).map(|bridge| bridge.bdf);
        Some(above.fold((bdf, pin), |(at, pin), bridge| (bridge, swizzle(at, pin))))
    }

    /// The bridges above a function, nearest first.
    pub fn bridges_above(&self, bdf: Bdf) -> impl Iterator<Item = &Function> {
        let mut next = self.function(bdf).and_then(|f| f.parent);
        // A parent has a lower bus number than its child, so this ends.
        core::iter::from_fn(move || {
            let function = self.function(next?)?;
            next = function.parent;
            Some(function)
        })
    }
}
