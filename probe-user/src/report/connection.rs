//! A TCP connection in one line, in Zeek's words, for programs and for people.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;

/// `connection`: one TCP connection of a capture.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "connection")]
pub struct Connection {
    /// Who opened it.
    pub orig: SocketAddr,
    /// Who answered.
    pub resp: SocketAddr,
    /// Zeek's `conn_state`.
    pub conn_state: &'static str,
    /// Zeek's `history`.
    pub history: String,
    /// When its first packet was captured, RFC 3339.
    pub first: String,
    /// When its last packet was captured, RFC 3339.
    pub last: String,
    /// Payload bytes of the originator.
    pub orig_bytes: u64,
    /// Payload bytes of the responder.
    pub resp_bytes: u64,
    /// HTTP/1 on it; `null`: none was seen.
    pub http: Option<Http>,
}

/// HTTP/1 on a connection.
#[derive(Clone, Debug, Serialize)]
pub struct Http {
    /// Requests.
    pub requests: u64,
    /// How many final answers had which status.
    pub statuses: BTreeMap<u16, u32>,
}

/// For people: what became of it first, then who, then how much and how long.
#[must_use]
pub fn line(connection: &Connection, meaning: &str, lasted_us: u64) -> String {
    let statuses = connection.http.as_ref().map_or_else(String::new, |http| {
        let list: Vec<String> = http.statuses.iter().map(|(status, count)| format!("{count}×{status}")).collect();
        if list.is_empty() {
            format!("  {} requests, no answer", http.requests)
        } else {
            format!("  {}", list.join(" "))
        }
    });
    format!(
        "{} {:<6} {:<14} {} > {}  {}/{} bytes in {}.{:06} s  {meaning}{statuses}",
        connection.first,
        connection.conn_state,
        connection.history,
        connection.orig,
        connection.resp,
        connection.orig_bytes,
        connection.resp_bytes,
        lasted_us / 1_000_000,
        lasted_us % 1_000_000,
    )
}

/// `exchange`: one HTTP/1 request of a capture with its answer.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "exchange")]
pub struct Exchange {
    /// Who asked.
    pub orig: SocketAddr,
    /// Who answered.
    pub resp: SocketAddr,
    /// When the request's first byte was captured, RFC 3339.
    pub time: String,
    /// The method; `null` where the request was not seen.
    pub method: Option<String>,
    /// The URI, without the values of its query.
    pub uri: Option<String>,
    /// The status; `null`: no answer was seen.
    pub status: Option<u16>,
    /// From the request's first byte to the whole head of the answer, microseconds.
    pub latency_us: Option<u64>,
    /// Bytes of the request.
    pub sent: u64,
    /// Bytes of the answer.
    pub received: u64,
}

/// For people.
#[must_use]
pub fn exchange_line(exchange: &Exchange) -> String {
    let status = exchange.status.map_or_else(|| "---".to_owned(), |status| status.to_string());
    let latency =
        exchange.latency_us.map_or_else(|| "no answer".to_owned(), |us| format!("{}.{:03} ms", us / 1_000, us % 1_000));
    format!(
        "{} {status} {} > {}  {} {}  {latency}, {}/{} bytes",
        exchange.time,
        exchange.orig,
        exchange.resp,
        exchange.method.as_deref().unwrap_or("?"),
        exchange.uri.as_deref().unwrap_or("(request not seen)"),
        exchange.sent,
        exchange.received,
    )
}
