//! What is known of the address that an attempt's connection was led to, where this host translates the upstream's.

use std::collections::BTreeSet;

use super::{Correlator, Question};
use crate::model::{
    attempt::{Attempt, Joined},
    event::EventId,
    flow::{Flow, Led},
    host::HostFact,
    net::Address,
    time::{At, Moment},
};

/// What is known of it; each connection is told where it was led, if what happened there was watched.
pub(super) fn led(correlator: &Correlator, list: &mut [Attempt], began: Moment) -> Vec<(EventId, At, HostFact)> {
    let mut facts = Vec::new();
    for attempt in list {
        of_attempt(correlator, attempt, began, &mut facts);
    }
    facts
}

fn of_attempt(correlator: &Correlator, attempt: &mut Attempt, began: Moment, facts: &mut Vec<(EventId, At, HostFact)>) {
    let translations = &correlator.translations;
    let Some(asked) = attempt.upstream.as_ref().and_then(Address::ip) else { return };
    let own = attempt.flow.one().and_then(|flow| {
        let begun = flow.events.front().map_or(began, |first| first.at.earliest);
        translations.of((flow.local?, asked), begun)
    });
    let seen_at = attempt.flow.one().and_then(|flow| flow.led.as_ref()).map(|led| led.to);
    let Some((to, netns)) = own.and_then(|(.., fact)| destination(fact)).or(seen_at.map(|to| (to, None))) else {
        // A table of connections forgets one that was refused at once, and one that was reset after seconds: what is known is where others
        // to the same upstream were led.
        facts.extend(translations.of_others(asked).into_iter().cloned());
        return;
    };
    facts.extend(own.cloned());
    facts.extend(correlator.host.about(&BTreeSet::from([Question::listeners(to, netns)]), began));
    if let Joined::One(flow) = &mut attempt.flow
        && is_watched(flow, translations.watched_since(to, &correlator.flows))
    {
        flow.led.get_or_insert_with(|| Led { to, there: Vec::new() });
    }
}

fn destination(fact: &HostFact) -> Option<(std::net::SocketAddr, Option<u32>)> {
    match fact {
        HostFact::Translated { to, netns, .. } => Some((*to, *netns)),
        _ => None,
    }
}

/// What happens at its other end is watched since then: of one that had begun before, what was not seen would seem not to have happened.
fn is_watched(flow: &Flow, since: Option<Moment>) -> bool {
    let first = flow.events.front().filter(|_| flow.seen_from_start);
    first.zip(since).is_some_and(|(first, since)| since <= first.at.earliest)
}
