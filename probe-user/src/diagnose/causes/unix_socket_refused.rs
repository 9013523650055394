//! `unix-socket-refused`: a socket file that nobody listens on.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Reading, evidence},
        said::connect_returned,
    },
    servers::{UNIX_SOCKETS, and_servers},
};
use crate::model::{
    evidence::{Fact, Weight},
    net::Errno,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "unix-socket-refused",
    title: "nobody listens on the unix socket",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The socket's file is there, but no process listens on it any more: the server ended without removing it, or has not called listen() yet.",
        proof: "ECONNREFUSED from connect() with that path.",
        refuted: "A full backlog says EAGAIN (unix-backlog-full).",
        remedies: &const {
            and_servers::<2, 10>(
                [
                    (
                        "any server",
                        "Start it; it must remove the old file and bind anew. `ss -xlp | grep PATH` shows who listens.",
                    ),
                    ("systemd", "A .socket unit keeps the socket listening while the server restarts."),
                ],
                UNIX_SOCKETS,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let path = reading.unix_path()?;
    let (mut finding, errno) = connect_returned(reading, &[Errno::ECONNREFUSED])?;
    finding.summary = format!("Nobody listens on {path}: the file is there, connect() returned {errno}.");
    let look_up = reading.unix_socket().filter(|(_, socket)| socket.missing.is_none() && socket.listener.is_none());
    if let Some((id, socket)) = look_up {
        if socket.parts.last().is_some_and(|part| !part.socket) {
            let what = if socket.end().is_some_and(|end| end.directory) { "a directory" } else { "no socket at all" };
            finding.say(format_args!(" What is there is {what}."));
        }
        let fact = Fact::NoUnixListener { path: path.to_owned() };
        finding.support(Some(evidence(fact, &[id], Weight::Symptom)));
    }
    finding.fix.push(format!(
        "Start the server that listens on {path}; `ss -xlp` shows who does. It must replace the stale file."
    ));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, net::Errno, verdict::Confidence},
    };

    pub(crate) fn world() -> World {
        World::connect_fails("unix:/run/app.sock", Errno::ECONNREFUSED)
    }

    #[test]
    fn the_plain_case() {
        world().expect("unix-socket-refused", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("unix:/run/app.sock", Errno::EAGAIN);
        assert_eq!(crate::report::cause(&other.judge()), "unix-backlog-full");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("unix-socket-refused", Confidence::Likely);
    }
}
