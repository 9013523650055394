//! `tls-handshake-failed`: the TLS handshake with the upstream failed.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::{Locality, Reading, Survival, evidence},
        said::nginx_said,
    },
    PROCESS_GONE,
};
use crate::model::{
    complaint::{Message, Phase},
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
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let slow = reading.complains_of(&[Message::TimedOut]) && reading.phase() == Some(Phase::TlsHandshake);
    let message = if slow { Message::TimedOut } else { Message::TlsHandshake };
    let (mut finding, complaint) = nginx_said(reading, &[message])?;
    let upstream = reading.upstream_name();
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
    let how = match alert {
        Some((_, _, description)) => format!("it sent alert {description} ({})", alert_name(description)),
        None if slow => "it did not finish before proxy_connect_timeout".to_owned(),
        None if closed => "it closed the connection".to_owned(),
        None if complaint.text.contains("wrong version number") => "the port does not speak TLS".to_owned(),
        None => "the two could not agree".to_owned(),
    };
    finding.summary = format!("The TLS handshake with {upstream} failed: {how}.");
    if matches!(alert, Some((_, _, 40 | 112))) {
        finding
            .fix
            .push("proxy_ssl_server_name on; sends the name (SNI), which nginx leaves out by default.".to_owned());
    }
    finding.fix.push(format!("`openssl s_client -connect {upstream} -servername NAME` shows what the upstream says; a plain port needs http://."));
    Some(finding)
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
        diagnose::testing::World,
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            packet::Content,
            process::Ending,
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
    fn an_alert_is_named() {
        let mut world = world();
        let ends = ("127.0.0.1:8000".parse().unwrap(), "127.0.0.1:41822".parse().unwrap());
        world.packet(-100, ends, 0x18, (0, 0), (7, Content::Tls { content_type: 21, alert: Some((2, 112)) }));
        let explanation = world.expect("tls-handshake-failed", Confidence::Confirmed);
        assert!(explanation.summary.contains("unrecognised name"), "{}", explanation.summary);
        assert!(explanation.fix[0].contains("proxy_ssl_server_name"));
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

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        world.log(Message::TlsHandshake, Phase::TlsHandshake, None, "SSL_do_handshake() failed");
        world.expect("tls-handshake-failed", Confidence::Possible);
    }
}
