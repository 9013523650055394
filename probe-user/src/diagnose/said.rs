//! What the causes share whose proof is one word of nginx or one errno of a call.

use super::{
    cause::Finding,
    reading::{Locality, Reading, complaint_evidence, evidence, need},
};
use crate::model::evidence::Fact;
use crate::model::{
    complaint::{Complaint, Message},
    coverage::Sensor,
    event::Source,
    evidence::Weight,
    net::Errno,
};

/// nginx itself decides by counters and parsers of its own: its message, seen by the kernel as it is made, is the cause itself; read in
/// a log it is a word.
pub(super) fn nginx_said<'a>(reading: &Reading<'a>, messages: &[Message]) -> Option<(Finding, &'a Complaint)> {
    let (event, complaint) = messages.iter().find_map(|message| reading.complained(*message))?;
    let mut evidence = complaint_evidence(event, complaint);
    let mut finding = Finding::default();
    if event.source == Source::Kernel {
        evidence.weight = Weight::Direct;
    } else {
        finding.missing.push(need(Sensor::NginxFunctions, "nginx's own function at the moment it said so"));
    }
    finding.support(Some(evidence));
    Some((finding, complaint))
}

/// Nothing came in time: what the upstream's kernel took need not have reached an application, and an answer may be lost on the way.
pub(super) fn unseen_beyond_the_kernel(finding: &mut Finding, reading: &Reading<'_>) {
    if reading.taken_by_application().is_none() {
        not_taken(finding, reading);
    }
    if reading.unix_path().is_some() {
        // What is written there has arrived.
        return;
    }
    // What the upstream sent in vain only its own kernel tells.
    if reading.locality() != Locality::Here {
        finding.not_excluded(&["path-stall"]);
    } else if reading.upstream_when_nginx_left().is_none_or(|(tcp, _)| tcp.unacknowledged() > 0) {
        finding.not_excluded(&["path-stall"]);
        finding.missing.push(need(Sensor::SocketStates, "that the upstream had sent nothing which did not arrive"));
    }
}

/// Nobody is known to have accepted the connection: it may have waited in the accept queue, for want of descriptors or of somebody to accept.
fn not_taken(finding: &mut Finding, reading: &Reading<'_>) {
    // Only who finds no room in the queue suffers from its being full.
    let found_room = reading.found_room();
    if !found_room && reading.unix_path().is_none() {
        finding.not_excluded(&["accept-queue-overflow"]);
    }
    if !finding.support(reading.never_accepted()) {
        finding.not_excluded(&["fd-exhausted-upstream"]);
        finding.missing.push(reading.unseen(Sensor::Syscalls, "whether an application had accepted the connection"));
        return;
    }
    if !finding.support(reading.has_descriptors()) {
        finding.not_excluded(&["fd-exhausted-upstream"]);
        finding.missing.push(need(Sensor::Host, "whether everybody who may accept there had descriptors left"));
    }
}

/// So many bytes of an answer came that nginx did not take: known from packets only, without its word.
pub(super) fn support_not_taken(finding: &mut Finding, reading: &Reading<'_>, bytes: u64) -> Option<()> {
    let last = reading.flow()?.packets_from_upstream().filter(|(_, packet)| packet.payload_length > 0).last();
    let events: Vec<_> = last.iter().map(|(event, _)| event.id).collect();
    let weight = if head_was_cut(reading) { Weight::Fits } else { Weight::Symptom };
    finding.support(Some(evidence(Fact::PartialResponse { bytes }, &events, weight)));
    finding.missing.push(need(Sensor::ErrorLog, "nginx's own word about what it could not take"));
    if head_was_cut(reading) {
        finding.missing.push(need(Sensor::Packets, "the end of the answer's header, which the capture cut"));
        finding.not_excluded(&["premature-close", "upstream-reset"]);
    }
    Some(())
}

/// The answer's header had begun, and the capture does not show whether it ever was whole (`tcpdump -s 96`).
pub(super) fn head_was_cut(reading: &Reading<'_>) -> bool {
    reading.attempt.is_some_and(|attempt| attempt.status.is_some() && attempt.head.is_none())
}

/// `connect()` itself returned one of these errnos: no packet was needed for it.
pub(super) fn connect_returned(reading: &Reading<'_>, errnos: &[Errno]) -> Option<(Finding, Errno)> {
    let call = reading.connect_call_error().filter(|(errno, _)| errnos.contains(errno));
    let said = reading.complains_of(&[Message::ConnectFailedAtOnce]).then(|| reading.errno()).flatten();
    let said = said.filter(|errno| errnos.contains(errno));
    let errno = call.as_ref().map(|(errno, _)| *errno).or(said)?;
    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    finding.require(call.map(|(_, evidence)| evidence), || need(Sensor::Syscalls, "the connect() that failed"));
    Some((finding, errno))
}

/// The remark that a name of nginx's configuration leads elsewhere by now, and what to do about it.
pub(super) fn remark_moved_name(finding: &mut Finding, reading: &Reading<'_>) {
    let Some(moved) = reading.moved_name() else { return };
    if let Fact::NameMoved { name, holds, now } = &moved.fact {
        let now = match now.as_slice() {
            [] => "does not resolve any more".to_owned(),
            some => format!("now resolves to {}", some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        finding.say(format_args!(
            " The name {name} in nginx's configuration {now}; nginx holds {holds} since it started or was last reloaded."
        ));
        finding.fix.insert(0, format!("Reload nginx: it resolves {name} only when it reads its configuration."));
        finding.fix.push(format!(
            "To follow {name} without a reload: `resolver ADDRESS valid=10s;` with a variable in proxy_pass, or `server {name} resolve;` \
             with a zone (nginx 1.27.3 and later)."
        ));
    }
    finding.support(Some(moved));
}
