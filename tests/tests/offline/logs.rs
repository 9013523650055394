//! nginx's logs beside a capture, in whatever format.

use anyhow::{Result, bail, ensure};
use probe_tests::{
    capture::{Capture, Conversation, Wrap},
    line::{EvidenceSource, Incident, Outcome},
};

use super::scene::{BEGIN_NS, CLIENT, Desk, FORM, NGINX, OTHER_CLIENT, Said, UPSTREAM};

/// What nginx wrote about the request that failed.
const ERROR: &str = "2026/11/21 14:02:07 [error] 812#812: *41 recv() failed (104: Connection reset by peer) while reading \
    response header from upstream, client: 203.0.113.7, server: shop.example, request: \"POST /cart?token=s3cr3tXYZZY&n=1 HTTP/1.1\", \
    upstream: \"http://10.0.1.5:8000/cart?token=s3cr3tXYZZY&n=1\", host: \"shop.example\"\n";

const COMBINED: &str =
    "203.0.113.7 - - [21/Nov/2026:14:02:07 +0000] \"POST /cart?token=s3cr3tXYZZY&n=1 HTTP/1.1\" 502 2 \"-\" \"curl\"\n";

const FORMAT: &str = "$msec|$remote_addr|$status|$upstream_addr|$upstream_status|$request";
const LINE: &str = "1795269727.025|203.0.113.7|502|10.0.1.5:8000|502|POST /cart?token=s3cr3tXYZZY&n=1 HTTP/1.1\n";

const CONFIGURATION: &str = "events {}\nhttp {\n  log_format other '$status';\n  log_format mine '$msec|$remote_addr|$status|'\n    \
    '$upstream_addr|$upstream_status|$request';\n  upstream app { server 10.0.1.5:8000; }\n  server {\n    listen 80;\n    \
    access_log /var/log/nginx/shop.log mine;\n    location / { proxy_pass http://app; }\n  }\n}\n";

fn from_logs(said: &Said) -> Result<Vec<String>> {
    let incident = said.incident()?;
    let lines = incident.evidence.iter().filter(|evidence| evidence.source == EvidenceSource::Log);
    Ok(lines.map(|evidence| evidence.text.clone()).collect())
}

#[test]
fn an_error_log_says_which_connection() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    desk.put("error.log", ["not a line of nginx's\n", ERROR].concat())?;
    let said = desk.analyze(&["--json", "--error-log", "error.log", "in.pcap"])?;
    let incident = said.incident()?;
    ensure!(incident.request.connection == Some(41) && incident.nginx.pid == Some(812), "{incident:#?}");
    ensure!(incident.verdict.cause == "upstream-reset", "{incident:#?}");
    ensure!(from_logs(&said)?.iter().any(|text| text.contains("recv() failed")), "{incident:#?}");
    ensure!(said.stderr.contains("error.log: 1 lines do not have the form"), "{}", said.stderr);
    // Lines of another day are no evidence.
    desk.put("error.log", ERROR.replace("2026/11/21", "2026/11/20"))?;
    let said = desk.analyze(&["--json", "--error-log", "error.log", "in.pcap"])?;
    ensure!(from_logs(&said)?.is_empty() && said.stderr.contains("no line is of the capture's time"), "{said:?}");
    Ok(())
}

#[test]
fn an_access_log_is_read_by_its_format() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    desk.put("combined.log", COMBINED)?;
    desk.put("shop.log", LINE)?;
    desk.put("nginx.conf", CONFIGURATION)?;
    let mismatch = "do not have the form of their log";
    for (arguments, fits) in [
        (&["--access-log", "combined.log"][..], true),
        (&["--access-log", "shop.log"], false),
        (&["--access-log", "shop.log", "--log-format", FORMAT], true),
        (&["--access-log", "combined.log", "--log-format", FORMAT], false),
        (&["--access-log", "shop.log", "--conf", "nginx.conf"], true),
        (&["--access-log", "shop.log", "--conf", "nginx.conf", "--log-format", "mine"], true),
        (&["--access-log", "shop.log", "--conf", "nginx.conf", "--log-format", "other"], false),
    ] {
        let said = desk.analyze(&[&["--json", "in.pcap"][..], arguments].concat())?;
        let incident = said.incident()?;
        ensure!(incident.verdict.cause == "upstream-reset", "{arguments:?}: {incident:#?}");
        ensure!(said.stderr.contains(mismatch) != fits, "{arguments:?}: {}", said.stderr);
    }
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_read_is_said_to_be_so() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    desk.put("nginx.conf", "http {\n  server {\n")?;
    let said = desk.analyze(&["--conf", "nginx.conf", "in.pcap"])?;
    ensure!(said.code == Some(2) && said.stderr.contains("nginx.conf"), "{said:?}");
    Ok(())
}

const MS: u64 = 1_000_000;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BAD: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno";

fn error_line(number: u32, what: &str, client: &str, path: &str, upstream: &str) -> String {
    format!(
        "2026/11/21 14:02:07 [error] 812#812: *{number} {what}, client: {client}, server: , request: \"GET {path} HTTP/1.1\", \
         upstream: \"http://{upstream}{path}\", host: \"shop.example\"\n"
    )
}

fn access_line(client: &str, path: &str, status: u16) -> String {
    format!("{client} - - [21/Nov/2026:14:02:07 +0000] \"GET {path} HTTP/1.1\" {status} 2 \"-\" \"curl\"\n")
}

fn asked(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n").into_bytes()
}

/// The logs know the second only, and one peer twice in it: a kept connection that failed, and the one that nginx opened instead.
#[test]
fn a_repeated_attempt_at_the_same_peer_is_one_request() -> Result<()> {
    let mut capture = Capture::default();
    let mut down = Conversation::new(CLIENT.parse()?, NGINX.parse()?);
    let mut kept = Conversation::new("10.0.0.1:42000".parse()?, UPSTREAM.parse()?);
    let mut fresh = Conversation::new("10.0.0.1:42001".parse()?, UPSTREAM.parse()?);
    down.open(&mut capture, BEGIN_NS);
    down.ask(&mut capture, BEGIN_NS + MS, &asked("/list"));
    kept.open(&mut capture, BEGIN_NS + MS + 100_000);
    kept.ask(&mut capture, BEGIN_NS + MS + 200_000, &asked("/list"));
    kept.answer(&mut capture, BEGIN_NS + 2 * MS, OK);
    down.answer(&mut capture, BEGIN_NS + 2 * MS + 100_000, OK);
    down.ask(&mut capture, BEGIN_NS + 10 * MS, &asked("/cart"));
    kept.ask(&mut capture, BEGIN_NS + 10 * MS + 100_000, &asked("/cart"));
    kept.reset(&mut capture, BEGIN_NS + 11 * MS);
    fresh.open(&mut capture, BEGIN_NS + 11 * MS + 100_000);
    fresh.ask(&mut capture, BEGIN_NS + 11 * MS + 200_000, &asked("/cart"));
    fresh.reset(&mut capture, BEGIN_NS + 12 * MS);
    down.answer(&mut capture, BEGIN_NS + 12 * MS + 100_000, BAD);
    down.close(&mut capture, BEGIN_NS + 14 * MS);
    let desk = Desk::new()?;
    desk.put("in.pcap", capture.pcap(FORM, Wrap::Ethernet))?;
    let reset = "recv() failed (104: Connection reset by peer) while reading response header from upstream";
    desk.put("error.log", error_line(41, reset, "203.0.113.7", "/cart", UPSTREAM).repeat(2))?;
    desk.put(
        "access.log",
        [access_line("203.0.113.7", "/list", 200), access_line("203.0.113.7", "/cart", 502)].concat(),
    )?;
    for logs in [&["--error-log", "error.log", "--access-log", "access.log"][..], &[]] {
        let said = desk.analyze(&[&["--json", "in.pcap"][..], logs].concat())?;
        let incident = said.incident()?;
        let [first, second] = incident.attempts.as_slice() else { bail!("{incident:#?}") };
        ensure!(incident.status == Some(502) && incident.verdict.cause == "upstream-reset", "{incident:#?}");
        ensure!(first.reused == Some(true) && second.reused == Some(false), "{incident:#?}");
    }
    Ok(())
}

/// Two requests meet the same refusal in the same second: what each was answered tells which refusal is whose, and what went well leaves no
/// line in the error log.
#[test]
fn a_refusal_belongs_to_the_request_that_it_was_made_for() -> Result<()> {
    let mut capture = Capture::default();
    let refused = |capture: &mut Capture, port: u16, at: u64| -> Result<()> {
        let mut up = Conversation::new(format!("10.0.0.1:{port}").parse()?, "10.0.1.6:8000".parse()?);
        up.refused(capture, at);
        Ok(())
    };
    for (client, path, port, begin) in
        [(OTHER_CLIENT, "/list", 41_000, BEGIN_NS), (CLIENT, "/cart", 42_000, BEGIN_NS + 20 * MS)]
    {
        let mut down = Conversation::new(client.parse()?, NGINX.parse()?);
        down.open(&mut capture, begin);
        down.ask(&mut capture, begin + MS, &asked(path));
        refused(&mut capture, port, begin + 2 * MS)?;
        if path == "/list" {
            let mut up = Conversation::new("10.0.0.1:41001".parse()?, UPSTREAM.parse()?);
            up.open(&mut capture, begin + 3 * MS);
            up.ask(&mut capture, begin + 3 * MS + 100_000, &asked(path));
            up.answer(&mut capture, begin + 4 * MS, OK);
            up.close(&mut capture, begin + 4 * MS + 50_000);
        }
        down.answer(&mut capture, begin + 5 * MS, if path == "/list" { OK } else { BAD });
        down.close(&mut capture, begin + 7 * MS);
    }
    let desk = Desk::new()?;
    desk.put("in.pcap", capture.pcap(FORM, Wrap::Ethernet))?;
    let what = "connect() failed (111: Connection refused) while connecting to upstream";
    let errors = [
        error_line(40, what, "203.0.113.9", "/list", "10.0.1.6:8000"),
        error_line(41, what, "203.0.113.7", "/cart", "10.0.1.6:8000"),
    ];
    desk.put("error.log", errors.concat())?;
    desk.put(
        "access.log",
        [access_line("203.0.113.9", "/list", 200), access_line("203.0.113.7", "/cart", 502)].concat(),
    )?;
    for logs in [&["--error-log", "error.log", "--access-log", "access.log"][..], &[]] {
        let said = desk.analyze(&[&["--json", "in.pcap"][..], logs].concat())?;
        let incident = said.incident()?;
        let mut near = said.lines("near_miss")?;
        ensure!(near.len() == 1, "{said:?}");
        let near: Incident = serde_json::from_value(near.remove(0))?;
        let local = |incident: &Incident| incident.attempts.first().and_then(|attempt| attempt.local.clone());
        ensure!(local(&incident).as_deref() == Some("10.0.0.1:42000"), "{incident:#?}");
        ensure!(local(&near).as_deref() == Some("10.0.0.1:41000"), "{near:#?}");
        let [_, well] = near.attempts.as_slice() else { bail!("{near:#?}") };
        ensure!(well.outcome == Outcome::Ok && well.upstream.as_deref() == Some(UPSTREAM), "{near:#?}");
    }
    Ok(())
}

/// `proxy_next_upstream http_503`: what the first server answered leaves no line in the error log.
#[test]
fn an_answer_that_was_passed_over_is_not_the_last_attempt() -> Result<()> {
    let mut capture = Capture::default();
    let mut down = Conversation::new(CLIENT.parse()?, NGINX.parse()?);
    let mut busy = Conversation::new("10.0.0.1:42000".parse()?, "10.0.1.6:8000".parse()?);
    let mut closing = Conversation::new("10.0.0.1:42001".parse()?, UPSTREAM.parse()?);
    down.open(&mut capture, BEGIN_NS);
    down.ask(&mut capture, BEGIN_NS + MS, &asked("/cart"));
    busy.open(&mut capture, BEGIN_NS + 2 * MS);
    busy.ask(&mut capture, BEGIN_NS + 2 * MS + 100_000, &asked("/cart"));
    busy.answer(&mut capture, BEGIN_NS + 3 * MS, b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno");
    busy.close(&mut capture, BEGIN_NS + 3 * MS + 100_000);
    closing.open(&mut capture, BEGIN_NS + 4 * MS);
    closing.ask(&mut capture, BEGIN_NS + 4 * MS + 100_000, &asked("/cart"));
    closing.closed(&mut capture, BEGIN_NS + 5 * MS);
    down.answer(&mut capture, BEGIN_NS + 5 * MS + 200_000, BAD);
    down.close(&mut capture, BEGIN_NS + 7 * MS);
    let desk = Desk::new()?;
    desk.put("in.pcap", capture.pcap(FORM, Wrap::Ethernet))?;
    let closed = "upstream prematurely closed connection while reading response header from upstream";
    desk.put("error.log", error_line(41, closed, "203.0.113.7", "/cart", UPSTREAM))?;
    for logs in [&["--error-log", "error.log"][..], &[]] {
        let incident = desk.analyze(&[&["--json", "in.pcap"][..], logs].concat())?.incident()?;
        let [first, second] = incident.attempts.as_slice() else { bail!("{incident:#?}") };
        ensure!(first.outcome == Outcome::Ok && second.outcome == Outcome::Closed, "{incident:#?}");
        ensure!(incident.verdict.cause == "premature-close", "{incident:#?}");
    }
    Ok(())
}
