//! What is said on a connection: its HTTP/1 exchanges.

use std::collections::VecDeque;

use super::{
    http::{Body, Found, Kind, Messages},
    segment::Segment,
    stream::{Stream, Turn},
    trace::{FileNumber, Trace},
};
use crate::model::wire::WireHead;

/// Requests that may wait for their answers on one connection.
const MOST_PIPELINED: usize = 256;
/// Of a foreign answer's beginning.
const FIRST_BYTES: usize = 64;

/// A request and its answer.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// Its number in this run, from 1.
    pub id: u64,
    /// What it asks for, in a number.
    pub(super) key: u64,
    /// The requests that it can have been made for.
    pub(super) outer: Vec<u64>,
    /// The failed attempt that it repeats.
    pub(super) after: Option<u64>,
    /// It was told as a failed attempt.
    pub(super) told: bool,
    /// The request line; empty where it was not seen.
    pub line: Vec<u8>,
    /// The Host header.
    pub host: Option<Vec<u8>>,
    /// When its first byte was captured.
    pub begun_ns: u64,
    /// In which packet.
    pub begun_packet: (FileNumber, u64),
    /// When its last byte was captured.
    pub sent_ns: u64,
    /// Bytes of it.
    pub sent: u64,
    /// All of it was sent.
    pub request_whole: bool,
    /// When the answer's first byte was captured.
    pub first_answer_ns: Option<u64>,
    /// When the answer's head was whole.
    pub answered_ns: Option<u64>,
    /// In which packet; of an answer that is not HTTP/1, the one that shows it.
    pub answered_packet: (FileNumber, u64),
    /// What was seen of the answer's head.
    pub head: Option<WireHead>,
    /// Its status.
    pub status: Option<u16>,
    /// Its status line.
    pub status_line: Vec<u8>,
    /// Bytes of it.
    pub received: u64,
    /// The answer is not HTTP/1: its first bytes.
    pub foreign: Option<Vec<u8>>,
    /// Something of the answer was lost by the capture.
    pub lost: bool,
}

impl Exchange {
    /// The method.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.line.split(|byte| *byte == b' ').next().unwrap_or_default()
    }
}

/// Something happened in a talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The request at this place has its line.
    Asked(usize),
    /// The first exchange has its final status.
    Answered,
    /// The first exchange is over; it is in [`Talk::done`].
    Done,
}

/// What nginx speaks to an upstream beside HTTP/1, by the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// TLS, and HTTP/1 or HTTP/2 in it.
    Tls,
    /// FastCGI, uwsgi or HTTP/2 (gRPC).
    Other,
}

impl Speaks {
    fn of(payload: &[u8]) -> Option<Self> {
        match payload {
            // A handshake record with a ClientHello (RFC 8446, section 4).
            [22, 3, 0..=4, _, _, 1, ..] => Some(Self::Tls),
            // FCGI_BEGIN_REQUEST, version 1; eight bytes; a responder. Or uwsgi's modifier 0, and its first key as nginx writes it.
            [1, 1, _, _, 0, 8, _, _, 0, 1, ..] | [0, _, _, 0, _, 0, b'A'..=b'Z', b'A'..=b'Z', ..] => Some(Self::Other),
            _ => None,
        }
    }
}

/// What is said on a connection.
#[derive(Debug)]
pub(super) struct Talk {
    client: Stream,
    server: Stream,
    /// Exchanges that are on; the first is the one that is being answered.
    pub(super) exchanges: VecDeque<Exchange>,
    /// The one that was over last.
    pub(super) done: Option<Exchange>,
    /// Exchanges that were answered.
    pub(super) served: u64,
    /// When the last byte of an answer was captured.
    pub(super) last_answer_ns: Option<u64>,
    /// The packets that matter.
    pub(super) trace: Trace,
    /// Requests or answers of HTTP/1 were seen.
    pub(super) is_http: bool,
    /// What whoever opened it speaks, where that is not HTTP/1.
    pub(super) speaks: Option<Speaks>,
    /// What answered that: the packet, and its first bytes.
    pub(super) foreign: Option<((FileNumber, u64), Vec<u8>)>,
    /// An answer in HTTP/1 to something else.
    pub(super) plain: Option<Exchange>,
}

/// The packet that is being read.
#[derive(Clone, Copy)]
struct Now<'a> {
    file: FileNumber,
    segment: &'a Segment,
}

impl Talk {
    pub(super) fn new() -> Self {
        Self {
            client: Stream::new(Kind::Requests),
            server: Stream::new(Kind::Responses),
            exchanges: VecDeque::new(),
            done: None,
            served: 0,
            last_answer_ns: None,
            trace: Trace::default(),
            is_http: false,
            speaks: None,
            foreign: None,
            plain: None,
        }
    }

    /// The exchange that waits for its answer's head, if there is one.
    pub(super) fn outstanding(&self) -> Option<&Exchange> {
        self.exchanges.front().filter(|exchange| exchange.status.is_none())
    }

    /// The answer's head has begun and is not whole.
    pub(super) const fn in_answers_head(&self) -> bool {
        self.server.messages.is_in_head()
    }

    /// An answer's head was passed, and its body is not whole although its end is known.
    pub(super) fn cut_short(&self) -> bool {
        self.exchanges.front().is_some_and(|exchange| exchange.status.is_some() && !exchange.lost)
            && !self.server.messages.ends_with_connection()
    }

    /// A direction begins after this SYN.
    pub(super) fn begin(&mut self, by_client: bool, sequence: u32) {
        if by_client { &mut self.client } else { &mut self.server }.begin(sequence.wrapping_add(1));
    }

    /// Takes a payload; `acknowledged`: what the other side has acknowledged of this direction. `says` hears what it means.
    pub(super) fn take(
        &mut self,
        file: FileNumber,
        segment: &Segment,
        payload: &[u8],
        (by_client, acknowledged): (bool, u32),
        says: &mut impl FnMut(&mut Self, Said),
    ) {
        let now = Now { file, segment };
        let stream = if by_client { &mut self.client } else { &mut self.server };
        match stream.place(segment.sequence, segment.length, payload, segment.unix_ns) {
            Turn::Now(known) => {
                let fresh = payload.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
                self.read(now, fresh, u64::from(segment.length - known), by_client, says);
            }
            Turn::Kept | Turn::Again => {}
        }
        self.catch_up(now, (by_client, acknowledged, false), says);
    }

    /// Reads what waited for something that will not come any more.
    pub(super) fn end(
        &mut self,
        file: FileNumber,
        segment: &Segment,
        by_client: bool,
        says: &mut impl FnMut(&mut Self, Said),
    ) {
        self.catch_up(Now { file, segment }, (by_client, segment.sequence, true), says);
    }

    fn catch_up(
        &mut self,
        now: Now<'_>,
        (by_client, acknowledged, over): (bool, u32, bool),
        says: &mut impl FnMut(&mut Self, Said),
    ) {
        loop {
            let stream = if by_client { &mut self.client } else { &mut self.server };
            if !stream.waits() {
                return;
            }
            let place_before = stream.messages.is_within();
            let Some((early, known)) = stream.pop(acknowledged, now.segment.unix_ns, over) else { return };
            if place_before && !stream.messages.is_within() && !by_client {
                // The hole took the rest of an answer with it.
                if let Some(exchange) = self.exchanges.front_mut() {
                    exchange.lost = true;
                }
            }
            let fresh = early.bytes.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
            self.read(now, fresh, u64::from(early.wire - known), by_client, says);
        }
    }

    fn messages(&mut self, by_client: bool) -> &mut Messages {
        if by_client { &mut self.client.messages } else { &mut self.server.messages }
    }

    fn read(
        &mut self,
        now: Now<'_>,
        captured: &[u8],
        wire: u64,
        by_client: bool,
        says: &mut impl FnMut(&mut Self, Said),
    ) {
        let (mut rest, mut left, mut fresh) = (captured, wire, true);
        while left > 0 {
            let (taken, found) = self.messages(by_client).read(rest, left, fresh);
            // Before the message that begins now, its bytes are the one's before.
            self.count(now, taken, by_client, found == Some(Found::Begins));
            if let Some(found) = found {
                if by_client && found == Found::Foreign {
                    self.speaks = Speaks::of(rest);
                } else if by_client {
                    self.asked(now, found, says);
                } else {
                    self.answered(now, found, rest, says);
                }
            }
            rest = rest.get(usize::try_from(taken).unwrap_or(usize::MAX)..).unwrap_or_default();
            left = left.saturating_sub(taken);
            fresh = false;
        }
        if by_client && let Some(exchange) = self.exchanges.back_mut() {
            exchange.sent_ns = now.segment.unix_ns;
        }
    }

    fn count(&mut self, now: Now<'_>, taken: u64, by_client: bool, begins: bool) {
        if by_client {
            if let Some(exchange) = self.exchanges.back_mut().filter(|exchange| !begins && !exchange.request_whole) {
                exchange.sent += taken;
            }
        } else if taken > 0 {
            self.last_answer_ns = Some(now.segment.unix_ns);
            if let Some(exchange) = self.exchanges.front_mut() {
                exchange.received += taken;
                exchange.first_answer_ns.get_or_insert(now.segment.unix_ns);
            }
        }
    }

    fn asked(&mut self, now: Now<'_>, found: Found, says: &mut impl FnMut(&mut Self, Said)) {
        match found {
            Found::Begins => {
                self.is_http = true;
                // One whose answer's length was not known is over when the next is asked, unless that was asked ahead.
                if self.exchanges.len() >= MOST_PIPELINED {
                    self.over(says);
                }
                self.exchanges.push_back(Exchange {
                    begun_ns: now.segment.unix_ns,
                    sent_ns: now.segment.unix_ns,
                    begun_packet: (now.file, now.segment.number),
                    ..Exchange::default()
                });
                if self.exchanges.len() == 1 {
                    self.trace.begin(now.file, now.segment);
                }
            }
            Found::Head => {
                let messages = &mut self.client.messages;
                let head = &mut messages.head;
                let line = std::mem::take(&mut head.line);
                let bodiless = [b"GET ".as_slice(), b"HEAD ", b"DELETE ", b"OPTIONS ", b"TRACE "];
                let body = match (head.chunked, head.length) {
                    (true, _) => Body::Chunked,
                    (false, Some(length)) => Body::Length(length),
                    _ if head.cut && !bodiless.iter().any(|method| line.starts_with(method)) => Body::Unknown,
                    _ => Body::None,
                };
                let host = head.host.take();
                if line.starts_with(b"PRI * HTTP/2") {
                    messages.become_foreign();
                    self.server.messages.become_foreign();
                    self.exchanges.pop_back();
                    self.is_http = false;
                    self.speaks = Some(Speaks::Other);
                    return;
                }
                let whole = messages.expect(body);
                let place = self.exchanges.len().saturating_sub(1);
                if let Some(exchange) = self.exchanges.back_mut() {
                    exchange.line = line;
                    exchange.host = host;
                    exchange.request_whole = whole;
                    says(self, Said::Asked(place));
                }
            }
            Found::Whole => {
                if let Some(exchange) = self.exchanges.back_mut() {
                    exchange.request_whole = true;
                }
            }
            Found::Foreign => {}
        }
    }

    fn answered(&mut self, now: Now<'_>, found: Found, bytes: &[u8], says: &mut impl FnMut(&mut Self, Said)) {
        match found {
            Found::Begins => {
                self.is_http = true;
                if self.exchanges.front().is_some_and(|exchange| exchange.status.is_some()) {
                    // The one before ended where nobody could see it.
                    self.over(says);
                }
                if self.exchanges.is_empty() {
                    self.exchanges.push_back(Exchange {
                        begun_ns: now.segment.unix_ns,
                        sent_ns: now.segment.unix_ns,
                        begun_packet: (now.file, now.segment.number),
                        request_whole: true,
                        ..Exchange::default()
                    });
                }
            }
            Found::Head => self.head(now, says),
            Found::Whole => {
                if self.exchanges.front().is_some_and(|exchange| exchange.status.is_some()) {
                    self.over(says);
                }
            }
            Found::Foreign => {
                let first = bytes.get(..FIRST_BYTES).unwrap_or(bytes).to_vec();
                if self.speaks.is_some() {
                    self.foreign = Some(((now.file, now.segment.number), first.clone()));
                }
                if let Some(exchange) = self.exchanges.front_mut() {
                    exchange.head = Some(WireHead::Foreign);
                    exchange.foreign = Some(first);
                    exchange.answered_packet = (now.file, now.segment.number);
                }
            }
        }
    }

    fn head(&mut self, now: Now<'_>, says: &mut impl FnMut(&mut Self, Said)) {
        let head = &self.server.messages.head;
        let Some(status) = head.status() else {
            let line = head.line.clone();
            if let Some(exchange) = self.exchanges.front_mut() {
                exchange.head = Some(WireHead::Foreign);
                exchange.foreign = Some(line);
            }
            self.server.messages.become_foreign();
            return;
        };
        // 100 and its like are followed by the answer itself; 101 is the answer.
        if (100..200).contains(&status) && status != 101 {
            self.server.messages.expect(Body::None);
            return;
        }
        let (chunked, length, cut) = (head.chunked, head.length, head.cut);
        let Some(exchange) = self.exchanges.front_mut() else { return };
        exchange.status = Some(status);
        exchange.head = (!cut).then_some(WireHead::Whole(exchange.received));
        exchange.answered_ns = Some(now.segment.unix_ns);
        exchange.answered_packet = (now.file, now.segment.number);
        exchange.status_line.clone_from(&head.line);
        let method = exchange.method();
        let body = match status {
            101 => Body::Tunnel,
            204 | 304 => Body::None,
            _ if method == b"HEAD" => Body::None,
            200..=299 if method == b"CONNECT" => Body::Tunnel,
            _ if chunked => Body::Chunked,
            _ => match length {
                Some(length) => Body::Length(length),
                None if cut => Body::Unknown,
                None => Body::UntilClose,
            },
        };
        if body == Body::Tunnel {
            self.client.messages.become_foreign();
        }
        let whole = self.server.messages.expect(body);
        says(self, Said::Answered);
        if whole || matches!(body, Body::Tunnel | Body::Unknown) {
            self.over(says);
        }
    }

    /// The first exchange is over.
    pub(super) fn over(&mut self, says: &mut impl FnMut(&mut Self, Said)) {
        if let Some(exchange) = self.exchanges.pop_front() {
            self.served += u64::from(exchange.status.is_some());
            if self.speaks.is_some() {
                self.plain = Some(exchange.clone());
            }
            self.done = Some(exchange);
            says(self, Said::Done);
            self.done = None;
        }
    }
}
