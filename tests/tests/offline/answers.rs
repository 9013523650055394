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

/// A `ClientHello`'s beginning, and the alert of a server that has no version in common.
const CLIENT_HELLO: &[u8] = &[22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3];
const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 70];
/// `FCGI_BEGIN_REQUEST` of a responder.
const FASTCGI: &[u8] = &[1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// How an attempt in another protocol ends.
#[derive(Clone, Copy)]
enum End {
    ByNginx,
    ByUpstream,
    Reset,
}

/// One request, and attempts in another protocol, which ends before nginx answers; `others`: as many more at the same time.
fn foreign(asked: &[u8], answered: &[u8], end: End, status: &str, others: u16) -> Result<Said> {
    let mut capture = Capture::default();
    let mut down = Conversation::new(CLIENT.parse()?, NGINX.parse()?);
    down.open(&mut capture, BEGIN_NS);
    down.ask(&mut capture, BEGIN_NS + MS, ASKED);
    for other in 0..=others {
        let mut up = Conversation::new(format!("10.0.0.1:{}", 42_000 + other).parse()?, UPSTREAM.parse()?);
        let begin = BEGIN_NS + MS + u64::from(other) * 10_000;
        up.open(&mut capture, begin + 100_000);
        up.ask(&mut capture, begin + 200_000, asked);
        if !answered.is_empty() {
            up.answer(&mut capture, begin + MS, answered);
        }
        match end {
            End::ByNginx => up.close(&mut capture, begin + 2 * MS),
            End::ByUpstream => up.closed(&mut capture, begin + 2 * MS),
            End::Reset => up.reset(&mut capture, begin + 2 * MS),
        }
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
    down.answer(&mut capture, BEGIN_NS + 4 * MS, answer.as_bytes());
    down.close(&mut capture, BEGIN_NS + 7 * MS);
    let desk = Desk::new()?;
    desk.put("in.pcap", capture.pcap(FORM, Wrap::Ethernet))?;
    desk.analyze(&["--json", "in.pcap"])
}

#[test]
fn attempts_in_other_protocols_are_tied_by_time() -> Result<()> {
    let plain = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".as_slice();
    for (asked, answered, end, status, cause, says) in [
        (CLIENT_HELLO, ALERT, End::ByUpstream, "502 Bad Gateway", "tls-handshake-failed", "alert 70"),
        (CLIENT_HELLO, plain, End::ByUpstream, "502 Bad Gateway", "tls-handshake-failed", "plain HTTP"),
        (CLIENT_HELLO, b"", End::ByUpstream, "502 Bad Gateway", "tls-handshake-failed", "closed the connection"),
        (CLIENT_HELLO, CLIENT_HELLO, End::Reset, "502 Bad Gateway", "upstream-reset", "reset the connection"),
        (CLIENT_HELLO, CLIENT_HELLO, End::ByNginx, "502 Bad Gateway", "unknown", "do not show why"),
        (FASTCGI, b"", End::ByNginx, "504 Gateway Time-out", "read-timeout", "stayed silent"),
        (FASTCGI, &FASTCGI[..8], End::ByUpstream, "502 Bad Gateway", "premature-close", "after 8 bytes"),
    ] {
        let incident = foreign(asked, answered, end, status, 0)?.incident()?;
        ensure!(incident.verdict.cause == cause && incident.verdict.summary.contains(says), "{cause}: {incident:#?}");
        ensure!(incident.attempts.len() == 1 && incident.verdict.confidence != Confidence::Confirmed, "{incident:#?}");
    }
    Ok(())
}

/// Of two that fit neither is chosen; and one that ends well is nobody's affair.
#[test]
fn nothing_is_tied_by_time_that_fits_twice_or_ends_well() -> Result<()> {
    let incident = foreign(CLIENT_HELLO, ALERT, End::ByUpstream, "502 Bad Gateway", 1)?.incident()?;
    ensure!(incident.verdict.cause == "unknown" && incident.attempts.is_empty(), "{incident:#?}");
    let said = foreign(FASTCGI, &FASTCGI[..8], End::ByUpstream, "200 OK", 0)?;
    ensure!(said.lines("incident")?.is_empty() && said.lines("near_miss")?.is_empty(), "{said:?}");
    Ok(())
}
