//! Limits that are reached, and logs that tell of failures.

use std::net::{SocketAddr, TcpStream};

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
