//! Who listens on an address of this host, and what leads to a unix socket.

use std::{net::SocketAddr, os::unix::fs::MetadataExt as _, path::Path};

use super::place::{Place, User};
use crate::{
    check::seen::{Here, Owner, PathPart},
    live::host::Lookup,
    model::{
        host::{HostFact, Listener},
        process::Pid,
    },
};

/// Listeners elsewhere that are worth naming.
const NEARBY: usize = 4;

/// Who listens there now.
pub(super) fn here(lookup: &mut Lookup, address: SocketAddr, netns: Option<u32>) -> Here {
    let HostFact::Listeners { local, listeners, nearby, .. } = lookup.listeners(address, netns) else {
        return Here::default();
    };
    let owned = |listeners: Vec<Listener>| -> Vec<Owner> {
        listeners.into_iter().map(|listener| Owner { unit: listener.pid.and_then(unit), listener }).collect()
    };
    let nearby = if listeners.is_empty() && nearby.is_empty() && local {
        let mut others = lookup.other_ports(address, netns);
        others.sort_by_key(|listener| listener.address.port().abs_diff(address.port()));
        others.truncate(NEARBY);
        others
    } else {
        nearby
    };
    Here { local, listeners: owned(listeners), nearby: owned(nearby) }
}

/// The systemd unit or the container of a process, as its control group is called.
pub(super) fn unit(pid: Pid) -> Option<String> {
    unit_of(&std::fs::read_to_string(format!("/proc/{}/cgroup", pid.0)).ok()?)
}

fn unit_of(text: &str) -> Option<String> {
    // The unified hierarchy, else systemd's own.
    let line = text
        .lines()
        .find(|line| line.starts_with("0::"))
        .or_else(|| text.lines().find(|line| line.contains("name=systemd")))?;
    let path = line.splitn(3, ':').nth(2)?;
    path.rsplit('/').find_map(|part| {
        let stem = part.strip_suffix(".scope").unwrap_or(part);
        let id = stem.rsplit('-').next().unwrap_or(stem);
        if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(format!("container {}", &id[..12]));
        }
        let is_unit = part.ends_with(".service") && !part.starts_with("user@");
        is_unit.then(|| part.to_owned())
    })
}

/// Every component of a path as nginx sees it, and whether its worker may pass.
pub(super) fn path_parts(place: &Place, path: &str) -> Vec<PathPart> {
    let root = User { uid: 0, gid: 0, groups: Vec::new() };
    let user = place.worker.clone().unwrap_or(root);
    let looked = place.inside(false, || {
        let mut parts: Vec<&Path> = Path::new(path).ancestors().collect();
        parts.reverse();
        let mut found = Vec::new();
        for part in parts.into_iter().filter(|part| !part.as_os_str().is_empty()) {
            let metadata = std::fs::metadata(part).ok();
            let missing = metadata.is_none();
            let (mode, uid, gid) =
                metadata.as_ref().map_or((0, 0, 0), |metadata| (metadata.mode(), metadata.uid(), metadata.gid()));
            // Whatever lies at the end is to be written to; what leads there is searched.
            let way = part != Path::new(path) && metadata.is_some_and(|metadata| metadata.is_dir());
            let bit = if way { 1 } else { 2 };
            let allowed = !missing && user.may(bit, mode, uid, gid);
            let path = part.to_string_lossy().into_owned();
            found.push(PathPart { path, mode: (!missing).then_some(mode), uid, gid, allowed });
            if missing {
                break;
            }
        }
        found
    });
    looked.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_name_units_and_containers() {
        let id = "3f4e".repeat(16);
        let cases = [
            ("0::/system.slice/php8.2-fpm.service\n".to_owned(), Some("php8.2-fpm.service")),
            (format!("0::/system.slice/docker-{id}.scope\n"), Some("container 3f4e3f4e3f4e")),
            (format!("0::/kubepods.slice/x.slice/cri-containerd-{id}.scope"), Some("container 3f4e3f4e3f4e")),
            (format!("12:memory:/docker/{id}\n1:name=systemd:/docker/{id}\n"), Some("container 3f4e3f4e3f4e")),
            ("0::/user.slice/user-0.slice/session-1.scope".to_owned(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(unit_of(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_path_is_followed_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone/s");
        let parts = path_parts(&Place::here(), path.to_str().unwrap());
        assert_eq!(parts[0].path, "/");
        let last = parts.last().unwrap();
        assert!(last.path.ends_with("gone") && last.mode.is_none(), "{parts:?}");
    }
}
