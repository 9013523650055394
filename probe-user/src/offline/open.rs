//! Requests that wait for their answers, so that one made inside another can be told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{segment::End, tried::Tried};

/// Requests that a request can lie in; of more nothing can be told.
const MOST_OUTER: usize = 16;
/// Requests that are looked through for a connection without a request of its own.
const MOST_LOOKED_AT: usize = 8_192;
/// A request that is repeated after a failure follows at once.
const REPEATED_NS: u64 = 100_000_000;
/// Failures whose repetition is waited for.
const MOST_FAILED: usize = 256;

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) client: End,
    pub(super) server: End,
    pub(super) begun_ns: u64,
    /// It can have been made for another: then it is an attempt itself.
    pub(super) inside: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// By what they ask for, and their number.
    requests: BTreeMap<(u64, u64), Waiting>,
    /// Attempts under way for a request.
    within: BTreeMap<u64, u32>,
    /// Requests whose answers are wanted, whatever they are.
    watched: BTreeSet<u64>,
    /// Attempts that failed lately: what was asked, by whom, when, its number.
    failed: VecDeque<(u64, End, u64, u64)>,
    /// Of requests that wait, the attempt that was answered last.
    tried: BTreeMap<u64, Box<Tried>>,
}

/// What a request asks for, in a number: the method and the last part of its path with the query. nginx may have put another prefix
/// before it (`proxy_pass http://backend/prefix/`), and another version behind it.
pub(super) fn key(line: &[u8]) -> u64 {
    let mut parts = line.splitn(2, |byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default();
    let uri = rest.iter().rposition(|byte| *byte == b' ').and_then(|end| rest.get(..end)).unwrap_or(rest);
    let path = uri.iter().position(|byte| *byte == b'?').unwrap_or(uri.len());
    let last = uri.get(..path).unwrap_or(uri).iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = method.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    uri.get(last..).unwrap_or_default().iter().fold(hash.rotate_left(29), mix)
}

impl Open {
    /// A request begins. Those it can lie in: equal ones that wait, of a server on the host that asks now; of any other host where there
    /// are none, because of what translates addresses.
    pub(super) fn begin(&mut self, key: u64, id: u64, waiting: Waiting) -> Vec<u64> {
        let mut near = Vec::new();
        let mut far = Vec::new();
        for ((_, outer), open) in self.requests.range((key, 0)..=(key, u64::MAX)) {
            if open.server == waiting.server || open.begun_ns > waiting.begun_ns || near.len() > MOST_OUTER {
                continue;
            }
            if open.server.address == waiting.client.address {
                near.push(*outer);
            } else if open.client.address != waiting.client.address && far.len() <= MOST_OUTER {
                far.push(*outer);
            }
        }
        let outer = if near.is_empty() { far } else { near };
        let inside = !outer.is_empty();
        self.requests.insert((key, id), Waiting { inside, ..waiting });
        if outer.len() > MOST_OUTER {
            return Vec::new();
        }
        for id in &outer {
            *self.within.entry(*id).or_default() += 1;
        }
        outer
    }

    /// A request is answered, or will not be; `outer`: those it lay in. Which of them still wait, with their servers.
    pub(super) fn end(&mut self, key: u64, id: u64, outer: &[u64]) -> Vec<(u64, End)> {
        self.requests.remove(&(key, id));
        self.within.remove(&id);
        self.tried.remove(&id);
        let mut waiting = Vec::new();
        for outer in outer {
            if let Some(count) = self.within.get_mut(outer) {
                *count -= 1;
                if *count == 0 {
                    self.within.remove(outer);
                }
            }
            waiting.extend(self.requests.get(&(key, *outer)).map(|open| (*outer, open.server)));
        }
        waiting
    }

    /// The requests that a connection can have been opened for that asked nothing itself: those that its host's servers had to answer
    /// then, and for which nothing else was under way.
    pub(super) fn behind(
        &self,
        client: End,
        server: End,
        begun_ns: u64,
        mut upstream: impl FnMut(End) -> bool,
    ) -> Vec<u64> {
        let mut found = Vec::new();
        for ((_, id), open) in self.requests.iter().take(MOST_LOOKED_AT) {
            if open.server.address == client.address
                && open.server != server
                && open.begun_ns <= begun_ns
                && !open.inside
                && !self.within.contains_key(id)
                && !upstream(open.server)
            {
                found.push(*id);
                if found.len() > MOST_OUTER {
                    return Vec::new();
                }
            }
        }
        found
    }

    /// Whether this request waits for its answer.
    pub(super) fn waits(&self, key: u64, id: u64) -> bool {
        self.requests.contains_key(&(key, id))
    }

    /// An attempt for this request was answered; should nginx answer something else, that will have to be told.
    pub(super) fn was_tried(&mut self, id: u64, tried: Tried) {
        self.tried.insert(id, Box::new(tried));
    }

    /// The attempt that was answered last for this request.
    pub(super) fn take_tried(&mut self, id: u64) -> Option<Box<Tried>> {
        self.tried.remove(&id)
    }

    /// The answer of this request is wanted.
    pub(super) fn watch(&mut self, id: u64) {
        self.watched.insert(id);
    }

    /// Whether it is.
    pub(super) fn is_watched(&self, id: u64) -> bool {
        self.watched.contains(&id)
    }

    /// It is told.
    pub(super) fn unwatch(&mut self, id: u64) {
        self.watched.remove(&id);
    }

    /// An attempt failed; whoever asks the same at once repeats it.
    pub(super) fn failed(&mut self, key: u64, client: End, at_ns: u64, id: u64) {
        if self.failed.len() >= MOST_FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back((key, client, at_ns, id));
    }

    /// The failed attempt that this request repeats.
    pub(super) fn repeats(&mut self, key: u64, client: End, begun_ns: u64) -> Option<u64> {
        let same = |(k, c, at, _): &(u64, End, u64, u64)| {
            *k == key && c.address == client.address && *at <= begun_ns && begun_ns - *at <= REPEATED_NS
        };
        let mut fitting = self.failed.iter().enumerate().filter(|(_, failed)| same(failed));
        let found = match (fitting.next(), fitting.next()) {
            (Some((place, _)), None) => Some(place),
            // Of several nobody can say which.
            _ => None,
        };
        found.and_then(|place| self.failed.remove(place)).map(|(.., id)| id)
    }
}
