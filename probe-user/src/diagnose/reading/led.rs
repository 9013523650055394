//! Where this host's address translation led the attempt's connection.

use std::net::SocketAddr;

use super::{Reading, evidence};
use crate::model::{
    event::EventId,
    evidence::{Evidence, Fact, Weight},
    flow::Led,
    host::HostFact,
};

/// Where the other end of the attempt's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Where nginx connected to, as far as anybody knows.
    Straight,
    /// It was led here, and what happened there was watched.
    Watched(SocketAddr),
    /// It was led here. Of what happened there nothing is known to be this connection's.
    Unwatched(SocketAddr),
    /// Others to the same upstream were led elsewhere; of this one nobody knows.
    Unclear,
}

impl Reading<'_> {
    /// Where the other end of the connection is.
    pub(super) fn way(&self) -> Way {
        match (self.led(), self.told_of_own()) {
            (Some(led), _) => Way::Watched(led.to),
            (None, Some((_, to))) => Way::Unwatched(to),
            (None, None) if self.told_of_others().is_empty() => Way::Straight,
            (None, None) => Way::Unclear,
        }
    }

    /// The address of the server: the one that nginx has, or the one that the connection was led to.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        match self.way() {
            Way::Watched(to) | Way::Unwatched(to) => Some(to),
            Way::Straight | Way::Unclear => self.upstream(),
        }
    }

    /// Whether a listener on this address, which may be any address of its network namespace, is the upstream's.
    pub(super) fn is_upstreams(&self, listener: SocketAddr) -> bool {
        [self.upstream(), self.server()].into_iter().flatten().any(|address| {
            listener.port() == address.port() && (listener.ip().is_unspecified() || listener.ip() == address.ip())
        })
    }

    /// Where the connection was led, and a sentence that says so: whoever looks for the upstream's log must know which of those behind the
    /// address it was.
    pub(crate) fn translation(&self) -> Option<(Evidence, String)> {
        let upstream = self.upstream()?;
        let led = |to| format!(" This host led the connection to {to} (address translation of {upstream}).");
        if let Some((told, to)) = self.told_of_own() {
            return Some((evidence(Fact::Translated { upstream, to }, &[told], Weight::Fits), led(to)));
        }
        if let Some(Led { to, there }) = self.led() {
            // What was seen there of this very connection proves it.
            let first = self.flow_events().map(|event| event.id).find(|id| there.contains(id));
            let events: Vec<EventId> = first.into_iter().collect();
            return Some((evidence(Fact::Translated { upstream, to: *to }, &events, Weight::Fits), led(*to)));
        }
        let others = self.told_of_others();
        let (newest, _) = others.last()?;
        let to: Vec<SocketAddr> = others.iter().rev().map(|(_, to)| *to).collect();
        let names: Vec<String> = to.iter().map(ToString::to_string).collect();
        let sentence = format!(
            " This host led other connections to {upstream} to {} (address translation); where it led this one was not seen.",
            names.join(", ")
        );
        Some((evidence(Fact::OthersTranslated { upstream, to }, &[*newest], Weight::Fits), sentence))
    }

    fn led(&self) -> Option<&Led> {
        self.flow()?.led.as_ref()
    }

    /// What the kernel's table told of this very connection.
    fn told_of_own(&self) -> Option<(EventId, SocketAddr)> {
        let flow = self.flow()?;
        let began = flow.events.front().map(|first| first.at.earliest);
        let wanted = (self.upstream()?, flow.local?);
        self.case.host.iter().rev().find_map(|(event, at, fact)| match fact {
            // What was told before it began is of another one with the same addresses.
            HostFact::Translated { upstream, local, to, .. }
                if (*upstream, *local) == wanted && began.is_none_or(|began| at.latest >= began) =>
            {
                Some((*event, *to))
            }
            _ => None,
        })
    }

    /// What it told of others, in the order of the stream.
    fn told_of_others(&self) -> Vec<(EventId, SocketAddr)> {
        let Some(wanted) = self.upstream() else { return Vec::new() };
        let mut told: Vec<(EventId, SocketAddr)> = self
            .case
            .host
            .iter()
            .filter_map(|(event, _, fact)| match fact {
                HostFact::Translated { upstream, to, .. } if *upstream == wanted => Some((*event, *to)),
                _ => None,
            })
            .collect();
        told.sort_unstable();
        told
    }
}
