//! Packets by libpcap, in nginx's network namespace.
//!
//! A thread of its own enters the namespace, opens the interface and reads; what it reads goes into a sink that never blocks.

pub mod batch;
pub mod filter;
pub mod interfaces;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use pcap::Active;
use thiserror::Error;

use self::batch::{Batch, Head};
use super::{
    clock,
    privilege::{self, Work},
    rest::{Bell, LONG_NAP},
};

pub use crate::bundle::packets::CapturedPacket;
use crate::model::{
    packet::{Direction, LinkType},
    time::Moment,
};

/// How long the kernel may hold a packet back to hand over several at once, milliseconds.
const HOLD_MS: i32 = 20;
/// The same, nanoseconds, and a little for the kernel's timer.
const HELD_NS: u64 = 25_000_000;
/// How long the reader sleeps at most, so that it says how far it has read: what it is asked for may wait for that. While all rest, a block of
/// packets that the kernel hands over wakes it, and nothing else needs to.
const NAP: Duration = Duration::from_millis(50);
/// How often the kernel is asked for its loss counters while packets come without a pause.
const STATISTICS_EVERY: Duration = Duration::from_millis(100);
/// Ethernet, a VLAN tag, IPv6, TCP with all options, and 256 bytes of payload.
pub const SNAP_LENGTH: u32 = 14 + 4 + 40 + 60 + 256;
/// The kernel's buffer for packets that break something, bytes: at 400 bytes a packet, a tenth of a second of 25,000 packets. There is one for
/// each interface, and all of it is counted as this process's memory.
pub const TROUBLE_BUFFER: i32 = 1 << 20;
/// The kernel's buffer for packets that tell a connection's fate, bytes: at 400 bytes a packet, a tenth of a second of 100,000 packets. All of
/// it counts as the program's memory from the first moment.
pub const FATES_BUFFER: i32 = 4 << 20;
/// The kernel's buffer for every packet's header, bytes: at 400 bytes a packet, half a second of 80,000 packets.
pub const EVERYTHING_BUFFER: i32 = 16 << 20;

/// Takes packets, maybe none, and up to when there are no others; `false` when they had no room. Must not block.
pub type Sink = Box<dyn FnMut(Batch, Moment) -> bool + Send>;

/// Packets that are handed over together.
const TOGETHER: usize = 256;

/// What to capture.
#[derive(Clone, Debug)]
pub struct Options {
    /// The interface's name, or `any`.
    pub interface: String,
    /// The number its packets carry.
    pub index: u32,
    /// An open `/proc/PID/ns/net`; `None`: the namespace the probe is in.
    pub netns: Option<Arc<File>>,
    /// The filter, in libpcap's language.
    pub filter: String,
    /// Bytes kept of a packet.
    pub snap_length: u32,
    /// Only what arrives: a listener for what is sent costs a copy of the header of every packet sent, before any filter.
    pub inbound_only: bool,
    /// The kernel's buffer, bytes.
    pub buffer: i32,
    /// The run's packet counter.
    pub numbers: Arc<AtomicU64>,
    /// Wakes it.
    pub bell: Bell,
}

/// Why packets could not be captured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CaptureError {
    /// A name that does not exist.
    #[error("there is no interface {name:?} in nginx's network namespace; these exist: {}, any", existing.join(", "))]
    NoSuchInterface {
        /// The name.
        name: String,
        /// The interfaces there are.
        existing: Vec<String>,
    },
    /// It exists and could not be opened.
    #[error(
        "cannot capture packets on {interface}: {why}; run as root (CAP_NET_RAW, and CAP_SYS_ADMIN for nginx in a container)"
    )]
    Open {
        /// The interface.
        interface: String,
        /// libpcap's or the kernel's words.
        why: String,
    },
    /// The filter was refused.
    #[error("libpcap refuses the filter for {interface}: {why}; the filter is: {filter}")]
    Filter {
        /// The interface.
        interface: String,
        /// The filter.
        filter: String,
        /// libpcap's words.
        why: String,
    },
    /// The namespace could not be looked into.
    #[error("cannot look at the interfaces of nginx's network namespace: {0}; run as root")]
    Namespace(String),
}

/// Counters of a capture since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets that passed the filter, as the kernel counts them.
    pub received: u64,
    /// Packets the kernel had no room for.
    pub dropped_by_kernel: u64,
    /// Packets the interface or its driver lost.
    pub dropped_by_interface: u64,
    /// Packets the sink had no room for.
    pub dropped_by_sink: u64,
}

impl Statistics {
    /// Everything lost.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped_by_kernel + self.dropped_by_interface + self.dropped_by_sink
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    statistics: Statistics,
    ended: Option<(Moment, String)>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A running capture. Stops when dropped.
#[derive(Debug)]
pub struct Capture {
    /// What it captures.
    pub options: Options,
    /// What its packets begin with.
    pub link: LinkType,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Opens the interface and begins to read. Returns when the filter is in place: a packet sent afterwards is captured.
    pub fn start(options: Options, sink: Sink) -> Result<Self, CaptureError> {
        let shared = Arc::new(Shared::default());
        let (opened_sender, opened) = mpsc::channel();
        let (thread_shared, thread_options) = (Arc::clone(&shared), options.clone());
        let failed = |why: String| CaptureError::Open { interface: options.interface.clone(), why };
        let thread = std::thread::Builder::new()
            .name("packets".to_owned())
            .spawn(move || match open(&thread_options) {
                Ok(reader) => {
                    let _ = opened_sender.send(Ok(reader.link));
                    privilege::confine(Work::Reads);
                    reader.run(&thread_options, &thread_shared, sink);
                }
                Err(error) => {
                    let _ = opened_sender.send(Err(error));
                }
            })
            .map_err(|error| failed(error.to_string()))?;
        let link = opened.recv().map_err(|_| failed("its thread ended early".to_owned()))??;
        Ok(Self { options, link, shared, thread: Some(thread) })
    }

    /// The counters, at most [`STATISTICS_EVERY`] old.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).statistics
    }

    /// When and why it ended by itself (the interface went away), if it did.
    #[must_use]
    pub fn ended(&self) -> Option<(Moment, String)> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).ended.clone()
    }

    /// Stops reading and gives the last counters. What the kernel still held is read first.
    #[must_use]
    pub fn stop(mut self) -> Statistics {
        self.end();
        self.statistics()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.options.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Moves this thread into a network namespace.
pub(crate) fn enter(netns: Option<&Arc<File>>) -> Result<(), nix::Error> {
    netns.map_or(Ok(()), |netns| setns(netns.as_fd(), CloneFlags::CLONE_NEWNET))
}

/// Runs a function on a thread in a network namespace, and leaves the caller's where it is.
pub(crate) fn inside<T: Send>(netns: Option<&Arc<File>>, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter(netns).map(|()| work()).map_err(|errno| errno.desc().to_owned()));
        thread.join().unwrap_or_else(|_| Err("its thread ended early".to_owned()))
    })
}

struct Reader {
    capture: pcap::Capture<Active>,
    link: LinkType,
    hardware_address: Option<[u8; 6]>,
}

fn open(options: &Options) -> Result<Reader, CaptureError> {
    let failed = |why: String| CaptureError::Open { interface: options.interface.clone(), why };
    enter(options.netns.as_ref()).map_err(|errno| CaptureError::Namespace(errno.desc().to_owned()))?;
    let existing = interfaces::here().map_err(CaptureError::Namespace)?;
    let own = existing.iter().find(|interface| interface.name == options.interface);
    if own.is_none() && options.interface != "any" {
        let existing = existing.into_iter().map(|interface| interface.name).collect();
        return Err(CaptureError::NoSuchInterface { name: options.interface.clone(), existing });
    }
    let hardware_address = own.and_then(|interface| interface.hardware_address);
    let snap_length = i32::try_from(options.snap_length).unwrap_or(i32::MAX);
    let mut capture = pcap::Capture::from_device(options.interface.as_str())
        .and_then(|inactive| {
            // Immediate mode would wake us for every packet; the kernel gathers them for a moment instead.
            let inactive = inactive.promisc(false).snaplen(snap_length).timeout(HOLD_MS).buffer_size(options.buffer);
            inactive.precision(pcap::Precision::Nano).open()
        })
        .and_then(pcap::Capture::setnonblock)
        .map_err(|error| failed(error.to_string()))?;
    // What is sent over the loopback interface arrives there, and libpcap throws the first away.
    if options.inbound_only || own.is_some_and(|interface| interface.loopback) {
        ignore_outgoing(&capture);
    }
    capture.filter(&options.filter, true).map_err(|error| CaptureError::Filter {
        interface: options.interface.clone(),
        filter: options.filter.clone(),
        why: error.to_string(),
    })?;
    let link = link_type(capture.get_datalink()).ok_or_else(|| failed("its link type is not known".to_owned()))?;
    Ok(Reader { capture, link, hardware_address })
}

/// Not before 4.20; there what is sent is captured too, which costs and does no harm.
/// <https://elixir.bootlin.com/linux/v6.12/source/net/core/dev.c> (`dev_queue_xmit_nit`)
fn ignore_outgoing(capture: &pcap::Capture<Active>) {
    let yes: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&yes)).unwrap_or(0);
    // SAFETY: the descriptor is the capture's own packet socket, and the option's value is an int that outlives the call.
    let refused = unsafe {
        let value = (&raw const yes).cast();
        libc::setsockopt(capture.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, value, size)
    };
    if refused != 0 {
        tracing::debug!("outgoing packets are captured too: {}", std::io::Error::last_os_error());
    }
}

/// libpcap's own numbers into those of files: they differ for raw IP (`DLT_RAW` is 12 on Linux).
fn link_type(datalink: pcap::Linktype) -> Option<LinkType> {
    match datalink.0 {
        12 | 14 => Some(LinkType::RAW),
        number => u16::try_from(number).ok().map(LinkType),
    }
}

impl Reader {
    fn run(mut self, options: &Options, shared: &Shared, mut sink: Sink) {
        let mut lost = 0;
        let mut asked = Instant::now();
        let ended = loop {
            let stopping = shared.stop.load(Ordering::Relaxed);
            let read = self.drain(options, &mut sink, &mut lost, shared);
            if asked.elapsed() >= STATISTICS_EVERY || stopping {
                asked = Instant::now();
                self.count(lost, shared);
            }
            match read {
                Ok(()) if stopping => break None,
                Ok(()) => self.sleep(&options.bell),
                Err(error) => break Some((clock::now(), error.to_string())),
            }
        };
        self.count(lost, shared);
        shared.update(|state| state.ended = ended);
        // Where its interface went away somebody has to look after it.
        options.bell.wake_all();
    }

    /// Reads what is there.
    fn drain(
        &mut self,
        options: &Options,
        sink: &mut Sink,
        lost: &mut u64,
        shared: &Shared,
    ) -> Result<(), pcap::Error> {
        let (link, own) = (self.link, self.hardware_address);
        let began = clock::now();
        let mut hand_over = |batch: Batch, more: bool| {
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let last = count.checked_sub(1).and_then(|last| batch.get(usize::try_from(last).ok()?));
            let reached = last.filter(|_| more).map_or(began, |(head, _)| batch.moment(head).min(began));
            if !sink(batch, reached.minus_ns(HELD_NS)) {
                *lost += count;
                shared.update(|state| state.statistics.dropped_by_sink = *lost);
            }
        };
        // Bounded, so that a flood does not keep the counters from being read.
        for _ in 0..4096 / TOGETHER {
            let mut batch = Batch::new(options.index, link, clock::wall());
            let more = self.fill(&mut batch, options, own);
            hand_over(batch, more.as_ref().is_ok_and(|more| *more));
            if !more? {
                break;
            }
        }
        Ok(())
    }

    /// Reads what is there, as much as goes together; whether there may be more.
    fn fill(&mut self, batch: &mut Batch, options: &Options, own: Option<[u8; 6]>) -> Result<bool, pcap::Error> {
        while batch.len() < TOGETHER {
            let packet = match self.capture.next_packet() {
                Ok(packet) => packet,
                Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => return Ok(false),
                Err(error) => return Err(error),
            };
            let head = Head {
                number: options.numbers.fetch_add(1, Ordering::Relaxed) + 1,
                unix_ns: unix_ns(packet.header.ts),
                wire_length: packet.header.len,
                direction: direction(batch.link, packet.data, own),
            };
            batch.push(head, packet.data);
        }
        Ok(true)
    }

    fn sleep(&self, bell: &Bell) {
        // SAFETY: the descriptor belongs to `self.capture`, which outlives this call and is not closed meanwhile.
        let fd = unsafe { BorrowedFd::borrow_raw(self.capture.as_raw_fd()) };
        if bell.nap(Some(fd), NAP, LONG_NAP).is_err() {
            std::thread::sleep(NAP);
        }
    }

    fn count(&mut self, dropped_by_sink: u64, shared: &Shared) {
        let Ok(kernel) = self.capture.stats() else { return };
        shared.update(|state| {
            let before = state.statistics;
            // 32-bit counters that wrap.
            let grown = |before: u64, now: u32| {
                #[expect(clippy::cast_possible_truncation, reason = "the low half is what the kernel's counter shows")]
                let low = before as u32;
                before + u64::from(now.wrapping_sub(low))
            };
            state.statistics = Statistics {
                received: grown(before.received, kernel.received),
                dropped_by_kernel: grown(before.dropped_by_kernel, kernel.dropped),
                dropped_by_interface: grown(before.dropped_by_interface, kernel.if_dropped),
                dropped_by_sink,
            };
        });
    }
}

/// With nanosecond precision libpcap keeps nanoseconds in the field for microseconds.
fn unix_ns(time: libc::timeval) -> u64 {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(time.tv_usec))
}

fn direction(link: LinkType, bytes: &[u8], own: Option<[u8; 6]>) -> Direction {
    // Packet types of `linux/if_packet.h`: 0 to us, 4 from us. On loopback (ARPHRD_LOOPBACK, 772) every packet goes both ways, and
    // libpcap shows the way in only.
    let cooked = |kind: Option<&u8>, hardware: Option<&[u8]>| match (kind, hardware) {
        (_, Some([3, 4])) => Direction::Unknown,
        (Some(0), _) => Direction::Inbound,
        (Some(4), _) => Direction::Outbound,
        _ => Direction::Unknown,
    };
    match link {
        LinkType::LINUX_SLL => cooked(bytes.get(1), bytes.get(2..4)),
        LinkType::LINUX_SLL2 => cooked(bytes.get(10), bytes.get(8..10)),
        LinkType::ETHERNET => match (own, bytes.get(..6), bytes.get(6..12)) {
            // Loopback has no address, and every packet goes both ways.
            (Some([0, 0, 0, 0, 0, 0]), ..) => Direction::Unknown,
            (Some(own), _, Some(source)) if source == own => Direction::Outbound,
            (Some(own), Some(destination), _) if destination == own => Direction::Inbound,
            _ => Direction::Unknown,
        },
        _ => Direction::Unknown,
    }
}
