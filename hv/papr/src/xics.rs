//! XICS: interrupt sources, and a presentation controller for each vCPU. [LoPAPR §14.5.4.5, appendix A]
//!
//! There is no queue: what a vCPU is to be given is found when it asks, as the most favoured of what
//! is pending for it. So an interrupt that was shown and not accepted, and then was masked, moved or
//! outranked, needs no taking back.

use alloc::vec::Vec;

use crate::Servers;

/// The priority that accepts everything, or asks for nothing. 0 is the most favoured.
pub(crate) const LEAST: u8 = 0xff;
/// The source number of an interprocessor interrupt.
pub(crate) const IPI: u32 = 2;
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
    /// Lines with an event, or that are high: without any, none is looked at.
    raised: usize,
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
            lines,
            raised: 0,
        }
    }

    /// Changes what a source asks for.
    fn raise(
        &mut self,
        number: u32,
        change: impl FnOnce(&mut Line),
    ) -> Result<usize, UnknownSource> {
        let line = self.line(number)?;
        let asked = line.event || line.high;
        change(line);
        let asks = line.event || line.high;
        let server = line.server;
        self.raised = self
            .raised
            .saturating_add(asks.into())
            .saturating_sub(asked.into());
        Ok(server)
    }

    fn line(&mut self, number: u32) -> Result<&mut Line, UnknownSource> {
        let found = self
            .lines
            .binary_search_by_key(&number, |line| line.source.number);
        found
            .ok()
            .and_then(|at| self.lines.get_mut(at))
            .ok_or(UnknownSource(number))
    }

    fn best(&self, server: usize) -> Option<Best> {
        let this = self.servers.get(server)?;
        let mut best = Best {
            priority: this.request,
            number: IPI,
        };
        let lines = if self.raised == 0 {
            &[]
        } else {
            self.lines.as_slice()
        };
        for line in lines {
            if line.server == server && line.priority < best.priority && line.is_pending() {
                best = Best {
                    priority: line.priority,
                    number: line.source.number,
                };
            }
        }
        (best.priority < this.priority).then_some(best)
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
        // The interprocessor interrupt is no line.
        let _ = self.raise(best.number, |line| {
            line.event = false;
            line.in_service = line.source.kind != Kind::Edge;
        });
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
            let line = self.line(number)?;
            line.in_service = false;
            let (server, kind) = (line.server, line.source.kind);
            if kind == Kind::Sampled {
                self.raise(number, |line| line.high = false)?;
                ended.sampled = Some(number);
            }
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
        let line = self.line(number).ok()?;
        line.server = server;
        line.priority = priority;
        line.saved = priority;
        Some(self.told(server))
    }

    /// `ibm,get-xive`: vCPU and priority.
    pub(crate) fn routed(&mut self, number: u32) -> Option<(usize, u8)> {
        let line = self.line(number).ok()?;
        Some((line.server, line.priority))
    }

    /// `ibm,int-off`.
    pub(crate) fn mask(&mut self, number: u32) -> Result<(), UnknownSource> {
        let line = self.line(number)?;
        if line.priority != LEAST {
            line.saved = line.priority;
            line.priority = LEAST;
        }
        Ok(())
    }

    /// `ibm,int-on`.
    pub(crate) fn unmask(&mut self, number: u32) -> Result<Servers, UnknownSource> {
        let line = self.line(number)?;
        line.priority = line.saved;
        let server = line.server;
        Ok(self.told(server))
    }

    /// An event of an edge source.
    pub(crate) fn signal(&mut self, number: u32) -> Result<Servers, UnknownSource> {
        let server = self.raise(number, |line| line.event = true)?;
        Ok(self.told(server))
    }

    /// The line of a level source.
    pub(crate) fn set_line(&mut self, number: u32, high: bool) -> Result<Servers, UnknownSource> {
        let server = self.raise(number, |line| line.high = high)?;
        Ok(self.told(server))
    }
}
