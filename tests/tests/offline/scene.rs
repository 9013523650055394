//! A capture with one 502 in it, and the program that is asked about it.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use probe_tests::{
    capture::{Capture, Conversation, Form, Wrap},
    line::Incident,
    probe::binary,
};
use serde_json::Value;

/// 2026-11-21T14:02:07Z.
pub(crate) const BEGIN_NS: u64 = 1_795_269_727_000_000_000;
const MS: u64 = 1_000_000;

/// What no client wants to see again.
pub(crate) const SECRET: &str = "s3cr3tXYZZY";
/// The client whose request fails.
pub(crate) const CLIENT: &str = "203.0.113.7:51000";
/// A client whose request is answered.
pub(crate) const OTHER_CLIENT: &str = "203.0.113.9:52000";
pub(crate) const NGINX: &str = "10.0.0.1:80";
pub(crate) const UPSTREAM: &str = "10.0.1.5:8000";

pub(crate) const FORM: Form = Form { big_endian: false, nanoseconds: true };

fn request(target: &str) -> Vec<u8> {
    format!(
        "POST {target}?token={SECRET}&n=1 HTTP/1.1\r\nHost: shop.example\r\nCookie: sid={SECRET}\r\n\
         Authorization: Bearer {SECRET}\r\nContent-Length: {}\r\n\r\n{SECRET}",
        SECRET.len()
    )
    .into_bytes()
}

/// Two requests: one is answered, the upstream resets the connection of the other and nginx answers 502.
pub(crate) fn scene() -> Result<Capture> {
    made(CLIENT, OTHER_CLIENT, NGINX, "10.0.0.1", UPSTREAM)
}

/// The same in IPv6.
pub(crate) fn scene_v6() -> Result<Capture> {
    made("[2001:db8:1::7]:51000", "[2001:db8:1::9]:52000", "[2001:db8::1]:80", "2001:db8::1", "[2001:db8:2::5]:8000")
}

fn made(client: &str, other: &str, nginx: &str, host: &str, upstream: &str) -> Result<Capture> {
    let mut capture = Capture::default();
    let local = |port: u16| Ok::<_, anyhow::Error>(SocketAddr::new(host.parse()?, port));
    let (nginx, upstream): (SocketAddr, SocketAddr) = (nginx.parse()?, upstream.parse()?);
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let bad = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno";
    for (client, target, port, begin, fails) in
        [(other, "/list", 41_000, BEGIN_NS, false), (client, "/cart", 42_000, BEGIN_NS + 20 * MS, true)]
    {
        let mut down = Conversation::new(client.parse()?, nginx);
        let mut up = Conversation::new(local(port)?, upstream);
        down.open(&mut capture, begin);
        down.ask(&mut capture, begin + MS, &request(target));
        up.open(&mut capture, begin + MS + 100_000);
        up.ask(&mut capture, begin + MS + 200_000, &request(target));
        if fails {
            up.reset(&mut capture, begin + 5 * MS);
        } else {
            up.answer(&mut capture, begin + 5 * MS, ok);
            up.close(&mut capture, begin + 5 * MS + 50_000);
        }
        down.answer(&mut capture, begin + 5 * MS + 300_000, if fails { bad } else { ok });
        down.close(&mut capture, begin + 7 * MS);
    }
    Ok(capture)
}

/// What the program printed.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn lines(&self, kind: &str) -> Result<Vec<Value>> {
        let lines: Vec<Value> = self.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(lines.into_iter().filter(|line| line["type"] == kind).collect())
    }

    /// The only incident.
    pub(crate) fn incident(&self) -> Result<Incident> {
        let mut all = self.lines("incident")?;
        ensure!(all.len() == 1 && self.code == Some(0), "{} incidents: {self:?}", all.len());
        Ok(serde_json::from_value(all.remove(0))?)
    }

    /// Everything that it wrote.
    pub(crate) fn whole(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// A folder with files, and the program run in it: so names are short.
pub(crate) struct Desk(tempfile::TempDir);

impl Desk {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir().context("a folder for captures")?))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The scene as `in.pcap`.
    pub(crate) fn put_scene(&self) -> Result<()> {
        self.put("in.pcap", scene()?.pcap(FORM, Wrap::Ethernet))?;
        Ok(())
    }

    /// `probe502 analyze` with these arguments.
    pub(crate) fn analyze(&self, arguments: &[&str]) -> Result<Said> {
        self.analyze_with(arguments, None)
    }

    /// The same with something on its standard input.
    pub(crate) fn analyze_with(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<Said> {
        let mut child = Command::new(binary()?)
            .arg("analyze")
            .args(arguments)
            // The error log's times have no zone.
            .env("TZ", "UTC")
            .current_dir(self.path())
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input)?;
        }
        let output = child.wait_with_output()?;
        Ok(Said {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }
}
