//! Trying one address of an upstream in nginx's way; where that makes no sense, finding out what the port speaks instead.

use std::time::Duration;

use super::{
    ask::{self, Channel, Question},
    connect,
    tls::{self, Trust},
};
use crate::{
    check::{
        plan::{Speech, Tls},
        seen::{Answer, Idle, TlsFailure, TlsSeen, Try},
        speaks::Speaks,
    },
    decode::config::layout::Protocol,
    live::host,
    model::net::Address,
};

/// How an address is tried.
#[derive(Debug)]
pub(super) struct Manner<'a> {
    pub(super) endpoint: usize,
    pub(super) speech: &'a Speech,
    pub(super) trusted: &'a Trust,
    /// How long a connection may take: nginx's own timeout, where that is shorter than we would wait.
    pub(super) connect: Duration,
    /// A Host to ask with where the one that is sent is refused.
    pub(super) other_host: Option<String>,
    /// How long to wait for the upstream to close an idle connection; `None`: not at all.
    pub(super) idle: Option<Duration>,
    /// What is asked; `None`: nothing is sent beyond the handshakes.
    pub(super) question: Option<&'a Question>,
}

/// For an answer to something that is asked only to learn what the port speaks.
const SECOND: Duration = Duration::from_secs(2);

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(4);

/// Connects, shakes hands, asks.
pub(super) fn attempt(address: &Address, manner: &Manner<'_>) -> Try {
    let (opened, took) = connect::open(address, manner.speech.bind, manner.connect);
    let mut one = Try::new(manner.endpoint, address.clone());
    one.connect_us = microseconds(took);
    // A bind of nginx's own decides the source; the way is the same unless rules say otherwise.
    one.route = address.ip().and_then(|address| host::way(address.ip()).ok());
    let stream = match opened {
        Ok(stream) => stream,
        Err(failure) => {
            one.connect = Err(failure);
            return one;
        }
    };
    one.local = stream.local();
    let mut channel = match &manner.speech.tls {
        None => Channel::Plain(stream),
        Some(tls) => match secure(stream, tls, manner) {
            (Ok(secured), seen) => {
                one.tls = Some(seen);
                secured
            }
            (Err(()), seen) => {
                one.tls = Some(seen);
                instead_of_tls(address, manner, tls, &mut one);
                return one;
            }
        },
    };
    if let Some(question) = manner.question {
        let answer = ask::ask(&mut channel, manner.speech, question);
        drop(channel);
        if manner.speech.tls.is_none() {
            one.speaks = instead_of_plain(address, manner, question, &answer.kind);
        }
        if let Answer::Http { status: 400 | 403 | 404 | 421, .. } = answer.kind
            && one.speaks.is_none()
        {
            one.other_host = with_other_host(address, manner, question);
        }
        let spoke_http = matches!(answer.kind, Answer::Http { .. });
        one.answer = Some(answer);
        one.idle = manner.idle.filter(|_| spoke_http).and_then(|most| idle(address, manner, question, most));
    }
    one
}

/// The same request with another Host, to plain HTTP only.
fn with_other_host(address: &Address, manner: &Manner<'_>, question: &Question) -> Option<(String, u16)> {
    let host = manner.other_host.clone().filter(|_| manner.speech.tls.is_none())?;
    let speech = Speech { host: host.clone(), ..manner.speech.clone() };
    let stream = connect::open(address, speech.bind, manner.connect).0.ok()?;
    match ask::ask(&mut Channel::Plain(stream), &speech, question).kind {
        Answer::Http { status, .. } => Some((host, status)),
        _ => None,
    }
}

/// Asks on a connection that is to be kept, then waits until the upstream closes it.
fn idle(address: &Address, manner: &Manner<'_>, question: &Question, most: Duration) -> Option<Idle> {
    let stream = connect::open(address, manner.speech.bind, manner.connect).0.ok()?;
    let mut channel = match &manner.speech.tls {
        None => Channel::Plain(stream),
        Some(tls) => secure(stream, tls, manner).0.ok()?,
    };
    ask::idle(&mut channel, manner.speech, question, most)
}

fn secure(stream: connect::Stream, tls: &Tls, manner: &Manner<'_>) -> (Result<Channel, ()>, TlsSeen) {
    let began = std::time::Instant::now();
    let h2 = manner.speech.protocol == Protocol::Grpc;
    let made = tls::handshake(stream, tls, tls.server_name.as_deref(), manner.trusted, h2, HANDSHAKE);
    let took_us = microseconds(began.elapsed());
    match made {
        Ok((secured, done)) => {
            (Ok(Channel::Secure(Box::new(secured))), TlsSeen { took_us, result: Ok(done), works_with_name: false })
        }
        Err(failure) => (Err(()), TlsSeen { took_us, result: Err(failure), works_with_name: false }),
    }
}

/// Without the handshake nginx asks for: would it work with a name, or does the port speak without TLS?
fn instead_of_tls(address: &Address, manner: &Manner<'_>, tls: &Tls, one: &mut Try) {
    let Some(seen) = &mut one.tls else { return };
    match &seen.result {
        Ok(_) | Err(TlsFailure::NotTried(_)) => return,
        Err(TlsFailure::NotTls(bytes)) => {
            // Some answer a handshake with a page alone: what they speak shows when they are asked.
            let looks = Speaks::of(bytes);
            let question = manner.question.filter(|_| matches!(looks, Speaks::Text | Speaks::Unknown));
            let plain = Speech { tls: None, ..manner.speech.clone() };
            let answers = question.and_then(|question| asked(address, &plain, manner, question));
            one.speaks = answers.or(Some(looks));
            return;
        }
        Err(_) => {}
    }
    // Who says nothing at all does not wait for a name.
    let is_silent = matches!(seen.result, Err(TlsFailure::Silent));
    if !is_silent && tls.server_name.is_none() && tls.name.parse::<std::net::IpAddr>().is_err() {
        let (opened, _) = connect::open(address, manner.speech.bind, manner.connect);
        let h2 = manner.speech.protocol == Protocol::Grpc;
        let again =
            opened.ok().map(|stream| tls::handshake(stream, tls, Some(&tls.name), manner.trusted, h2, HANDSHAKE));
        if matches!(again, Some(Ok(_))) {
            seen.works_with_name = true;
            return;
        }
    }
    // An alert is TLS; only what says nothing is asked without it.
    let says_nothing = matches!(seen.result, Err(TlsFailure::Closed | TlsFailure::Reset | TlsFailure::Silent));
    if let Some(question) = manner.question.filter(|_| says_nothing) {
        let plain = Speech { tls: None, ..manner.speech.clone() };
        one.speaks = asked(address, &plain, manner, question);
    }
}

/// Asks once over a fresh connection; what the answer shows the port to speak.
fn asked(address: &Address, speech: &Speech, manner: &Manner<'_>, question: &Question) -> Option<Speaks> {
    let stream = connect::open(address, speech.bind, manner.connect).0.ok()?;
    let question = Question { patience: question.patience.min(SECOND), ..question.clone() };
    match ask::ask(&mut Channel::Plain(stream), speech, &question).kind {
        Answer::Http { .. } => Some(Speaks::Http),
        Answer::Right => Some(match speech.protocol {
            Protocol::FastCgi => Speaks::FastCgi,
            Protocol::Grpc => Speaks::Http2,
            _ => Speaks::Text,
        }),
        Answer::Wrong(bytes) => Some(Speaks::of(&bytes)),
        _ => None,
    }
}

/// After an answer that makes no sense without TLS: does the port speak TLS, or another protocol?
fn instead_of_plain(address: &Address, manner: &Manner<'_>, question: &Question, answer: &Answer) -> Option<Speaks> {
    let nothing = matches!(answer, Answer::Closed(0) | Answer::Reset | Answer::Silent);
    let is_gateway = matches!(manner.speech.protocol, Protocol::Uwsgi | Protocol::Scgi);
    match answer {
        // An HTTP server answers the words of uwsgi like this, and nginx takes it for an answer.
        Answer::Http { status: 400, .. } if is_gateway => {
            let speech = Speech { protocol: Protocol::Http, ..manner.speech.clone() };
            return asked(address, &speech, manner, question).filter(|speaks| *speaks == Speaks::Http);
        }
        // Servers that notice answer 400 themselves.
        Answer::Http { status: 400, .. } => {}
        Answer::Wrong(bytes) => match Speaks::of(bytes) {
            Speaks::Tls => {}
            other => return Some(other),
        },
        _ if nothing => {}
        _ => return None,
    }
    let tls = Tls {
        server_name: None,
        name: manner.speech.host.clone(),
        trusted: None,
        verify: false,
        protocols: vec!["TLSv1.2".to_owned(), "TLSv1.3".to_owned()],
        own_certificate: false,
    };
    let stream = connect::open(address, manner.speech.bind, manner.connect).0.ok()?;
    let nothing_trusted = Err(String::new());
    match tls::handshake(stream, &tls, None, &nothing_trusted, false, SECOND) {
        Ok(_) | Err(TlsFailure::Alert(_) | TlsFailure::WantsCertificate(_)) => return Some(Speaks::Tls),
        Err(TlsFailure::NotTls(bytes)) if nothing => return Some(Speaks::of(&bytes)),
        Err(_) => {}
    }
    if nothing && manner.speech.protocol != Protocol::Http {
        let speech = Speech { protocol: Protocol::Http, ..manner.speech.clone() };
        return asked(address, &speech, manner, question);
    }
    None
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
