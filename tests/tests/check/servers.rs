//! Real servers, each asked in its own words: nothing is wrong with them, and what they say is understood.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use probe_tests::lab::Lab;
use probe_tests::site::Site;
use probe_tests::upstream::{Gunicorn, Kind, Php, Plan as UpstreamPlan};

use crate::scene::{Checked, text};

const PHP: u16 = 9841;
const UWSGI: u16 = 9842;
const SCGI: u16 = 9843;
const GRPC: u16 = 9844;
const GUNICORN: u16 = 9845;
const NODE: u16 = 9846;
const UVICORN: u16 = 9847;
const UWSGI_HTTP: u16 = 9848;

/// uWSGI on a socket that speaks SCGI.
fn scgi(address: SocketAddr, application: &Path) -> Result<Kind> {
    let words = [
        "uwsgi-core",
        "--scgi-socket",
        &address.to_string(),
        "--plugins",
        "python3",
        "--need-app",
        "--die-on-term",
        "--disable-logging",
        "--wsgi-file",
    ];
    let mut command: Vec<String> = words.iter().map(ToString::to_string).collect();
    command.push(text(application)?.to_owned());
    Ok(Kind::Program { command })
}

#[test]
fn real_servers_are_asked_in_their_own_words() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    let socket = lab.directory().join("fpm.sock");
    let pass = [
        ("fastcgi", PHP, "fastcgi_pass"),
        ("uwsgi", UWSGI, "uwsgi_pass"),
        ("scgi", SCGI, "scgi_pass"),
        ("grpc", GRPC, "grpc_pass grpc://"),
        ("gunicorn", GUNICORN, "proxy_pass http://"),
        ("node", NODE, "proxy_pass http://"),
        ("uvicorn", UVICORN, "proxy_pass http://"),
        ("uwsgi-http", UWSGI_HTTP, "proxy_pass http://"),
    ];
    let scgi = scgi(app(SCGI), &lab.directory().join("wsgi.py"))?;
    let site = Site::start_with(&lab, "servers", &[], |plan| {
        plan.server("php", Kind::Php(Php { children: 1, ..Php::default() }), PHP);
        plan.server("uwsgi", Kind::Uwsgi { http: false, harakiri: None }, UWSGI);
        plan.server("uwsgi-http", Kind::Uwsgi { http: true, harakiri: None }, UWSGI_HTTP);
        plan.server("scgi", scgi, SCGI);
        plan.server("grpc", Kind::Grpc, GRPC);
        plan.server("gunicorn", Kind::Gunicorn(Gunicorn::default()), GUNICORN);
        plan.server("node", Kind::Node { keep_alive: None }, NODE);
        plan.server("uvicorn", Kind::Uvicorn { keep_alive: 5 }, UVICORN);
        let kind = Kind::Php(Php { socket: Some(socket.clone()), children: 1, ..Php::default() });
        plan.upstreams.push(UpstreamPlan { name: "php-unix", kind, listen: Vec::new(), open_files: None });
        for (name, port, directive) in pass {
            let space = if directive.ends_with('/') { "" } else { " " };
            plan.config.location(&format!("/{name}/"), &[&format!("{directive}{space}{};", plan.app(port))]);
        }
        plan.config.location("/php-unix/", &[&format!("fastcgi_pass unix:{};", socket.display())]);
        // A group that keeps connections longer than its server does.
        let server = format!("server {};", plan.app(NODE));
        plan.config.upstream("kept", &[&server, "keepalive 4;", "keepalive_timeout 60s;"]);
        plan.config.location(
            "/kept/",
            &["proxy_pass http://kept;", "proxy_http_version 1.1;", "proxy_set_header Connection \"\";"],
        );
    })?;
    let checked = Checked::of(site.nginx().master(), &["--probe-path", "/ok"])?;
    checked.expect(&[])?;
    for (name, port, _) in pass {
        let is_it = |one: &&serde_json::Value| one["upstream"] == app(port).to_string();
        let one = checked.upstreams.iter().find(is_it).with_context(|| name.to_owned())?;
        ensure!(one["connected"] == true && one["answer_us"].is_u64(), "{name}: {one:#}");
        let http = name != "fastcgi" && name != "grpc";
        ensure!(!http || one["status"] == 200, "{name}: {one:#}");
        ensure!(one["route"]["source"].is_string() && one["route"]["device"].is_string(), "{name}: {one:#}");
        let listener = &one["listeners"][0];
        ensure!(
            listener["pid"].is_u64() && listener["backlog"].as_u64().is_some_and(|backlog| backlog > 0),
            "{name}: {one:#}"
        );
    }
    let unix = checked.upstreams.iter().find(|one| one["unix"] == true).context("php-fpm's socket")?;
    ensure!(unix["connected"] == true && unix["answer_us"].is_u64() && unix["route"].is_null(), "{unix:#}");
    // What Node.js is known to do by itself, without --measure-idle.
    let race = checked.findings.iter().find(|finding| finding["cause"] == "keepalive-race").context("the pool")?;
    ensure!(race["seen"].to_string().contains("Node.js"), "{race:#}");
    Ok(())
}

/// The wrong one of two protocols that look alike: uwsgi and SCGI servers, asked in each other's words and over HTTP.
#[test]
fn gateways_asked_in_the_wrong_words_are_found() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    let scgi = scgi(app(SCGI), &lab.directory().join("wsgi.py"))?;
    let site = Site::start_with(&lab, "mixed", &[], |plan| {
        plan.server("uwsgi", Kind::Uwsgi { http: false, harakiri: None }, UWSGI);
        plan.server("scgi", scgi, SCGI);
        plan.server("node", Kind::Node { keep_alive: None }, NODE);
        plan.config.location("/a/", &[&format!("proxy_pass http://{};", plan.app(UWSGI))]);
        plan.config.location("/b/", &[&format!("uwsgi_pass {};", plan.app(SCGI))]);
        plan.config.location("/c/", &[&format!("uwsgi_pass {};", plan.app(NODE))]);
    })?;
    let checked = Checked::of(site.nginx().master(), &["--probe-path", "/ok"])?;
    for port in [UWSGI, SCGI, NODE] {
        let is_it =
            |finding: &&serde_json::Value| finding["subject"] == app(port).to_string() && finding["weight"] != "note";
        ensure!(
            checked.findings.iter().any(|finding| is_it(&finding)),
            "nothing about {port}: {:#?}",
            checked.findings
        );
    }
    Ok(())
}
