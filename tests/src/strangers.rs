//! Strangers who send garbage as fast as they can: to nginx, in the upstream's name, and from an upstream of their own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{Linger, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::forger::checksum;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::site::Plan;
use crate::worlds::dice::Dice;

/// Where the upstream of their own listens.
const PORT: u16 = 9666;
/// Nobody waits long for an answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// Half of what they say ends in a 502: some two hundred failures a second, all of which are judged, by a debug build too.
const TALK_EVERY: Duration = Duration::from_millis(15);
/// Packets between two breaths of who floods.
const BURST: usize = 20;

/// Strangers at work; they stop when dropped.
#[derive(Debug)]
pub struct Strangers {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<Result<u64>>)>,
}

/// Adds to a site the location `/garbage/`, which leads to the strangers' own upstream.
pub fn configure(plan: &mut Plan) {
    let pass = format!("proxy_pass http://{};", plan.app(PORT));
    plan.config.location("/garbage/", &[&pass, "proxy_read_timeout 200ms;"]);
}

impl Strangers {
    /// Begins: everybody on a thread of its own.
    pub fn start(lab: &Lab, nginx: SocketAddr, seed: u64) -> Result<Self> {
        let mut strangers = Self { stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        let SocketAddr::V4(to) = nginx else { anyhow::bail!("only IPv4 is flooded") };
        let listener = lab.app().inside(|| {
            let listener = TcpListener::bind((lab.addresses().app, PORT)).context("listen as a strange upstream")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        strangers.add("upstream", lab.app(), seed, move |dice, stop| serve(&listener, dice, stop))?;
        strangers.add("half-open", lab.client(), seed + 1, move |dice, stop| half_open(to, dice, stop))?;
        strangers.add("overlapping", lab.app(), seed + 2, overlapping)?;
        for (index, (name, say)) in TALKERS.iter().enumerate() {
            let say = *say;
            strangers
                .add(name, lab.client(), seed + 3 + index as u64, move |dice, stop| talk(nginx, say, dice, stop))?;
        }
        Ok(strangers)
    }

    fn add(
        &mut self,
        name: &'static str,
        namespace: &Namespace,
        seed: u64,
        work: impl FnOnce(Dice, &AtomicBool) -> Result<u64> + Send + 'static,
    ) -> Result<()> {
        let place = namespace.file().try_clone().context("share the namespace")?;
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&place, nix::sched::CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            work(Dice::new(seed), &stop)
        });
        self.threads.push((name, thread));
        Ok(())
    }

    /// Ends; how much each of them has sent.
    pub fn stop(mut self) -> Result<BTreeMap<&'static str, u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = BTreeMap::new();
        for (name, thread) in self.threads.drain(..) {
            let count = thread.join().map_err(|_panic| anyhow!("the stranger {name} panicked"))?;
            sent.insert(name, count.with_context(|| format!("the stranger {name}"))?);
        }
        Ok(sent)
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (_, thread) in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Says something to nginx on a fresh connection.
type Say = fn(&mut TcpStream, &mut Dice) -> std::io::Result<()>;

/// Who talks to nginx, and how.
const TALKERS: [(&str, Say); 6] =
    [("resets", reset), ("tiny", tiny), ("headers", headers), ("uris", uris), ("noise", noise), ("garbage", garbage)];

fn talk(nginx: SocketAddr, say: Say, mut dice: Dice, stop: &AtomicBool) -> Result<u64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        // A queue that is full of strangers is part of it.
        if let Ok(mut stream) = TcpStream::connect_timeout(&nginx, PATIENCE) {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            // nginx may hang up in the middle.
            let _ = say(&mut stream, &mut dice);
            count += 1;
        }
        std::thread::sleep(TALK_EVERY);
    }
    Ok(count)
}

/// Half a request, then a RST.
fn reset(stream: &mut TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    stream.write_all(b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 9")?;
    if dice.between(0, 1) == 0 {
        stream.write_all(b"9\r\n\r\nhalf")?;
    }
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, Linger, &linger)?;
    Ok(())
}

/// Byte by byte.
fn tiny(stream: &mut TcpStream, _dice: &mut Dice) -> std::io::Result<()> {
    for byte in b"GET /premature-close/tiny HTTP/1.0\r\nHost: a\r\n\r\n" {
        stream.write_all(&[*byte])?;
    }
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// More headers than anybody wants.
fn headers(stream: &mut TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    let mut text = "GET /upstream-reset/headers HTTP/1.0\r\n".to_owned();
    for number in 0..dice.between(0, 399) {
        let _ = write!(text, "X-{number}: {}\r\n", "v".repeat(usize::from(dice.half()) % 200));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// 8 KiB of path, with what a terminal or a parser might take for its own.
fn uris(stream: &mut TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    const PIECES: [&[u8]; 10] = [
        b"%00",
        b"%1b[2J",
        b"\x1b]0;x\x07",
        b"%0d%0aSet-Cookie:a",
        b"\xff\xfe",
        b"..%2f",
        b"\"}],{",
        b"<script>",
        b"%u202e",
        b"?a=b&",
    ];
    let mut line = b"GET /upstream-refused/".to_vec();
    let most = if dice.between(0, 3) == 0 { 8_100 } else { 600 };
    while line.len() < most {
        let pick = usize::from(dice.half()) % (PIECES.len() + 3);
        line.extend(PIECES.get(pick).copied().unwrap_or(b"aaaaaaaaaaaaaaaa"));
    }
    line.extend(b" HTTP/1.0\r\nHost: \x1b[31m\r\n\r\n");
    stream.write_all(&line)?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// No HTTP at all.
fn noise(stream: &mut TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    let length = usize::from(dice.half()) % 3_000;
    stream.write_all(&dice.bytes(length))?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// A request that reaches the strange upstream.
fn garbage(stream: &mut TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    let line = format!("GET /garbage/{} HTTP/1.0\r\nHost: a\r\n\r\n", dice.half());
    stream.write_all(line.as_bytes())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// Answers with anything but an answer.
fn serve(listener: &TcpListener, mut dice: Dice, stop: &AtomicBool) -> Result<u64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                // nginx may hang up in the middle.
                let _ = answer(&mut stream, &mut dice);
                count += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(count)
}

fn answer(stream: &mut TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    let mut request = [0; 1_024];
    let _ = stream.read(&mut request)?;
    let length = usize::from(dice.half()) % 2_000;
    match dice.between(0, 5) {
        0 => stream.write_all(&dice.bytes(length)),
        1 => stream.write_all(b"HTTP/1.1 200 OK\r\nX-Null: \0\0\r\n\r\n"),
        2 => stream.write_all(&[b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'y'; 9_000]].concat()),
        3 => {
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab" {
                stream.write_all(&[*byte])?;
            }
            Ok(())
        }
        4 => {
            stream.write_all(b"HTTP/1.1 2")?;
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(stream, Linger, &linger)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn raw_socket() -> Result<std::os::fd::OwnedFd> {
    socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).context("make a raw socket")
}

/// SYNs of clients that do not exist, and segments of connections that do not.
fn half_open(nginx: SocketAddrV4, mut dice: Dice, stop: &AtomicBool) -> Result<u64> {
    let raw = raw_socket()?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            let host = u8::try_from(3 + dice.between(0, 239)).unwrap_or(3);
            let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, host), dice.half());
            let flags = if dice.between(0, 3) == 0 { dice.roll().to_le_bytes()[0] } else { 0x02 };
            let length = if flags == 0x02 { 0 } else { usize::from(dice.half()) % 64 };
            let payload = dice.bytes(length);
            let [sequence, acknowledgement] = [dice.roll(), dice.roll()].map(u64::to_le_bytes);
            let mut packet = vec![0x45, 0];
            packet.extend(u16::try_from(40 + payload.len()).unwrap_or(40).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            packet.extend(from.ip().octets());
            packet.extend(nginx.ip().octets());
            packet.extend(from.port().to_be_bytes());
            packet.extend(nginx.port().to_be_bytes());
            packet.extend(&sequence[..4]);
            packet.extend(&acknowledgement[..4]);
            packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            packet.extend(payload);
            seal(&mut packet);
            send(&raw, *nginx.ip(), &packet)?;
            count += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(count)
}

/// Whatever the app sends is sent again with other content, and once more far outside of the window.
fn overlapping(mut dice: Dice, stop: &AtomicBool) -> Result<u64> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let watched = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
        .context("make a packet socket in the app's namespace")?;
    setsockopt(&watched, ReceiveTimeout, &TimeVal::new(0, 100_000)).context("set the packet socket's timeout")?;
    let raw = raw_socket()?;
    let mut buffer = [0; 2_048];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let length = match recv(watched.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => continue,
            Err(error) => return Err(error).context("watch the app's packets"),
        };
        let Some(packet) = buffer.get(..length) else { continue };
        // From the app, TCP without IP options, with content; what was forged carries a TTL of its own and is left alone.
        let forged = packet.get(8) == Some(&FORGED_TTL);
        let of_app = packet.get(12..16) == Some(&[10, 77, 2, 2]) && packet.first() == Some(&0x45);
        let header = packet.get(32).map_or(0, |byte| usize::from(byte >> 4) * 4);
        if forged || !of_app || packet.get(9) != Some(&6) || length <= 20 + header || length > 1_500 {
            continue;
        }
        let Some(to): Option<[u8; 4]> = packet.get(16..20).and_then(|bytes| bytes.try_into().ok()) else { continue };
        for ahead in [0, 0x4000_0000, dice.roll() & 0xffff] {
            let mut copy = packet.to_vec();
            copy[8] = FORGED_TTL;
            let sequence = u32::from_be_bytes([copy[24], copy[25], copy[26], copy[27]]);
            // A random step backwards: content that was acknowledged already.
            let moved = if ahead == 0x4000_0000 {
                sequence.wrapping_add(0x4000_0000)
            } else {
                sequence.wrapping_sub(u32::try_from(ahead).unwrap_or(0))
            };
            copy[24..28].copy_from_slice(&moved.to_be_bytes());
            for byte in &mut copy[20 + header..] {
                *byte ^= 0x5a;
            }
            seal(&mut copy);
            send(&raw, Ipv4Addr::from(to), &copy)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Tells what was forged from what was sent.
const FORGED_TTL: u8 = 61;

/// Puts TCP's checksum in.
fn seal(packet: &mut [u8]) {
    packet[36..38].fill(0);
    let sum = checksum(packet);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
}

fn send(raw: &std::os::fd::OwnedFd, to: Ipv4Addr, packet: &[u8]) -> Result<()> {
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    match sendto(raw.as_raw_fd(), packet, &to, MsgFlags::empty()) {
        // A queue that is full, or no neighbour of that name.
        Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EHOSTUNREACH | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).context("send what was forged"),
    }
}
