//! `fd-exhausted-nginx`: the worker has no file descriptor left.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, evidence, need},
    },
    servers::{KEPT_CONNECTIONS, and_servers},
};
use crate::model::{
    complaint::Message,
    coverage::Sensor,
    event::{Body, Event},
    evidence::{Evidence, Fact, Weight},
    net::Errno,
    socket::Syscall,
};

/// The failing call and nginx's complaint lie in one handler; a stalled worker may take this long from one to the other.
const CALL_TO_COMPLAINT_NS: u64 = 50_000_000;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "fd-exhausted-nginx",
    title: "the nginx worker has no file descriptor left",
    family: Family::Connect,
    statuses: &[500],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The worker could not open a socket towards the upstream: it had as many files open as its limit allows (EMFILE). \
                   nginx answers 500, tries no other server, and does not count it against the upstream. New clients fare no better: \
                   accept4() fails too, and is paused for half a second.",
        proof: "socket() of this worker returning EMFILE in this request; its open files against its limit.",
        refuted: "ENFILE: the whole system is out (fd-exhausted-system). nginx's own message about worker_connections \
                  (worker-connections-exhausted).",
        remedies: &const {
            and_servers::<4, 12>(
                [
                    (
                        "nginx",
                        "worker_rlimit_nofile 65535; in the main context: at least twice worker_connections, as a proxied request \
                       takes two descriptors, files and logs besides. A reload is enough for new workers.",
                    ),
                    (
                        "systemd",
                        "LimitNOFILE= in nginx.service raises the hard limit, where that is what stops worker_rlimit_nofile.",
                    ),
                    ("containers", "docker run --ulimit nofile=65535:65535, or the runtime's default."),
                    (
                        "any server",
                        "A slow one holds a client and an upstream connection for as long as it takes; one that closes after every response makes a new socket for each.",
                    ),
                ],
                KEPT_CONNECTIONS,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let mut finding = shortage(reading, Errno::EMFILE)?;
    let files = reading.case.worker.and_then(|worker| reading.open_files(worker));
    let counts = files.as_ref().and_then(|evidence| match &evidence.fact {
        Fact::OpenFiles { open, limit, .. } => Some((*open, *limit)),
        _ => None,
    });
    finding.support(files);
    let worker = reading.case.worker.map_or_else(|| "The nginx worker".to_owned(), |pid| format!("nginx worker {pid}"));
    let seen = match counts {
        Some((open, Some(limit))) => format!(" It has {open} of {limit} files open."),
        Some((open, None)) => format!(" It has {open} files open."),
        None => String::new(),
    };
    finding.summary =
        format!("{worker} could not open a socket towards the upstream: it is out of file descriptors (EMFILE).{seen}");
    let configuration = reading.case.configuration.as_ref();
    let now =
        configuration.and_then(|c| c.worker_rlimit_nofile).map_or_else(|| "not set".to_owned(), |n| n.to_string());
    let connections = configuration.and_then(|c| c.worker_connections);
    let wanted = connections.unwrap_or(16_384).saturating_mul(2).max(65_535);
    finding.fix.push(format!(
        "worker_rlimit_nofile {wanted}; (now {now}){}, and reload nginx.",
        connections.map(|n| format!(": at least twice worker_connections, which is {n}")).unwrap_or_default()
    ));
    finding.fix.push(
        "If the limit does not rise: LimitNOFILE= in nginx's systemd unit, or the container's ulimit, is the hard one."
            .to_owned(),
    );
    Some(finding)
}

/// A worker that could not get a descriptor, by this errno; also for the system-wide shortage.
pub(super) fn shortage(reading: &Reading<'_>, errno: Errno) -> Option<Finding> {
    let complaint = reading.complained(Message::SocketFailed).filter(|(_, complaint)| complaint.errno == Some(errno));
    let call = failed_socket(reading, errno);
    if complaint.is_none() && call.is_none() {
        return None;
    }
    let mut finding = Finding::default();
    finding.support(complaint.map(|(event, complaint)| super::super::reading::complaint_evidence(event, complaint)));
    finding.require(call, || need(Sensor::Syscalls, "the failing socket() of the worker"));
    Some(finding)
}

/// The worker's `socket()` that failed like this, in this request.
fn failed_socket(reading: &Reading<'_>, wanted: Errno) -> Option<Evidence> {
    let failing = |event: &Event| match &event.body {
        Body::Syscall(syscall) if Some(syscall.pid) == reading.case.worker => match syscall.call {
            Syscall::Socket { error, .. } if error == wanted => Some((event.id, syscall.pid)),
            _ => None,
        },
        _ => None,
    };
    let fact = |(id, pid)| {
        let fact = Fact::SyscallFailed { call: "socket", process: Some((pid, "nginx".to_owned())), errno: wanted };
        evidence(fact, &[id], Weight::Direct)
    };
    let own = reading.attempt_syscalls().find_map(failing);
    // Among the worker's other calls only one right before nginx's word about this request is this request's.
    let complaint = reading.complained(Message::SocketFailed);
    let near = || {
        let (complaint, _) = complaint.filter(|(event, _)| event.at.is_exact())?;
        let before = reading.case.processes.iter().rev().filter(|event| event.at.latest <= complaint.at.earliest);
        before.filter(|event| complaint.at.earliest.since_ns(event.at.latest) <= CALL_TO_COMPLAINT_NS).find_map(failing)
    };
    own.or_else(near).map(fact)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{WORKER, World},
        model::{
            attempt::Joined,
            complaint::{Message, Phase},
            coverage::Sensor,
            host::HostFact,
            net::Errno,
            socket::Syscall,
            verdict::Confidence,
        },
    };

    pub(crate) fn exhausted(errno: Errno) -> World {
        let mut world = World::new(500);
        world.attempt().flow = Joined::None;
        world.attempt().upstream = None;
        world.syscall(-40, Syscall::Socket { family: 2, error: errno });
        world.complain(Message::SocketFailed, Phase::Connecting, Some(errno), "socket() failed");
        world.host(900, HostFact::OpenFiles { pid: WORKER, command: "nginx".to_owned(), open: 64, limit: Some(64) });
        world
    }

    #[test]
    fn the_plain_case_with_the_values_seen() {
        let explanation = exhausted(Errno::EMFILE).expect("fd-exhausted-nginx", Confidence::Confirmed);
        assert!(explanation.summary.contains("64 of 64 files"), "{}", explanation.summary);
    }

    #[test]
    fn nothing_was_tried_and_the_complaint_belongs_to_the_request() {
        let mut world = exhausted(Errno::EMFILE);
        let attempt = world.case.attempts.pop().unwrap();
        world.case.complaints.extend(attempt.complaint);
        world.case.processes.extend(attempt.syscalls);
        world.expect("fd-exhausted-nginx", Confidence::Confirmed);
    }

    #[test]
    fn another_shortage_is_not_it() {
        assert_ne!(crate::report::cause(&exhausted(Errno::ENFILE).judge()), "fd-exhausted-nginx");
        assert_ne!(crate::report::cause(&exhausted(Errno::ENOBUFS).judge()), "fd-exhausted-nginx");
    }

    #[test]
    fn without_the_call_it_is_likely_and_from_the_log_possible() {
        let mut world = exhausted(Errno::EMFILE);
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("fd-exhausted-nginx", Confidence::Likely);
        world.log(Message::SocketFailed, Phase::Connecting, Some(Errno::EMFILE), "socket() failed");
        world.expect("fd-exhausted-nginx", Confidence::Possible);
    }
}
