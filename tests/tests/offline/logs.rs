//! nginx's logs beside a capture, in whatever format.

use anyhow::{Result, ensure};
use probe_tests::line::EvidenceSource;

use super::scene::{Desk, Said};

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
