//! Whatever a connection can have.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};

use proptest::prelude::*;

use super::*;
use crate::model::{
    event::{Body, Source},
    net::{Address, Errno},
    packet::{
        Content, Foreign, IcmpPacket, PacketBody, PacketEvent, PacketRef, Promised, TcpFlags, TcpHeader, TcpPacket,
    },
    socket::{DropEvent, SocketChange, SocketEvent, SocketPointer, Syscall, SyscallEvent, TcpCounters, TcpState},
};

/// Makes whatever a connection can have out of a row of numbers.
struct Dice(std::vec::IntoIter<u64>);

impl Dice {
    fn number(&mut self) -> u64 {
        self.0.next().unwrap_or_default()
    }

    fn of(&mut self, sides: u64) -> u64 {
        self.number() % sides
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.of(3) > 0).then(|| make(self))
    }

    /// Small, or anything.
    fn small(&mut self) -> u32 {
        let bits = [32, 16, 8, 1][usize::try_from(self.of(4)).unwrap()];
        u32::try_from(self.number() % (1 << bits)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.of(256)).unwrap()
    }

    fn short(&mut self) -> u16 {
        u16::try_from(self.of(65_536)).unwrap()
    }

    fn text(&mut self) -> String {
        ["", "nginx", "GET /ü HTTP/1.1", "nginx"][usize::try_from(self.of(4)).unwrap()].to_owned()
    }

    fn address(&mut self) -> SocketAddr {
        let ip = Ipv6Addr::from_bits(u128::from(self.number()) << 64 | u128::from(self.number()));
        match self.of(6) {
            0 => SocketAddrV6::new(ip, self.short(), self.small(), self.small()).into(),
            1 => (ip, self.short()).into(),
            2 => (ip.to_ipv4_mapped().unwrap_or(Ipv4Addr::LOCALHOST), self.short()).into(),
            _ => ([127, 0, 0, 1], [40_000, 8_000][usize::try_from(self.of(2)).unwrap()]).into(),
        }
    }

    fn errno(&mut self) -> Errno {
        Errno(self.small())
    }

    fn state(&mut self) -> TcpState {
        let known = [
            TcpState::Established,
            TcpState::SynSent,
            TcpState::SynReceived,
            TcpState::FinWait1,
            TcpState::FinWait2,
            TcpState::TimeWait,
            TcpState::Closed,
            TcpState::CloseWait,
            TcpState::LastAck,
            TcpState::Listen,
            TcpState::Closing,
            TcpState::NewSynReceived,
            TcpState::Unknown(self.byte()),
        ];
        known[usize::try_from(self.of(13)).unwrap()]
    }

    fn counters(&mut self) -> TcpCounters {
        TcpCounters {
            bytes_acked: self.number(),
            bytes_received: self.number(),
            bytes_sent: self.small().into(),
            write_seq: self.small(),
            snd_una: self.small(),
            snd_nxt: self.small(),
            rcv_nxt: self.small(),
            copied_seq: self.small(),
            rtt_us: self.small(),
            total_retransmits: self.small(),
            since_sent_us: self.maybe(Self::number),
            since_received_us: self.maybe(Self::number),
        }
    }

    fn socket(&mut self) -> Socket {
        Socket {
            pointer: self.maybe(|dice| SocketPointer(dice.number())),
            cookie: self.maybe(Self::number),
            netns: self.maybe(Self::small),
            local: self.maybe(Self::address),
            remote: self.maybe(Self::address),
            state: self.state(),
            error: self.maybe(Self::errno),
            soft_error: self.maybe(Self::errno),
            retransmits: self.byte(),
            tcp: self.maybe(Self::counters),
            accept_queue: self.maybe(|dice| (dice.small(), dice.small())),
        }
    }

    fn header(&mut self) -> TcpHeader {
        TcpHeader {
            source: self.address(),
            destination: self.address(),
            sequence: self.small(),
            acknowledgement: self.small(),
            flags: TcpFlags(self.byte()),
            ttl: self.byte(),
        }
    }

    fn result(&mut self) -> Result<i32, Errno> {
        if self.of(2) == 0 { Ok(self.small().cast_signed()) } else { Err(self.errno()) }
    }

    fn call(&mut self) -> Syscall {
        match self.of(4) {
            0 => Syscall::Connect {
                fd: self.small().cast_signed(),
                address: self.maybe(|dice| match dice.of(2) {
                    0 => Address::Ip(dice.address()),
                    _ => Address::Unix(dice.text()),
                }),
                result: self.result(),
                socket: self.maybe(Self::socket),
            },
            1 => Syscall::Accept {
                listener: self.small().cast_signed(),
                result: self.result(),
                socket: self.maybe(Self::socket),
                peer: self.maybe(Self::number),
                command: self.text(),
            },
            2 => Syscall::Socket { family: self.small().cast_signed(), error: self.errno() },
            _ => Syscall::Open { error: self.errno() },
        }
    }

    fn change(&mut self) -> SocketChange {
        match self.of(6) {
            0 => SocketChange::State { from: self.state() },
            1 => SocketChange::ResetSent { reason: self.maybe(Self::text), answered: self.maybe(Self::header) },
            2 => SocketChange::ResetReceived,
            3 => SocketChange::Retransmitted { payload: self.small() },
            4 => SocketChange::SynAckRetransmitted,
            _ => SocketChange::ErrorReported,
        }
    }

    fn content(&mut self) -> Content {
        let foreign = [Foreign::Ssh, Foreign::Mail, Foreign::Redis, Foreign::Html, Foreign::Http2];
        match self.of(7) {
            0 => Content::Empty,
            1 => Content::HttpStatus { code: self.short(), line: self.text().into() },
            2 => Content::HttpRequest { line: self.text().into(), host: self.maybe(Self::text).map(Into::into) },
            3 => Content::Tls { content_type: self.byte(), alert: self.maybe(|dice| (dice.byte(), dice.byte())) },
            4 => Content::Foreign(foreign[usize::try_from(self.of(5)).unwrap()]),
            5 => Content::Other,
            _ => Content::NotCaptured,
        }
    }

    fn packet(&mut self) -> PacketBody {
        if self.of(4) == 0 {
            return PacketBody::Icmp(IcmpPacket {
                from: self.address().ip(),
                icmp_type: self.byte(),
                code: self.byte(),
                v6: self.of(2) == 0,
                about: (self.address(), self.address()),
                syn: self.maybe(Self::small),
            });
        }
        PacketBody::Tcp(TcpPacket {
            header: self.header(),
            payload_length: self.small(),
            window: self.short(),
            ip_id: self.maybe(Self::short),
            content: self.content(),
            promised: self.maybe(|dice| Promised { header: dice.small(), body: dice.number() }),
        })
    }

    fn event(&mut self) -> Event {
        let sources = [Source::Probe, Source::Packet, Source::Kernel, Source::ErrorLog, Source::AccessLog];
        let body = match self.of(4) {
            0 => Body::from(SocketEvent {
                change: self.change(),
                socket: self.socket(),
                by: self.maybe(|dice| Pid(dice.small())),
            }),
            1 => Body::from(SyscallEvent { pid: Pid(self.small()), tid: Pid(self.small()), call: self.call() }),
            2 => Body::Drop(DropEvent {
                reason: self.maybe(Self::text),
                netns: self.maybe(Self::small),
                packet: self.header(),
            }),
            _ => Body::Packet(PacketEvent {
                reference: PacketRef(self.number()),
                netns: self.maybe(Self::small),
                body: self.packet(),
            }),
        };
        Event {
            id: EventId(self.number()),
            at: At { earliest: Moment(self.number()), latest: Moment(self.number()) },
            source: sources[usize::try_from(self.of(5)).unwrap()],
            body,
        }
    }

    fn connection(&mut self) -> State {
        let tuple = Tuple { local: self.address(), upstream: self.address(), zone: self.small() };
        let events = (0..self.of(12)).map(|_| self.event()).collect();
        State {
            syn: self.maybe(Self::small),
            told_in: self.maybe(|dice| EventId(dice.number())),
            ..self.idle(tuple, events)
        }
    }

    fn idle(&mut self, tuple: Tuple, events: VecDeque<Event>) -> State {
        let led = self.maybe(|dice| {
            let of_two = |event: &Event| event.id.0.is_multiple_of(2).then_some(event.id);
            Led { to: dice.address(), there: events.iter().filter_map(of_two).collect() }
        });
        let flow = Flow {
            id: FlowId(7),
            local: Some(tuple.local),
            upstream: tuple.upstream,
            worker: self.maybe(|dice| Pid(dice.small())),
            accepted_by: self.maybe(|dice| (Pid(dice.small()), dice.text())),
            seen_from_start: self.of(2) == 0,
            events,
            forgotten: self.small().into(),
            led,
        };
        State {
            flow,
            tuple,
            syn: None,
            connected_by_syscall: self.of(2) == 0,
            beyond_syn: self.of(2) == 0,
            ended: None,
            complained_of: self.of(2) == 0,
            kept_since: None,
            begun: Moment(self.number()),
            older: self.maybe(|dice| FlowId(dice.number())),
            told_in: None,
        }
    }
}

proptest! {
    /// Whoever wakes is as he fell asleep.
    #[test]
    fn nothing_is_lost_in_sleep(numbers in prop::collection::vec(any::<u64>(), 0..1_500)) {
        let state = Dice(numbers.into_iter()).connection();
        let row = state.row().unwrap();
        let asleep = Asleep(&row);
        let (head, seen) = asleep.seen().unwrap();
        prop_assert_eq!(head, state.head());
        for event in &state.flow.events {
            prop_assert!(seen.earliest <= event.at.earliest && event.at.latest <= seen.latest);
        }
        prop_assert_eq!(asleep.wake(state.flow.id), Some(state));
    }

    /// A damaged row, which there is not, is no panic.
    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Asleep(&bytes).wake(FlowId(1));
    }
}

#[test]
fn what_is_over_stays_awake() {
    let mut dice = Dice(vec![1, 2, 3].into_iter());
    let over = State { ended: Some(Moment(1)), ..dice.connection() };
    assert!(over.row().is_none());
    let kept = State { kept_since: Some(Moment(1)), ..dice.connection() };
    assert!(kept.row().is_none());
}

/// The five events of a connection to a server on this host, as they come.
fn opened() -> VecDeque<Event> {
    let (local, upstream): (SocketAddr, SocketAddr) = (([127, 0, 0, 1], 40_000).into(), ([127, 0, 0, 1], 8_000).into());
    let (near, far) = (2_654_435_761, 3_040_503_777);
    let socket = |is_nginx: bool| Socket {
        pointer: Some(SocketPointer(if is_nginx { 0xffff_8881_2d3c_8000 } else { 0xffff_8881_7aa1_1240 })),
        cookie: Some(if is_nginx { 123_456 } else { 123_459 }),
        netns: Some(4_026_531_840),
        local: Some(if is_nginx { local } else { upstream }),
        remote: Some(if is_nginx { upstream } else { local }),
        state: TcpState::Established,
        error: None,
        soft_error: None,
        retransmits: 0,
        tcp: Some(TcpCounters {
            bytes_acked: u64::from(is_nginx),
            bytes_received: 0,
            bytes_sent: 0,
            write_seq: if is_nginx { near } else { far },
            snd_una: if is_nginx { near } else { far },
            snd_nxt: if is_nginx { near } else { far },
            rcv_nxt: if is_nginx { far } else { near },
            copied_seq: if is_nginx { far } else { near },
            rtt_us: 43,
            total_retransmits: 0,
            since_sent_us: Some(3_000),
            since_received_us: None,
        }),
        accept_queue: None,
    };
    let state = |is_nginx, from| {
        Body::from(SocketEvent { change: SocketChange::State { from }, socket: socket(is_nginx), by: None })
    };
    let call = |pid, call| Body::from(SyscallEvent { pid: Pid(pid), tid: Pid(pid), call });
    let connect = Syscall::Connect {
        fd: 4_711,
        address: Some(Address::Ip(upstream)),
        result: Err(Errno::EINPROGRESS),
        socket: Some(socket(true)),
    };
    let accept = Syscall::Accept {
        listener: 3,
        result: Ok(1_203),
        socket: Some(socket(false)),
        peer: None,
        command: "gunicorn".to_owned(),
    };
    let header = TcpHeader {
        source: upstream,
        destination: local,
        sequence: far,
        acknowledgement: near,
        flags: TcpFlags(18),
        ttl: 64,
    };
    let packet = TcpPacket {
        header,
        payload_length: 0,
        window: 65_483,
        ip_id: Some(0),
        content: Content::Empty,
        promised: None,
    };
    let packet =
        PacketEvent { reference: PacketRef(77_123), netns: Some(4_026_531_840), body: PacketBody::Tcp(packet) };
    let bodies = [
        (0, Source::Kernel, state(true, TcpState::SynSent)),
        (1_234, Source::Packet, Body::Packet(packet)),
        (2_345, Source::Kernel, state(false, TcpState::SynReceived)),
        (8_123, Source::Kernel, call(812, connect)),
        (64_321, Source::Kernel, call(4_242, accept)),
    ];
    let event = |(place, (ns, source, body)): (u64, (u64, Source, Body))| Event {
        id: EventId(250_000 + place),
        at: At::exactly(Moment(86_400_000_000_000 + ns)),
        source,
        body,
    };
    (0u64..).zip(bodies).map(event).collect()
}

#[test]
fn a_connection_at_rest_is_small() {
    let tuple = Tuple::of(([127, 0, 0, 1], 40_000).into(), ([127, 0, 0, 1], 8_000).into(), Some(4_026_531_840));
    let mut state = Dice(Vec::new().into_iter()).idle(tuple, opened());
    state.flow.worker = Some(Pid(812));
    state.flow.accepted_by = Some((Pid(4_242), "gunicorn".to_owned()));
    state.begun = Moment(86_400_000_000_000);
    let row = state.row().unwrap();
    assert!(row.len() <= 200, "{}", row.len());
}
