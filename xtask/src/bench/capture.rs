//! Captures of nginx-to-upstream traffic, made up: clients ask nginx, nginx asks its upstreams, one request in a hundred fails.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// What kind of traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Connections to the upstream are kept for so many requests.
    pub(crate) kept: u32,
    /// Requests in all.
    pub(crate) requests: u32,
    /// Bytes of an answer's body, on average.
    pub(crate) body: u32,
    /// Clients at once.
    pub(crate) clients: u32,
}

/// A tool that needs the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const PSH: u8 = 8;
const FIN: u8 = 1;
const RST: u8 = 4;

/// One connection's two ends.
#[derive(Clone, Copy)]
struct Pipe {
    client: ([u8; 4], u16),
    server: ([u8; 4], u16),
    client_next: u32,
    server_next: u32,
    used: u32,
}

struct Writer {
    out: BufWriter<File>,
    now_us: u64,
    packets: u64,
    ip_id: u16,
    filler: Vec<u8>,
}

const NGINX: [u8; 4] = [10, 0, 0, 1];

impl Writer {
    fn packet(&mut self, pipe: &mut Pipe, by_client: bool, flags: u8, payload: &[u8]) -> io::Result<()> {
        let (from, to) = if by_client { (pipe.client, pipe.server) } else { (pipe.server, pipe.client) };
        let (sequence, acknowledged) =
            if by_client { (pipe.client_next, pipe.server_next) } else { (pipe.server_next, pipe.client_next) };
        self.now_us += 3;
        self.packets += 1;
        self.ip_id = self.ip_id.wrapping_add(1);
        let total = u16::try_from(40 + payload.len()).unwrap_or(u16::MAX);
        let length = 14 + u32::from(total);
        let mut head = Vec::with_capacity(70);
        head.extend(u32::try_from(self.now_us / 1_000_000).unwrap_or(0).to_le_bytes());
        head.extend(u32::try_from(self.now_us % 1_000_000).unwrap_or(0).to_le_bytes());
        head.extend(length.to_le_bytes());
        head.extend(length.to_le_bytes());
        head.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
        head.extend(total.to_be_bytes());
        head.extend(self.ip_id.to_be_bytes());
        head.extend([0x40, 0, 64, 6, 0, 0]);
        head.extend(from.0);
        head.extend(to.0);
        head.extend(from.1.to_be_bytes());
        head.extend(to.1.to_be_bytes());
        head.extend(sequence.to_be_bytes());
        let acknowledged = if flags & ACK == 0 { 0 } else { acknowledged };
        head.extend(acknowledged.to_be_bytes());
        head.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        let moved = u32::try_from(payload.len()).unwrap_or(0) + u32::from(flags & (SYN | FIN) != 0);
        let next = if by_client { &mut pipe.client_next } else { &mut pipe.server_next };
        *next = next.wrapping_add(moved);
        Ok(())
    }

    fn connect(&mut self, pipe: &mut Pipe) -> io::Result<()> {
        self.packet(pipe, true, SYN, &[])?;
        self.packet(pipe, false, SYN | ACK, &[])?;
        self.packet(pipe, true, ACK, &[])
    }

    fn close(&mut self, pipe: &mut Pipe) -> io::Result<()> {
        self.packet(pipe, true, FIN | ACK, &[])?;
        self.packet(pipe, false, FIN | ACK, &[])?;
        self.packet(pipe, true, ACK, &[])
    }

    fn answer(&mut self, pipe: &mut Pipe, status: &str, body: usize) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 {status}\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 14:02:07 GMT\r\nContent-Type: text/html\r\n\
             Content-Length: {body}\r\nConnection: keep-alive\r\n\r\n"
        );
        let mut first = head.into_bytes();
        let mut left = body;
        let part = left.min(1_448_usize.saturating_sub(first.len()));
        first.extend_from_slice(self.filler.get(..part).unwrap_or_default());
        left -= part;
        self.packet(pipe, false, ACK | PSH, &first)?;
        let filler = std::mem::take(&mut self.filler);
        let mut sent = 0;
        while left > 0 {
            let part = left.min(1_448);
            self.packet(pipe, false, ACK, filler.get(..part).unwrap_or_default())?;
            left -= part;
            sent += 1;
            if sent % 4 == 0 {
                self.packet(pipe, true, ACK, &[])?;
            }
        }
        self.filler = filler;
        self.packet(pipe, true, ACK, &[])
    }
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Packets.
    pub(crate) packets: u64,
    /// Requests that failed at the upstream.
    pub(crate) failures: u64,
}

/// Writes a capture of this shape.
pub(crate) fn write(path: &Path, shape: Shape) -> io::Result<Written> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
    out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0])?;
    let mut writer = Writer {
        out,
        now_us: 1_795_269_727_000_000,
        packets: 0,
        ip_id: 0,
        filler: b"abcdefghijklmnopqrstuvwxyz012345".iter().copied().cycle().take(1 << 16).collect(),
    };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut clients: Vec<Option<Pipe>> = (0..shape.clients).map(|_| None).collect();
    let mut upstreams: Vec<Option<Pipe>> = clients.clone();
    let mut ports = (1_024_u16, 1_024_u16);
    let mut failures = 0;
    for number in 0..shape.requests {
        let who = usize::try_from(dice.below(u64::from(shape.clients))).unwrap_or(0);
        let mut client = take(&mut clients, who, &mut writer, &mut dice, || {
            ports.0 = ports.0.checked_add(1).unwrap_or(1_024);
            (([192, 168, 1, u8::try_from(who % 250).unwrap_or(0)], ports.0), (NGINX, 80))
        })?;
        let mut upstream = take(&mut upstreams, who, &mut writer, &mut dice, || {
            ports.1 = ports.1.checked_add(1).unwrap_or(1_024);
            ((NGINX, ports.1), ([10, 0, 1, u8::try_from(who % 4).unwrap_or(0)], 8_000))
        })?;
        let uri = format!("/item/{number}?session={}", dice.roll());
        let head = "Host: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nCookie: a=b; c=d\r\n\r\n";
        writer.packet(&mut client, true, ACK | PSH, format!("GET {uri} HTTP/1.1\r\n{head}").as_bytes())?;
        writer.packet(&mut client, false, ACK, &[])?;
        writer.packet(
            &mut upstream,
            true,
            ACK | PSH,
            format!("GET {uri} HTTP/1.1\r\nX-Real-IP: 192.168.1.1\r\n{head}").as_bytes(),
        )?;
        writer.packet(&mut upstream, false, ACK, &[])?;
        if dice.below(100) == 0 {
            failures += 1;
            if dice.below(2) == 0 {
                writer.packet(&mut upstream, false, RST | ACK, &[])?;
            } else {
                writer.packet(&mut upstream, false, FIN | ACK, &[])?;
                writer.packet(&mut upstream, true, FIN | ACK, &[])?;
                writer.packet(&mut upstream, false, ACK, &[])?;
            }
            upstream.used = u32::MAX;
            writer.answer(&mut client, "502 Bad Gateway", 157)?;
        } else {
            let body = usize::try_from(dice.below(u64::from(shape.body) * 2)).unwrap_or(0);
            writer.answer(&mut upstream, "200 OK", body)?;
            writer.answer(&mut client, "200 OK", body)?;
            upstream.used += 1;
        }
        client.used += 1;
        writer.now_us += dice.below(40);
        if upstream.used != u32::MAX && upstream.used >= shape.kept {
            writer.close(&mut upstream)?;
            upstream.used = u32::MAX;
        }
        if client.used >= shape.kept {
            writer.close(&mut client)?;
            client.used = u32::MAX;
        }
        put(&mut clients, who, client);
        put(&mut upstreams, who, upstream);
    }
    writer.out.flush()?;
    // The first tool must not run beside the kernel writing half a gigabyte to the disk.
    writer.out.get_ref().sync_all()?;
    Ok(Written { packets: writer.packets, failures })
}

fn put(pipes: &mut [Option<Pipe>], who: usize, pipe: Pipe) {
    if let Some(place) = pipes.get_mut(who) {
        *place = (pipe.used != u32::MAX).then_some(pipe);
    }
}

/// The connection of this client, opened if there is none.
fn take(
    pipes: &mut [Option<Pipe>],
    who: usize,
    writer: &mut Writer,
    dice: &mut Dice,
    ends: impl FnOnce() -> (([u8; 4], u16), ([u8; 4], u16)),
) -> io::Result<Pipe> {
    if let Some(pipe) = pipes.get_mut(who).and_then(Option::take) {
        return Ok(pipe);
    }
    let (client, server) = ends();
    let number = |dice: &mut Dice| u32::try_from(dice.roll() & u64::from(u32::MAX)).unwrap_or(1);
    let mut pipe = Pipe { client, server, client_next: number(dice), server_next: number(dice), used: 0 };
    writer.connect(&mut pipe)?;
    Ok(pipe)
}
