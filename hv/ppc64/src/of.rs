//! The Open Firmware client interface [IEEE 1275-1994 §6.3].
//!
//! Every cell is 32 bits and big-endian, so whatever is passed lies below 4 GiB: the image with its
//! stacks and heap does. Firmware runs on the caller's stack.

use core::arch::global_asm;
use core::ffi::CStr;

use crate::assembly::{end_of_macros, macros};
use crate::hcall::{self, Hcall, SUCCESS};
use crate::{cpu, spr};

global_asm!(
    macros!(),
    r#"
    // r3 = argument block, r4 = entry of the firmware; r3 = its answer.
    .text
    .global firmware_call
firmware_call:
    mflr    0
    std     0, 16(1)
    stdu    1, -256(1)
    std     2, 32(1)
    mfcr    0
    std     0, 40(1)
    std     13, 48(1)
    std     14, 56(1)
    std     15, 64(1)
    std     16, 72(1)
    std     17, 80(1)
    std     18, 88(1)
    std     19, 96(1)
    std     20, 104(1)
    std     21, 112(1)
    std     22, 120(1)
    std     23, 128(1)
    std     24, 136(1)
    std     25, 144(1)
    std     26, 152(1)
    std     27, 160(1)
    std     28, 168(1)
    std     29, 176(1)
    std     30, 184(1)
    std     31, 192(1)
    mfmsr   5
    std     5, 200(1)
    address 6, firmware_stack
    std     1, 0(6)
    stdu    1, -512(1)              // the firmware's frames look otherwise: keep off ours
    address 6, firmware_return
    mtlr    6
    mtsrr0  4
    li      6, 0x3000               // MSR[FP], MSR[ME]: as the firmware had entered us
    mtsrr1  6
    rfid
firmware_return:
    to_little_endian
    address 6, firmware_stack
    ld      1, 0(6)
    ld      5, 200(1)
    mtmsrd  5
    ld      2, 32(1)
    ld      0, 40(1)
    mtcr    0
    ld      13, 48(1)
    ld      14, 56(1)
    ld      15, 64(1)
    ld      16, 72(1)
    ld      17, 80(1)
    ld      18, 88(1)
    ld      19, 96(1)
    ld      20, 104(1)
    ld      21, 112(1)
    ld      22, 120(1)
    ld      23, 128(1)
    ld      24, 136(1)
    ld      25, 144(1)
    ld      26, 152(1)
    ld      27, 160(1)
    ld      28, 168(1)
    ld      29, 176(1)
    ld      30, 184(1)
    ld      31, 192(1)
    addi    1, 1, 256
    ld      0, 16(1)
    mtlr    0
    blr

    .section .data.firmware_stack, "aw"
    .balign 8
firmware_stack:
    .quad   0
    .text
    "#,
    end_of_macros!(),
);

unsafe extern "C" {
    fn firmware_call(block: u64, entry: u64) -> u64;
}

/// How the client interface is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// Firmware in memory, entered here in big-endian 32-bit mode.
    Entry(u64),
    /// QEMU itself, by hcall; what it leaves in memory for others to enter does only that.
    Hcall,
}

/// A call that was not answered as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the platform's hypervisor does not serve the client interface (answer {0})")]
    NoHcall(i64),
    #[error("firmware refuses {} (answer {answer:#x})", name(service))]
    Refused { service: &'static CStr, answer: u32 },
    #[error("what is passed to {} lies above 4 GiB", name(service))]
    OutOfReach { service: &'static CStr },
}

/// A node of the firmware's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(u32);

impl Node {
    /// The number that references to the node hold.
    pub(crate) fn phandle(self) -> u32 {
        self.0
    }
}

/// The answer for "no such thing".
const NONE: u32 = u32::MAX;

/// Room for a property's name. [IEEE 1275-1994 §3.2.2.1.1 allows 31 characters]
pub(crate) type PropertyName = [u8; 64];

/// Cells of an argument block: service, counts, and at most seven of arguments and results.
const CELLS: usize = 10;

impl core::fmt::Display for Firmware {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Entry(entry) => write!(f, "firmware at {entry:#x}"),
            Self::Hcall => write!(f, "firmware in the platform"),
        }
    }
}

impl Firmware {
    /// The firmware behind the entry point that the image was given. `low` is the end of the memory
    /// that our vectors take: an entry there is the stub of a firmware that lives in the platform.
    pub(crate) fn new(entry: u64, low: u64) -> Self {
        if entry < low {
            Self::Hcall
        } else {
            Self::Entry(entry)
        }
    }

    fn call<const RESULTS: usize>(
        self,
        service: &'static CStr,
        arguments: &[u32],
    ) -> Result<[u32; RESULTS], Error> {
        let mut block = [0_u32; CELLS];
        let out_of_reach = Error::OutOfReach { service };
        let name = cell(service.as_ptr()).ok_or(out_of_reach)?;
        let counts = [arguments.len(), RESULTS].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let head = [name, counts[0], counts[1]];
        debug_assert!(head.len() + arguments.len() + RESULTS <= CELLS);
        for (cell, value) in block.iter_mut().zip(head.iter().chain(arguments)) {
            *cell = value.to_be();
        }
        let address: u64 = cell(block.as_mut_ptr()).ok_or(out_of_reach)?.into();
        let answer = match self {
            Self::Hcall => {
                // SAFETY: the services used here write to the block and to the buffers in it,
                // which the callers below lend them for the time of the call.
                let outcome = unsafe { hcall::call(Hcall::VofClient, [address, 0, 0, 0]) };
                if outcome.status != SUCCESS {
                    return Err(Error::NoHcall(outcome.status));
                }
                0
            }
            Self::Entry(entry) => {
                let cpu = spr::sprg0();
                // SAFETY: firmware gave us its entry, expects this mode, and keeps to its own
                // memory beside the block and the buffers in it.
                let answer = unsafe { firmware_call(address, entry) };
                // SAFETY: puts back what was there; firmware may use SPRGs for its own ends.
                unsafe { spr::set_sprg0(cpu) };
                answer
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "the answer is a cell")]
        let answer = answer as u32;
        if answer != 0 {
            return Err(Error::Refused { service, answer });
        }
        let results = &block[head.len() + arguments.len()..];
        Ok(core::array::from_fn(|i| u32::from_be(results[i])))
    }

    /// The first child, if any.
    pub(crate) fn child(self, node: Node) -> Result<Option<Node>, Error> {
        let [child] = self.call(c"child", &[node.0])?;
        Ok(some(child))
    }

    /// The next node with the same parent, if any.
    pub(crate) fn peer(self, node: Node) -> Result<Option<Node>, Error> {
        let [peer] = self.call(c"peer", &[node.0])?;
        Ok(some(peer))
    }

    /// The root.
    pub(crate) fn root(self) -> Result<Option<Node>, Error> {
        self.peer(Node(0))
    }

    /// Replaces the name of a property by that of the one behind it; the empty name stands before
    /// the first. False when there is none.
    pub(crate) fn next_property(self, node: Node, name: &mut PropertyName) -> Result<bool, Error> {
        let service = c"nextprop";
        let mut next: PropertyName = [0; _];
        let from = cell(name.as_ptr()).ok_or(Error::OutOfReach { service })?;
        let to = cell(next.as_mut_ptr()).ok_or(Error::OutOfReach { service })?;
        let [more] = self.call(service, &[node.0, from, to])?;
        next[next.len() - 1] = 0;
        *name = next;
        Ok(more == 1 && name[0] != 0)
    }

    /// Reads a property as far as the buffer goes, and gives its full length. `None` when the node
    /// does not have it.
    pub(crate) fn property(
        self,
        node: Node,
        name: &CStr,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, Error> {
        let service = c"getprop";
        let name = cell(name.as_ptr()).ok_or(Error::OutOfReach { service })?;
        let to = cell(buffer.as_mut_ptr()).ok_or(Error::OutOfReach { service })?;
        let room = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let [length] = self.call(service, &[node.0, name, to, room])?;
        Ok(length_of(length))
    }

    /// The length of a property. `None` when the node does not have it.
    pub(crate) fn property_length(self, node: Node, name: &CStr) -> Result<Option<usize>, Error> {
        let service = c"getproplen";
        let name = cell(name.as_ptr()).ok_or(Error::OutOfReach { service })?;
        let [length] = self.call(service, &[node.0, name])?;
        Ok(length_of(length))
    }

    /// Writes a node's path as far as the buffer goes, and gives its full length.
    pub(crate) fn path(self, node: Node, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let service = c"package-to-path";
        let to = cell(buffer.as_mut_ptr()).ok_or(Error::OutOfReach { service })?;
        let room = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let [length] = self.call(service, &[node.0, to, room])?;
        Ok(length_of(length))
    }

    /// The node at a path, if there is one.
    pub(crate) fn find(self, path: &CStr) -> Result<Option<Node>, Error> {
        let service = c"finddevice";
        let path = cell(path.as_ptr()).ok_or(Error::OutOfReach { service })?;
        let [node] = self.call(service, &[path])?;
        Ok(some(node))
    }

    /// Asks the platform for what `request` names; true when it agrees. Its tree is another one after that.
    /// [LoPAPR §B.6.2.3]
    pub(crate) fn agree(self, request: &[u8]) -> Result<bool, Error> {
        let service = c"call-method";
        let reach = |address: Option<u32>| address.ok_or(Error::OutOfReach { service });
        let root = reach(cell(c"/".as_ptr()))?;
        let [root] = self.call(c"open", &[root])?;
        let method = reach(cell(c"ibm,client-architecture-support".as_ptr()))?;
        let request = reach(cell(request.as_ptr()))?;
        let [failed, refused] = self.call(service, &[method, root, request])?;
        Ok(failed == 0 && refused == 0)
    }

    /// Tells the firmware that its devices are ours from now on.
    pub(crate) fn quiesce(self) -> Result<(), Error> {
        let [] = self.call(c"quiesce", &[])?;
        debug_assert!(cpu::this().guard_is_whole());
        Ok(())
    }
}

fn name(service: &CStr) -> &str {
    service.to_str().unwrap_or_default()
}

fn some(node: u32) -> Option<Node> {
    (node != 0 && node != NONE).then_some(Node(node))
}

fn length_of(length: u32) -> Option<usize> {
    if length == NONE {
        None
    } else {
        usize::try_from(length).ok()
    }
}

/// The address as a cell.
fn cell<T>(pointer: *const T) -> Option<u32> {
    u32::try_from(pointer.expose_provenance()).ok()
}
