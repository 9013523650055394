//! The walk through nginx's memory, from a request to its client, its upstream and their sockets.
//!
//! Everything is checked on the way: a layout that does not fit this nginx ends the walk, it does not yield an address.

use probe_abi::{
    Endpoint,
    endpoint::{FAMILY_INET, FAMILY_INET6, FAMILY_UNIX},
    nginx::{Layout, SIGNATURE, found},
    process::role,
    socket::Socket,
};

use super::{
    answer, descriptor,
    globals::offset,
    maps::{ARMED, LAYOUTS, RequestIdentity, RequestKey},
    read,
    socket::{Probed, Sock, describe, ends, is_mini, version_4, version_6},
    target, unix,
};

/// The layout of the nginx that the current process is, with its tgid.
#[inline(always)]
pub(crate) fn here() -> Option<(u32, &'static Layout)> {
    let tgid = target::current();
    let process = target::watched(tgid)?;
    if process.role != role::NGINX_WORKER && process.role != role::NGINX_MASTER {
        return None;
    }
    Some((tgid, LAYOUTS.get(process.layout)?))
}

/// `ngx_str_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Text {
    /// Bytes.
    pub(crate) length: u64,
    /// Where.
    pub(crate) data: u64,
}

/// A request whose signature is right.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// `ngx_http_request_t *`.
    pub(crate) address: u64,
    /// The client's `ngx_connection_t *`.
    pub(crate) connection: u64,
    /// That connection's `ngx_log_t *`.
    pub(crate) log: u64,
}

impl Request {
    /// The request at this address.
    #[inline(always)]
    pub(crate) fn at(layout: &Layout, address: u64) -> Option<Self> {
        if address == 0 {
            return None;
        }
        let head: read::Words<2> = read::Words::of(address)?;
        if head.member(0)? as u32 != SIGNATURE {
            return None;
        }
        let connection = head.member(layout.request_connection)?;
        let log: u64 = read::user_member(connection, layout.connection_log)?;
        Some(Self { address, connection, log })
    }

    /// The request that this log's context points at, if it is one and they belong together.
    #[inline(always)]
    pub(crate) fn of_log(layout: &Layout, log: u64, context: u64) -> Option<Self> {
        if context == 0 {
            return None;
        }
        // `ngx_http_log_ctx_t`: connection, request, current request.
        let context: read::Words<3> = read::Words::of(context)?;
        let current = context.member(layout.context_current_request).unwrap_or(0);
        let address = if current == 0 { context.member(layout.context_request)? } else { current };
        let request = Self::at(layout, address)?;
        // HTTP/2 streams have a log of their own.
        if request.log == log || context.member(0)? == request.connection { Some(request) } else { None }
    }

    /// The main request, 0 if not known.
    #[inline(always)]
    pub(crate) fn main(&self, layout: &Layout) -> u64 {
        read::user_member(self.address, layout.request_main).unwrap_or(0)
    }

    /// `*N` and the count of requests.
    #[inline(always)]
    pub(crate) fn identity(&self, layout: &Layout) -> RequestIdentity {
        RequestIdentity {
            number: read::user_member(self.log, layout.log_connection).unwrap_or(0),
            client_requests: read::user_member(self.connection, layout.connection_requests).unwrap_or(0),
        }
    }
}

/// Remembers that this request's answer is wanted, whatever it will be. Its main request's too.
#[inline(always)]
pub(crate) fn arm(tgid: u32, layout: &Layout, request: u64, main: u64, identity: RequestIdentity) {
    // The map makes room by itself.
    let _done = ARMED.insert(RequestKey { request, tgid, reserved: 0 }, identity, 0);
    let mut of_client = request;
    if main != 0 && main != request {
        let _done = ARMED.insert(RequestKey { request: main, tgid, reserved: 0 }, identity, 0);
        of_client = main;
    }
    answer::wait_for(tgid, layout, of_client);
}

/// Whether something is remembered under this request's address.
#[inline(always)]
pub(crate) fn armed(tgid: u32, request: u64) -> Option<RequestIdentity> {
    // SAFETY: copied at once; an entry that changes meanwhile no longer is this request's identity, and is not used then.
    unsafe { ARMED.get(RequestKey { request, tgid, reserved: 0 }) }.copied()
}

/// Forgets it.
#[inline(always)]
pub(crate) fn disarm(tgid: u32, request: u64) {
    let _gone = ARMED.remove(RequestKey { request, tgid, reserved: 0 });
}

/// The client's side of a request, as records tell it.
pub(crate) struct Client<'a> {
    /// Where the descriptor goes.
    pub(crate) descriptor: &'a mut i32,
    /// Where nginx's idea of the address goes.
    pub(crate) address: &'a mut Endpoint,
    /// Where the kernel's goes.
    pub(crate) socket: &'a mut Endpoint,
}

impl Client<'_> {
    /// Fills it; gives the bits of `found`.
    #[inline(always)]
    pub(crate) fn fill(self, layout: &Layout, connection: u64) -> u32 {
        let mut bits = 0;
        *self.descriptor = read::user_member(connection, layout.connection_fd).unwrap_or(-1);
        let sockaddr: u64 = read::user_member(connection, layout.connection_sockaddr).unwrap_or(0);
        if sockaddr != 0 && endpoint(self.address, sockaddr).is_some() {
            bits |= found::CLIENT;
        }
        if let Some(sock) = descriptor::socket(*self.descriptor)
            && let Some(ends) = internet(sock)
        {
            *self.socket = ends.0.remote;
        }
        bits
    }
}

/// The upstream's side: name, descriptor, socket. Gives the bits of `found`.
pub(crate) struct Upstream<'a> {
    /// Where the peer's name goes.
    pub(crate) peer: &'a mut [u8; probe_abi::nginx::PEER],
    /// Where its length goes.
    pub(crate) peer_length: &'a mut u32,
    /// Where the descriptor goes.
    pub(crate) descriptor: &'a mut i32,
    /// Where the count of requests on this connection goes.
    pub(crate) requests: &'a mut u64,
    /// Where the socket goes.
    pub(crate) socket: &'a mut Socket,
}

impl Upstream<'_> {
    /// Fills it; gives the bits of `found`.
    #[inline(always)]
    pub(crate) fn fill(self, layout: &Layout, request: &Request) -> u32 {
        *self.descriptor = -1;
        let upstream: u64 = read::user_member(request.address, layout.request_upstream).unwrap_or(0);
        if upstream == 0 {
            return 0;
        }
        let mut bits = found::UPSTREAM;
        let peer = upstream.wrapping_add(u64::from(layout.upstream_peer));
        let name: u64 = read::user_member(peer, layout.peer_name).unwrap_or(0);
        if name != 0
            && let Some(text) = read::user::<Text>(name)
            && text.length != 0
            && read::user_bytes(self.peer, text.data, text.length)
        {
            *self.peer_length = text.length as u32;
            bits |= found::PEER;
        }
        let connection: u64 = read::user_member(peer, layout.peer_connection).unwrap_or(0);
        // The upstream's connection logs through the client's log: if not, this is not that connection.
        if connection == 0 || read::user_member::<u64>(connection, layout.connection_log) != Some(request.log) {
            return bits;
        }
        *self.requests = read::user_member(connection, layout.connection_requests).unwrap_or(0);
        let Some(number) = read::user_member::<i32>(connection, layout.connection_fd) else { return bits };
        *self.descriptor = number;
        bits |= found::UPSTREAM_CONNECTION;
        let Some(sock) = descriptor::socket(number) else { return bits };
        if let Some((ends, state)) = internet(sock) {
            describe(self.socket, Probed(sock), &ends, state);
            bits |= found::SOCKET;
        } else if Probed(sock).read::<u16>(offset!(sock_family)) == Some(FAMILY_UNIX) {
            unix::describe(self.socket, sock);
            bits |= found::SOCKET | found::UNIX;
        }
        bits
    }
}

/// Ends and state of an internet socket.
#[inline(always)]
pub(crate) fn internet(sock: u64) -> Option<(super::socket::Ends, u8)> {
    let state: u8 = Probed(sock).read(offset!(sock_state))?;
    Some((ends(Probed(sock), is_mini(state))?, state))
}

/// A `struct sockaddr_in` up to the address; family and port are every internet address's.
#[derive(Clone, Copy)]
#[repr(C)]
struct Address4 {
    family: u16,
    port: [u8; 2],
    address: u32,
}

/// A `struct sockaddr_in6` up to the address.
#[derive(Clone, Copy)]
#[repr(C)]
struct Address6 {
    family: u16,
    port: [u8; 2],
    flow: u32,
    address: [u32; 4],
}

/// Reads a `struct sockaddr` of the current process; gives its family. Other families leave the endpoint alone.
#[inline(always)]
pub(crate) fn endpoint(to: &mut Endpoint, sockaddr: u64) -> Option<u16> {
    let Some(head) = read::user::<Address4>(sockaddr) else {
        // A unix socket's may be shorter, and the last thing that can be read.
        let family = read::user::<u16>(sockaddr).filter(|family| *family == FAMILY_UNIX)?;
        to.family = family;
        return Some(family);
    };
    match head.family {
        FAMILY_INET => {
            to.port = head.port;
            version_4(to, head.address);
        }
        FAMILY_INET6 => {
            let address: Address6 = read::user(sockaddr)?;
            to.port = address.port;
            version_6(to, address.address);
        }
        FAMILY_UNIX => to.family = FAMILY_UNIX,
        _ => return None,
    }
    Some(head.family)
}
