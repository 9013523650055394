//! What a path asks for.

use std::time::Duration;

use super::wire;

/// What to do with a request that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behaviour {
    /// How long to wait first.
    pub(super) delay: Duration,
    /// What to do then.
    pub(super) action: Action,
}

/// One way to treat a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Send these bytes; keep the connection if the request allows it.
    Answer(Vec<u8>),
    /// Send these bytes, then close.
    AnswerAndClose(Vec<u8>),
    /// Reset.
    Reset,
    /// Close without a byte.
    Close,
    /// Send these bytes, then reset.
    AnswerAndReset(Vec<u8>),
    /// Send these bytes, then nothing, ever.
    AnswerAndHang(Vec<u8>),
    /// Nothing, ever.
    Hang,
    /// Ends the sending side; the connection stays open.
    Shutdown,
    /// The process ends by this signal, of its own making.
    Crash(i32),
    /// A child gets the connection, as forking servers do it (inetd, Python's `ForkingMixIn`), and ends by this signal a little later.
    CrashInChild(i32),
    /// The process ends with this status.
    Exit(i32),
    /// The process ignores SIGTERM from now on, and ends with this status half a second later.
    DeafExit(i32),
    /// Blocks SIGTERM, and exits half a second later.
    BlockedExit(i32),
    /// The process takes memory until the kernel has none left and ends it.
    EatMemory,
    /// Opens so much of this that no descriptor is left, holds it for a moment, and does the other thing.
    Starve(Wanted, Box<Self>),
    /// A fault in another worker; this one closes a little later, for reasons of its own.
    SiblingCrash,
}

/// What is opened until nothing more can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Sockets.
    Sockets,
    /// Files.
    Files,
}

/// A header that does not end.
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/pl";
/// A body that does not end. More than nginx holds back before it sends (`postpone_output`, 1460 bytes).
const CUT: &[u8] = &cut();

const fn cut() -> [u8; 2_045] {
    let mut bytes = [b'x'; 2_045];
    let header = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n";
    let mut index = 0;
    while index < header.len() {
        bytes[index] = header[index];
        index += 1;
    }
    bytes
}

impl Behaviour {
    /// What the request's target asks for; anything unknown is a 404.
    pub(super) fn of(target: &str) -> Self {
        let mut segments = target.split(['/', '?']).skip(1);
        let name = segments.next().unwrap_or_default();
        let second = segments.next().unwrap_or_default();
        let number = second.parse::<u64>().ok();
        let delay = match name {
            "slow" | "reset" | "close" | "stall" => Duration::from_millis(number.unwrap_or(0)),
            _ => Duration::ZERO,
        };
        let action = match name {
            "ok" | "slow" => Action::Answer(response(200, "hello from the upstream\n")),
            "reset" => Action::Reset,
            "close" => Action::Close,
            "half" => Action::AnswerAndClose(HALF.to_vec()),
            "hang" => Action::Hang,
            "half-hang" => Action::AnswerAndHang(HALF.to_vec()),
            "half-reset" => Action::AnswerAndReset(HALF.to_vec()),
            "shutdown" => Action::Shutdown,
            "crash" => Action::Crash(i32::try_from(number.unwrap_or(0)).unwrap_or(0)),
            "crash-in-child" => Action::CrashInChild(i32::try_from(number.unwrap_or(0)).unwrap_or(0)),
            "exit" => Action::Exit(i32::try_from(number.unwrap_or(0)).unwrap_or(0)),
            "deaf-exit" => Action::DeafExit(i32::try_from(number.unwrap_or(0)).unwrap_or(0)),
            "blocked-exit" => Action::BlockedExit(i32::try_from(number.unwrap_or(0)).unwrap_or(0)),
            "eat-memory" => Action::EatMemory,
            "sibling" => Action::SiblingCrash,
            "dial-close" => Action::Starve(Wanted::Sockets, Box::new(Action::Close)),
            "dial-502" => {
                let answer = response(502, "the backend cannot be asked\n");
                Action::Starve(Wanted::Sockets, Box::new(Action::Answer(answer)))
            }
            "open-close" => Action::Starve(Wanted::Files, Box::new(Action::Close)),
            "cut" => Action::AnswerAndClose(CUT.to_vec()),
            "cut-reset" => Action::AnswerAndReset(CUT.to_vec()),
            "cut-hang" => Action::AnswerAndHang(CUT.to_vec()),
            "cut-chunk" => Action::AnswerAndClose(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nthe firs\r\n20\r\nthe sec".to_vec(),
            ),
            "bad-502" => Action::AnswerAndClose(
                b"HTTP/1.1 502 Not So Good\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n".to_vec(),
            ),
            "status" => {
                let status = number.and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
                Action::Answer(response(status, "the upstream's own words\n"))
            }
            "bighdr" => Action::AnswerAndClose(big_header()),
            "garbage" => Action::AnswerAndClose(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
            "alert" => Action::AnswerAndClose(wire::alert(u8::try_from(number.unwrap_or(10)).unwrap_or(10))),
            "accel" => Action::AnswerAndClose(
                b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /redirected-accel-hidden/1\r\nContent-Length: 0\r\n\r\n"
                    .to_vec(),
            ),
            "bad-line" => Action::AnswerAndClose(b"HTTP/1.1 200 OK\r\nX-Bad\x01Name: 1\r\n\r\nok".to_vec()),
            "bad-coding" => Action::AnswerAndClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\nbx".to_vec()),
            "large" => Action::Answer(response(200, &"large ".repeat(4 * 1024))),
            "fastcgi" => Action::AnswerAndClose(wire::fastcgi(second)),
            "http2" => {
                let error = segments.next().and_then(|segment| segment.parse().ok()).unwrap_or(0);
                Action::AnswerAndHang(wire::http2(second, error))
            }
            _ => Action::Answer(response(404, "no such behaviour\n")),
        };
        Self { delay, action }
    }
}

/// A whole response.
pub(super) fn response(status: u16, body: &str) -> Vec<u8> {
    let reason = if status < 400 { "OK" } else { "Not So Good" };
    let length = body.len();
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A response with 64 KiB of header.
fn big_header() -> Vec<u8> {
    let cookie = "x".repeat(64 * 1024);
    format!("HTTP/1.1 200 OK\r\nSet-Cookie: session={cookie}\r\nContent-Length: 2\r\n\r\nok").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Action, Behaviour};

    #[test]
    fn a_path_chooses_the_behaviour_and_its_number() {
        assert_eq!(Behaviour::of("/reset/300/17").action, Action::Reset);
        assert_eq!(Behaviour::of("/reset/300/17").delay, Duration::from_millis(300));
        assert_eq!(Behaviour::of("/close").action, Action::Close);
        assert_eq!(Behaviour::of("/hang?x").action, Action::Hang);
        let Action::Answer(bytes) = Behaviour::of("/status/503/9").action else { panic!("an answer") };
        assert!(bytes.starts_with(b"HTTP/1.1 503 "));
        let Action::Answer(bytes) = Behaviour::of("/nothing").action else { panic!("an answer") };
        assert!(bytes.starts_with(b"HTTP/1.1 404 "));
    }
}
