//! One request in nginx's own words, and what comes back. As little as says whether the other side understands.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use super::{
    connect::Stream,
    tls::{self, Secured},
};
use crate::{
    check::{
        plan::Speech,
        seen::{Answer, AnswerSeen, Idle},
        speaks::Speaks,
    },
    decode::config::layout::Protocol,
    model::net::Errno,
};

/// The longest header read: more than any nginx takes.
const LONGEST: usize = 128 << 10;
/// As much of a body as is kept to be shown.
const BODY: usize = 256;

/// A connection, with or without TLS.
pub(super) enum Channel {
    Plain(Stream),
    Secure(Box<Secured>),
}

impl Channel {
    fn patience(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.patience(patience),
            Self::Secure(secured) => secured.stream.patience(patience),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Secure(secured) => {
                let Secured { connection, stream } = secured.as_mut();
                rustls::Stream::new(connection, stream).write_all(bytes)
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Secure(secured) => {
                let Secured { connection, stream } = secured.as_mut();
                rustls::Stream::new(connection, stream).read(buffer)
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The path.
    pub path: String,
    /// `GET` or `HEAD`.
    pub method: &'static str,
    /// How long to wait for the whole header.
    pub patience: Duration,
}

/// Sends the request and reads the answer's header.
pub(super) fn ask(channel: &mut Channel, speech: &Speech, question: &Question) -> AnswerSeen {
    let began = Instant::now();
    let kind = exchange(channel, speech, question, began + question.patience);
    AnswerSeen { took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), kind }
}

/// Asks on a connection that is to be kept, and waits until the upstream closes it: how long it was idle then.
pub(super) fn idle(channel: &mut Channel, speech: &Speech, question: &Question, most: Duration) -> Option<Idle> {
    // Whatever nginx is configured to say: only a kept connection can be measured.
    let speech = Speech { http_version: "1.1".to_owned(), ..speech.clone() };
    let text = String::from_utf8(request(&speech, question)).ok()?;
    let kept = text.replacen("Connection: close\r\n", "", 1);
    channel.patience(question.patience).and_then(|()| channel.write_all(kept.as_bytes())).ok()?;
    let mut buffer = vec![0; 16 << 10];
    let mut answered: Option<Instant> = None;
    loop {
        let waits = match answered {
            None => question.patience,
            Some(at) => most.checked_sub(at.elapsed()).unwrap_or_default(),
        };
        if waits.is_zero() {
            return answered.map(|at| Idle::Open(milliseconds(at.elapsed())));
        }
        channel.patience(waits).ok()?;
        match channel.read(&mut buffer) {
            Ok(0) => return closed(answered),
            Ok(_) => answered = Some(Instant::now()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                answered?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return closed(answered),
        }
    }
}

/// Closed at once is no idle time: the upstream keeps no connection at all, and nginx sees that.
fn closed(answered: Option<Instant>) -> Option<Idle> {
    const AT_ONCE: Duration = Duration::from_millis(50);
    let idle = answered?.elapsed();
    (idle > AT_ONCE).then(|| Idle::Closed(milliseconds(idle)))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn exchange(channel: &mut Channel, speech: &Speech, question: &Question, deadline: Instant) -> Answer {
    let sent = channel.patience(question.patience).and_then(|()| channel.write_all(&request(speech, question)));
    if let Err(error) = sent
        && !is_broken(&error)
    {
        return failed(&error, 0);
    }
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        if let Some(answer) = understood(speech.protocol, &bytes) {
            return answer;
        }
        if bytes.len() >= LONGEST {
            return Answer::Endless(bytes.len());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return late(bytes);
        }
        if let Err(error) = channel.patience(left) {
            return failed(&error, bytes.len());
        }
        match channel.read(&mut buffer) {
            Ok(0) if bytes.is_empty() => return Answer::Closed(0),
            Ok(0) => return unfinished(bytes),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if let Some(alert) = tls::alert(&error) => return Answer::Alert(alert),
            // TLS that ends without its own goodbye is the end all the same.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return unfinished(bytes),
            Err(error) if bytes.is_empty() => return failed(&error, 0),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return late(bytes);
            }
            Err(_) => return unfinished(bytes),
        }
    }
}

/// It ended before it was understood.
fn unfinished(bytes: Vec<u8>) -> Answer {
    if begins_like_http(&bytes) { Answer::Closed(bytes.len()) } else { Answer::Wrong(bytes) }
}

/// No more came while we waited.
fn late(bytes: Vec<u8>) -> Answer {
    match bytes.len() {
        0 => Answer::Silent,
        length if begins_like_http(&bytes) => Answer::Unfinished(length),
        _ => Answer::Wrong(bytes),
    }
}

/// As far as it came.
fn begins_like_http(bytes: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/";
    bytes.starts_with(START) || START.starts_with(bytes)
}

fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn failed(error: &io::Error, received: usize) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Answer::Reset,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Answer::Silent,
        _ => match error.raw_os_error().and_then(|errno| u32::try_from(errno).ok()) {
            Some(errno) => Answer::Failed(Errno(errno)),
            None => Answer::Closed(received),
        },
    }
}

/// What the bytes so far are; `None` while more has to come.
fn understood(protocol: Protocol, bytes: &[u8]) -> Option<Answer> {
    match protocol {
        // uwsgi and SCGI servers answer in HTTP or as CGI programs do.
        Protocol::Http => http(bytes),
        Protocol::Uwsgi | Protocol::Scgi => {
            if b"HTTP/".starts_with(&bytes[..bytes.len().min(5)]) {
                http(bytes)
            } else {
                cgi_answer(bytes)
            }
        }
        Protocol::FastCgi => match bytes {
            // GET_VALUES_RESULT, UNKNOWN_TYPE; or what else it sends as a record of version 1.
            [1, 3 | 6 | 7 | 10 | 11, _, _, _, _, _, _, ..] => Some(Answer::Right),
            [] | [1] | [1, 3 | 6 | 7 | 10 | 11, ..] => None,
            _ => Some(Answer::Wrong(bytes.to_vec())),
        },
        Protocol::Grpc => match bytes {
            [_, _, _, 4, _, _, _, _, _, ..] if Speaks::of(bytes) == Speaks::Http2 => Some(Answer::Right),
            _ if bytes.len() < 9 && Speaks::of(bytes) != Speaks::Http => None,
            _ => Some(Answer::Wrong(bytes.to_vec())),
        },
        Protocol::Memcached => match bytes {
            _ if bytes.starts_with(b"VERSION ") => Some(Answer::Right),
            _ if bytes.len() < 8 && b"VERSION ".starts_with(bytes) => None,
            _ => Some(Answer::Wrong(bytes.to_vec())),
        },
    }
}

fn http(bytes: &[u8]) -> Option<Answer> {
    const START: &[u8] = b"HTTP/";
    if bytes.len() < START.len() && START.starts_with(bytes) {
        return None;
    }
    if !bytes.starts_with(START) {
        return Some(Answer::Wrong(bytes.to_vec()));
    }
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(header_bytes)) => {
            let status = response.code.unwrap_or(0);
            Some(answered(status, header_bytes, response.headers, bytes))
        }
        Err(_) => Some(Answer::Wrong(bytes.to_vec())),
    }
}

/// Headers without a status line; the status is one of them, or 200 (RFC 3875, 6.3.3).
fn cgi_answer(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 256];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete((_, []))) | Err(_) => Some(Answer::Wrong(bytes.to_vec())),
        Ok(httparse::Status::Complete((header_bytes, headers))) => {
            let said = value(headers, "status");
            let status = said.map_or(Some(200), |said| said.split(' ').next()?.parse().ok());
            Some(match status {
                Some(status) => answered(status, header_bytes, headers, bytes),
                None => Answer::Wrong(bytes.to_vec()),
            })
        }
    }
}

fn value(headers: &[httparse::Header<'_>], name: &str) -> Option<String> {
    let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    found.map(|header| String::from_utf8_lossy(header.value).into_owned())
}

fn answered(status: u16, header_bytes: usize, headers: &[httparse::Header<'_>], bytes: &[u8]) -> Answer {
    let body = bytes.get(header_bytes..).unwrap_or_default();
    Answer::Http {
        status,
        header_bytes,
        server: value(headers, "server"),
        location: value(headers, "location"),
        body: body[..body.len().min(BODY)].to_vec(),
    }
}

fn request(speech: &Speech, question: &Question) -> Vec<u8> {
    let Question { path, method, .. } = question;
    // What came from the configuration must not end the line.
    let host: String = speech.host.chars().filter(|c| !c.is_control()).collect();
    match speech.protocol {
        Protocol::Http => {
            let version = if speech.http_version == "1.1" { "1.1" } else { "1.0" };
            format!("{method} {path} HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: probe502-check\r\n\r\n")
                .into_bytes()
        }
        Protocol::Grpc => {
            // The preface and an empty SETTINGS (RFC 9113, 3.4).
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
            bytes
        }
        // GET_VALUES for FCGI_MPXS_CONNS (FastCGI specification, 4.1): asks the server itself, and runs no script.
        Protocol::FastCgi => {
            let name = b"FCGI_MPXS_CONNS";
            let length = u8::try_from(name.len() + 2).unwrap_or(0);
            let mut bytes = vec![1, 9, 0, 0, 0, length, 0, 0, u8::try_from(name.len()).unwrap_or(0), 0];
            bytes.extend(name);
            bytes
        }
        Protocol::Uwsgi => {
            let mut block = Vec::new();
            for (name, value) in cgi(&host, question) {
                for word in [name.as_bytes(), value.as_bytes()] {
                    block.extend(u16::try_from(word.len()).unwrap_or(0).to_le_bytes());
                    block.extend(word);
                }
            }
            let [low, high] = u16::try_from(block.len()).unwrap_or(0).to_le_bytes();
            [vec![0, low, high, 0], block].concat()
        }
        Protocol::Scgi => {
            let mut block = b"CONTENT_LENGTH\x000\x00SCGI\x001\x00".to_vec();
            for (name, value) in cgi(&host, question) {
                block.extend(format!("{name}\0{value}\0").into_bytes());
            }
            [format!("{}:", block.len()).into_bytes(), block, b",".to_vec()].concat()
        }
        Protocol::Memcached => b"version\r\n".to_vec(),
    }
}

fn cgi<'a>(host: &'a str, question: &'a Question) -> [(&'static str, &'a str); 9] {
    [
        ("REQUEST_METHOD", question.method),
        ("REQUEST_URI", &question.path),
        ("PATH_INFO", &question.path),
        ("QUERY_STRING", ""),
        ("SERVER_PROTOCOL", "HTTP/1.0"),
        ("SERVER_NAME", host),
        ("SERVER_PORT", "80"),
        ("HTTP_HOST", host),
        ("HTTP_USER_AGENT", "probe502-check"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_patience_is_not_the_upstreams_end() {
        assert_eq!(late(b"H".to_vec()), Answer::Unfinished(1));
        assert_eq!(late(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()), Answer::Unfinished(27));
        assert_eq!(late(Vec::new()), Answer::Silent);
        assert_eq!(late(b"220 mail".to_vec()), Answer::Wrong(b"220 mail".to_vec()));
        assert_eq!(unfinished(b"H".to_vec()), Answer::Closed(1));
    }

    #[test]
    fn answers_are_understood_when_they_are_whole() {
        let http = |bytes: &[u8]| understood(Protocol::Http, bytes);
        assert_eq!(http(b"HT"), None);
        assert_eq!(http(b"HTTP/1.1 200 OK\r\nServer: x\r\n"), None);
        let Some(Answer::Http { status, header_bytes, server, body, .. }) =
            http(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nhello")
        else {
            panic!()
        };
        assert_eq!(
            (status, header_bytes, server.as_deref(), body.as_slice()),
            (200, 30, Some("x"), b"hello".as_slice())
        );
        assert_eq!(http(b"SSH-2.0\r\n"), Some(Answer::Wrong(b"SSH-2.0\r\n".to_vec())));
        assert_eq!(understood(Protocol::Grpc, b"\0\0\0\x04\0\0\0\0\0"), Some(Answer::Right));
        assert!(matches!(understood(Protocol::Grpc, b"HTTP/1.1 400"), Some(Answer::Wrong(_))));
        assert_eq!(understood(Protocol::FastCgi, b"\x01\x0a\0\0\0\x13\x05\0"), Some(Answer::Right));
        assert!(matches!(understood(Protocol::FastCgi, b"HTTP/1.1 400"), Some(Answer::Wrong(_))));
        assert_eq!(understood(Protocol::Memcached, b"VERSION 1.6"), Some(Answer::Right));
        let scgi = |bytes: &[u8]| match understood(Protocol::Scgi, bytes) {
            Some(Answer::Http { status, .. }) => Some(status),
            Some(_) => Some(0),
            None => None,
        };
        assert_eq!(scgi(b"Status: 502 Bad Gateway\r\nContent-Type: a/b\r\n\r\n"), Some(502));
        assert_eq!(scgi(b"Content-Type: a/b\r\n\r\nhello"), Some(200));
        assert_eq!(scgi(b"HTTP/1.1 404 Not Found\r\n\r\n"), Some(404));
        assert_eq!((scgi(b"HTT"), scgi(b"Content-T"), scgi(b"Status: 200 OK\r\n")), (None, None, None));
        assert_eq!(
            (scgi(b"\r\n"), scgi(b"SSH-2.0-x\r\n\r\n"), scgi(b"Status: gone\r\n\r\n")),
            (Some(0), Some(0), Some(0))
        );
    }
}
