//! Limits that are reached, and logs that tell of failures.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use probe_tests::client::Connection;
use probe_tests::lab::Lab;

use crate::scene::{Checked, OK, Server, answering, serve};

#[test]
fn used_up_ports_are_found() -> Result<()> {
    let lab = Lab::new()?;
    let app = SocketAddr::from((lab.addresses().app, 9661));
    serve(lab.app(), app, |stream| {
        std::thread::sleep(std::time::Duration::from_secs(30));
        drop(stream);
    })?;
    lab.proxy().sysctl("ipv4/ip_local_port_range", "40000 40003")?;
    let held = lab.proxy().inside(|| Ok((0..4).map_while(|_| TcpStream::connect(app).ok()).collect::<Vec<_>>()))?;
    ensure!(held.len() == 4, "{}", held.len());
    let http = format!("server {{ listen 8080; location / {{ proxy_pass http://{app}; }} }}");
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let checked = Checked::of(nginx.master(), &[])?;
    let causes: Vec<_> = checked.findings.iter().filter(|finding| finding["weight"] == "fault").collect();
    ensure!(!causes.is_empty(), "{:#?}", checked.findings);
    ensure!(causes.iter().all(|finding| finding["cause"] == "ephemeral-ports-exhausted"), "{causes:#?}");
    Ok(())
}

#[test]
fn used_up_files_and_past_failures_are_told() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    serve(lab.app(), app(9671), answering(OK))?;
    let http = format!(
        "server {{ listen 8080; location / {{ proxy_pass http://{}; }} location /gone {{ proxy_pass http://{}; }} }}",
        app(9671),
        app(9672)
    );
    let main = "user root; worker_rlimit_nofile 40;";
    let nginx = Server::start_as(&lab, lab.proxy(), "front", main, &http, 8080, &[])?;
    let target = SocketAddr::from((lab.addresses().proxy, 8080));
    for _ in 0..3 {
        ensure!(Connection::open(lab.client(), target)?.get("/gone")?.status == Some(502));
    }
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(Connection::open(lab.client(), target)?);
    }
    let checked = Checked::of(nginx.master(), &[])?;
    let find = |weight: &str, area: &str, cause: &str| {
        let is = |finding: &&serde_json::Value| {
            finding["weight"] == weight && finding["area"] == area && finding["cause"] == cause
        };
        checked.findings.iter().find(is).with_context(|| format!("{weight} {area} {cause}: {:#?}", checked.findings))
    };
    find("fault", "limits", "fd-exhausted-nginx")?;
    find("fault", "upstream", "upstream-refused")?;
    let logged = find("risk", "logs", "upstream-refused")?;
    ensure!(logged["title"].to_string().contains("3 failures"), "{logged:#}");
    Ok(())
}

/// A log that shows how long nobody had asked before each failure, and what else it can show.
#[test]
fn pauses_before_failures_are_told() -> Result<()> {
    let lab = Lab::new()?;
    let app = SocketAddr::from((lab.addresses().app, 9681));
    serve(lab.app(), app, answering(OK))?;
    let log = lab.directory().join("timed.log");
    let format = "$msec $connection \"$request\" $status $request_time \"$upstream_addr\" \"$upstream_status\" $upstream_connect_time \
                  $upstream_header_time $upstream_response_time";
    let http = format!(
        "log_format timed '{format}'; access_log {} timed;\nserver {{ listen 8080; location / {{ proxy_pass http://{app}; }} }}",
        log.display()
    );
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    // As nginx would have written them in the last minutes: at once after 6 s and more, and never after less.
    let mut now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() - 300.0;
    let mut lines = String::new();
    for (pause, status) in
        [(0.1, 200), (0.2, 200), (6.1, 502), (0.3, 200), (7.5, 502), (1.2, 200), (6.4, 502), (0.1, 200), (9.0, 200)]
    {
        now += pause;
        writeln!(lines, "{now:.3} 7 \"GET / HTTP/1.1\" {status} 0.001 \"{app}\" \"{status}\" 0.000 0.001 0.001")?;
    }
    fs::write(&log, lines)?;
    let checked = Checked::of(nginx.master(), &[])?;
    checked.expect(&[])?;
    let race = checked.findings.iter().find(|finding| finding["cause"] == "keepalive-race").context("the pattern")?;
    ensure!(race["area"] == "logs" && race["subject"] == app.to_string(), "{race:#}");
    ensure!(
        race["seen"].to_string().contains("3 requests failed at once, after 6.0 s to 7.4 s")
            || race["seen"].to_string().contains("after 6.1 s to 7.5 s"),
        "{race:#}"
    );
    let no_advice = checked.findings.iter().all(|finding| finding["subject"] != "log_format");
    ensure!(no_advice, "the format has everything: {:#?}", checked.findings);
    Ok(())
}
