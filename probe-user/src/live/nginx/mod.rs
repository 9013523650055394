//! Finding nginx on this host, in whatever namespace, and learning what it is configured to do.

mod command;
mod connections;
mod processes;
mod resolve;

use std::path::PathBuf;

pub use command::CommandError;
pub use connections::open_connections;
pub(crate) use connections::plain;
pub use processes::{Master, masters};

use super::namespaces;
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
    /// Error logs that are files, as paths of this host, with the level.
    pub error_logs: Vec<(PathBuf, String)>,
    /// Access logs that are files, with the text of their format; `None`: combined.
    pub access_logs: Vec<(PathBuf, Option<String>)>,
    /// Error logs that cannot be followed (a pipe, syslog, memory), as configured.
    pub unreadable_logs: Vec<String>,
    /// What could not be learnt, one plain sentence each.
    pub gaps: Vec<String>,
}

/// Looks closer at a master: its version, its configuration, its logs. Takes as long as nginx takes to test its configuration.
#[must_use]
pub fn examine(master: &Master) -> Found {
    let mut gaps = Vec::new();
    let build = match command::version(master) {
        Ok(text) => Some(text),
        Err(error) => {
            gaps.push(format!("its version: {error}"));
            None
        }
    };
    let decoded = match command::dump(master)
        .map_err(|error| error.to_string())
        .and_then(|text| config::decode(&text).map_err(|error| format!("its configuration cannot be read: {error}")))
    {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            gaps.push(format!("its configuration: {error}"));
            None
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
        build,
        gaps,
    };
    if let Some(decoded) = decoded {
        logs(master, &decoded, &mut found);
        let mut configuration = decoded.configuration;
        let unresolved = resolve::names(master.pid, &decoded.names, &mut configuration);
        if !unresolved.is_empty() {
            found.gaps.push(format!("the addresses of {} (learnt when nginx connects)", unresolved.join(", ")));
        }
        found.instance.configuration = Some(configuration);
    }
    found
}

/// `1.22.1` from `nginx version: nginx/1.22.1 (Debian)`.
fn version(build: &str) -> Option<&str> {
    let (_, after) = build.split_once("version: ")?;
    let (_, number) = after.split_once('/')?;
    number.split(|c: char| !c.is_ascii_digit() && c != '.').next().filter(|number| !number.is_empty())
}

fn logs(master: &Master, decoded: &config::Decoded, found: &mut Found) {
    let build = found.build.as_deref().unwrap_or_default();
    let prefix = master.argument("-p").or_else(|| configured(build, "--prefix=")).unwrap_or("/usr/local/nginx");
    let host_path = |path: &str| -> PathBuf {
        let inside = PathBuf::from(prefix).join(path);
        let relative = inside.strip_prefix("/").map_or_else(|_| inside.clone(), ToOwned::to_owned);
        PathBuf::from(format!("/proc/{}/root", master.pid)).join(relative)
    };
    let mut errors = decoded.configuration.error_logs.clone();
    if decoded.default_error_log {
        let default = master.argument("-e").or_else(|| configured(build, "--error-log-path="));
        errors.push((default.unwrap_or("logs/error.log").to_owned(), "error".to_owned()));
    }
    for (path, level) in errors {
        let file = match path.as_str() {
            "stderr" => PathBuf::from(format!("/proc/{}/fd/2", master.pid)),
            other if other.starts_with("syslog:") || other.starts_with("memory:") => {
                found.unreadable_logs.push(other.to_owned());
                continue;
            }
            other => host_path(other),
        };
        // A log into a pipe or /dev/null can be watched being written, not read.
        if std::fs::metadata(&file).is_ok_and(|metadata| !metadata.is_file()) {
            found.unreadable_logs.push(path);
        } else if !found.error_logs.iter().any(|(known, _)| *known == file) {
            found.error_logs.push((file, level));
        }
    }
    let mut access = decoded.configuration.access_logs.clone();
    if decoded.default_access_log {
        access.push((configured(build, "--http-log-path=").unwrap_or("logs/access.log").to_owned(), None));
    }
    for (path, format) in access {
        if path == "off" || path.starts_with("syslog:") || path.contains('$') {
            continue;
        }
        let file = host_path(&path);
        let is_file = std::fs::metadata(&file).map_or(true, |metadata| metadata.is_file());
        let text = format.filter(|name| name != "combined").and_then(|name| {
            decoded.configuration.log_formats.iter().find(|(known, _)| *known == name).map(|(_, text)| text.clone())
        });
        if is_file && !found.access_logs.iter().any(|(known, _)| *known == file) {
            found.access_logs.push((file, text));
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
mod tests {
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
