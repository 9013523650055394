//! curl as a client, for what the lab's own does not speak: TLS and HTTP/2.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::client::Exchange;
use crate::lab::Lab;
use crate::process::{Process, Start};

/// Longer than every fault takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1: one request after the other on a connection.
    One,
    /// HTTP/2: all requests at once on one connection.
    Two,
}

/// Sends a GET for each URI to nginx over TLS: what came back, in the order of the URIs.
pub fn get_all(lab: &Lab, version: Version, target: SocketAddr, uris: &[&str]) -> Result<Vec<Exchange>> {
    let path = lab.directory().join(format!("curl-{}.txt", uris.len()));
    let output = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let mut command = Command::new("curl");
    // Certificates are not what is tested; --globoff for the brackets of IPv6.
    command.args(["--disable", "--silent", "--insecure", "--globoff", "--noproxy", "*", "--max-time", "15"]);
    command.args(match version {
        Version::One => &["--http1.1"][..],
        Version::Two => &["--http2", "--parallel", "--parallel-max", "50"],
    });
    command.args(["--write-out", "%{urlnum} %{http_version} %{http_code} %{local_ip} %{local_port}\n"]);
    for uri in uris {
        command.args(["--output", "/dev/null", &format!("https://{target}{uri}")]);
    }
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
    let (sent, started) = (SystemTime::now(), Instant::now());
    let mut curl = Process::spawn("curl", command, Start { namespace: Some(lab.client()), ..Start::default() })?;
    let status = curl.wait(PATIENCE)?;
    let answered = Instant::now();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut exchanges = Vec::new();
    for (number, uri) in uris.iter().enumerate() {
        let line =
            text.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[0] == number.to_string());
        let Some([_, spoken, code, ip, port]) = line.as_deref() else { bail!("curl ({status}) said:\n{text}") };
        if *spoken != (if version == Version::Two { "2" } else { "1.1" }) {
            bail!("curl spoke HTTP/{spoken} instead of {version:?}");
        }
        let ip: IpAddr = ip.parse().with_context(|| format!("the address {ip}"))?;
        exchanges.push(Exchange {
            local: SocketAddr::new(ip, port.parse().with_context(|| format!("the port {port}"))?),
            method: "GET".to_owned(),
            uri: (*uri).to_owned(),
            status: code.parse().ok().filter(|code| *code != 0),
            headers: Vec::new(),
            body: Vec::new(),
            sent,
            answered,
            took: answered - started,
        });
    }
    Ok(exchanges)
}
