//! nginx's own functions: what it logs, which status it decides.

use aya_ebpf::programs::ProbeContext;
use probe_abi::{
    Kind, globals as kernel,
    losses::reason,
    nginx::{ABSENT, ATTEMPTS, Attempt, Connection, HOST, Layout, Log, REQUEST_LINE, Status, found},
};

use super::{
    answer, emit,
    globals::{offset, setting},
    read,
    request::{Client, Request, Text, Upstream, arm, armed, disarm, here},
    target,
    tcp::jiffies,
};

/// nginx's levels (`ngx_log.h`): from warn on it is about requests, from error on about failures.
const ERROR: u32 = 4;
const WARN: u32 = 5;

/// `ngx_log_error_core(level, log, errno, format, …)`: called only for lines that are really written.
#[inline(always)]
pub(crate) fn log(context: &ProbeContext) -> Option<()> {
    let level: u32 = context.arg(0)?;
    if level > WARN {
        return Some(());
    }
    let (tgid, layout) = here()?;
    let log: u64 = context.arg(1)?;
    let number: u64 = read::user_member(log, layout.log_connection)?;
    let data: u64 = read::user_member(log, layout.log_data).unwrap_or(0);
    let request = Request::of_log(layout, log, data);
    if request.is_none() && (number != 0 || level > ERROR) {
        return Some(());
    }
    let (errno, format): (u32, u64) = (context.arg(2)?, context.arg(3)?);
    if level <= ERROR
        && let Some(request) = &request
    {
        let main = request.main(layout);
        let _told = answer::kept_back(tgid, layout, if main == 0 { request.address } else { main });
    }
    emit::record(Kind::NginxLog, |record: &mut Log| {
        record.number = number;
        record.level = level;
        record.errno = errno;
        record.jiffies = jiffies();
        record.upstream_fd = -1;
        record.client_fd = -1;
        let action: u64 = read::user_member(log, layout.log_action).unwrap_or(0);
        let mut whole = read::user_string(&mut record.format, format).is_some();
        if is_text_only(&record.format)
            && let (Some(length), Some(text)) = (context.arg::<u64>(4), context.arg::<u64>(5))
        {
            whole &= read::user_bytes(&mut record.format, text, length);
        }
        if action != 0 {
            // Without an action nginx's line has none either; an unreadable one is left out.
            let _readable = read::user_string(&mut record.action, action);
        }
        if let Some(request) = request {
            whole &= describe(record, layout, tgid, &request);
        }
        if !whole {
            emit::lost(reason::READ_FAILED);
        }
    });
    Some(())
}

/// `ngx_ssl_error()` builds its message itself and hands it over as `%*s`: length and text are the next two arguments.
#[inline(always)]
fn is_text_only(format: &[u8; probe_abi::nginx::FORMAT]) -> bool {
    matches!(format, [b'%', b'*', b's', 0, ..])
}

/// False if something that must be there could not be read.
#[inline(always)]
fn describe(record: &mut Log, layout: &Layout, tgid: u32, request: &Request) -> bool {
    let identity = request.identity(layout);
    record.request = request.address;
    record.main_request = request.main(layout);
    record.client_requests = identity.client_requests;
    // The client's answer is the main request's.
    record.status = read::user_member::<u64>(record.main_request, layout.request_status).unwrap_or(0) as u32;
    let client =
        Client { descriptor: &mut record.client_fd, address: &mut record.client, socket: &mut record.client_socket }
            .fill(layout, request.connection);
    let upstream = Upstream {
        peer: &mut record.peer,
        peer_length: &mut record.peer_length,
        descriptor: &mut record.upstream_fd,
        requests: &mut record.upstream_requests,
        socket: &mut record.socket,
    }
    .fill(layout, request);
    record.found = found::REQUEST | client | upstream;
    if record.level <= ERROR && upstream & found::UPSTREAM != 0 {
        arm(tgid, layout, request.address, record.main_request, identity);
        let asked = Asked { request_line: &mut record.request_line, length: &mut record.request_line_length };
        if asked.fill(layout, request.address).is_some() {
            record.found |= found::REQUEST_LINE;
        }
        // No Host header is possible, and needs no bit: the length is zero then.
        let _host = host(&mut record.host, &mut record.host_length, layout, request.address);
    }
    let socketless = record.found & (found::UPSTREAM_CONNECTION | found::SOCKET) == found::UPSTREAM_CONNECTION;
    record.found & found::CLIENT != 0 && !(socketless && offset!(socket_sk) != kernel::ABSENT)
}

/// `ngx_http_special_response_handler(r, status)`: nginx itself makes this answer.
#[inline(always)]
pub(crate) fn special_response(context: &ProbeContext) -> Option<()> {
    let status: u32 = context.arg(1)?;
    if !is_wanted(status) {
        return Some(());
    }
    let (tgid, layout) = here()?;
    let request = Request::at(layout, context.arg(0)?)?;
    arm(tgid, layout, request.address, request.main(layout), request.identity(layout));
    tell(Kind::NginxSpecialResponse, layout, &request, status);
    Some(())
}

/// `ngx_http_send_header(r)`: the answer begins. Every request passes here, so what is not wanted leaves early.
#[inline(always)]
pub(crate) fn send_header(context: &ProbeContext) -> Option<()> {
    let (tgid, layout) = here()?;
    let address: u64 = context.arg(0)?;
    let head: read::Words<HEAD> = read::Words::of(address)?;
    let error: u64 = read::user_member(address, layout.request_err_status).unwrap_or(0);
    let own: u64 = read::user_member(address, layout.request_status).unwrap_or(0);
    let status = if error == 0 { own } else { error } as u32;
    let remembered = armed(tgid, address);
    let wanted = is_wanted(status);
    let states = head.member(layout.request_upstream_states).unwrap_or(0);
    let again = remembered.is_none() && !wanted && tried_again(states);
    if remembered.is_none() && !wanted && !again {
        return Some(());
    }
    let request = Request::at(layout, address)?;
    let main = request.main(layout);
    let is_main = main == 0 || main == address;
    if is_main {
        disarm(tgid, address);
        if remembered.is_some() {
            answer::heard(layout, address);
        }
    }
    // A subrequest that was tried twice is its main request's business.
    if wanted || (again && is_main) || remembered.is_some_and(|identity| identity == request.identity(layout)) {
        tell(Kind::NginxSendHeader, layout, &request, status);
    }
    Some(())
}

/// Words of a request that are read at once: up to `upstream_states`, in every version.
const HEAD: usize = 11;

/// More than one server was asked, as `r->upstream_states` has it: what the first answered (`proxy_next_upstream http_502`) nginx does not log.
#[inline(always)]
fn tried_again(states: u64) -> bool {
    states != 0 && read::user::<[u64; 2]>(states).is_some_and(|[_, count]| count > 1)
}

/// `ngx_http_internal_redirect(r, …)`, `ngx_http_named_location(r, …)`: of requests that had trouble before.
#[inline(always)]
pub(crate) fn redirect(context: &ProbeContext) -> Option<()> {
    let (tgid, layout) = here()?;
    let address: u64 = context.arg(0)?;
    let remembered = armed(tgid, address);
    let error = read::user_member::<u64>(address, layout.request_err_status).unwrap_or(0) as u32;
    if remembered.is_none() && !is_wanted(error) {
        return Some(());
    }
    let request = Request::at(layout, address)?;
    let identity = request.identity(layout);
    if remembered == Some(identity) {
        tell(Kind::NginxRedirect, layout, &request, error);
    } else if is_wanted(error) {
        // `error_page 404 =502 /page`: not a word was said of it.
        arm(tgid, layout, address, request.main(layout), identity);
    }
    Some(())
}

/// `ngx_get_connection(fd, log)`: a descriptor becomes a connection that serves a client's request.
#[inline(always)]
pub(crate) fn connection(context: &ProbeContext) -> Option<()> {
    let process = target::worker()?;
    let layout = super::maps::LAYOUTS.get(process.layout)?;
    let log: u64 = context.arg(1)?;
    let head: read::Words<6> = read::Words::of(log)?;
    let number = head.member(layout.log_connection)?;
    if number == 0 {
        return Some(());
    }
    let data = head.member(layout.log_data).unwrap_or(0);
    let request = Request::of_log(layout, log, data)?;
    let descriptor: i32 = context.arg(0)?;
    emit::record(Kind::NginxConnection, |record: &mut Connection| {
        record.number = number;
        record.request = request.address;
        record.fd = descriptor;
    });
    Some(())
}

/// A status record and the attempts behind it.
#[inline(always)]
pub(crate) fn tell(kind: Kind, layout: &Layout, request: &Request, status: u32) {
    let attempts = States::of(layout, request);
    emit::record(kind, |record: &mut Status| {
        let identity = request.identity(layout);
        record.request = request.address;
        record.main_request = request.main(layout);
        record.number = identity.number;
        record.client_requests = identity.client_requests;
        record.status = status;
        record.err_status = read::user_member::<u64>(request.address, layout.request_err_status).unwrap_or(0) as u32;
        record.client_fd = -1;
        record.found = found::REQUEST
            | Client {
                descriptor: &mut record.client_fd,
                address: &mut record.client,
                socket: &mut record.client_socket,
            }
            .fill(layout, request.connection);
        if read::user_member::<u64>(request.address, layout.request_upstream).is_some_and(|upstream| upstream != 0) {
            record.found |= found::UPSTREAM;
        }
        if let Some(states) = attempts {
            record.attempts = states.count;
            record.found |= found::ATTEMPTS;
        }
        let asked = Asked { request_line: &mut record.request_line, length: &mut record.request_line_length };
        if asked.fill(layout, request.address).is_some() {
            record.found |= found::REQUEST_LINE;
        }
        let lineless = record.found & found::REQUEST_LINE == 0 && layout.request_line != ABSENT;
        if record.found & found::CLIENT == 0 || lineless {
            emit::lost(reason::READ_FAILED);
        }
        // No Host header is possible, and needs no bit: the length is zero then.
        let _host = host(&mut record.host, &mut record.host_length, layout, request.address);
    });
    if let Some(states) = attempts {
        let mut index = 0;
        while index < ATTEMPTS {
            if index >= states.count {
                break;
            }
            // Of a longer list the middle is left out: what was tried last made the status.
            let beyond = if index < ATTEMPTS / 2 { 0 } else { states.count.saturating_sub(ATTEMPTS) };
            attempt(layout, request.address, &states, index + beyond);
            index += 1;
        }
    }
}

/// Where a record keeps what was asked.
struct Asked<'a> {
    request_line: &'a mut [u8; REQUEST_LINE],
    length: &'a mut u32,
}

impl Asked<'_> {
    #[inline(always)]
    fn fill(self, layout: &Layout, request: u64) -> Option<()> {
        let text: Text = read::user_member(request, layout.request_line)?;
        let first: u8 = read::user(text.data)?;
        // nginx takes no longer line than a buffer of `large_client_header_buffers`, and no method that begins otherwise.
        if text.length == 0 || text.length > 0xffff || !(first.is_ascii_uppercase() || first == b'_' || first == b'-') {
            return None;
        }
        if !read::user_bytes(self.request_line, text.data, text.length) {
            return None;
        }
        *self.length = text.length as u32;
        Some(())
    }
}

/// `r->headers_in.host` is a `ngx_table_elt_t *`: hash, key, value.
#[inline(always)]
fn host(to: &mut [u8; HOST], to_length: &mut u32, layout: &Layout, request: u64) -> Option<()> {
    const VALUE: u64 = 24;
    let header: u64 = read::user_member(request, layout.request_host)?;
    if header == 0 {
        return None;
    }
    let text: Text = read::user(header.wrapping_add(VALUE))?;
    if text.length > 0xffff || !read::user_bytes(to, text.data, text.length) {
        return None;
    }
    *to_length = text.length as u32;
    Some(())
}

/// `r->upstream_states`: the elements of an `ngx_array_t`, which knows how long they are.
#[derive(Clone, Copy)]
pub(crate) struct States {
    first: u64,
    count: u32,
    stride: u64,
}

impl States {
    #[inline(always)]
    pub(crate) fn of(layout: &Layout, request: &Request) -> Option<Self> {
        let array: u64 = read::user_member(request.address, layout.request_upstream_states)?;
        if array == 0 {
            // No upstream was asked: that is known, not unknown.
            return Some(Self { first: 0, count: 0, stride: 0 });
        }
        let [first, count, stride]: [u64; 3] = read::user(array)?;
        // One `ngx_http_upstream_state_t` is 72 to 160 bytes in every version and fork looked at.
        if count > 4096 || !(48..=512).contains(&stride) {
            return None;
        }
        Some(Self { first, count: count as u32, stride })
    }

    /// What the server answered that was asked last; 0 if nothing yet.
    #[inline(always)]
    pub(crate) fn last_status(&self, layout: &Layout) -> Option<u32> {
        let index = u64::from(self.count.checked_sub(1)?);
        let state = self.first.wrapping_add(self.stride.wrapping_mul(index));
        read::user_member::<u64>(state, layout.state_status).map(|status| status as u32)
    }
}

#[inline(always)]
fn attempt(layout: &Layout, request: u64, states: &States, index: u32) {
    let state = states.first.wrapping_add(states.stride.wrapping_mul(u64::from(index)));
    emit::record(Kind::NginxAttempt, |record: &mut Attempt| {
        record.request = request;
        record.index = index;
        record.total = states.count;
        record.status = read::user_member::<u64>(state, layout.state_status).unwrap_or(0) as u32;
        record.response_time_ms = read::user_member(state, layout.state_response_time).unwrap_or(u64::MAX);
        record.connect_time_ms = read::user_member(state, layout.state_connect_time).unwrap_or(u64::MAX);
        record.header_time_ms = read::user_member(state, layout.state_header_time).unwrap_or(u64::MAX);
        record.bytes_received = read::user_member(state, layout.state_bytes_received).unwrap_or(0);
        record.bytes_sent = read::user_member(state, layout.state_bytes_sent).unwrap_or(0);
        let name: u64 = read::user_member(state, layout.state_peer).unwrap_or(0);
        if name != 0
            && let Some(text) = read::user::<Text>(name)
            && read::user_bytes(&mut record.peer, text.data, text.length)
        {
            record.peer_length = text.length as u32;
        }
    });
}

/// Whether answers with this status are reported.
#[inline(always)]
pub(crate) fn is_wanted(status: u32) -> bool {
    status != 0
        && (status == setting!(statuses[0])
            || status == setting!(statuses[1])
            || status == setting!(statuses[2])
            || status == setting!(statuses[3])
            || status == setting!(statuses[4])
            || status == setting!(statuses[5])
            || status == setting!(statuses[6])
            || status == setting!(statuses[7]))
}
