//! `unix-socket-missing`: the socket file does not exist.

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
    id: "unix-socket-missing",
    title: "the unix socket does not exist",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "connect() found no file at the path: the server is not running, or makes its socket elsewhere, or somebody cleared the directory.",
        proof: "ENOENT (or ENOTDIR) from connect() with that path.",
        refuted: "A file that is there: without a listener it is unix-socket-refused.",
        remedies: &const {
            and_servers::<3, 11>(
                [
                    (
                        "any server",
                        "Start it; compare the path in its configuration with nginx's. /run is cleared at boot: RuntimeDirectory= in its unit makes the directory.",
                    ),
                    ("systemd", "PrivateTmp=yes gives nginx a /tmp of its own: sockets belong into /run."),
                    ("containers", "The directory must be mounted in both."),
                ],
                UNIX_SOCKETS,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let path = reading.unix_path()?;
    let (mut finding, errno) = connect_returned(reading, &[Errno::ENOENT, Errno::ENOTDIR])?;
    finding.summary = format!("There is no socket at {path}: connect() returned {errno}.");
    if let Some((id, missing)) = reading.unix_socket().and_then(|(id, socket)| Some((id, socket.missing.clone()?))) {
        if missing != path {
            finding.say(format_args!(" Already {missing} does not exist."));
        }
        finding.support(Some(evidence(Fact::PathMissing { path: missing }, &[id], Weight::Symptom)));
    }
    finding.fix.push(format!(
        "Start the server that makes {path}, or correct the path in nginx's configuration or the server's."
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
        World::connect_fails("unix:/run/app.sock", Errno::ENOENT)
    }

    #[test]
    fn the_plain_case() {
        world().expect("unix-socket-missing", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("unix:/run/app.sock", Errno::ECONNREFUSED);
        assert_eq!(crate::report::cause(&other.judge()), "unix-socket-refused");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("unix-socket-missing", Confidence::Likely);
    }
}
