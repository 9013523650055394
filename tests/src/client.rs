//! A small HTTP/1.1 client that knows its own port and tells exactly what it saw.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::probe::patience;
use crate::process::wait_until;

/// Longer than every fault takes; a client that waits longer has found a bug.
const PATIENCE: Duration = Duration::from_secs(15);

/// One request and what came back.
#[derive(Clone)]
pub struct Exchange {
    /// The client's own end of the connection.
    pub local: SocketAddr,
    /// The request's method.
    pub method: String,
    /// The request's target, as sent.
    pub uri: String,
    /// The status; `None` when the connection ended without one, or the client left first.
    pub status: Option<u16>,
    /// The header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// When the request was sent.
    pub sent: SystemTime,
    /// When the whole response was there.
    pub answered: Instant,
    /// From the one to the other.
    pub took: Duration,
}

/// The body as a text: it is shown where a test fails.
impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { local, method, uri, status, headers, body, sent, answered: _, took } = self;
        f.debug_struct("Exchange")
            .field("local", local)
            .field("request", &format_args!("{method} {uri}"))
            .field("status", status)
            .field("headers", &format_args!("{headers:?}"))
            .field("body", &String::from_utf8_lossy(body))
            .field("sent", sent)
            .field("took", took)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// The value of a header field, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A request on its way.
#[derive(Debug)]
struct Pending {
    method: String,
    uri: String,
    sent: SystemTime,
    started: Instant,
}

/// A client's connection; keeps open from request to request until the server closes it.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    local: SocketAddr,
    rest: Vec<u8>,
    pending: Option<Pending>,
}

impl Connection {
    /// Connects from inside a namespace.
    pub fn open(namespace: &Namespace, target: SocketAddr) -> Result<Self> {
        namespace.inside(|| Self::open_here(target))
    }

    /// Connects from wherever the calling thread is.
    pub fn open_here(target: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect the client to {target}"))?;
        stream.set_read_timeout(Some(patience(PATIENCE)))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        Ok(Self { stream, local, rest: Vec::new(), pending: None })
    }

    /// The client's own end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// A GET and its response.
    pub fn get(&mut self, uri: &str) -> Result<Exchange> {
        self.request("GET", uri, b"")
    }

    /// A POST with a short body, and its response. nginx does not try one again once it was sent.
    pub fn post(&mut self, uri: &str) -> Result<Exchange> {
        self.request("POST", uri, b"amount=42")
    }

    /// Sends a request and waits for the whole response.
    pub fn request(&mut self, method: &str, uri: &str, body: &[u8]) -> Result<Exchange> {
        self.send(method, uri, body)?;
        self.receive()
    }

    /// Sends a request's header and the beginning of its body, which will have `length` bytes.
    pub fn begin(&mut self, method: &str, uri: &str, length: usize, body: &[u8]) -> Result<()> {
        let mut bytes =
            format!("{method} {uri} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        bytes.extend_from_slice(body);
        let (sent, started) = (SystemTime::now(), Instant::now());
        self.proceed(&bytes)?;
        self.pending = Some(Pending { method: method.to_owned(), uri: uri.to_owned(), sent, started });
        Ok(())
    }

    /// Sends a request as it is given, byte by byte.
    pub fn send_bytes(&mut self, method: &str, uri: &str, bytes: &[u8]) -> Result<()> {
        let (sent, started) = (SystemTime::now(), Instant::now());
        self.proceed(bytes)?;
        self.pending = Some(Pending { method: method.to_owned(), uri: uri.to_owned(), sent, started });
        Ok(())
    }

    /// Sends more of what was begun.
    pub fn proceed(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).with_context(|| format!("send {} bytes from {}", bytes.len(), self.local))
    }

    /// Sends a request only.
    pub fn send(&mut self, method: &str, uri: &str, body: &[u8]) -> Result<()> {
        let mut message = format!("{method} {uri} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: lab\r\n");
        if !body.is_empty() {
            message.push_str("Content-Type: application/x-www-form-urlencoded\r\n");
            let _ = write!(message, "Content-Length: {}\r\n", body.len());
        }
        message.push_str("\r\n");
        let mut bytes = message.into_bytes();
        bytes.extend_from_slice(body);
        let (sent, started) = (SystemTime::now(), Instant::now());
        self.stream.write_all(&bytes).with_context(|| format!("send {method} {uri} from {}", self.local))?;
        self.pending = Some(Pending { method: method.to_owned(), uri: uri.to_owned(), sent, started });
        Ok(())
    }

    /// Waits until the peer's kernel has acknowledged everything sent, so that it stands in nginx's receive queue.
    pub fn wait_delivered(&self) -> Result<()> {
        wait_until("the request is acknowledged", Duration::from_secs(2), || {
            let mut unsent: libc::c_int = 0;
            // SAFETY: SIOCOUTQ (= TIOCOUTQ) writes one int, and `unsent` is one.
            let result = unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent) };
            if result == -1 {
                return Err(std::io::Error::last_os_error()).context("ask for the unacknowledged bytes");
            }
            Ok(unsent == 0)
        })
    }

    /// Waits for the response to what was sent.
    pub fn receive(&mut self) -> Result<Exchange> {
        let Some(pending) = self.pending.take() else { bail!("nothing was sent on {}", self.local) };
        let mut buffer = std::mem::take(&mut self.rest);
        let header_end = loop {
            if let Some(end) = find(&buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if self.fill(&mut buffer).with_context(|| format!("wait for the answer to {}", pending.uri))? == 0 {
                return Ok(finish(self.local, pending, None, Vec::new(), buffer));
            }
        };
        let (status, headers) = parse_header(&buffer[..header_end])?;
        let mut body = buffer.split_off(header_end);
        let length = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        if let Some(length) = length("content-length") {
            let length: usize = length.parse().with_context(|| format!("the length {length}"))?;
            while body.len() < length {
                if self.fill(&mut body)? == 0 {
                    break;
                }
            }
            if body.len() > length {
                self.rest = body.split_off(length);
            }
        } else if length("transfer-encoding") == Some("chunked") {
            while !body.ends_with(b"0\r\n\r\n") {
                if self.fill(&mut body)? == 0 {
                    break;
                }
            }
        } else if status >= 200 && status != 204 && status != 304 {
            while self.fill(&mut body)? != 0 {}
        }
        Ok(finish(self.local, pending, Some(status), headers, body))
    }

    /// Leaves without waiting for the response to what was sent.
    pub fn abandon(mut self) -> Result<Exchange> {
        let Some(pending) = self.pending.take() else { bail!("nothing was sent on {}", self.local) };
        self.stream.shutdown(Shutdown::Both).context("leave")?;
        Ok(finish(self.local, pending, None, Vec::new(), Vec::new()))
    }

    /// Waits until bytes of an answer are there, or the connection's end; they stay unread.
    pub fn await_bytes(&self, longest: Duration) -> Result<()> {
        let usual = self.stream.read_timeout()?;
        self.stream.set_read_timeout(Some(longest))?;
        let seen = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(usual)?;
        seen.with_context(|| format!("wait for an answer on {}", self.local))?;
        Ok(())
    }

    /// Whether the server has closed the connection: an end of file that is already there.
    pub fn is_closed(&self) -> Result<bool> {
        self.stream.set_nonblocking(true)?;
        let seen = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        match seen {
            Ok(count) => Ok(count == 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(_reset) => Ok(true),
        }
    }

    /// Reads once more; 0 at the end, also when that end is a reset.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<usize> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                buffer.extend_from_slice(&chunk[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
            Err(error) => Err(error).with_context(|| format!("read on {}", self.local)),
        }
    }
}

/// Puts an exchange together.
fn finish(
    local: SocketAddr,
    pending: Pending,
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
) -> Exchange {
    let answered = Instant::now();
    let Pending { method, uri, sent, started } = pending;
    Exchange { local, method, uri, status, headers, body, sent, answered, took: answered - started }
}

/// The status and the fields of a response header.
fn parse_header(bytes: &[u8]) -> Result<(u16, Vec<(String, String)>)> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let Some(status) = status else { bail!("not a status line: {first:?}") };
    let fields = lines.filter_map(|line| line.split_once(':'));
    Ok((status, fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()))
}

/// Where `needle` begins.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::parse_header;

    #[test]
    fn a_header_gives_status_and_fields() {
        let (status, headers) = parse_header(b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\nX-A:b:c\r\n\r\n").unwrap();
        assert_eq!(status, 502);
        assert_eq!(headers, [("server".into(), "nginx".into()), ("x-a".into(), "b:c".into())]);
    }

    #[test]
    fn what_is_no_status_line_is_an_error() {
        assert!(parse_header(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").is_err());
    }
}
