//! What a peer speaks, by its first bytes.

/// A protocol that can be told by the first bytes of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaks {
    /// HTTP/1.
    Http,
    /// HTTP/2.
    Http2,
    /// TLS.
    Tls,
    /// `FastCGI`.
    FastCgi,
    /// SSH.
    Ssh,
    /// A greeting as of SMTP or FTP.
    Greeting,
    /// `MySQL`'s greeting.
    MySql,
    /// Redis.
    Redis,
    /// Text, but no known protocol.
    Text,
    /// None of these.
    Unknown,
}

impl Speaks {
    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP/2",
            Self::Tls => "TLS",
            Self::FastCgi => "FastCGI",
            Self::Ssh => "SSH",
            Self::Greeting => "a mail or file server's greeting",
            Self::MySql => "MySQL",
            Self::Redis => "Redis",
            Self::Text => "plain text",
            Self::Unknown => "an unknown protocol",
        }
    }

    /// Tells by the first bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match bytes {
            [b'H', b'T', b'T', b'P', b'/', ..] => Self::Http,
            // An alert or a handshake record of SSL 3 or TLS 1.x.
            [0x14..=0x17, 3, 0..=4, ..] => Self::Tls,
            // The frame SETTINGS, or GOAWAY, on stream 0.
            [0, _, _, 4 | 7, _, 0, 0, 0, 0, ..] => Self::Http2,
            [1, 3 | 6 | 7 | 10 | 11, _, _, _, _, ..] => Self::FastCgi,
            [b'S', b'S', b'H', b'-', ..] => Self::Ssh,
            [b'2', b'2', b'0', b' ' | b'-', ..] => Self::Greeting,
            [_, _, 0, 0, 10, ..] => Self::MySql,
            _ if bytes.starts_with(b"-ERR ") || bytes.starts_with(b"+PONG") => Self::Redis,
            [] => Self::Unknown,
            _ if bytes.iter().take(32).all(|byte| matches!(byte, b'\t' | b'\r' | b'\n' | 0x20..=0x7e)) => Self::Text,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        let cases: [(&[u8], Speaks); 8] = [
            (b"HTTP/1.1 200 OK", Speaks::Http),
            (b"\x15\x03\x01\x00\x02\x02\x46", Speaks::Tls),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03", Speaks::Http2),
            (b"\x01\x0a\x00\x00\x00\x13\x05\x00", Speaks::FastCgi),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Speaks::Ssh),
            (b"-ERR unknown command\r\n", Speaks::Redis),
            (b"<html>\n", Speaks::Text),
            (b"\xff\xfe", Speaks::Unknown),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Speaks::of(bytes), expected, "{bytes:?}");
        }
        assert_eq!(Speaks::of(b""), Speaks::Unknown);
    }
}
