//! Unix sockets: missing, left behind, denied, with a full queue.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::site::{Plan, Site};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "unix-socket-missing",
        "the unix socket does not exist",
        |plan| configure(plan, "unix-socket-missing", "missing.sock"),
        |site| ask(site, "unix-socket-missing", "missing.sock", "unix-socket-missing", "ENOENT", &["missing.sock"]),
    ),
    Fault::new(
        "unix-socket-missing-directory",
        "the directory of the unix socket does not exist",
        |plan| configure(plan, "unix-socket-missing-directory", "gone/app.sock"),
        |site| {
            ask(
                site,
                "unix-socket-missing-directory",
                "gone/app.sock",
                "unix-socket-missing",
                "ENOENT",
                &["/gone does not exist"],
            )
        },
    ),
    Fault::new(
        "unix-socket-refused",
        "a dead server has left its unix socket behind",
        |plan| configure(plan, "unix-socket-refused", "stale.sock"),
        |site| {
            drop(UnixListener::bind(path(site, "stale.sock"))?);
            ask(site, "unix-socket-refused", "stale.sock", "unix-socket-refused", "ECONNREFUSED", &["nobody listens"])
        },
    ),
    Fault::new(
        "unix-backlog-full",
        "the queue of the unix socket is full",
        |plan| configure(plan, "unix-backlog-full", "full.sock"),
        |site| {
            let full = Full::at(&path(site, "full.sock"))?;
            let witnesses =
                ask(site, "unix-backlog-full", "full.sock", "unix-backlog-full", "EAGAIN", &["2 waiting", "limit 1"])?;
            std::thread::sleep(std::time::Duration::from_millis(300));
            drop(full);
            Ok(witnesses)
        },
    ),
];

/// Those for which nginx's worker must be somebody else than root.
pub(super) const UNPRIVILEGED: &[Fault] = &[
    Fault {
        alone: true,
        ..Fault::new(
            "unix-socket-denied",
            "the worker may not write to the unix socket",
            |plan| {
                plan.config.user = "nobody nogroup";
                configure(plan, "unix-socket-denied", "denied.sock");
            },
            |site| {
                let place = path(site, "denied.sock");
                let listener = UnixListener::bind(&place)?;
                fs::set_permissions(&place, Permissions::from_mode(0o660))?;
                let says = ["denied.sock", "0660", "root", "nobody"];
                let witnesses = ask(site, "unix-socket-denied", "denied.sock", "unix-socket-denied", "EACCES", &says)?;
                std::thread::sleep(std::time::Duration::from_millis(300));
                drop(listener);
                Ok(witnesses)
            },
        )
    },
    Fault {
        alone: true,
        ..Fault::new(
            "unix-socket-denied-directory",
            "the worker may not search a directory above the unix socket",
            |plan| {
                plan.config.user = "nobody nogroup";
                configure(plan, "unix-socket-denied-directory", "private/run/app.sock");
            },
            |site| {
                let place = path(site, "private/run/app.sock");
                fs::create_dir_all(place.parent().context("a directory")?)?;
                let listener = UnixListener::bind(&place)?;
                fs::set_permissions(&place, Permissions::from_mode(0o666))?;
                fs::set_permissions(path(site, "private"), Permissions::from_mode(0o750))?;
                let says = ["/private", "0750", "root", "nobody"];
                let witnesses = ask(
                    site,
                    "unix-socket-denied-directory",
                    "private/run/app.sock",
                    "unix-socket-denied",
                    "EACCES",
                    &says,
                )?;
                std::thread::sleep(std::time::Duration::from_millis(300));
                drop(listener);
                Ok(witnesses)
            },
        )
    },
    Fault {
        alone: true,
        ..Fault::new(
            "unix-socket-denied-no-socket",
            "a directory is given for the unix socket: connect() asks for the right to write to it before it sees what it is",
            |plan| {
                plan.config.user = "nobody nogroup";
                configure(plan, "unix-socket-denied-no-socket", "rundir");
            },
            |site| {
                fs::create_dir_all(path(site, "rundir"))?;
                let says = ["rundir", "is a directory", "nobody"];
                ask(site, "unix-socket-denied-no-socket", "rundir", "unix-socket-denied", "EACCES", &says)
            },
        )
    },
];

fn configure(plan: &mut Plan, name: &str, socket: &str) {
    plan.config.location(&format!("/{name}/"), &[&format!("proxy_pass http://unix:@DIR@/{socket}:/;")]);
}

/// Where a socket lies.
fn path(site: &Site<'_>, socket: &str) -> PathBuf {
    site.nginx().directory().join(socket)
}

fn ask(
    site: &Site<'_>,
    name: &str,
    socket: &str,
    cause: &'static str,
    errno: &'static str,
    says: &[&str],
) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/cart"))?;
    let outcome: &[Outcome] = if errno == "ECONNREFUSED" { &[Outcome::Refused] } else { &[Outcome::LocalError] };
    let attempt = Attempt {
        upstream: format!("unix:{}", path(site, socket).display()),
        outcome,
        errno: match errno {
            "ENOENT" => &[Some("ENOENT")],
            "ECONNREFUSED" => &[Some("ECONNREFUSED")],
            "EACCES" => &[Some("EACCES")],
            _ => &[Some("EAGAIN")],
        },
        reused: None,
    };
    let causes: &[&'static str] = match cause {
        "unix-socket-missing" => &["unix-socket-missing"],
        "unix-socket-refused" => &["unix-socket-refused"],
        "unix-socket-denied" => &["unix-socket-denied"],
        _ => &["unix-backlog-full"],
    };
    let expected = Expectation::incident(502, causes, vec![attempt]).logged("connect() to unix:").says(says).never(&[
        "upstream-refused",
        "connect-denied",
        "accept-queue-overflow",
        "firewall-rejected",
    ]);
    Ok(vec![Witness::new(exchange, expected)?])
}

/// A listener nobody accepts from, and connections enough to fill its queue of one.
struct Full {
    _listener: std::os::fd::OwnedFd,
    _waiting: Vec<UnixStream>,
}

impl Full {
    fn at(path: &std::path::Path) -> Result<Self> {
        let stream = |flags| socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None);
        let listener = stream(SockFlag::empty()).context("make a unix socket")?;
        let address = UnixAddr::new(path).context("name a unix socket")?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &address).context("bind a unix socket")?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        listen(&listener, Backlog::new(1)?).context("listen on a unix socket")?;
        let mut waiting = Vec::new();
        // The kernel takes one more than the limit (unix_recvq_full: more than).
        for _ in 0..2 {
            let client = stream(SockFlag::SOCK_NONBLOCK).context("make a unix socket")?;
            connect(std::os::fd::AsRawFd::as_raw_fd(&client), &address).context("fill the queue")?;
            waiting.push(UnixStream::from(client));
        }
        Ok(Self { _listener: listener, _waiting: waiting })
    }
}
