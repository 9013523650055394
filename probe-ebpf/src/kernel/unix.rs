//! Unix sockets: who is at the other end.

use probe_abi::{
    Endpoint,
    endpoint::FAMILY_UNIX,
    globals::ABSENT,
    process::{HELD, Held, LOOKED_AT, Watched, role},
    socket::{Socket, present, state},
};

use super::{
    descriptor::Table,
    globals::offset,
    read,
    socket::{Probed, Sock},
    target,
};

/// What is known of a unix socket: both ends by their inodes, and a listener's queue.
#[inline(always)]
pub(crate) fn describe(record: &mut Socket, sock: u64) {
    let probed = Probed(sock);
    record.pointer = sock;
    record.state = probed.read(offset!(sock_state)).unwrap_or(0);
    record.old_state = record.state;
    if record.state == state::LISTEN {
        probed.copy(&mut record.accept_queue_limit, offset!(sock_max_ack_backlog));
        record.present = present::QUEUE;
        return;
    }
    end(&mut record.local, sock);
    if let Some(peer) = peer(sock) {
        end(&mut record.remote, peer);
    }
}

/// Whether this is the server's end of a connection that an nginx worker made: the kernel notes the process that called `connect()`.
/// <https://elixir.bootlin.com/linux/v6.12/source/net/unix/af_unix.c> (`unix_stream_connect`, `init_peercred`)
#[inline(always)]
pub(crate) fn serves_nginx(sock: u64) -> bool {
    if offset!(upid_nr) == ABSENT || Probed(sock).read::<u16>(offset!(sock_family)) != Some(FAMILY_UNIX) {
        return false;
    }
    let Some(pid) = read::member::<u64>(sock, offset!(sock_peer_pid)) else { return false };
    let Some(tgid) = read::member::<u32>(pid.wrapping_add(u64::from(offset!(upid_nr))), offset!(pid_numbers)) else {
        return false;
    };
    pid != 0 && target::watched(tgid).is_some_and(|process| process.role == role::NGINX_WORKER)
}

/// The connections from nginx that the current process holds.
#[inline(always)]
pub(crate) fn held(record: &mut Held, watched: &Watched) {
    record.role = watched.role;
    let Some(table) = Table::current() else { return };
    record.all = u32::from(table.limit <= LOOKED_AT);
    let mut number = 0;
    while number < LOOKED_AT {
        if number >= table.limit {
            break;
        }
        if let Some(inode) = table.file(number).and_then(nginxs_inode) {
            // Read back each time: a count that the verifier can follow makes as many states as there are ways to have counted.
            // SAFETY: a reference to a plain number.
            let count = unsafe { (&raw const record.count).read_volatile() };
            // The mask tells the verifier the bound.
            record.peers[count as usize & (HELD - 1)] = inode;
            // SAFETY: likewise.
            unsafe { (&raw mut record.count).write_volatile(count + 1) };
        }
        number += 1;
    }
}

/// The inode of nginx's end, if this is a server's end of a unix connection from nginx. What cannot be read is zero all along the way, and
/// ends it where it matters.
#[inline(always)]
fn nginxs_inode(file: u64) -> Option<u64> {
    let socket = read::word(file, offset!(file_private_data));
    let sock = read::word(socket, offset!(socket_sk));
    let inode =
        read::word(read::word(read::word(sock, offset!(unix_peer)), offset!(sock_socket)), offset!(socket_alloc_inode));
    let family = read::word(sock, offset!(sock_family)) as u16;
    let pid = read::word(sock, offset!(sock_peer_pid)).wrapping_add(u64::from(offset!(upid_nr)));
    let tgid = read::word(pid, offset!(pid_numbers)) as u32;
    let wrong = (read::word(socket, offset!(socket_file)) ^ file) | u64::from(family ^ FAMILY_UNIX);
    if wrong != 0 || inode == 0 {
        return None;
    }
    target::watched(tgid).filter(|process| process.role == role::NGINX_WORKER).map(|_| inode)
}

/// The socket at the other end; none when it is gone.
#[inline(always)]
fn peer(sock: u64) -> Option<u64> {
    read::member(sock, offset!(unix_peer)).filter(|&peer| peer != 0)
}

/// The number of the inode that stands for a socket in the file system of sockets: `/proc/PID/fd` shows it, and it does not come again soon.
#[inline(always)]
fn inode(sock: u64) -> Option<u64> {
    let socket: u64 = read::member(sock, offset!(sock_socket))?;
    // `struct socket_alloc` begins with the socket.
    if socket == 0 { None } else { read::member(socket, offset!(socket_alloc_inode)) }
}

#[inline(always)]
fn end(endpoint: &mut Endpoint, sock: u64) {
    let Some(inode) = inode(sock) else { return };
    endpoint.family = FAMILY_UNIX;
    // SAFETY: sixteen plain bytes either way.
    endpoint.address = unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([inode, 0]) };
}
