//! Finding nginx on this host, in whatever namespace, and learning what it is configured to do.

mod announced;
mod binary;
mod census;
mod command;
mod confined;
mod connections;
mod files;
pub(in crate::live) mod literals;
mod processes;
mod resolve;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use census::Census;
pub use command::CommandError;
pub use connections::open_connections;
pub(crate) use connections::plain;
pub(crate) use files::Root;
pub use processes::{Master, is_living, masters};

use super::{namespaces, tail::Place};
use crate::{
    decode::config,
    model::{host::NginxInstance, net::Address, process::Pid},
};

/// An nginx, examined.
#[derive(Debug)]
pub struct Found {
    /// What goes into the stream.
    pub instance: NginxInstance,
    /// What `nginx -V` printed: version and configure arguments.
    pub build: Option<String>,
    /// Error logs that are files, with the level.
    pub error_logs: Vec<(Place, String)>,
    /// Access logs that are files, with the text of their format; `None`: combined.
    pub access_logs: Vec<(Place, Option<String>)>,
    /// Error logs that cannot be followed (a pipe, syslog, memory), as configured.
    pub unreadable_logs: Vec<String>,
    /// What could not be learnt, one plain sentence each.
    pub gaps: Vec<String>,
    /// Why one of its answers may be a failure without a word about the request before; `None`: each announces itself.
    pub unannounced: Option<String>,
}

/// The text of a configuration.
#[derive(Debug)]
pub struct Dump {
    /// As `nginx -T` prints it, or as its files say.
    pub text: Option<String>,
    /// Why nginx refuses it as it is on the disk, in its own words.
    pub refused: Option<String>,
}

/// Looks closer at a master: its version, its configuration, its logs. Takes as long as nginx takes to test its configuration.
#[must_use]
pub fn examine(master: &Master) -> Found {
    examine_with_text(master).0
}

/// The same, and the whole text of the configuration.
#[must_use]
pub fn examine_with_text(master: &Master) -> (Found, Dump) {
    let mut gaps = Vec::new();
    let build = match command::version(master) {
        Ok(text) => Some(text),
        Err(error) => {
            let instead = command::version_on_disk(master);
            let from = instead.as_ref().map(|(program, _)| format!(" (taken from {} instead)", program.display()));
            gaps.push(format!("its version: {error}{}", from.unwrap_or_default()));
            instead.map(|(_, text)| text)
        }
    };
    let root = Root::of_process(master.pid).ok();
    let mut dump = Dump { text: None, refused: None };
    let asked = command::dump(master).map_err(|error| {
        if let CommandError::Refused { said, .. } = &error {
            dump.refused = Some(said.clone());
        }
        error.to_string()
    });
    let decoded = match asked.and_then(|text| match config::decode(&text) {
        Ok(decoded) => Ok((text, decoded)),
        Err(error) => Err(format!("what nginx -T prints cannot be read: {error}")),
    }) {
        Ok((text, decoded)) => {
            dump.text = Some(text);
            Some(decoded)
        }
        Err(error) => {
            // A fault on the disk is no fault of the running nginx, and its files say most of what it was started with.
            let here = if namespaces::shares_files(master.pid) { Root::here().ok() } else { None };
            let files = root.as_ref().or(here.as_ref());
            dump.text = files.and_then(|files| files.dump(&main_file(master, build.as_deref())).ok());
            let decoded = dump.text.as_deref().and_then(|text| config::decode(text).ok());
            let instead = if decoded.is_some() { " (read from its files instead)" } else { "" };
            gaps.push(format!("its configuration: {error}{instead}"));
            let unread = decoded.iter().flat_map(|decoded| &decoded.missing_includes);
            gaps.extend(unread.map(|include| format!("a part of its configuration: {include} cannot be read")));
            decoded
        }
    };
    let mut found = Found {
        instance: NginxInstance {
            master: Pid(master.pid),
            workers: master.workers.iter().copied().map(Pid).collect(),
            version: build.as_deref().and_then(version).map(str::to_owned),
            netns: namespaces::inode(master.pid, "net"),
            configuration: None,
        },
        error_logs: Vec::new(),
        access_logs: Vec::new(),
        unreadable_logs: Vec::new(),
        unannounced: announced::unannounced(
            master,
            build.as_deref(),
            root.as_ref(),
            dump.text.as_deref().zip(decoded.as_ref()),
        ),
        build,
        gaps,
    };
    if let Some(decoded) = decoded {
        logs(master, root.as_ref(), &decoded, &mut found);
        let mut configuration = decoded.configuration;
        let unresolved = resolve::names(master.pid, &decoded.names, &mut configuration);
        if !unresolved.is_empty() {
            found.gaps.push(format!("the addresses of {} (learnt when nginx connects)", unresolved.join(", ")));
        }
        found.instance.configuration = Some(configuration.into());
    }
    (found, dump)
}

/// `1.22.1` from `nginx version: nginx/1.22.1 (Debian)`.
fn version(build: &str) -> Option<&str> {
    let (_, after) = build.split_once("version: ")?;
    let (_, number) = after.split_once('/')?;
    number.split(|c: char| !c.is_ascii_digit() && c != '.').next().filter(|number| !number.is_empty())
}

/// What nginx's relative paths are relative to. A relative prefix is relative to where nginx was started.
fn prefix(master: &Master, build: Option<&str>) -> PathBuf {
    let configured = build.and_then(|build| configured(build, "--prefix="));
    let given = master.argument("-p").or(configured).unwrap_or("/usr/local/nginx");
    let started = std::fs::read_link(format!("/proc/{}/cwd", master.pid)).unwrap_or_else(|_| PathBuf::from("/"));
    started.join(given)
}

fn main_file(master: &Master, build: Option<&str>) -> PathBuf {
    let configured = build.and_then(|build| configured(build, "--conf-path="));
    prefix(master, build).join(master.argument("-c").or(configured).unwrap_or("conf/nginx.conf"))
}

fn logs(master: &Master, root: Option<&Root>, decoded: &config::Decoded, found: &mut Found) {
    let build = found.build.as_deref();
    let prefix = prefix(master, build);
    let place = |path: &str| {
        let path = if path == "stderr" { PathBuf::from(path) } else { prefix.join(path) };
        files::log_place(master.pid, root, Path::new(&path))
    };
    let mut errors = decoded.configuration.error_logs.clone();
    if decoded.default_error_log {
        let default = master.argument("-e").or_else(|| configured(build?, "--error-log-path="));
        errors.push((default.unwrap_or("logs/error.log").to_owned(), "error".to_owned()));
    }
    let same = |known: &Place, new: &Place| known.to_string() == new.to_string();
    for (path, level) in errors {
        let elsewhere = path.starts_with("syslog:") || path.starts_with("memory:");
        // A log into a pipe or /dev/null can be watched being written, not read.
        match if elsewhere { None } else { place(&path) } {
            None => found.unreadable_logs.push(path),
            Some(new) if found.error_logs.iter().any(|(known, _)| same(known, &new)) => {}
            Some(new) => found.error_logs.push((new, level)),
        }
    }
    let mut access = decoded.configuration.access_logs.clone();
    if decoded.default_access_log {
        let default = build.and_then(|build| configured(build, "--http-log-path="));
        access.push((default.unwrap_or("logs/access.log").to_owned(), None));
    }
    for (path, format) in access {
        if path == "off" || path.starts_with("syslog:") || path.contains('$') {
            continue;
        }
        let text = format.filter(|name| name != "combined").and_then(|name| {
            decoded.configuration.log_formats.iter().find(|(known, _)| *known == name).map(|(_, text)| text.clone())
        });
        match place(&path) {
            Some(new) if !found.access_logs.iter().any(|(known, _)| same(known, &new)) => {
                found.access_logs.push((new, text));
            }
            _ => {}
        }
    }
}

/// The value of a configure argument.
fn configured<'a>(build: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = build.split_once(name)?;
    after.split_whitespace().next()
}

/// Upstream addresses that the configuration names.
#[must_use]
pub fn upstream_addresses(found: &Found) -> Vec<std::net::SocketAddr> {
    found
        .instance
        .configuration
        .iter()
        .flat_map(|configuration| &configuration.upstreams)
        .filter_map(Address::ip)
        .collect()
}

#[cfg(test)]
mod text_tests {
    use super::*;

    const BUILD: &str = "nginx version: nginx/1.22.1\nconfigure arguments: --prefix=/usr/share/nginx --error-log-path=stderr --with-compat";

    #[test]
    fn the_version_is_read_from_its_line() {
        assert_eq!(version(BUILD), Some("1.22.1"));
        assert_eq!(version("nginx version: openresty/1.25.3.1 (Ubuntu)"), Some("1.25.3.1"));
        assert_eq!(version("bash: nginx: command not found"), None);
    }

    #[test]
    fn configure_arguments_are_found_by_name() {
        assert_eq!(configured(BUILD, "--prefix="), Some("/usr/share/nginx"));
        assert_eq!(configured(BUILD, "--http-log-path="), None);
    }
}
