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

    /// Is the best, when it is pending, for that vCPU, and more favoured.
    #[inline]
    fn favour(&self, at: usize, server: usize, best: &mut Best) {
        if self.server == server && self.priority < best.priority {
            *best = Best {
                priority: self.priority,
                number: self.source.number,
                line: Some(at),
            };
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
    /// The line whose bit was the last to be set.
    latest: usize,
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
            latest: 0,
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
            if *word & bit == 0 {
                self.due = self.due.wrapping_sub(1);
            } else {
                self.due = self.due.wrapping_add(1);
                self.latest = at;
            }
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
        match self.due {
            0 => {}
            1 if self.is_latest_due() => {
                let line = self.lines.get(self.latest)?;
                line.favour(self.latest, server, &mut best);
            }
            _ => self.favour(server, &mut best),
        }
        (best.priority < this.priority).then_some(best)
    }

    /// Whether the line that became pending last still is.
    #[inline]
    fn is_latest_due(&self) -> bool {
        let word = self.pending.get(self.latest / WORD);
        word.is_some_and(|word| word >> (self.latest % WORD) & 1 == 1)
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
                line.favour(at, server, best);
            }
        }
    }

    /// Whether the vCPU is to be interrupted.
    #[inline]
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
    #[inline]
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

    /// `H_XIRR`: accepts what is pending. The priority before, and the source; source 0 is none. Nothing is
    /// pending for the vCPU after it: what was accepted was the most favoured.
    #[inline]
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

    /// `H_EOI` of an edge or an interprocessor interrupt, whose end changes nothing but the priority: false, and
    /// nothing is done, when it is another's.
    #[inline]
    pub(crate) fn end_edge(&mut self, server: usize, accepted: u32) -> bool {
        let number = accepted & SOURCE_MASK;
        if number != 0 && number != IPI {
            let line = self.place(number).ok().and_then(|at| self.lines.get(at));
            if line.is_none_or(|line| line.source.kind != Kind::Edge) {
                return false;
            }
        }
        self.set_priority(server, accepted.to_be_bytes()[0]);
        true
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

    /// An event of an edge source: who is to look because of it.
    #[inline]
    pub(crate) fn signal(&mut self, number: u32) -> Result<Servers, UnknownSource> {
        let line = self.change_source(number, |line| line.event = true)?;
        let (server, priority, pending) = (line.server, line.priority, line.is_pending());
        let lets_through = |this: &Server| priority < this.priority;
        Ok(
            if pending && self.servers.get(server).is_some_and(lets_through) {
                Servers::one(server)
            } else {
                Servers::NONE
            },
        )
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
