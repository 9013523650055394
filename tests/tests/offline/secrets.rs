//! What was captured of a client stays in the capture.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::scene::{CLIENT, Desk, NGINX, OTHER_CLIENT, SECRET, Said, UPSTREAM};

/// What nginx wrote about the request that failed.
fn error_line() -> String {
    format!(
        "2026/11/21 14:02:07 [error] 812#812: *41 recv() failed (104: Connection reset by peer) while reading response header from \
         upstream, client: 203.0.113.7, server: shop.example, request: \"POST /cart?token={SECRET}&n=1 HTTP/1.1\", upstream: \
         \"http://10.0.1.5:8000/cart?token={SECRET}&n=1\", host: \"shop.example\", referrer: \"http://a.example/?q={SECRET}\"\n"
    )
}

fn desk() -> Result<Desk> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    desk.put("error.log", error_line())?;
    let access = format!(
        "203.0.113.7 - joe [21/Nov/2026:14:02:07 +0000] \"POST /cart?token={SECRET}&n=1 HTTP/1.1\" 502 2 \"http://x/?{SECRET}\" \"c\"\n"
    );
    desk.put("access.log", access)?;
    Ok(desk)
}

const INPUTS: [&str; 7] =
    ["--exchanges", "--connections", "--error-log", "error.log", "--access-log", "access.log", "in.pcap"];

fn in_every_form(desk: &Desk, arguments: &[&str]) -> Result<Vec<Said>> {
    [&["--json"][..], &[], &["-v"]].iter().map(|form| desk.analyze(&[form, &INPUTS[..], arguments].concat())).collect()
}

#[test]
fn a_secret_in_a_capture_is_in_nothing_that_leaves() -> Result<()> {
    let desk = desk()?;
    for arguments in [&[][..], &["--redact", "default"], &["--redact", "all"]] {
        for said in in_every_form(&desk, arguments)? {
            ensure!(said.code == Some(0) && said.stdout.contains("/cart"), "{said:?}");
            ensure!(!said.whole().contains(SECRET), "{arguments:?}: {}", said.whole());
        }
    }
    Ok(())
}

#[test]
fn without_redaction_it_says_so_and_shows_the_values() -> Result<()> {
    let desk = desk()?;
    for said in in_every_form(&desk, &["--no-redact"])? {
        ensure!(said.stderr.contains("NOT REDACTED"), "not said: {}", said.stderr);
        ensure!(said.stdout.contains(&format!("token={SECRET}")), "not shown: {}", said.stdout);
        // Nobody asked for more than the request line.
        ensure!(!said.stdout.contains(&format!("Bearer {SECRET}")), "{}", said.stdout);
    }
    Ok(())
}

/// The address in `IP:port`.
fn address(value: &Value) -> Result<String> {
    Ok(value.as_str().context("an address")?.rsplit_once(':').context("a port")?.0.to_owned())
}

#[test]
fn clients_addresses_are_replaced_alike_everywhere() -> Result<()> {
    let desk = desk()?;
    let said = in_every_form(&desk, &["--redact", "all"])?;
    for said in &said {
        for client in [CLIENT, OTHER_CLIENT] {
            let ip = client.rsplit_once(':').context("a port")?.0;
            ensure!(!said.whole().contains(ip), "{ip} is told: {}", said.whole());
        }
        ensure!(said.stdout.contains(UPSTREAM) && said.stdout.contains(NGINX), "what is no client is kept: {said:?}");
    }
    let incident = said[0].incident()?;
    let client = incident.request.client.context("a client")?;
    ensure!(client.ends_with(":51000"), "{client}");
    // The connection to nginx and the request have the same one; the two clients share their network still.
    let connections = said[0].lines("connection")?;
    let of = |port: &str| {
        let found = connections.iter().find(|line| line["orig"].as_str().is_some_and(|orig| orig.ends_with(port)));
        address(&found.context("a connection")?["orig"])
    };
    ensure!(client == format!("{}:51000", of(":51000")?), "{client} and {connections:?}");
    let network = |ip: String| ip.rsplit_once('.').map(|(network, _)| network.to_owned());
    ensure!(network(of(":51000")?) == network(of(":52000")?), "{connections:?}");
    ensure!(incident.verdict.cause == "upstream-reset" && incident.request.connection == Some(41), "{said:?}");
    Ok(())
}

/// A recording has no more in it than was left; and the files of an incident are for their owner alone.
#[test]
fn captures_leave_no_files() -> Result<()> {
    let desk = desk()?;
    let before = fs::read_dir(desk.path())?.count();
    desk.analyze(&INPUTS)?;
    ensure!(fs::read_dir(desk.path())?.count() == before);
    Ok(())
}
