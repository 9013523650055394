//! `unix-socket-denied`: the worker may not use the socket.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Reading, evidence},
    said::connect_returned,
};
use crate::model::{
    evidence::{Fact, Weight},
    net::Errno,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "unix-socket-denied",
    title: "the nginx worker may not use the unix socket",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "connect() needs write permission on the socket and search permission on every directory of its path; nginx's worker runs as another user (www-data, nginx). SELinux can say the same.",
        proof: "EACCES (or EPERM) from connect() with that path. The walk along the path names the part whose mode and owner deny the worker's user; where none does, an access list or a security module is left.",
        refuted: "A path that does not exist says ENOENT.",
        remedies: &[
            (
                "any server",
                "`namei -l PATH` shows owner and mode of each part: let the socket's group be the worker's, mode 0660, and the directories 0755.",
            ),
            ("php-fpm", "listen.owner = www-data, listen.group = www-data, listen.mode = 0660."),
            (
                "gunicorn",
                "--umask 007 and a group that nginx's user is in; or a systemd .socket unit with SocketUser= and SocketMode=.",
            ),
            ("uWSGI", "--chmod-socket=660 --chown-socket=:www-data."),
            ("Puma", "bind 'unix:///run/app.sock?umask=0007'."),
            ("SELinux", "`ausearch -m avc -ts recent`."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let path = reading.unix_path()?;
    let (mut finding, errno) = connect_returned(reading, &[Errno::EACCES, Errno::EPERM])?;
    finding.summary = format!("The nginx worker may not use {path}: connect() returned {errno}.");
    let denied = reading.unix_socket().and_then(|(id, socket)| {
        let part = socket.parts.iter().find(|part| !part.lets(&socket.asker))?;
        Some((id, part, &socket.asker))
    });
    if let Some((id, part, asker)) = denied {
        let user = asker.name.clone().unwrap_or_else(|| format!("user {}", asker.user));
        let owner = part.owner.1.clone().unwrap_or_else(|| part.owner.0.to_string());
        let group = part.group.1.clone().unwrap_or_else(|| part.group.0.to_string());
        let (what, right) = if part.directory { ("directory", "search") } else { ("socket", "write to") };
        finding.say(format_args!(
            " The {what} {} (mode {:04o}, owner {owner}:{group}) does not let {user} {right} it.",
            part.path, part.mode
        ));
        finding.fix.push(if part.directory {
            format!("Let {user} through: `chmod o+x {}`, or give it a group that {user} is in and g+x.", part.path)
        } else {
            format!("Let {user} write to it: the server's mode 0660 with a group that {user} is in, for {}.", part.path)
        });
        let fact = Fact::PathDenied { part: part.clone(), asker: asker.clone() };
        finding.support(Some(evidence(fact, &[id], Weight::Symptom)));
    } else if reading.unix_socket().is_some() {
        finding.say(format_args!(
            " Mode and owner of the path let it: an access list or a security module (SELinux, AppArmor) says no."
        ));
    }
    finding.fix.push(format!("`namei -l {path}` shows which part denies it: the worker's user needs write on the socket, search on the directories."));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{coverage::Sensor, net::Errno, verdict::Confidence},
    };

    pub(crate) fn world() -> World {
        World::connect_fails("unix:/run/app.sock", Errno::EACCES)
    }

    #[test]
    fn the_plain_case() {
        world().expect("unix-socket-denied", Confidence::Confirmed);
    }

    #[test]
    fn the_nearest_case_is_not_it() {
        let other = World::connect_fails("unix:/run/app.sock", Errno::ENOENT);
        assert_eq!(crate::report::cause(&other.judge()), "unix-socket-missing");
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("unix-socket-denied", Confidence::Likely);
    }
}
