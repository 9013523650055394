//! HTTP/1 in one direction of a connection: where messages begin, and what their heads say. Bodies are counted, not looked at.

use memchr::memchr;

/// The longest head that is followed; nginx itself takes 32 KiB (`large_client_header_buffers`).
const LONGEST_HEAD: usize = 128 << 10;
/// The longest line kept.
const LONGEST_LINE: usize = 2_048;

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Up to the connection's end.
    UntilClose,
    /// The connection is something else from here on.
    Tunnel,
    /// The capture cut the head before it was said.
    Unknown,
}

/// What a head says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// `GET /cart HTTP/1.1` or `HTTP/1.1 502 Bad Gateway`.
    pub(super) line: Vec<u8>,
    /// The Host header.
    pub(super) host: Option<Vec<u8>>,
    /// `Content-Length`.
    pub(super) length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub(super) chunked: bool,
    /// The capture cut it.
    pub(super) cut: bool,
}

impl Head {
    /// The status of a response.
    #[must_use]
    pub(super) fn status(&self) -> Option<u16> {
        let rest = self.line.strip_prefix(b"HTTP/")?;
        let space = rest.iter().take(4).position(|byte| *byte == b' ')?;
        let [h @ b'1'..=b'9', t @ b'0'..=b'9', u @ b'0'..=b'9', after @ ..] = rest.get(space + 1..)? else {
            return None;
        };
        let digit = |byte: &u8| u16::from(byte - b'0');
        (!after.first().is_some_and(u8::is_ascii_digit)).then(|| digit(h) * 100 + digit(t) * 10 + digit(u))
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A message begins.
    Begins,
    /// Its head is whole (or was cut): it stands in [`Messages::head`], and [`Messages::expect`] must be told how long the body is.
    Head,
    /// The message is whole.
    Whole,
    /// This is not HTTP/1.
    Foreign,
}

/// Where in a message we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before a message.
    #[default]
    Between,
    /// In a head, so many bytes of it.
    Head(usize),
    /// A head was given out; nobody has said yet how long the body is.
    Waiting,
    /// In a body of which so many bytes are to come.
    Counted(u64),
    /// In the line that says how long a chunk is.
    ChunkSize(u64, bool),
    /// In a chunk, and its line end.
    Chunk(u64),
    /// In what follows the last chunk; whether the line has anything in it.
    Trailer(bool),
    /// In a body that ends with the connection.
    ToTheEnd,
    /// Where the next message begins can only be guessed.
    Lost,
    /// Not HTTP/1.
    Foreign,
}

/// Which messages go this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the client.
    Requests,
    /// From the server.
    Responses,
}

/// Reads the messages of one direction.
#[derive(Debug)]
pub(super) struct Messages {
    kind: Kind,
    place: Place,
    /// The last head.
    pub(super) head: Head,
    /// A line whose end has not come.
    partial: Vec<u8>,
    first_line: bool,
}

impl Messages {
    /// Before the first message.
    #[must_use]
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, place: Place::Between, head: Head::default(), partial: Vec::new(), first_line: true }
    }

    /// It is not HTTP/1, or has become something else.
    #[must_use]
    pub(super) fn is_foreign(&self) -> bool {
        self.place == Place::Foreign
    }

    /// A message has begun and is not whole.
    #[must_use]
    pub(super) const fn is_within(&self) -> bool {
        !matches!(self.place, Place::Between | Place::Lost | Place::Foreign)
    }

    /// A head has begun and is not whole.
    #[must_use]
    pub(super) const fn is_in_head(&self) -> bool {
        matches!(self.place, Place::Head(_))
    }

    /// The connection's end would end a body here, in order.
    #[must_use]
    pub(super) const fn ends_with_connection(&self) -> bool {
        matches!(self.place, Place::ToTheEnd | Place::Lost | Place::Between | Place::Foreign)
    }

    /// The first bytes seen are not the first of the connection.
    pub(super) fn look_for_beginning(&mut self) {
        if self.place == Place::Between {
            self.place = Place::Lost;
        }
    }

    /// The connection is something else from here on.
    pub(super) fn become_foreign(&mut self) {
        self.place = Place::Foreign;
    }

    /// How long the body is whose head was given out. Whether the message is whole by that.
    pub(super) fn expect(&mut self, body: Body) -> bool {
        self.place = match body {
            Body::None | Body::Length(0) => Place::Between,
            Body::Length(length) => Place::Counted(length),
            Body::Chunked => Place::ChunkSize(0, false),
            Body::UntilClose => Place::ToTheEnd,
            Body::Tunnel => Place::Foreign,
            Body::Unknown => Place::Lost,
        };
        self.place == Place::Between
    }

    /// So many bytes were lost here.
    pub(super) fn skip(&mut self, lost: u64) {
        self.place = match self.place {
            Place::Counted(left) if left > lost => Place::Counted(left - lost),
            Place::Chunk(left) if left > lost => Place::Chunk(left - lost),
            Place::ToTheEnd => Place::ToTheEnd,
            Place::Foreign => Place::Foreign,
            _ => Place::Lost,
        };
    }

    /// Reads `captured`, the beginning of `wire` bytes that come next; `fresh`: a segment begins here. Gives what was found first, and
    /// after how many bytes; `None`: nothing in all of them.
    pub(super) fn read(&mut self, captured: &[u8], wire: u64, fresh: bool) -> (u64, Option<Found>) {
        let mut at = 0_usize;
        loop {
            let rest = captured.get(at..).unwrap_or_default();
            let consumed = u64::try_from(at).unwrap_or(wire);
            if rest.is_empty() {
                return self.beyond(consumed, wire);
            }
            match self.place {
                Place::Between => match self.begins(rest) {
                    Begins::Blank => at += 1,
                    Begins::Message => {
                        self.place = Place::Head(0);
                        self.head = Head { line: std::mem::take(&mut self.head.line), ..Head::default() };
                        self.head.line.clear();
                        self.partial.clear();
                        self.first_line = true;
                        return (consumed, Some(Found::Begins));
                    }
                    Begins::Foreign => {
                        self.place = Place::Foreign;
                        return (consumed, Some(Found::Foreign));
                    }
                },
                Place::Head(length) => {
                    let line = memchr(b'\n', rest);
                    let taken = line.map_or(rest.len(), |end| end + 1);
                    if length + taken > LONGEST_HEAD {
                        self.place = Place::Foreign;
                        return (consumed, Some(Found::Foreign));
                    }
                    self.place = Place::Head(length + taken);
                    at += taken;
                    let Some(end) = line else {
                        self.keep(rest);
                        continue;
                    };
                    if self.line(rest.get(..end).unwrap_or_default()) {
                        self.place = Place::Waiting;
                        return (u64::try_from(at).unwrap_or(wire), Some(Found::Head));
                    }
                }
                Place::Waiting => self.place = Place::Lost,
                Place::Counted(left) => {
                    // What follows may not have been captured, and is counted all the same.
                    let there = wire - consumed;
                    if left > there {
                        self.place = Place::Counted(left - there);
                        return (wire, None);
                    }
                    self.place = Place::Between;
                    return (consumed + left, Some(Found::Whole));
                }
                Place::Chunk(left) => {
                    let there = wire - consumed;
                    if left > there {
                        self.place = Place::Chunk(left - there);
                        return (wire, None);
                    }
                    self.place = Place::ChunkSize(0, false);
                    match usize::try_from(left).ok().filter(|left| *left <= rest.len()) {
                        Some(left) => at += left,
                        None => return self.beyond(consumed + left, wire),
                    }
                }
                Place::ChunkSize(size, extension) => {
                    let Some((byte, _)) = rest.split_first() else { continue };
                    at += 1;
                    self.place = chunk_size(*byte, size, extension);
                }
                Place::Trailer(something) => {
                    let Some((byte, _)) = rest.split_first() else { continue };
                    at += 1;
                    match byte {
                        b'\n' if !something => {
                            self.place = Place::Between;
                            return (u64::try_from(at).unwrap_or(wire), Some(Found::Whole));
                        }
                        b'\n' => self.place = Place::Trailer(false),
                        b'\r' => {}
                        _ => self.place = Place::Trailer(true),
                    }
                }
                Place::Lost => {
                    if fresh && at == 0 && self.certainly_begins(rest) {
                        self.place = Place::Between;
                        continue;
                    }
                    return (wire, None);
                }
                Place::ToTheEnd | Place::Foreign => return (wire, None),
            }
        }
    }

    /// What was captured is at its end; the rest up to `wire` was not.
    fn beyond(&mut self, consumed: u64, wire: u64) -> (u64, Option<Found>) {
        let missing = wire.saturating_sub(consumed);
        if missing == 0 {
            return (wire, None);
        }
        match self.place {
            Place::Counted(left) if left <= missing => {
                self.place = Place::Between;
                (consumed + left, Some(Found::Whole))
            }
            Place::Head(_) => {
                let line = std::mem::take(&mut self.partial);
                if self.first_line {
                    self.head.line.extend_from_slice(line.get(..LONGEST_LINE).unwrap_or(&line));
                }
                self.head.cut = true;
                self.place = Place::Waiting;
                (wire, Some(Found::Head))
            }
            _ => {
                self.skip(missing);
                (wire, None)
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        // A value that is too long is of no use; its line end still is.
        let room = LONGEST_LINE.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(part.get(..room).unwrap_or(part));
    }

    /// Takes a line of the head, which may have begun earlier; whether it is the last.
    fn line(&mut self, end: &[u8]) -> bool {
        if self.partial.is_empty() {
            return self.whole_line(end);
        }
        self.keep(end);
        let line = std::mem::take(&mut self.partial);
        let last = self.whole_line(&line);
        self.partial = line;
        self.partial.clear();
        last
    }

    fn whole_line(&mut self, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.first_line {
            self.first_line = false;
            self.head.line.extend_from_slice(line.get(..LONGEST_LINE).unwrap_or(line));
            return false;
        }
        let Some(first) = line.first() else { return true };
        // Only these begin a header that matters.
        if matches!(first | 0x20, b'c' | b't' | b'h')
            && let Some(colon) = memchr(b':', line)
        {
            let (name, value) = (line.get(..colon).unwrap_or_default(), line.get(colon + 1..).unwrap_or_default());
            self.header(name.trim_ascii_end(), value.trim_ascii());
        }
        false
    }

    fn header(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"content-length") {
            self.head.length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).or(self.head.length);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            self.head.chunked |= last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if self.kind == Kind::Requests && name.eq_ignore_ascii_case(b"host") && !value.is_empty() {
            self.head.host = Some(value.get(..LONGEST_LINE).unwrap_or(value).to_vec());
        }
    }

    fn begins(&self, bytes: &[u8]) -> Begins {
        // Some clients send an empty line after a body.
        if matches!(bytes.first(), Some(b'\r' | b'\n')) {
            return Begins::Blank;
        }
        let plausible = match self.kind {
            Kind::Responses => bytes.iter().zip(b"HTTP/").all(|(byte, expected)| byte == expected),
            Kind::Requests => request_begins(bytes),
        };
        if plausible { Begins::Message } else { Begins::Foreign }
    }

    /// As [`Self::begins`], where something else can stand too.
    fn certainly_begins(&self, bytes: &[u8]) -> bool {
        match self.kind {
            Kind::Responses => bytes.starts_with(b"HTTP/1."),
            Kind::Requests => {
                const METHODS: [&[u8]; 9] =
                    [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE "];
                METHODS.iter().any(|method| bytes.starts_with(method))
            }
        }
    }
}

/// What stands where a message can begin.
enum Begins {
    Blank,
    Message,
    Foreign,
}

/// A method in capitals, a space, and something that can be seen; as far as it is there.
fn request_begins(bytes: &[u8]) -> bool {
    let window = bytes.get(..32).unwrap_or(bytes);
    let method = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    match window.iter().position(|byte| !method(byte)) {
        None => window.len() < 32,
        Some(0) => false,
        Some(space) => window.get(space) == Some(&b' ') && window.get(space + 1).is_none_or(u8::is_ascii_graphic),
    }
}

fn chunk_size(byte: u8, size: u64, extension: bool) -> Place {
    match byte {
        b'\n' if size == 0 => Place::Trailer(false),
        // The chunk's own line end follows it.
        b'\n' => Place::Chunk(size.saturating_add(2)),
        b'\r' => Place::ChunkSize(size, extension),
        _ if extension => Place::ChunkSize(size, true),
        _ => match char::from(byte).to_digit(16) {
            Some(digit) if size < 1 << 56 => Place::ChunkSize(size * 16 + u64::from(digit), false),
            None if matches!(byte, b';' | b' ' | b'\t') => Place::ChunkSize(size, true),
            Some(_) | None => Place::Lost,
        },
    }
}
