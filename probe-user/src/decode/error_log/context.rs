//! What follows the message: action, client, server and the quoted fields.

use std::net::IpAddr;

/// The parts of a line after its connection number.
#[derive(Debug, Default)]
pub(super) struct Context<'a> {
    /// Message and errno.
    pub(super) message: &'a str,
    /// After `while `.
    pub(super) action: Option<&'a str>,
    /// The client's address.
    pub(super) client: Option<&'a str>,
    /// The server's name or address.
    pub(super) server: Option<&'a str>,
    /// The request line.
    pub(super) request: Option<String>,
    /// The subrequest's URI.
    pub(super) subrequest: Option<String>,
    /// The upstream's URL.
    pub(super) upstream: Option<String>,
    /// The Host header.
    pub(super) host: Option<String>,
}

/// Longest action believed: nginx's own have less than 60 bytes.
const ACTION: usize = 80;

/// Splits what follows the connection number.
pub(super) fn read(text: &str) -> Context<'_> {
    let mut anchors = text.match_indices(", client: ").filter_map(|(at, marker)| {
        let after = &text[at + marker.len()..];
        let (client, rest) = address(after)?;
        Some((at, client, rest))
    });
    let Some((at, client, rest)) = anchors.next() else {
        // No client: resolver, keepalive and start-up messages. What follows the action (`, resolver: …`) is not read.
        let (message, action) = split_action(text);
        return Context { message, action: action.map(until_comma), ..Context::default() };
    };
    let (message, action) = split_action(&text[..at]);
    // Text of others stands in quotes, or after the tag of a script's message. Before the first client there is none: the first is nginx's.
    let foreign = message.contains('"') || message.starts_with('[') || message.starts_with("js: ");
    if foreign && anchors.next().is_some() {
        return Context { message, ..Context::default() };
    }
    let mut context = Context { message, action, client: Some(client), ..Context::default() };
    let rest = match rest.strip_prefix(", server: ") {
        Some(rest) => {
            let end = rest.find(", request: \"").or_else(|| field_start(rest)).unwrap_or(rest.len());
            context.server = Some(&rest[..end]).filter(|server| !server.is_empty());
            &rest[end..]
        }
        None => rest,
    };
    quoted_fields(rest, &mut context);
    context
}

/// The address at the beginning, where it is one, and what follows.
fn address(text: &str) -> Option<(&str, &str)> {
    let end = text.find(", ").unwrap_or(text.len());
    let (address, rest) = text.split_at(end);
    let valid = address.starts_with("unix:") || address.parse::<IpAddr>().is_ok();
    valid.then_some((address, rest))
}

/// Splits `MESSAGE while ACTION`.
fn split_action(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(" while ") {
        Some((message, action)) if action.len() <= ACTION && !action.contains('"') && !action.is_empty() => {
            (message, Some(action))
        }
        _ => (text, None),
    }
}

fn until_comma(action: &str) -> &str {
    action.split_once(", ").map_or(action, |(action, _)| action)
}

/// Where the next `, name: "` is.
fn field_start(text: &str) -> Option<usize> {
    text.match_indices(", ").map(|(at, _)| at).find(|&at| field_name(&text[at..]).is_some())
}

/// The name in `, name: "…` at the beginning; names are nginx's or a module's, in small letters.
fn field_name(text: &str) -> Option<&str> {
    let (name, after) = text.strip_prefix(", ")?.split_once(": ")?;
    let plain =
        name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b' ' | b'/' | b'_'));
    // `bytes from/to client:0/0` of stream has neither blank nor quote and follows the upstream.
    (plain && after.starts_with('"')).then_some(name)
}

/// Whether a value can end here: the text begins with its closing quote.
fn closes(text: &str) -> bool {
    text.strip_prefix('"')
        .is_some_and(|after| after.is_empty() || field_name(after).is_some() || after.starts_with(", bytes from/to "))
}

/// Every place where a quoted value that starts at the text's beginning can end.
fn ends(text: &str) -> impl Iterator<Item = usize> {
    text.match_indices('"').map(|(at, _)| at).filter(|&at| closes(&text[at..]))
}

/// Reads `, request: "…", subrequest: "…", upstream: "…", host: "…", referrer: "…"`, each of which may be missing.
fn quoted_fields(rest: &str, context: &mut Context<'_>) {
    let mut rest = rest;
    if let Some(value) = rest.strip_prefix(", request: \"") {
        // nginx refuses a request line that goes on after its version, so the first end after a version is the right one.
        let versioned = ends(value).find(|&at| is_versioned(&value[..at]));
        match versioned.or_else(|| only(ends(value))) {
            Some(at) => {
                // Empty where nginx refused it before it knew one.
                context.request = Some(value[..at].to_owned()).filter(|request| !request.is_empty());
                rest = &value[at + 1..];
            }
            // Cut by nginx, or several readings of a request without a version.
            None if ends(value).next().is_none() => {
                context.request = Some(value.to_owned());
                return;
            }
            None => return,
        }
    }
    // The referrer is last and the client's: nothing behind its beginning is nginx's.
    let before_referrer = rest.find("\", referrer: \"").map_or(rest, |at| &rest[..=at]);
    context.subrequest = single(before_referrer, ", subrequest: \"");
    context.upstream = single(before_referrer, ", upstream: \"");
    context.host = single(before_referrer, ", host: \"");
    if context.subrequest.is_none() && before_referrer.starts_with(", subrequest: \"") {
        // That there was one matters more than which.
        context.subrequest = Some(String::new());
    }
}

/// `GET /cart HTTP/1.1`
fn is_versioned(request: &str) -> bool {
    request.rsplit_once(' ').is_some_and(|(_, version)| {
        version.strip_prefix("HTTP/").is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
    })
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

/// The field's value, where the field stands once and is whole.
fn single(text: &str, marker: &str) -> Option<String> {
    let (at, _) = only(text.match_indices(marker))?;
    let value = &text[at + marker.len()..];
    ends(value).next().map(|end| value[..end].to_owned())
}
