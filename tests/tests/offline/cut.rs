//! Captures with the first bytes of each packet only (`tcpdump -s 96`).

use anyhow::{Result, ensure};
use probe_tests::{
    capture::{Capture, Conversation, Wrap},
    line::{Confidence, Outcome},
};

use super::scene::{BEGIN_NS, CLIENT, Desk, FORM, NGINX, UPSTREAM};

const MS: u64 = 1_000_000;
const ASKED: &[u8] =
    b"GET /a/path/that/is/longer/than/what/is/left/of/the/packet?n=1 HTTP/1.1\r\nHost: shop.example\r\n\r\n";
const BAD: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\nContent-Length: 2\r\n\r\nno";
const ERROR: &str = "2026/11/21 14:02:07 [error] 812#812: *41 upstream prematurely closed connection while reading response header \
    from upstream, client: 203.0.113.7, server: , request: \"GET /a/path/that/is/longer/than/what/is/left/of/the/packet?n=1 \
    HTTP/1.1\", upstream: \"http://10.0.1.5:8000/a/path/that/is/longer/than/what/is/left/of/the/packet?n=1\", host: \"shop.example\"\n";
const ACCESS: &str = "203.0.113.7 - - [21/Nov/2026:14:02:07 +0000] \"GET /a/path/that/is/longer/than/what/is/left/of/the/packet?n=1 \
    HTTP/1.1\" 502 2 \"-\" \"curl\"\n";

/// The upstream sends this and closes; nginx answers 502.
fn closed_after(sent: &[u8]) -> Result<Vec<u8>> {
    let mut capture = Capture::default();
    let mut down = Conversation::new(CLIENT.parse()?, NGINX.parse()?);
    let mut up = Conversation::new("10.0.0.1:42000".parse()?, UPSTREAM.parse()?);
    down.open(&mut capture, BEGIN_NS);
    down.ask(&mut capture, BEGIN_NS + MS, ASKED);
    up.open(&mut capture, BEGIN_NS + MS + 100_000);
    up.ask(&mut capture, BEGIN_NS + MS + 200_000, ASKED);
    if !sent.is_empty() {
        up.answer(&mut capture, BEGIN_NS + 5 * MS, sent);
    }
    up.closed(&mut capture, BEGIN_NS + 5 * MS + 50_000);
    down.answer(&mut capture, BEGIN_NS + 5 * MS + 300_000, BAD);
    down.close(&mut capture, BEGIN_NS + 7 * MS);
    Ok(cut(&capture.pcap(FORM, Wrap::Ethernet), 96))
}

/// What is left of a capture by a snapshot length.
fn cut(file: &[u8], most: usize) -> Vec<u8> {
    let (head, mut rest) = file.split_at(24);
    let mut short = head.to_vec();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let whole = record.get(8..12).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
        let Some((bytes, after)) = after.split_at_checked(usize::try_from(whole).unwrap_or(usize::MAX)) else { break };
        let kept = bytes.get(..most).unwrap_or(bytes);
        let length = u32::try_from(kept.len()).unwrap_or(whole).to_le_bytes();
        short.extend([&record[..8], &length, &record[12..], kept].concat());
        rest = after;
    }
    short
}

#[test]
fn a_cut_request_is_the_one_that_the_logs_have() -> Result<()> {
    let desk = Desk::new()?;
    desk.put("in.pcap", closed_after(b"")?)?;
    desk.put("error.log", ERROR)?;
    desk.put("access.log", ACCESS)?;
    for logs in [&["--error-log", "error.log"][..], &["--error-log", "error.log", "--access-log", "access.log"]] {
        let said = desk.analyze(&[&["--json", "in.pcap"][..], logs].concat())?;
        let incident = said.incident()?;
        ensure!(said.lines("near_miss")?.is_empty() && incident.verdict.cause == "premature-close", "{said:?}");
        ensure!(incident.request.connection == Some(41) && incident.attempts[0].local.is_some(), "{incident:#?}");
    }
    Ok(())
}

#[test]
fn a_cut_header_is_not_said_to_have_been_whole() -> Result<()> {
    let desk = Desk::new()?;
    // More than the capture has of it, and not the end.
    desk.put("in.pcap", closed_after(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n")?)?;
    let incident = desk.analyze(&["--json", "in.pcap"])?.incident()?;
    ensure!(incident.attempts[0].outcome == Outcome::BadResponse, "{incident:#?}");
    ensure!(incident.verdict.confidence == Confidence::Possible, "{incident:#?}");
    for rival in ["does not show whether it was ever whole", "premature-close", "upstream-reset"] {
        ensure!(incident.verdict.summary.contains(rival), "{incident:#?}");
    }
    Ok(())
}
