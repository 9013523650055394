use super::{
    analysis::{Analysis, Finding, Options},
    segment::{Batch, End, Item, Pair, Segment, Span},
};
use crate::model::packet::TcpFlags;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const MS: u64 = 1_000_000;

/// A connection that is played packet by packet, a millisecond apart.
struct Player {
    analysis: Analysis,
    ends: [End; 2],
    /// Next sequence numbers: the client's, the server's.
    next: [u32; 2],
    now: u64,
    number: u64,
}

impl Player {
    fn new() -> Self {
        let options = Options { connections: true, exchanges: true, ..Options::default() };
        let mut player = Self {
            analysis: Analysis::new(options),
            ends: [End::default(); 2],
            // The circle's seam is met on the way.
            next: [u32::MAX - 20, 7],
            now: 1_000 * MS,
            number: 0,
        };
        player.connection(40_000);
        player
    }

    fn connection(&mut self, port: u16) {
        self.ends = [End::v4([10, 0, 0, 7], port), End::v4([10, 0, 0, 1], 80)];
    }

    fn packet(&mut self, by_client: bool, flags: u8, payload: &[u8]) {
        let [source, destination] = if by_client { self.ends } else { [self.ends[1], self.ends[0]] };
        let (own, other) = if by_client { (0, 1) } else { (1, 0) };
        let (pair, from_low) = Pair::of(source, destination);
        let length = u32::try_from(payload.len()).unwrap();
        self.number += 1;
        self.now += MS;
        let segment = Segment {
            unix_ns: self.now,
            number: self.number,
            hash: pair.hash(),
            pair,
            from_low,
            interface: 0,
            vlan: 0,
            sequence: self.next[own],
            acknowledgement: if flags & ACK == 0 { 0 } else { self.next[other] },
            length,
            payload: Span { at: 0, length, mended: false },
            window: 500,
            ip_id: Some(u16::try_from(self.number % 60_000).unwrap()),
            flags: TcpFlags(flags),
            ttl: 64,
            may_repeat: false,
        };
        self.next[own] = self.next[own].wrapping_add(length + u32::from(flags & (SYN | FIN) != 0));
        let batch = Batch { block: payload.to_vec(), ..Batch::default() };
        self.analysis.item(0, &Item::Segment(segment), &batch);
    }

    fn play(&mut self, script: &str) {
        for letter in script.chars() {
            let by_client = letter.is_ascii_uppercase();
            match letter.to_ascii_lowercase() {
                's' => self.packet(by_client, SYN, &[]),
                'h' => self.packet(by_client, SYN | ACK, &[]),
                'a' => self.packet(by_client, ACK, &[]),
                'd' => self.packet(by_client, ACK, b"some text"),
                'f' => self.packet(by_client, FIN | ACK, &[]),
                'r' => self.packet(by_client, RST | ACK, &[]),
                other => panic!("{other}"),
            }
        }
    }

    fn findings(mut self) -> Vec<Finding> {
        self.analysis.finish();
        std::iter::from_fn(|| self.analysis.poll()).collect()
    }
}

#[test]
fn fates_have_zeeks_names() {
    for (script, state) in [
        ("S", "S0"),
        ("Sr", "REJ"),
        ("ShA", "S1"),
        ("ShAF", "S2"),
        ("ShAf", "S3"),
        ("ShADdFfA", "SF"),
        ("ShADfF", "SF"),
        ("ShAR", "RSTO"),
        ("ShADr", "RSTR"),
        ("SR", "RSTOS0"),
        ("SF", "SH"),
        ("hf", "SHR"),
        ("hr", "RSTRH"),
        ("Dd", "OTH"),
    ] {
        let mut player = Player::new();
        player.play(script);
        let states: Vec<&str> = player
            .findings()
            .iter()
            .filter_map(|finding| match finding {
                Finding::Connection(ended) => Some(ended.fate.state().name()),
                _ => None,
            })
            .collect();
        assert_eq!(states, [state], "{script}");
    }
}

/// Requests and statuses of a conversation after the handshake: who says what.
fn exchanges(said: &[(bool, &str)]) -> Vec<(String, Option<u16>)> {
    let mut player = Player::new();
    player.play("ShA");
    for (by_client, text) in said {
        player.packet(*by_client, ACK, text.as_bytes());
    }
    player.play("FfA");
    let told = |finding: &Finding| match finding {
        Finding::Exchange(exchange) => Some((String::from_utf8(exchange.2.line.clone()).unwrap(), exchange.2.status)),
        _ => None,
    };
    player.findings().iter().filter_map(told).collect()
}

#[test]
fn answers_belong_to_their_requests() {
    let [a, b, c] = ["GET /a HTTP/1.1", "HEAD /b HTTP/1.1", "POST /c HTTP/1.1"];
    let asked = |line: &str, status| (line.to_owned(), status);
    // Two at once, answered at once, the second without the body that its length speaks of.
    let both = format!("{a}\r\nHost: x\r\n\r\n{b}\r\nHost: x\r\n\r\n");
    let answers = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(exchanges(&[(true, &both), (false, answers)]), [asked(a, Some(200)), asked(b, Some(404))]);
    // In pieces, chunked, with a line end at every seam, and one more behind it.
    let pieces = [
        (true, "GET /a HT"),
        (true, "TP/1.1\r"),
        (true, "\nHost: x\r\n\r\n"),
        (false, "HTTP/1.1 502 Bad"),
        (false, " Gateway\r\nTransfer-Encoding: chunked\r\n\r\n5\r"),
        (false, "\nhello\r\n0\r\n"),
        (false, "\r\n"),
        (true, "POST /c HTTP/1.1\r\nContent-Length: 18\r\n\r\n"),
        (true, "GET /x HTTP/1.1\r\n\r\n"),
        (false, "HTTP/1.1 100 Continue\r\n\r\n"),
        (false, "HTTP/1.0 201 Created\r\n\r\nuntil the end"),
    ];
    assert_eq!(exchanges(&pieces), [asked(a, Some(502)), asked(c, Some(201))]);
    // No answer is none.
    assert_eq!(exchanges(&[(true, &format!("{a}\r\n\r\n"))]), [asked(a, None)]);
}

#[test]
fn what_is_over_is_forgotten() {
    let mut player = Player::new();
    let mut told = 0;
    for port in 0..3_000 {
        player.connection(1_024 + port);
        player.play("ShADdFfA");
        while player.analysis.poll().is_some() {
            told += 1;
        }
    }
    // Eight milliseconds each, kept for five seconds, and a sweep every second.
    assert!(player.analysis.connections.len() < 1_000, "{} are kept", player.analysis.connections.len());
    assert!(told > 2_000, "{told} ends were told");
}

#[test]
fn who_answers_a_syn_serves() {
    let mut player = Player::new();
    player.analysis.options.servers = true;
    player.play("Sh");
    assert!(player.analysis.serves(player.ends[1]) && !player.analysis.serves(player.ends[0]));
    // A port does not matter, and nobody serves who only refuses.
    assert!(player.analysis.serves(End { port: 9, ..player.ends[1] }));
    player.ends[1] = End::v4([10, 0, 0, 2], 80);
    player.play("Sr");
    assert!(!player.analysis.serves(player.ends[1]));
}
