//! What was asked for when a request failed: the next answer to the same can come from nginx's cache.

use std::collections::VecDeque;

use super::{limits::Limits, memory::AskedFor};
use crate::model::case::{Case, Request, Stored};

/// The newest failures, by host and URI, as far as [`Limits::failures`] goes.
#[derive(Debug, Default)]
pub(super) struct Answered(VecDeque<(Option<String>, String, Option<u16>, Stored)>);

impl Answered {
    /// Keeps a failure in which something was tried.
    pub(super) fn keep(&mut self, case: &Case, limits: &Limits) {
        let Some(uri) = case.request.uri.clone().filter(|_| !case.attempts.is_empty()) else { return };
        if self.0.len() >= limits.failures {
            self.0.pop_front();
        }
        let stored = Stored { case: case.id.clone(), at: case.decided.latest };
        self.0.push_back((case.request.host.clone(), uri, case.status, stored));
    }

    /// Every failure kept, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = AskedFor> {
        self.0.iter().map(|(host, uri, status, stored)| AskedFor {
            host: host.clone(),
            uri: uri.clone(),
            status: *status,
            case: stored.case.clone(),
            at: stored.at,
        })
    }

    /// Keeps what another run kept.
    pub(super) fn resume(&mut self, all: Vec<AskedFor>) {
        let stored = |AskedFor { host, uri, status, case, at }| (host, uri, status, Stored { case, at });
        self.0.extend(all.into_iter().map(stored));
    }

    /// The last one of the same request.
    pub(super) fn of(&self, request: &Request, status: Option<u16>) -> Option<Stored> {
        let uri = request.uri.as_ref()?;
        let same = |(host, asked, said, _): &&(Option<String>, String, Option<u16>, Stored)| {
            // A log may not have the host.
            let same_host = *host == request.host || host.is_none() || request.host.is_none();
            same_host && asked == uri && *said == status
        };
        self.0.iter().rev().find(same).map(|(.., stored)| stored.clone())
    }
}
