//! The one kind of thing that every source produces and everything downstream consumes.

use std::{net::SocketAddr, sync::Arc};

use super::{
    coverage::Coverage,
    host::HostFact,
    nginx::{AccessLine, ErrorLine, NginxEvent},
    packet::{PacketBody, PacketEvent, TcpHeader},
    process::ProcessEvent,
    socket::{DropEvent, SocketChange, SocketEvent, Syscall, SyscallEvent},
    time::At,
    wire::Wire,
};

/// Names an event within one run. Given in stream order, so it is also a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u64);

/// Where an event was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Something about the run itself: coverage, configuration, what the host looked like. First, so that at equal times knowledge precedes use.
    Probe,
    /// A packet capture.
    Packet,
    /// A record of our kernel programs.
    Kernel,
    /// nginx's error log.
    ErrorLog,
    /// nginx's access log.
    AccessLog,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name in this run.
    pub id: EventId,
    /// When.
    pub at: At,
    /// Who saw it.
    pub source: Source,
    /// What.
    pub body: Body,
}

/// What happened. Closed on purpose: a new kind shows every place that has to think about it.
///
/// What is large and not told of every packet lies elsewhere: at depth deep nearly all events are packets, and each is copied. Where several
/// remember it, they share it.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A TCP socket of this host.
    Socket(Arc<SocketEvent>),
    /// The kernel of this host dropped a packet.
    Drop(DropEvent),
    /// A system call of a watched process.
    Syscall(Arc<SyscallEvent>),
    /// A watched process.
    Process(ProcessEvent),
    /// Inside nginx.
    Nginx(NginxEvent),
    /// On the wire.
    Packet(PacketEvent),
    /// What the packets of a connection come to, where nginx itself could not be watched.
    Wire(Wire),
    /// A line of nginx's error log.
    ErrorLine(Box<ErrorLine>),
    /// A line of nginx's access log.
    AccessLine(AccessLine),
    /// What the host looked like.
    Host(Box<HostFact>),
    /// What could be seen, and what was lost.
    Coverage(Coverage),
}

impl From<SocketEvent> for Body {
    fn from(event: SocketEvent) -> Self {
        Self::Socket(Arc::new(event))
    }
}

impl From<SyscallEvent> for Body {
    fn from(event: SyscallEvent) -> Self {
        Self::Syscall(Arc::new(event))
    }
}

impl From<HostFact> for Body {
    fn from(fact: HostFact) -> Self {
        Self::Host(Box::new(fact))
    }
}

impl From<ErrorLine> for Body {
    fn from(line: ErrorLine) -> Self {
        Self::ErrorLine(Box::new(line))
    }
}

impl Event {
    /// Puts another address in the place of one, at whichever end of a connection it stands.
    pub fn readdress(&mut self, from: SocketAddr, to: SocketAddr) {
        let change = |address: &mut SocketAddr| {
            if *address == from {
                *address = to;
            }
        };
        let of_header = |header: &mut TcpHeader| {
            change(&mut header.source);
            change(&mut header.destination);
        };
        match &mut self.body {
            Body::Socket(e) => {
                let e = Arc::make_mut(e);
                if let SocketChange::ResetSent { answered: Some(answered), .. } = &mut e.change {
                    of_header(answered);
                }
                [&mut e.socket.local, &mut e.socket.remote].into_iter().flatten().for_each(change);
            }
            Body::Drop(drop) => of_header(&mut drop.packet),
            Body::Syscall(call) => {
                if let Syscall::Accept { socket: Some(socket), .. } = &mut Arc::make_mut(call).call {
                    [&mut socket.local, &mut socket.remote].into_iter().flatten().for_each(change);
                }
            }
            Body::Packet(packet) => match &mut packet.body {
                PacketBody::Tcp(tcp) => of_header(&mut tcp.header),
                PacketBody::Icmp(icmp) => [&mut icmp.about.0, &mut icmp.about.1].into_iter().for_each(change),
            },
            _ => {}
        }
    }
}
