//! Which server an upstream is, and its command line.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Plan, own_binary};
use crate::config::Config;
use crate::lab::Lab;

/// Debian's interpreter, which has Debian's modules; `PATH` may name another.
const PYTHON: &str = "/usr/bin/python3";

/// The servers' applications. They are part of the program: a demo binary may stand alone.
const APPLICATIONS: [(&str, &str); 6] = [
    ("wsgi.py", include_str!("../../upstreams/wsgi.py")),
    ("asgi.py", include_str!("../../upstreams/asgi.py")),
    ("app.php", include_str!("../../upstreams/app.php")),
    ("rpc.py", include_str!("../../upstreams/rpc.py")),
    ("server.js", include_str!("../../upstreams/server.js")),
    ("frames.js", include_str!("../../upstreams/frames.js")),
];

/// Which server.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The lab's own (`crate::server`).
    Own {
        /// Where it takes commands; an address inside the app namespace.
        control: Option<SocketAddr>,
        /// After how long it closes idle connections.
        idle: Option<Duration>,
    },
    /// The lab's own with these arguments; it also listens on the addresses of the plan.
    Scripted {
        /// As its command line has them.
        arguments: Vec<String>,
    },
    /// Another program, found by its name, with these arguments.
    Program {
        /// The name first.
        command: Vec<String>,
    },
    /// Node.js with `upstreams/server.js`.
    Node {
        /// Its `keepAliveTimeout`; Node's own default when `None`.
        keep_alive: Option<Duration>,
    },
    /// gunicorn with `upstreams/wsgi.py`.
    Gunicorn(Gunicorn),
    /// uvicorn with `upstreams/asgi.py`.
    Uvicorn {
        /// `--timeout-keep-alive`, in seconds.
        keep_alive: u32,
    },
    /// uWSGI with `upstreams/wsgi.py`.
    Uwsgi {
        /// It speaks HTTP instead of the uwsgi protocol.
        http: bool,
        /// `--harakiri`, in seconds.
        harakiri: Option<u32>,
    },
    /// php-fpm with `upstreams/app.php`.
    Php(Php),
    /// gRPC's own server for Python with `upstreams/rpc.py`.
    Grpc,
    /// Node.js speaking HTTP/2 with `upstreams/frames.js`.
    Frames,
    /// Another nginx.
    Nginx(Box<Config>),
}

/// gunicorn's settings.
#[derive(Debug, Clone, Copy)]
pub struct Gunicorn {
    /// `--workers`.
    pub workers: u32,
    /// `--threads`; more than one makes the worker class gthread, which keeps connections.
    pub threads: u32,
    /// `--timeout`, in seconds.
    pub timeout: u32,
    /// `--keep-alive`, in seconds.
    pub keep_alive: u32,
}

impl Default for Gunicorn {
    /// gunicorn's own defaults, but two workers.
    fn default() -> Self {
        Self { workers: 2, threads: 1, timeout: 30, keep_alive: 2 }
    }
}

/// php-fpm's settings.
#[derive(Debug, Clone, Default)]
pub struct Php {
    /// Listens here instead of on TCP.
    pub socket: Option<PathBuf>,
    /// `pm.max_children`, all of them started at once.
    pub children: u32,
    /// `listen.backlog`; php-fpm's own default (8.2: what the kernel allows) when `None`.
    pub backlog: Option<u32>,
    /// `request_terminate_timeout`, in seconds.
    pub terminate_timeout: Option<u32>,
}

impl Kind {
    /// Whether it answers `GET /ok` as an HTTP/1.1 server.
    pub(super) const fn speaks_http(&self) -> bool {
        match self {
            Self::Own { .. } | Self::Node { .. } | Self::Gunicorn(_) | Self::Uvicorn { .. } | Self::Nginx(_) => true,
            Self::Uwsgi { http, .. } => *http,
            Self::Php(_) | Self::Grpc | Self::Frames | Self::Scripted { .. } | Self::Program { .. } => false,
        }
    }
}

/// The command line of a server; writes what it needs into the lab's directory.
pub(super) fn command(lab: &Lab, plan: &Plan) -> Result<Command> {
    let directory = lab.directory();
    for (name, text) in APPLICATIONS {
        let path = directory.join(name);
        if !path.exists() {
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
    }
    let node = |script: &str, address: SocketAddr| {
        let mut command = Command::new("node");
        command.arg(directory.join(script)).arg(address.ip().to_string()).arg(address.port().to_string());
        command
    };
    Ok(match &plan.kind {
        Kind::Own { control, idle } => {
            let mut command = Command::new(own_binary(lab)?);
            command.args(plan.listen.iter().map(ToString::to_string));
            if let Some(control) = control {
                command.arg("--control").arg(control.to_string());
            }
            if let Some(idle) = idle {
                command.arg("--idle-ms").arg(idle.as_millis().to_string());
            }
            command
        }
        Kind::Scripted { arguments } => {
            let mut command = Command::new(own_binary(lab)?);
            command.args(arguments);
            command
        }
        Kind::Program { command } => {
            let (name, arguments) = command.split_first().context("a program's name")?;
            let mut command = Command::new(name);
            command.args(arguments);
            command
        }
        Kind::Node { keep_alive } => {
            let mut command = node("server.js", only(plan)?);
            command.args(keep_alive.map(|keep_alive| keep_alive.as_millis().to_string()));
            command
        }
        Kind::Frames => node("frames.js", only(plan)?),
        Kind::Gunicorn(settings) => gunicorn(directory, only(plan)?, *settings),
        Kind::Uvicorn { keep_alive } => {
            let address = only(plan)?;
            let mut command = Command::new("uvicorn");
            command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
            command.args(["--timeout-keep-alive", &keep_alive.to_string(), "--log-level", "warning", "--app-dir"]);
            command.arg(directory).arg("asgi:application");
            command
        }
        Kind::Uwsgi { http, harakiri } => {
            let mut command = Command::new("uwsgi-core");
            let socket = if *http { "--http-socket" } else { "--socket" };
            command.args([socket, &only(plan)?.to_string(), "--plugins", "python3", "--master", "--processes", "2"]);
            command.args(["--need-app", "--die-on-term", "--disable-logging", "--wsgi-file"]);
            command.arg(directory.join("wsgi.py"));
            if let Some(seconds) = harakiri {
                command.args(["--harakiri", &seconds.to_string()]);
            }
            command
        }
        Kind::Nginx(config) => {
            let directory = lab.subdirectory(plan.name)?;
            crate::nginx::command(&directory, config)?
        }
        Kind::Php(settings) => php(directory, plan, settings)?,
        Kind::Grpc => {
            let mut command = Command::new(PYTHON);
            command.arg(directory.join("rpc.py")).arg(only(plan)?.to_string());
            command
        }
    })
}

/// The one address of a server that listens on one.
fn only(plan: &Plan) -> Result<SocketAddr> {
    let [address] = plan.listen[..] else { bail!("{} listens on one address", plan.name) };
    Ok(address)
}

fn gunicorn(directory: &Path, address: SocketAddr, settings: Gunicorn) -> Command {
    let Gunicorn { workers, threads, timeout, keep_alive } = settings;
    let mut command = Command::new("gunicorn");
    command.args(["--bind", &address.to_string(), "--log-level", "warning", "--chdir"]).arg(directory);
    for (option, value) in
        [("--workers", workers), ("--threads", threads), ("--timeout", timeout), ("--keep-alive", keep_alive)]
    {
        command.args([option, &value.to_string()]);
    }
    command.arg("wsgi:application");
    command
}

fn php(directory: &Path, plan: &Plan, settings: &Php) -> Result<Command> {
    let listen = match &settings.socket {
        Some(path) => path.display().to_string(),
        None => only(plan)?.to_string(),
    };
    let (name, directory, children) = (plan.name, directory.display(), settings.children);
    let mut text = format!(
        "[global]\ndaemonize = no\nerror_log = {directory}/{name}.error.log\n[www]\nuser = root\ngroup = root\n\
         listen = {listen}\npm = static\npm.max_children = {children}\n"
    );
    if let Some(backlog) = settings.backlog {
        let _ = writeln!(text, "listen.backlog = {backlog}");
    }
    if let Some(seconds) = settings.terminate_timeout {
        let _ = writeln!(text, "request_terminate_timeout = {seconds}s");
    }
    let path = PathBuf::from(format!("{directory}/{name}.conf"));
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let mut command = Command::new("php-fpm8.2");
    // No php.ini: the defaults that are built in. As root, like everything in the lab.
    command.args(["--no-php-ini", "--nodaemonize", "--allow-to-run-as-root", "--fpm-config"]).arg(path);
    Ok(command)
}
