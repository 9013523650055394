//! Connections over unix sockets: who accepted them. Nothing tells when one ends, but nginx's descriptor comes back.

use std::collections::{BTreeMap, VecDeque};

use super::limits::CONNECTIONS;
use crate::model::{
    event::{Body, Event, EventId},
    process::{Pid, ProcessEvent},
    socket::{Socket, Syscall},
};

/// Who accepted what. A connection's name is the inode of nginx's socket.
#[derive(Debug, Default)]
pub(super) struct UnixConnections {
    /// The `accept()` of each.
    accepted: BTreeMap<u64, Event>,
    /// In the order in which they came.
    order: VecDeque<(EventId, u64)>,
    /// Which connection a worker's descriptor is.
    descriptors: BTreeMap<(Pid, i32), u64>,
}

impl UnixConnections {
    /// Takes an event, of whatever kind.
    pub(super) fn handle(&mut self, event: &Event) {
        match &event.body {
            Body::Syscall(call) => match &call.call {
                Syscall::Accept { result: Ok(_), peer: Some(inode), .. } => {
                    self.accepted.insert(*inode, event.clone());
                    self.order.push_back((event.id, *inode));
                    self.bound();
                }
                Syscall::Connect { fd, result: Ok(_), socket: Some(socket), .. } => {
                    let Some(inode) = unix_inode(socket) else { return };
                    // The kernel gives a number again only once it is closed.
                    if let Some(before) = self.descriptors.insert((call.pid, *fd), inode)
                        && before != inode
                    {
                        self.accepted.remove(&before);
                    }
                }
                _ => {}
            },
            Body::Process(ProcessEvent::Exited { pid, .. }) => {
                let gone: Vec<(Pid, i32)> =
                    self.descriptors.range((*pid, i32::MIN)..=(*pid, i32::MAX)).map(|(key, _)| *key).collect();
                for key in gone {
                    if let Some(inode) = self.descriptors.remove(&key) {
                        self.accepted.remove(&inode);
                    }
                }
            }
            _ => {}
        }
    }

    /// The `accept()` of the connection whose nginx's end is this socket.
    pub(super) fn accept_of(&self, socket: &Socket) -> Option<&Event> {
        self.accepted.get(&unix_inode(socket)?)
    }

    /// Who accepted it.
    pub(super) fn holder(&self, socket: &Socket) -> Option<Pid> {
        match &self.accept_of(socket)?.body {
            Body::Syscall(call) => Some(call.pid),
            _ => None,
        }
    }

    /// The events that are remembered.
    pub(super) fn events(&self) -> impl Iterator<Item = EventId> {
        self.accepted.values().map(|event| event.id)
    }

    fn bound(&mut self) {
        let current = |accepted: &BTreeMap<u64, Event>, (id, inode): &(EventId, u64)| {
            accepted.get(inode).is_some_and(|event| event.id == *id)
        };
        while let Some(oldest) = self.order.front().copied()
            && (self.accepted.len() > CONNECTIONS || !current(&self.accepted, &oldest))
        {
            self.order.pop_front();
            if current(&self.accepted, &oldest) {
                self.accepted.remove(&oldest.1);
            }
        }
        if self.order.len() > 2 * CONNECTIONS {
            self.order.retain(|one| current(&self.accepted, one));
        }
    }
}

/// The number of a unix socket's inode: internet sockets have addresses.
fn unix_inode(socket: &Socket) -> Option<u64> {
    if socket.local.is_some() || socket.remote.is_some() { None } else { socket.cookie }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        event::Source,
        net::Address,
        process::{Ending, Role},
        socket::{SocketPointer, SyscallEvent},
        time::{At, Moment},
    };

    const WORKER: Pid = Pid(11);
    const SERVER: Pid = Pid(88);

    fn end(inode: u64) -> Socket {
        Socket { pointer: Some(SocketPointer(7)), ..Socket::over_unix(inode) }
    }

    fn event(id: u64, body: Body) -> Event {
        Event { id: EventId(id), at: At::exactly(Moment(id)), source: Source::Kernel, body }
    }

    fn call(id: u64, pid: Pid, call: Syscall) -> Event {
        event(id, Body::from(SyscallEvent { pid, tid: pid, call }))
    }

    fn connect(id: u64, fd: i32, inode: u64) -> Event {
        let address = Some(Address::Unix("/run/app.sock".to_owned()));
        call(id, WORKER, Syscall::Connect { fd, address, result: Ok(0), socket: Some(end(inode)) })
    }

    fn accept(id: u64, inode: u64) -> Event {
        let (socket, command) = (Some(end(inode + 1_000)), "gunicorn".to_owned());
        call(id, SERVER, Syscall::Accept { listener: 3, result: Ok(9), socket, peer: Some(inode), command })
    }

    #[test]
    fn a_connection_is_its_acceptors_until_the_descriptor_is_another() {
        let mut known = UnixConnections::default();
        // On another processor accept() may return before connect() does.
        known.handle(&accept(1, 500));
        known.handle(&connect(2, 12, 500));
        assert_eq!(known.holder(&end(500)), Some(SERVER));
        assert_eq!(known.holder(&end(501)), None);
        known.handle(&connect(3, 13, 502));
        assert_eq!(known.holder(&end(500)), Some(SERVER));
        known.handle(&connect(4, 12, 503));
        assert_eq!(known.holder(&end(500)), None);
    }

    #[test]
    fn a_worker_takes_its_connections_with_it() {
        let mut known = UnixConnections::default();
        known.handle(&connect(1, 12, 500));
        known.handle(&accept(2, 500));
        let (how, command) = (Ending::Exit(0), "nginx".to_owned());
        known.handle(&event(
            3,
            Body::Process(ProcessEvent::Exited {
                pid: WORKER,
                role: Role::NginxWorker,
                command,
                how,
                untaken: crate::model::process::Untaken::default(),
            }),
        ));
        assert_eq!(known.events().count(), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut known = UnixConnections::default();
        let many = u64::try_from(CONNECTIONS).unwrap() + 10;
        for inode in 1..=many {
            known.handle(&accept(inode, inode));
        }
        assert_eq!(known.events().count(), CONNECTIONS);
        assert!(known.holder(&end(1)).is_none() && known.holder(&end(many)).is_some());
    }
}
