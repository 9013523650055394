//! `tls-handshake-failed`: the TLS handshake with the upstream failed.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Locality, Reading, Survival, Timer, evidence, need},
        said::{nginx_said, unseen_beyond_the_kernel},
        standstill::remark_standstill,
    },
    PROCESS_GONE,
};
use crate::model::{
    attempt::Outcome,
    complaint::{Complaint, Message, Phase},
    coverage::Sensor,
    event::EventId,
    evidence::{Fact, Weight},
    packet::Content,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "tls-handshake-failed",
    title: "the TLS handshake with the upstream failed",
    family: Family::Protocol,
    statuses: &[502, 504],
    depth: Depth::Mechanism,
    page: Page {
        happened: "nginx was connected and spoke TLS, and the handshake did not come to an end: the port is a plain one, the upstream \
                   sent an alert (no common version or cipher, a name it does not know, a client certificate that is missing), or it \
                   closed.",
        proof: "nginx's own message, or the alert on the wire.",
        refuted: "nginx's own verification of the certificate (tls-certificate-invalid); the end of the upstream's process.",
        remedies: &[
            (
                "nginx",
                "proxy_ssl_server_name on (default off) sends the name (SNI): alerts 40 and 112 mostly mean that it is missing; \
                       proxy_ssl_name gives another one. proxy_ssl_protocols (TLSv1.3 is in the default from 1.23.4). http:// for a \
                       plain port. proxy_ssl_certificate for an upstream that wants one (alert 116).",
            ),
            ("any server", "`openssl s_client -connect HOST:PORT -servername NAME` shows what it says."),
            ("gunicorn", "--certfile and --keyfile turn TLS on; --cert-reqs 2 asks for client certificates."),
            (
                "uvicorn",
                "--ssl-certfile and --ssl-keyfile turn TLS on; --ssl-cert-reqs 2 asks for client certificates.",
            ),
            ("Node.js", "tls.createServer: minVersion ('TLSv1.2'), requestCert, SNICallback."),
            ("Puma", "ssl_bind with cert:, key: and verify_mode:."),
            ("uWSGI", "--https-socket ADDRESS,CERTIFICATE,KEY; php-fpm and a plain --socket speak no TLS."),
            ("Go", "tls.Config: MinVersion, ClientAuth, GetCertificate for names."),
            (
                "Java",
                "server.ssl.enabled-protocols, server.ssl.client-auth; Jetty refuses a name that is not on its certificate.",
            ),
            (
                "php-fpm",
                "Speaks FastCGI without TLS, and fastcgi_pass has none: a tunnel, a private network, or an nginx beside it that is reached by https:// in proxy_pass.",
            ),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    if reading.complaint().is_none() && reading.outcome() == Outcome::TlsFailed {
        return on_the_wire(reading);
    }
    let slow = reading.complains_of(&[Message::TimedOut]) && reading.phase() == Some(Phase::TlsHandshake);
    if slow && (reading.repeated_in_vain() || reading.answer_lost().is_some()) {
        // Packets are lost: path-stall.
        return None;
    }
    let message = match reading.complaint() {
        _ if slow => Message::TimedOut,
        // In TLS 1.3 the client's handshake is over before its certificate, or the lack of one, is judged (RFC 8446, section 2).
        Some((_, complaint)) if refused_late(complaint) && reading.response_bytes() == Some(0) => complaint.message,
        _ => Message::TlsHandshake,
    };
    let (mut finding, complaint) = nginx_said(reading, &[message])?;
    let upstream = reading.upstream_name();
    if slow {
        unseen_beyond_the_kernel(&mut finding, reading);
    }
    let closed = complaint.text.starts_with("peer closed");
    if closed {
        match reading.survival() {
            Survival::Ended(_) => return None,
            Survival::NotKnown(needed) if reading.locality() != Locality::Elsewhere || reading.flow().is_none() => {
                finding.missing.push(needed);
                finding.not_excluded(PROCESS_GONE);
            }
            Survival::NotKnown(_) | Survival::Alive => {}
        }
    }
    let alert = alert(reading);
    if let Some((event, level, description)) = alert {
        finding.support(Some(evidence(Fact::TlsAlert { level, description }, &[event], Weight::Direct)));
    }
    let plain = plain_answer(reading);
    if let Some((event, status, line)) = &plain {
        let fact = Fact::UpstreamStatus { status: *status, line: Some(line.clone()) };
        finding.support(Some(evidence(fact, &[*event], Weight::Direct)));
    }
    let no_tls = ["wrong version number", "packet length too long", "record layer failure", "http request"];
    let no_tls = plain.is_some() || no_tls.iter().any(|words| complaint.text.contains(words));
    let number = alert.map(|(_, _, description)| description).or_else(|| alert_in(&complaint.text));
    let connect = reading.timer(Timer::Connect);
    let how = match number {
        Some(number) => format!("it sent alert {number} ({})", alert_name(number)),
        None if slow => format!("it did not finish before {connect}, which covers connecting and the handshake"),
        None if closed && reading.errno().is_some() => "it reset the connection".to_owned(),
        None if closed => "it closed the connection".to_owned(),
        None if plain.is_some() => "the port speaks plain HTTP, not TLS".to_owned(),
        None if no_tls => "the port does not speak TLS; plain HTTP, probably".to_owned(),
        None => "the two could not agree".to_owned(),
    };
    finding.summary = format!("The TLS handshake with {upstream} failed: {how}.");
    finding.fix.extend(advice(reading, number, no_tls, slow));
    finding.fix.push(format!("`openssl s_client -connect {upstream} -servername NAME` shows what the upstream says."));
    if slow {
        remark_standstill(&mut finding, reading);
    }
    Some(finding)
}

/// A handshake that came to nothing: known from packets only.
fn on_the_wire(reading: &Reading<'_>) -> Option<Finding> {
    let mut finding = Finding::default();
    let (alert, plain, close) = (alert(reading), plain_answer(reading), reading.close());
    let came = reading.flow()?.packets_from_upstream().find(|(_, packet)| packet.payload_length > 0);
    let how = if let Some((event, level, description)) = alert {
        finding.support(Some(evidence(Fact::TlsAlert { level, description }, &[event], Weight::Direct)));
        format!("it sent alert {description} ({})", alert_name(description))
    } else if let Some((event, status, line)) = &plain {
        let fact = Fact::UpstreamStatus { status: *status, line: Some(line.clone()) };
        finding.support(Some(evidence(fact, &[*event], Weight::Direct)));
        "the port speaks plain HTTP, not TLS".to_owned()
    } else if let Some((event, packet)) = came {
        let fact = Fact::PartialResponse { bytes: u64::from(packet.payload_length) };
        finding.support(Some(evidence(fact, &[event.id], Weight::Symptom)));
        "what it sent is not TLS".to_owned()
    } else if let Some(close) = close {
        finding.support(Some(close.evidence(Weight::Symptom)));
        finding.not_excluded(PROCESS_GONE);
        "it closed the connection without a byte of an answer".to_owned()
    } else {
        finding.support(reading.answer_evidence());
        "not a byte of an answer came".to_owned()
    };
    finding.missing.push(need(Sensor::ErrorLog, "nginx's own word about the handshake"));
    let upstream = reading.upstream_name();
    finding.summary = format!("The TLS handshake with {upstream} failed: {how}.");
    let no_tls = alert.is_none() && (plain.is_some() || came.is_some());
    finding.fix.extend(advice(reading, alert.map(|(_, _, description)| description), no_tls, false));
    finding.fix.push(format!("`openssl s_client -connect {upstream} -servername NAME` shows what the upstream says."));
    Some(finding)
}

/// What to change, by what the upstream said.
fn advice(reading: &Reading<'_>, alert: Option<u8>, no_tls: bool, slow: bool) -> Vec<String> {
    let name = |end: &str| reading.directive_name(end);
    let now = |directive: &str| reading.directive(directive).map(|value| format!(" (now {value})")).unwrap_or_default();
    let (sni, asked) = (name("ssl_server_name"), name("ssl_name"));
    let send_name =
        format!("{sni} on;{} sends the name (SNI), which nginx leaves out by default; {asked} says which.", now(&sni));
    let own = format!(
        "If the upstream asks for a client certificate: {} and {}.",
        name("ssl_certificate"),
        name("ssl_certificate_key")
    );
    match alert {
        Some(70 | 71) => {
            let protocols = name("ssl_protocols");
            vec![format!(
                "{protocols} TLSv1.2 TLSv1.3;{} offers both (TLSv1.3 is in nginx's default from 1.23.4 on, TLSv1 and TLSv1.1 no \
                 longer from 1.27.3 on).",
                now(&protocols)
            )]
        }
        Some(112) => vec![send_name],
        Some(40) => vec![send_name, own, format!("Else no cipher is common: {}.", name("ssl_ciphers"))],
        Some(42 | 43 | 44 | 45 | 46 | 48 | 116) => vec![own],
        Some(120) => vec!["The upstream does not speak the protocol that was offered by ALPN.".to_owned()],
        None if no_tls => {
            vec!["A plain port needs http:// (grpc:// for gRPC) in the *_pass directive, not https://.".to_owned()]
        }
        None if slow => vec![
            "Is it a TLS port at all? A plain server can wait for ever for the rest of what it takes for a request."
                .to_owned(),
        ],
        _ => Vec::new(),
    }
}

/// An answer in plain HTTP to the handshake.
fn plain_answer(reading: &Reading<'_>) -> Option<(EventId, u16, String)> {
    reading.flow()?.packets_from_upstream().find_map(|(event, packet)| match &packet.content {
        Content::HttpStatus { code, line } if event.at.earliest <= reading.failed_at() => {
            Some((event.id, *code, line.to_string()))
        }
        _ => None,
    })
}

/// An alert about the client's certificate came where nginx already sent its request, or waited for the answer.
fn refused_late(complaint: &Complaint) -> bool {
    matches!(complaint.message, Message::ReceiveFailed | Message::SendFailed)
        && matches!(alert_in(&complaint.text), Some(40 | 42..=46 | 48 | 116))
}

/// `…:SSL alert number 40)`, as OpenSSL's message ends.
fn alert_in(text: &str) -> Option<u8> {
    let (_, number) = text.split_once("SSL alert number ")?;
    number.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// The upstream's alert in the clear.
fn alert(reading: &Reading<'_>) -> Option<(EventId, u8, u8)> {
    reading.flow()?.packets_from_upstream().find_map(|(event, packet)| match packet.content {
        Content::Tls { alert: Some((level, description)), .. } => Some((event.id, level, description)),
        _ => None,
    })
}

/// RFC 8446, section 6.
const fn alert_name(description: u8) -> &'static str {
    match description {
        0 => "close notify",
        40 => "handshake failure",
        42 => "bad certificate",
        46 => "certificate unknown",
        48 => "unknown certificate authority",
        70 => "protocol version",
        71 => "insufficient security",
        80 => "internal error",
        112 => "unrecognised name",
        116 => "certificate required",
        120 => "no application protocol",
        _ => "another alert",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::{LENGTH, START, World, moment},
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            packet::Content,
            process::Ending,
            socket::{SocketChange, TcpState},
            verdict::Confidence,
        },
    };

    pub(crate) fn world() -> World {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.connect(-900);
        world.complain(Message::TlsHandshake, Phase::TlsHandshake, None, "SSL_do_handshake() failed");
        world
    }

    #[test]
    fn a_certificate_that_is_refused_after_the_handshake() {
        let mut world = World::new(502);
        let text = "SSL_read() failed (SSL: error:0A00045C:SSL routines::tlsv13 alert certificate required:SSL alert number 116)";
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, None, text);
        world.attempt().bytes_received = Some(0);
        let explanation = world.expect("tls-handshake-failed", Confidence::Confirmed);
        assert!(explanation.summary.contains("alert 116 (certificate required)"), "{}", explanation.summary);
    }

    #[test]
    fn an_alert_is_named() {
        let mut world = world();
        let ends = ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        world.packet(-100, ends, 0x18, (0, 0), (7, Content::Tls { content_type: 21, alert: Some((2, 112)) }));
        let explanation = world.expect("tls-handshake-failed", Confidence::Confirmed);
        assert!(explanation.summary.contains("unrecognised name"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("proxy_ssl_server_name"));
    }

    #[test]
    fn openssls_own_words_name_the_alert_and_the_plain_port() {
        let mut world = world();
        let text = "SSL_do_handshake() failed (SSL: error:0A00042E:SSL routines::tlsv1 alert protocol version:SSL alert number 70)";
        world.complain(Message::TlsHandshake, Phase::TlsHandshake, None, text);
        let explanation = world.expect("tls-handshake-failed", Confidence::Confirmed);
        assert!(explanation.summary.contains("alert 70 (protocol version)"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("proxy_ssl_protocols"), "{:?}", explanation.fix);
        let text = "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number)";
        world.complain(Message::TlsHandshake, Phase::TlsHandshake, None, text);
        let explanation = world.expect("tls-handshake-failed", Confidence::Confirmed);
        assert!(explanation.summary.contains("plain HTTP"), "{}", explanation.summary);
    }

    #[test]
    fn closed_by_a_dying_process_is_not_it() {
        let mut world = World::new(502);
        world.listening();
        world.accepted();
        world.connect(-900);
        world.complain(Message::TlsHandshake, Phase::TlsHandshake, None, "peer closed connection in SSL handshake");
        world.expect("tls-handshake-failed", Confidence::Confirmed);
        world.exit(-100, Ending::Exit(1));
        assert_eq!(crate::report::cause(&world.judge()), "upstream-exited");
        world.case.processes.clear();
        world.blind(Sensor::Processes);
        world.expect("tls-handshake-failed", Confidence::Likely);
    }

    fn slow() -> World {
        let mut world = World::new(504);
        world.listening();
        world.attempt().started = Some(moment(-2_000_000));
        world.connect(-1_999_000);
        world.sent(TcpState::Established, START + LENGTH);
        world.complain(Message::TimedOut, Phase::TlsHandshake, Some(Errno::ETIMEDOUT), "upstream timed out");
        world.nginx_leaves(0);
        world
    }

    #[test]
    fn one_that_lasts_is_certain_only_with_an_application_that_took_the_connection() {
        let mut world = slow();
        let explanation = world.expect("tls-handshake-failed", Confidence::Likely);
        assert!(explanation.rivals.contains(&"accept-queue-overflow"), "{explanation:?}");
        assert!(explanation.rivals.contains(&"fd-exhausted-upstream"), "{explanation:?}");
        world.accepted();
        world.expect("tls-handshake-failed", Confidence::Confirmed);
    }

    #[test]
    fn lost_packets_and_a_queue_that_refuses_are_not_it() {
        let mut world = slow();
        world.accepted();
        world.attempt().socket_at_failure.as_mut().unwrap().tcp.as_mut().unwrap().snd_una = START;
        let sent = world.socket(Side::Nginx, TcpState::Established, None);
        world.change(-1_000_000, sent, SocketChange::Retransmitted { payload: LENGTH });
        world.expect("path-stall", Confidence::Confirmed);
        let mut world = slow();
        world.drop_packet(-1_998_000, "TCP_LISTEN_OVERFLOW");
        world.expect("accept-queue-overflow", Confidence::Confirmed);
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        world.log(Message::TlsHandshake, Phase::TlsHandshake, None, "SSL_do_handshake() failed");
        world.expect("tls-handshake-failed", Confidence::Possible);
    }
}
