//! What events of a connection consist of. Each kind is described once, for writing and for reading: a field that it gets must be named here
//! too, or it does not compile.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    columns::{Column, Far, Near, Netns, Next, choice, kinds, read, record, widest, width, write},
    row::{Reader, Writer, shared},
};
use crate::model::{
    event::{Body, Event, EventId, Source},
    net::{Address, Errno},
    packet::{
        Content, Foreign, IcmpPacket, PacketBody, PacketEvent, PacketRef, Promised, TcpFlags, TcpHeader, TcpPacket,
    },
    process::Pid,
    socket::{
        DropEvent, Socket, SocketChange, SocketEvent, SocketPointer, Syscall, SyscallEvent, TcpCounters, TcpState,
    },
    time::{At, Moment},
};

impl Column for Event {
    type Value = Self;
    const WIDTH: usize = width::<EventId>() + width::<At>() + width::<Source>() + width::<Body>();

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        let Self { id, at, source, body } = value;
        let side = side_of(body, row.last.ends.1);
        row.number(shared::SIDE, side.try_into().ok()?)?;
        row.last.turn_to(side);
        let mut next = Next(column);
        write::<EventId>(id, next.take::<EventId>(), row)?;
        write::<At>(at, next.take::<At>(), row)?;
        write::<Source>(source, next.take::<Source>(), row)?;
        write::<Body>(body, next.take::<Body>(), row)
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        let side = row.number(shared::SIDE)?;
        row.last.turn_to(side.try_into().ok()?);
        let mut next = Next(column);
        Some(Self {
            id: read::<EventId>(next.take::<EventId>(), row)?,
            at: read::<At>(next.take::<At>(), row)?,
            source: read::<Source>(next.take::<Source>(), row)?,
            body: read::<Body>(next.take::<Body>(), row)?,
        })
    }
}

/// Which side's numbers an event is likely to repeat: 1 the upstream's.
fn side_of(body: &Body, upstream: SocketAddr) -> usize {
    let upstreams = match body {
        Body::Socket(event) => event.socket.local == Some(upstream),
        Body::Syscall(call) => matches!(call.call, Syscall::Accept { .. }),
        Body::Drop(dropped) => dropped.packet.source == upstream,
        Body::Packet(packet) => match &packet.body {
            PacketBody::Tcp(tcp) => tcp.header.source == upstream,
            PacketBody::Icmp(_) => false,
        },
        _ => false,
    };
    usize::from(upstreams)
}

impl Column for Body {
    type Value = Self;
    const WIDTH: usize =
        1 + widest(&[width::<SocketEvent>(), width::<SyscallEvent>(), width::<DropEvent>(), width::<PacketEvent>()]);

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        match value {
            Self::Socket(event) => {
                row.number(column, 0)?;
                write::<SocketEvent>(event, column + 1, row)
            }
            Self::Syscall(event) => {
                row.number(column, 1)?;
                write::<SyscallEvent>(event, column + 1, row)
            }
            Self::Drop(event) => {
                row.number(column, 2)?;
                write::<DropEvent>(event, column + 1, row)
            }
            Self::Packet(event) => {
                row.number(column, 3)?;
                write::<PacketEvent>(event, column + 1, row)
            }
            // Nothing of a connection.
            Self::Process(_)
            | Self::Nginx(_)
            | Self::Wire(_)
            | Self::ErrorLine(_)
            | Self::AccessLine(_)
            | Self::Host(_)
            | Self::Coverage(_) => None,
        }
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        match row.number(column)? {
            0 => read::<SocketEvent>(column + 1, row).map(Self::from),
            1 => read::<SyscallEvent>(column + 1, row).map(Self::from),
            2 => read::<DropEvent>(column + 1, row).map(Self::Drop),
            3 => read::<PacketEvent>(column + 1, row).map(Self::Packet),
            _ => None,
        }
    }
}

record!(At { earliest: Moment, latest: Moment });

kinds!(Source {
    0 = Probe,
    1 = Packet,
    2 = Kernel,
    3 = ErrorLog,
    4 = AccessLog,
});

record!(SocketEvent { change: SocketChange, socket: Socket, by: Option<Pid>, });

choice!(SocketChange {
    0 = State { from from: TcpState },
    1 = ResetSent { reason reason: Option<String>, answered answered: Option<TcpHeader> },
    2 = ResetReceived {},
    3 = Retransmitted { payload payload: u32 },
    4 = SynAckRetransmitted {},
    5 = ErrorReported {},
});

// At the same place in whatever tells of it.
record!(Socket at shared::SIDED => {
    pointer: Option<SocketPointer>,
    cookie: Option<u64>,
    netns: Option<Netns>,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    state: TcpState,
    error: Option<Errno>,
    soft_error: Option<Errno>,
    retransmits: u8,
    tcp: Option<TcpCounters>,
    accept_queue: Option<(u32, u32)>,
});

choice!(TcpState {
    0 = Established {},
    1 = SynSent {},
    2 = SynReceived {},
    3 = FinWait1 {},
    4 = FinWait2 {},
    5 = TimeWait {},
    6 = Closed {},
    7 = CloseWait {},
    8 = LastAck {},
    9 = Listen {},
    10 = Closing {},
    11 = NewSynReceived {},
    12 = Unknown { 0 number: u8 },
});

record!(TcpCounters {
    bytes_acked: u64,
    bytes_received: u64,
    bytes_sent: u64,
    write_seq: Near,
    snd_una: Near,
    snd_nxt: Near,
    rcv_nxt: Far,
    copied_seq: Far,
    rtt_us: u32,
    total_retransmits: u32,
    since_sent_us: Option<u64>,
    since_received_us: Option<u64>,
});

record!(SyscallEvent { pid: Pid, tid: Pid, call: Syscall });

choice!(Syscall {
    0 = Connect {
        fd fd: i32,
        address address: Option<Address>,
        result result: Result<i32, Errno>,
        socket socket: Option<Socket>
    },
    1 = Accept {
        listener listener: i32,
        result result: Result<i32, Errno>,
        socket socket: Option<Socket>,
        peer peer: Option<u64>,
        command command: String
    },
    2 = Socket { family family: i32, error error: Errno },
    3 = Open { error error: Errno },
});

choice!(Address {
    0 = Ip { 0 address: SocketAddr },
    1 = Unix { 0 path: String },
});

record!(DropEvent { reason: Option<String>, netns: Option<Netns>, packet: TcpHeader, });

record!(TcpHeader {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: Near,
    acknowledgement: Far,
    flags: TcpFlags,
    ttl: u8,
});

record!(PacketEvent { reference: PacketRef, netns: Option<Netns>, body: PacketBody, });

choice!(PacketBody {
    0 = Tcp { 0 packet: TcpPacket },
    1 = Icmp { 0 packet: IcmpPacket },
});

record!(TcpPacket {
    header: TcpHeader,
    payload_length: u32,
    window: u16,
    ip_id: Option<u16>,
    content: Content,
    promised: Option<Promised>,
});

record!(Promised { header: u32, body: u64 });

choice!(Content {
    0 = Empty {},
    1 = HttpStatus { code code: u16, line line: Arc<str> },
    2 = HttpRequest { line line: Arc<str>, host host: Option<Arc<str>> },
    3 = Tls { content_type content_type: u8, alert alert: Option<(u8, u8)> },
    4 = Foreign { 0 foreign: Foreign },
    5 = Other {},
    6 = NotCaptured {},
});

kinds!(Foreign {
    0 = Ssh,
    1 = Mail,
    2 = Redis,
    3 = Html,
    4 = Http2,
});

record!(IcmpPacket {
    from: IpAddr,
    icmp_type: u8,
    code: u8,
    v6: bool,
    about: (SocketAddr, SocketAddr),
    syn: Option<u32>,
});
