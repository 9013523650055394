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
            (
                "uvicorn",
                "--uds makes the file 0666: then it is the directory that denies. With a .socket unit: --fd 3 and SocketMode=.",
            ),
            ("Node.js", "fs.chmodSync(path, 0o660) after 'listening', or server.listen({ path, writableAll: true })."),
            ("Go", "os.Chmod(path, 0o660) after net.Listen, or syscall.Umask(0o007) before."),
            ("Java", "Files.setPosixFilePermissions(path, PosixFilePermissions.fromString(\"rw-rw----\")) after bind."),
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
        let (part, write) = socket.denies()?;
        Some((id, part, write, &socket.asker))
    });
    let end = reading.unix_socket().and_then(|(_, socket)| socket.end());
    let no_socket = end.filter(|end| !end.socket).map(|end| if end.directory { "a directory" } else { "no socket" });
    if let Some(what) = no_socket {
        finding.say(format_args!(" What lies there is {what}: nobody can be reached by it."));
        finding.fix.push(format!("Give nginx the path of the server's socket itself; {path} is {what}."));
    }
    if let Some((id, part, write, asker)) = denied {
        let user = asker.name.clone().unwrap_or_else(|| format!("user {}", asker.user));
        let owner = part.owner.1.clone().unwrap_or_else(|| part.owner.0.to_string());
        let group = part.group.1.clone().unwrap_or_else(|| part.group.0.to_string());
        let what = match (part.directory, part.socket) {
            (true, _) => "directory",
            (false, true) => "socket",
            (false, false) => "file",
        };
        let right = if write { "write to" } else { "search" };
        finding.say(format_args!(
            " The {what} {} (mode {:04o}, owner {owner}:{group}) does not let {user} {right} it.",
            part.path, part.mode
        ));
        if !write {
            finding.fix.push(format!(
                "Let {user} through: `chmod o+x {}`, or give it a group that {user} is in and g+x.",
                part.path
            ));
        } else if no_socket.is_none() {
            finding.fix.push(format!(
                "Let {user} write to it: the server's mode 0660 with a group that {user} is in, for {}.",
                part.path
            ));
        }
        let fact = Fact::PathDenied { part: part.clone(), asker: asker.clone(), write };
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
        diagnose::testing::{WORKER, World},
        model::{
            coverage::Sensor,
            host::{Asker, HostFact, PathPart, UnixSocket},
            net::Errno,
            verdict::Confidence,
        },
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

    fn looked_up(path: &str, end: (u32, bool, bool)) -> World {
        let mut world = World::connect_fails(&format!("unix:{path}"), Errno::EACCES);
        let part = |path: &str, (mode, directory, socket): (u32, bool, bool)| PathPart {
            path: path.to_owned(),
            mode,
            owner: (0, Some("root".to_owned())),
            group: (0, Some("root".to_owned())),
            directory,
            socket,
        };
        let socket = UnixSocket {
            path: path.to_owned(),
            worker: WORKER,
            asker: Asker { user: 33, groups: vec![33], name: Some("www-data".to_owned()), overrides: false },
            parts: vec![part("/", (0o755, true, false)), part(path, end)],
            missing: None,
            listener: None,
        };
        world.host(1_000, HostFact::UnixSocket(socket));
        world
    }

    /// `connect()` asks for the right to write before it asks what lies there.
    #[test]
    fn a_directory_is_not_a_socket_that_selinux_guards() {
        let explanation = looked_up("/run", (0o755, true, false)).expect("unix-socket-denied", Confidence::Confirmed);
        let summary = &explanation.summary;
        assert!(summary.contains("What lies there is a directory"), "{summary}");
        assert!(summary.contains("does not let www-data write to it"), "{summary}");
        assert!(!summary.contains("SELinux"), "{summary}");
        assert!(explanation.fix[0].contains("path of the server's socket itself"), "{:?}", explanation.fix);
        let open = looked_up("/run/app.sock", (0o666, false, true)).explained();
        assert!(open.summary.contains("SELinux"), "{}", open.summary);
        let closed = looked_up("/run/app.sock", (0o660, false, true)).explained();
        assert!(closed.summary.contains("The socket /run/app.sock (mode 0660"), "{}", closed.summary);
    }

    #[test]
    fn without_the_call_it_is_likely() {
        let mut world = world();
        world.attempt().syscalls.clear();
        world.blind(Sensor::Syscalls);
        world.expect("unix-socket-denied", Confidence::Likely);
    }
}
