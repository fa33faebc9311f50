//! XICS: interrupt sources, and a presentation controller for each vCPU. [LoPAPR §14.5.4.5, appendix A]
//!
//! There is no queue: what a vCPU is to be given is found when it asks, as the most favoured of what
//! is pending for it. So an interrupt that was shown and not accepted, and then was masked, moved or
//! outranked, needs no taking back.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::Servers;
use crate::servers::take_lowest;

/// The priority that accepts everything, or asks for nothing. 0 is the most favoured.
pub(crate) const LEAST: u8 = 0xff;
/// The source number of an interprocessor interrupt.
pub(crate) const IPI: u32 = 2;
/// Bits of a word.
const WORD: usize = 64;
/// What `XIRR` holds beside the priority.
const SOURCE_MASK: u32 = 0x00ff_ffff;

/// How a source signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each event is one interrupt.
    Edge,
    /// It interrupts for as long as its line is high.
    Level,
    /// As a level, but that the end of its interrupt makes the line low: whoever drives it is told by
    /// [`ended`](crate::Environment::ended) and looks again.
    Sampled,
}

/// An interrupt source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its number, above 2 and below 2^24.
    pub number: u32,
    /// How it signals.
    pub kind: Kind,
}

/// No such source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no interrupt source {0:#x}")]
pub struct UnknownSource(pub u32);

#[derive(Clone, Copy, Debug)]
struct Line {
    source: Source,
    server: usize,
    priority: u8,
    /// The priority that `ibm,int-on` brings back.
    saved: u8,
    /// Level, sampled: the line is high.
    high: bool,
    /// Edge: an event that nobody has accepted.
    event: bool,
    /// Level, sampled: accepted, and not yet ended.
    in_service: bool,
}

impl Line {
    fn is_pending(&self) -> bool {
        self.priority != LEAST
            && match self.source.kind {
                Kind::Edge => self.event,
                Kind::Level | Kind::Sampled => self.high && !self.in_service,
            }
    }
}

/// One presentation controller.
#[derive(Clone, Copy, Debug)]
struct Server {
    /// Only what is more favoured than this interrupts.
    priority: u8,
    /// The priority of a pending interprocessor interrupt.
    request: u8,
}

/// The interrupt controller of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Xics {
    servers: Vec<Server>,
    /// By ascending number.
    lines: Vec<Line>,
    /// The same lines by the numbers that follow one another: what finds a line.
    runs: Box<[Run]>,
    /// A bit for each line, in their order: it is pending. All others need not be looked at.
    pending: Box<[u64]>,
    /// How many bits there are in it.
    due: usize,
}

/// Lines whose numbers follow one another.
#[derive(Clone, Copy, Debug)]
struct Run {
    number: u32,
    count: u32,
    /// Where the first of them is.
    at: usize,
}

fn runs(lines: &[Line]) -> Box<[Run]> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let number = line.source.number;
        match runs.last_mut() {
            Some(run) if number.wrapping_sub(run.number) == run.count => {
                run.count = run.count.saturating_add(1);
            }
            _ => runs.push(Run {
                number,
                count: 1,
                at,
            }),
        }
    }
    runs.into_boxed_slice()
}

/// The end of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Who is to look.
    pub(crate) told: Servers,
    /// The source whose line is to be looked at again.
    pub(crate) sampled: Option<u32>,
}

/// What a vCPU is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Best {
    priority: u8,
    number: u32,
    /// Where its line is; the interprocessor interrupt has none.
    line: Option<usize>,
}

impl Xics {
    /// As a guest finds it: nothing pending, nothing let through, all sources masked.
    pub(crate) fn new(cpus: usize, sources: &[Source]) -> Self {
        let server = Server {
            priority: 0,
            request: LEAST,
        };
        let mut lines: Vec<Line> = sources
            .iter()
            .map(|source| Line {
                source: *source,
                server: 0,
                priority: LEAST,
                saved: LEAST,
                high: false,
                event: false,
                in_service: false,
            })
            .collect();
        lines.sort_unstable_by_key(|line| line.source.number);
        lines.dedup_by_key(|line| line.source.number);
        lines.retain(|line| line.source.number > IPI && line.source.number <= SOURCE_MASK);
        Self {
            servers: alloc::vec![server; cpus],
            runs: runs(&lines),
            pending: alloc::vec![0; lines.len().div_ceil(WORD)].into_boxed_slice(),
            lines,
            due: 0,
        }
    }

    /// Where the line of a source is.
    #[inline]
    fn place(&self, number: u32) -> Result<usize, UnknownSource> {
        // Messages are most of what is looked for, and are the last.
        let found = self.runs.iter().rev().find_map(|run| {
            let ahead = number.wrapping_sub(run.number);
            (ahead < run.count).then(|| run.at.wrapping_add(ahead as usize))
        });
        found.ok_or(UnknownSource(number))
    }

    /// Changes a line. This is the only way to, so that what is pending is known.
    #[inline]
    fn change(&mut self, at: usize, change: impl FnOnce(&mut Line)) -> Option<&Line> {
        let line = self.lines.get_mut(at)?;
        change(line);
        let bit = 1 << (at % WORD);
        let word = self.pending.get_mut(at / WORD)?;
        if line.is_pending() != (*word & bit != 0) {
            *word ^= bit;
            self.due = if *word & bit == 0 {
                self.due.saturating_sub(1)
            } else {
                self.due.saturating_add(1)
            };
        }
        Some(line)
    }

    fn change_source(
        &mut self,
        number: u32,
        change: impl FnOnce(&mut Line),
    ) -> Result<&Line, UnknownSource> {
        let at = self.place(number)?;
        self.change(at, change).ok_or(UnknownSource(number))
    }

    #[inline]
    fn best(&self, server: usize) -> Option<Best> {
        let this = self.servers.get(server)?;
        let mut best = Best {
            priority: this.request,
            number: IPI,
            line: None,
        };
        if self.due > 0 {
            self.favour(server, &mut best);
        }
        (best.priority < this.priority).then_some(best)
    }

    /// The same, when one of the pending lines is more favoured than `best`.
    #[inline(never)]
    fn favour(&self, server: usize, best: &mut Best) {
        let mut due = self.due;
        let mut words = self.pending.iter().enumerate();
        while due > 0 {
            let Some((number, word)) = words.next() else {
                return;
            };
            let mut left = *word;
            while let Some(bit) = take_lowest(&mut left) {
                due = due.saturating_sub(1);
                let at = number.wrapping_mul(WORD).wrapping_add(bit);
                let Some(line) = self.lines.get(at) else {
                    return;
                };
                if line.server == server && line.priority < best.priority {
                    *best = Best {
                        priority: line.priority,
                        number: line.source.number,
                        line: Some(at),
                    };
                }
            }
        }
    }

    /// Whether the vCPU is to be interrupted.
    pub(crate) fn is_pending(&self, server: usize) -> bool {
        self.best(server).is_some()
    }

    /// The vCPU, if it is to be interrupted.
    fn told(&self, server: usize) -> Servers {
        if self.is_pending(server) {
            Servers::one(server)
        } else {
            Servers::NONE
        }
    }

    /// `H_CPPR`.
    pub(crate) fn set_priority(&mut self, server: usize, priority: u8) {
        if let Some(server) = self.servers.get_mut(server) {
            server.priority = priority;
        }
    }

    /// `H_IPI`: who is to look; `None` when there is no such vCPU.
    pub(crate) fn set_request(&mut self, server: usize, priority: u8) -> Option<Servers> {
        self.servers.get_mut(server)?.request = priority;
        Some(self.told(server))
    }

    /// `H_XIRR`: accepts what is pending. The priority before, and the source; source 0 is none.
    pub(crate) fn accept(&mut self, server: usize) -> u32 {
        let best = self.best(server);
        let Some(this) = self.servers.get_mut(server) else {
            return 0;
        };
        let before = u32::from(this.priority) << 24;
        let Some(best) = best else {
            return before;
        };
        this.priority = best.priority;
        if let Some(at) = best.line {
            self.change(at, |line| {
                line.event = false;
                line.in_service = line.source.kind != Kind::Edge;
            });
        }
        before | best.number
    }

    /// `H_EOI`: the priority that [`Self::accept`] gave is back, and its source may interrupt again.
    /// Nothing changes when there is no such source.
    pub(crate) fn end(&mut self, server: usize, accepted: u32) -> Result<Ended, UnknownSource> {
        let number = accepted & SOURCE_MASK;
        let mut ended = Ended {
            told: Servers::NONE,
            sampled: None,
        };
        if number != 0 && number != IPI {
            let line = self.change_source(number, |line| {
                line.in_service = false;
                line.high &= line.source.kind != Kind::Sampled;
            })?;
            let (server, kind) = (line.server, line.source.kind);
            ended.sampled = (kind == Kind::Sampled).then_some(number);
            ended.told = self.told(server);
        }
        self.set_priority(server, accepted.to_be_bytes()[0]);
        Ok(ended)
    }

    /// `H_IPOLL`: what `H_XIRR` would give, and the request; `None` when there is no such vCPU.
    pub(crate) fn poll(&self, server: usize) -> Option<(u32, u8)> {
        let this = self.servers.get(server)?;
        let number = self.best(server).map_or(0, |best| best.number);
        Some((u32::from(this.priority) << 24 | number, this.request))
    }

    /// `ibm,set-xive`: who is to look; `None` when there is no such source or vCPU.
    pub(crate) fn route(&mut self, number: u32, server: u32, priority: u8) -> Option<Servers> {
        let server = usize::try_from(server).ok()?;
        self.servers.get(server)?;
        let routed = self.change_source(number, |line| {
            line.server = server;
            line.priority = priority;
            line.saved = priority;
        });
        routed.ok()?;
        Some(self.told(server))
    }

    /// `ibm,get-xive`: vCPU and priority.
    pub(crate) fn routed(&self, number: u32) -> Option<(usize, u8)> {
        let line = self.lines.get(self.place(number).ok()?)?;
        Some((line.server, line.priority))
    }

    /// `ibm,int-off`.
    pub(crate) fn mask(&mut self, number: u32) -> Result<(), UnknownSource> {
        let masked = self.change_source(number, |line| {
            if line.priority != LEAST {
                line.saved = line.priority;
                line.priority = LEAST;
            }
        });
        masked.map(|_| ())
    }

    /// `ibm,int-on`.
    pub(crate) fn unmask(&mut self, number: u32) -> Result<Servers, UnknownSource> {
        let unmasked = self.change_source(number, |line| line.priority = line.saved);
        let server = unmasked?.server;
        Ok(self.told(server))
    }

    /// An event of an edge source.
    pub(crate) fn signal(&mut self, number: u32) -> Result<Servers, UnknownSource> {
        let server = self.change_source(number, |line| line.event = true)?.server;
        Ok(self.told(server))
    }

    /// The line of a level source.
    pub(crate) fn set_line(&mut self, number: u32, high: bool) -> Result<Servers, UnknownSource> {
        let server = self.change_source(number, |line| line.high = high)?.server;
        Ok(self.told(server))
    }

    /// The source that `H_XIRR` would give, by a look at every line: what [`Self::best`] must agree with. 0 is none.
    #[cfg(test)]
    pub(crate) fn looked_for(&self, server: usize) -> u32 {
        let Some(this) = self.servers.get(server) else {
            return 0;
        };
        let of_lines = self.lines.iter().filter(|line| line.server == server);
        let of_lines = of_lines.filter(|line| line.is_pending());
        let best = of_lines.map(|line| (line.priority, line.source.number));
        let best = best.min().unwrap_or((LEAST, 0));
        let best = if this.request <= best.0 {
            (this.request, IPI)
        } else {
            best
        };
        if best.0 < this.priority { best.1 } else { 0 }
    }
}
