//! What nginx makes of an answer, where a capture is all there is.

use anyhow::{Result, ensure};
use probe_tests::{
    capture::{Capture, Conversation, Wrap},
    line::{Confidence, Incident, Outcome},
};

use super::scene::{BEGIN_NS, CLIENT, Desk, FORM, NGINX, Said, UPSTREAM};

const MS: u64 = 1_000_000;
const ASKED: &[u8] = b"GET /page HTTP/1.1\r\nHost: shop.example\r\n\r\n";
const BAD: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno";

/// One request, one attempt; what the upstream sent, and what nginx passed on.
fn exchange(sent: &[u8], passed_on: &[u8]) -> Result<Capture> {
    let mut capture = Capture::default();
    let mut down = Conversation::new(CLIENT.parse()?, NGINX.parse()?);
    let mut up = Conversation::new("10.0.0.1:42000".parse()?, UPSTREAM.parse()?);
    down.open(&mut capture, BEGIN_NS);
    down.ask(&mut capture, BEGIN_NS + MS, ASKED);
    up.open(&mut capture, BEGIN_NS + MS + 100_000);
    up.ask(&mut capture, BEGIN_NS + MS + 200_000, ASKED);
    up.answer(&mut capture, BEGIN_NS + 5 * MS, sent);
    up.close(&mut capture, BEGIN_NS + 5 * MS + 50_000);
    down.answer(&mut capture, BEGIN_NS + 5 * MS + 300_000, passed_on);
    down.close(&mut capture, BEGIN_NS + 7 * MS);
    Ok(capture)
}

fn said(sent: &[u8], passed_on: &[u8]) -> Result<Said> {
    let desk = Desk::new()?;
    desk.put("in.pcap", exchange(sent, passed_on)?.pcap(FORM, Wrap::Ethernet))?;
    desk.analyze(&["--json", "in.pcap"])
}

#[test]
fn a_header_that_nginx_did_not_take_is_an_attempt() -> Result<()> {
    let large =
        [b"HTTP/1.1 200 OK\r\nSet-Cookie: a=".as_slice(), &[b'x'; 6_000], b"\r\nContent-Length: 2\r\n\r\nok"].concat();
    let incident = said(&large, BAD)?.incident()?;
    ensure!(
        incident.verdict.cause == "header-too-big" && incident.verdict.confidence != Confidence::Confirmed,
        "{incident:#?}"
    );
    let [attempt] = incident.attempts.as_slice() else { anyhow::bail!("{incident:#?}") };
    ensure!(attempt.outcome == Outcome::BadResponse, "{incident:#?}");
    // One that fits every buffer was refused for another reason.
    let incident = said(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", BAD)?.incident()?;
    ensure!(
        incident.verdict.cause == "invalid-response" && incident.verdict.confidence != Confidence::Confirmed,
        "{incident:#?}"
    );
    ensure!(incident.verdict.summary.contains("answered 200"), "{incident:#?}");
    Ok(())
}

#[test]
fn an_answer_that_was_passed_on_is_no_failure() -> Result<()> {
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let said = said(ok, ok)?;
    ensure!(said.lines("incident")?.is_empty() && said.lines("near_miss")?.is_empty(), "{said:?}");
    Ok(())
}

#[test]
fn garbage_that_nginx_relays_is_a_near_miss() -> Result<()> {
    for (garbage, looks) in
        [(b"\x00\x01garbage\r\n\r\n".as_slice(), ""), (b"SSH-2.0-OpenSSH_9.2p1\r\n", "looks like SSH")]
    {
        let said = said(garbage, garbage)?;
        let mut near = said.lines("near_miss")?;
        ensure!(said.lines("incident")?.is_empty() && near.len() == 1, "{said:?}");
        let near: Incident = serde_json::from_value(near.remove(0))?;
        ensure!(near.status.is_none() && near.verdict.cause == "invalid-response", "{near:#?}");
        ensure!(near.verdict.summary.contains("passed it on") && near.verdict.summary.contains(looks), "{near:#?}");
    }
    Ok(())
}
