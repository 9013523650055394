//! What the uprobes read in nginx.

use std::net::SocketAddr;

use probe_abi::{
    Endpoint, Kind,
    nginx::{self as abi, found},
};

use super::{
    Names, RecordError, nonzero, read, sized_text,
    socket::{address, optional_socket},
    text,
};
use crate::model::{
    event::Body,
    net::Errno,
    nginx::{NginxAttempt, NginxEvent, NginxLog, NginxStatus, RequestKey, StatusPoint, UpstreamConnection},
    process::Pid,
};

/// Reads a record of one of these kinds.
pub(super) fn decode(kind: Kind, record: &[u8], names: &Names) -> Result<Body, RecordError> {
    let event = match kind {
        Kind::NginxLog => NginxEvent::Log(Box::new(log(&read(record, "a log message")?, names))),
        Kind::NginxSpecialResponse => status(kind, StatusPoint::SpecialResponse, record)?,
        Kind::NginxSendHeader => status(kind, StatusPoint::SendHeader, record)?,
        Kind::NginxRedirect => status(kind, StatusPoint::Redirect, record)?,
        Kind::NginxAttempt => attempt(&read(record, "an attempt")?)?,
        Kind::NginxConnection => {
            let connection: abi::Connection = read(record, "a connection")?;
            let worker = Pid(connection.header.tgid);
            NginxEvent::Connection {
                worker,
                number: connection.number,
                request: key(worker, connection.request),
                fd: connection.fd,
            }
        }
        other => return Err(RecordError::Unusable { kind: other, what: "nginx event" }),
    };
    Ok(Body::Nginx(event))
}

fn log(raw: &abi::Log, names: &Names) -> NginxLog {
    let worker = Pid(raw.header.tgid);
    let has = |bit: u32| raw.found & bit != 0;
    let action = text(&raw.action);
    let upstream = (has(found::UPSTREAM_CONNECTION) && raw.upstream_fd >= 0).then(|| UpstreamConnection {
        fd: raw.upstream_fd,
        requests: nonzero(raw.upstream_requests),
        unix: has(found::UNIX),
        // A unix socket's record has neither addresses nor TCP state, but its number.
        socket: if has(found::SOCKET) && (!has(found::UNIX) || raw.socket.local.inode().is_some()) {
            optional_socket(&raw.socket, raw.jiffies, names.hz)
        } else {
            None
        },
    });
    NginxLog {
        worker,
        request: key(worker, raw.request),
        parent: parent(worker, raw.request, raw.main_request),
        number: nonzero(raw.number),
        client_requests: nonzero(raw.client_requests),
        level: raw.level,
        errno: (raw.errno != 0).then_some(Errno(raw.errno)),
        format: text(&raw.format),
        status: u16::try_from(raw.status).ok().filter(|status| (100..1_000).contains(status)),
        action: (!action.is_empty()).then_some(action),
        peer: if has(found::PEER) { sized_text(&raw.peer, raw.peer_length) } else { None },
        upstream,
        client: client(raw.found, &raw.client, &raw.client_socket),
        request_line: if has(found::REQUEST_LINE) {
            sized_text(&raw.request_line, raw.request_line_length)
        } else {
            None
        },
        host: sized_text(&raw.host, raw.host_length),
    }
}

fn status(kind: Kind, point: StatusPoint, record: &[u8]) -> Result<NginxEvent, RecordError> {
    let raw: abi::Status = read(record, "a status")?;
    let worker = Pid(raw.header.tgid);
    let number = |value: u32| u16::try_from(value).map_err(|_| RecordError::Unusable { kind, what: "status" });
    let has = |bit: u32| raw.found & bit != 0;
    let overriding = number(raw.err_status)?;
    Ok(NginxEvent::Status(Box::new(NginxStatus {
        point,
        worker,
        request: key(worker, raw.request).ok_or(RecordError::Unusable { kind, what: "request" })?,
        parent: parent(worker, raw.request, raw.main_request),
        number: nonzero(raw.number),
        client_requests: nonzero(raw.client_requests),
        status: number(raw.status)?,
        overriding: (overriding != 0).then_some(overriding),
        request_line: if has(found::REQUEST_LINE) {
            sized_text(&raw.request_line, raw.request_line_length)
        } else {
            None
        },
        host: sized_text(&raw.host, raw.host_length),
        client: client(raw.found, &raw.client, &raw.client_socket),
        upstream_begun: match (has(found::UPSTREAM), has(found::ATTEMPTS)) {
            (true, _) => Some(true),
            // The request's memory could be read, and the pointer in it is null.
            (false, true) => Some(false),
            (false, false) => None,
        },
        attempts: has(found::ATTEMPTS).then_some(raw.attempts),
    })))
}

fn attempt(raw: &abi::Attempt) -> Result<NginxEvent, RecordError> {
    let unusable = |what| RecordError::Unusable { kind: Kind::NginxAttempt, what };
    let request = key(Pid(raw.header.tgid), raw.request).ok_or(unusable("request"))?;
    let status = u16::try_from(raw.status).map_err(|_| unusable("status"))?;
    let time = |ms: u64| (ms != u64::MAX).then_some(ms);
    Ok(NginxEvent::Attempt(NginxAttempt {
        request,
        index: raw.index,
        total: raw.total,
        peer: sized_text(&raw.peer, raw.peer_length),
        status: (status != 0).then_some(status),
        connect_ms: time(raw.connect_time_ms),
        header_ms: time(raw.header_time_ms),
        response_ms: time(raw.response_time_ms),
        bytes_sent: raw.bytes_sent,
        bytes_received: raw.bytes_received,
    }))
}

fn key(worker: Pid, pointer: u64) -> Option<RequestKey> {
    (pointer != 0).then_some(RequestKey { worker, pointer })
}

fn parent(worker: Pid, request: u64, main: u64) -> Option<RequestKey> {
    if request == 0 || main == request { None } else { key(worker, main) }
}

/// The kernel's address where there is one: nginx's may have been rewritten by the realip module.
fn client(found: u32, as_nginx_sees: &Endpoint, socket: &Endpoint) -> Option<SocketAddr> {
    address(socket).or_else(|| if found & found::CLIENT != 0 { address(as_nginx_sees) } else { None })
}
