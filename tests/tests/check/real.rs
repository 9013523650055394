//! Configurations as people run them: all of them are understood, and none is found faulty by itself.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use probe502::check::{Weight, judge, plan, seen::Seen};
use probe502::decode::config::layout;

use crate::scene::Checked;

/// Name, text, and how many passes and endpoints are in it.
const CONFIGURATIONS: [(&str, &str, usize, usize); 4] = [
    ("container-default", include_str!("configurations/container-default.conf"), 0, 0),
    ("php-application", include_str!("configurations/php-application.conf"), 1, 1),
    ("websocket-and-grpc", include_str!("configurations/websocket-and-grpc.conf"), 9, 14),
    ("lua-gateway", include_str!("configurations/lua-gateway.conf"), 1, 0),
];

#[test]
fn real_configurations_have_no_fault_of_their_own() -> Result<()> {
    for (name, text, passes, endpoints) in CONFIGURATIONS {
        let layout = layout::read(text).context(name)?;
        ensure!(layout.passes.len() == passes, "{name}: {:#?}", layout.passes);
        let planned = plan::endpoints(&layout, Some("1.22.1"));
        ensure!(planned.len() == endpoints, "{name}: {} endpoints", planned.len());
        let seen = Seen { layout, endpoints: planned, ..Seen::default() };
        let faults: Vec<_> = judge(&seen).into_iter().filter(|finding| finding.weight == Weight::Fault).collect();
        ensure!(faults.is_empty(), "{name}: {faults:#?}");
    }
    Ok(())
}

/// What Debian's package ships: no upstream, and nothing to mind.
#[test]
fn the_installed_configuration_is_read_with_its_includes() -> Result<()> {
    let checked = Checked::run(&["check", "--json", "--conf", "/etc/nginx/nginx.conf"])?;
    checked.expect(&[])
}

/// Where packages put configurations and examples of nginx.
const INSTALLED: [&str; 4] = ["/etc/nginx", "/etc/mailman3", "/usr/share/doc", "/usr/share/nginx"];

/// A folder with more of them, searched as well.
const MORE: &str = "PROBE502_CONFIGURATIONS";

/// Files of a folder that are configurations of nginx by their names or places.
fn configurations(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let whole = path.to_string_lossy().into_owned();
        let name = entry.file_name().to_string_lossy().into_owned();
        let has = |parts: &[&str]| parts.iter().any(|part| whole.contains(part));
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            configurations(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "conf")
            && (name.contains("nginx") || has(&["/nginx/"]))
            || has(&["/etc/nginx/sites-available/", "/etc/nginx/snippets/"])
            || has(&["/etc/nginx/"]) && name.ends_with("_params")
            || has(&["/doc/nginx/examples/"]) && name != "nginx_modsite"
        {
            found.push(path);
        }
    }
}

/// A whole configuration around a piece of one: what stands in it says where it belongs.
fn whole(text: &str) -> String {
    let begins = |words: &[&str]| {
        let mut depth = 0_usize;
        text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).any(|line| {
            let is_one = depth == 0 && words.iter().any(|word| line.split([' ', '{', '\t']).next() == Some(word));
            depth = (depth + line.matches('{').count()).saturating_sub(line.matches('}').count());
            is_one
        })
    };
    if begins(&["http", "events", "mail", "stream", "daemon", "worker_processes", "user", "load_module"]) {
        text.to_owned()
    } else if begins(&[
        "server",
        "upstream",
        "map",
        "geo",
        "split_clients",
        "log_format",
        "charset_map",
        "types",
        "limit_req_zone",
        "proxy_cache_path",
    ]) {
        format!("events {{}}\nhttp {{\n{text}\n}}\n")
    } else if begins(&["location", "listen", "server_name"]) {
        format!("events {{}}\nhttp {{\nserver {{\n{text}\n}}\n}}\n")
    } else {
        format!("events {{}}\nhttp {{\nserver {{\nlocation / {{\n{text}\n}}\n}}\n}}\n")
    }
}

/// What packages of this host ship: all of it is understood, and nothing in it is a fault before anybody has tried it.
#[test]
fn configurations_of_packages_have_no_fault_of_their_own() -> Result<()> {
    let mut found = Vec::new();
    let more = std::env::var_os(MORE).map(PathBuf::from);
    for folder in INSTALLED.iter().map(PathBuf::from).chain(more) {
        configurations(&folder, &mut found);
    }
    // nginx's own, and those of the packages with examples that `cargo xtask setup` installs.
    for wanted in ["/etc/nginx/nginx.conf", "/gunicorn-examples/", "/usr/share/doc/nginx/examples/"] {
        ensure!(found.iter().any(|path| path.to_string_lossy().contains(wanted)), "no {wanted}: run cargo xtask setup");
    }
    let mut wrong = String::new();
    for path in &found {
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let layout = match layout::read(&whole(&text)) {
            Ok(layout) => layout,
            Err(error) => {
                writeln!(wrong, "{}: {error}", path.display())?;
                continue;
            }
        };
        let endpoints = plan::endpoints(&layout, Some("1.22.1"));
        println!("{}: {} passes, {} endpoints", path.display(), layout.passes.len(), endpoints.len());
        let seen = Seen { layout, endpoints, ..Seen::default() };
        for fault in judge(&seen).into_iter().filter(|finding| finding.weight == Weight::Fault) {
            writeln!(wrong, "{}: {fault:?}", path.display())?;
        }
    }
    ensure!(wrong.is_empty(), "of {} configurations:\n{wrong}", found.len());
    Ok(())
}
