//! What a scripted peer sends that does not speak plain HTTP/1: records of FastCGI, frames of HTTP/2, an alert of TLS.

/// A FastCGI record of request 1. (<https://fastcgi-archives.github.io/FastCGI_Specification.html>, section 3.3)
fn record(version: u8, kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![version, kind, 0, 1, high, low, 0, 0];
    bytes.extend_from_slice(content);
    bytes
}

const END_REQUEST: u8 = 3;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

/// What the FastCGI peer of this name answers.
pub(super) fn fastcgi(name: &str) -> Vec<u8> {
    let end = record(1, END_REQUEST, &[0; 8]);
    match name {
        "ok" => [record(1, STDOUT, b"Content-Type: text/plain\r\n\r\nok\n"), record(1, STDOUT, b""), end].concat(),
        // An HTTP server on the port: 'H' is 72.
        "version" => b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(),
        "type" => record(1, 99, b"?"),
        // A script that died of a fatal error before it had written a header.
        "empty" => {
            [record(1, STDERR, b"PHP message: PHP Fatal error:  out of luck"), record(1, STDOUT, b""), end].concat()
        }
        "big" => {
            let cookie = format!("Set-Cookie: session={}\r\n\r\n", "x".repeat(32 * 1024));
            record(1, STDOUT, cookie.as_bytes())
        }
        "bad" => record(1, STDOUT, b"Status: not a number\r\n\r\n"),
        _ => end,
    }
}

/// A frame of HTTP/2. (RFC 9113, section 4.1)
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;

/// What the HTTP/2 peer of this name answers to the first request, with an error code where the frame has one.
pub(super) fn http2(name: &str, error: u32) -> Vec<u8> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    // ":status: 200" is entry 8 of the static table (RFC 7541, appendix A).
    let headers = frame(HEADERS, 4, 1, &[0x88]);
    let answer = match name {
        "ok" => [headers, frame(DATA, 1, 1, b"ok")].concat(),
        "goaway" => frame(GOAWAY, 0, 0, &[[0; 4], error.to_be_bytes()].concat()),
        "rst" => frame(RST_STREAM, 0, 1, &error.to_be_bytes()),
        "push" => frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x88]),
        "stream" => frame(HEADERS, 4, 3, &[0x88]),
        // A server of HTTP/1 only.
        _ => return b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(),
    };
    [settings, answer].concat()
}

/// A fatal alert in the clear. (RFC 8446, section 6)
pub(super) fn alert(description: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description]
}

#[cfg(test)]
mod tests {
    use super::{alert, fastcgi, http2};

    #[test]
    fn lengths_are_right() {
        assert_eq!(fastcgi("type"), [1, 99, 0, 1, 0, 1, 0, 0, b'?']);
        assert_eq!(http2("rst", 7), [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7]);
        assert_eq!(alert(70), [21, 3, 3, 0, 2, 2, 70]);
    }
}
