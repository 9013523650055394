//! TLS handshakes with upstreams.

use super::{Case, shown};
use crate::check::{
    finding::{Finding, Weight},
    plan::Tls,
    seen::{CertificateFault, TlsFailure, TlsSeen},
    speaks::Speaks,
};

const FAILED: &str = "tls-handshake-failed";

/// A handshake that did not come about.
pub(super) fn failed(case: &Case<'_>, seen: &TlsSeen) -> Option<Finding> {
    let failure = seen.result.as_ref().err()?;
    let tls = case.endpoint.speech.tls.as_ref()?;
    let prefix = case.endpoint.speech.protocol.prefix();
    if let Some(speaks) = case.one.speaks.filter(|speaks| *speaks != Speaks::Tls) {
        return Some(
            case.finding(case.weight(), Some(FAILED), format!("the port speaks {}, not TLS", speaks.name()))
                .seen(reason(failure))
                .seen(format!("without TLS it speaks {}", speaks.name()))
                .why("nginx is told to speak TLS to it and answers 502 for every request.")
                .fix(format!("{prefix}_pass with the scheme without TLS, or the upstream's TLS port")),
        );
    }
    let finding = match failure {
        TlsFailure::NotTried(_) => return None,
        TlsFailure::NotTls(bytes) => {
            let speaks = Speaks::of(bytes).name();
            case.finding(case.weight(), Some(FAILED), format!("the port speaks {speaks}, not TLS"))
                .why("nginx is told to speak TLS to it and answers 502 for every request.")
                .fix(format!("{prefix}_pass with the scheme without TLS, or the upstream's TLS port"))
        }
        _ if seen.works_with_name => {
            let title = "the upstream wants the host name in the handshake, and nginx sends none".to_owned();
            case.finding(case.weight(), Some(FAILED), title)
                .seen(format!("with the name {} in the handshake (SNI) it comes about, without it does not", tls.name))
                .why("nginx sends no SNI by default: every request is answered 502.")
                .fix(format!("`{prefix}_ssl_server_name on;` (and `{prefix}_ssl_name` where the name is another)"))
        }
        TlsFailure::Closed | TlsFailure::Reset | TlsFailure::Silent => {
            let title = "the TLS handshake does not come about".to_owned();
            case.finding(case.weight(), Some(FAILED), title)
                .why("nginx answers 502 (504 where nothing comes back).")
                .fix("see that the port is the TLS port, and what the upstream's own log says about the handshake")
        }
        TlsFailure::WantsCertificate(_) if !tls.own_certificate => wants_certificate(case),
        TlsFailure::Alert(alert) if alert == "UnrecognisedName" && tls.server_name.is_some() => {
            case.finding(case.weight(), Some(FAILED), format!("the upstream does not know the name {}", tls.name))
                .why("nginx sends this name in the handshake (SNI) and answers 502 for every request.")
                .fix(format!("`{prefix}_ssl_name NAME;` with a name the upstream serves"))
        }
        // Nothing older is offered that this check could not speak.
        TlsFailure::Alert(alert) if alert == "ProtocolVersion" && speakable(tls) => {
            case.finding(case.weight(), Some(FAILED), "the upstream speaks none of the TLS versions nginx offers".to_owned())
                .why("nginx answers 502 for every request.")
                .fix(format!("widen {prefix}_ssl_protocols, or what the upstream takes"))
        }
        TlsFailure::Alert(_) | TlsFailure::WantsCertificate(_) if tls.own_certificate => {
            // Ours is not nginx's handshake: it shows no certificate.
            case.finding(Weight::Risk, Some(FAILED), "the upstream refuses a handshake without nginx's certificate".to_owned())
                .why("nginx shows a certificate of its own, this check does not; whether nginx's is accepted was not tried.")
                .fix("try `openssl s_client -connect … -cert … -key …` with nginx's certificate")
        }
        // nginx's OpenSSL knows older versions and ciphers than this program, so its handshake may succeed.
        TlsFailure::Alert(_) | TlsFailure::WantsCertificate(_) | TlsFailure::Other(_) => {
            case.finding(Weight::Risk, Some(FAILED), "the upstream refuses the TLS handshake of this check".to_owned())
                .why("This check speaks TLS 1.2 and 1.3 with today's ciphers; nginx's OpenSSL may still agree with the upstream on something older.")
                .fix(format!("try `openssl s_client -connect …`, and compare {prefix}_ssl_protocols and {prefix}_ssl_ciphers with what the upstream takes"))
        }
    };
    Some(case.softened(finding.seen(reason(failure)).seen(offered(tls))))
}

fn speakable(tls: &Tls) -> bool {
    tls.protocols.iter().all(|version| matches!(version.as_str(), "TLSv1.2" | "TLSv1.3"))
}

fn wants_certificate(case: &Case<'_>) -> Finding {
    let prefix = case.endpoint.speech.protocol.prefix();
    case.finding(case.weight(), Some(FAILED), "the upstream wants a certificate, and nginx has none to show".to_owned())
        .why("nginx answers 502 for every request.")
        .fix(format!(
            "`{prefix}_ssl_certificate` and `{prefix}_ssl_certificate_key` with a certificate the upstream accepts"
        ))
}

/// The handshake came about, and then the upstream ended it: in TLS 1.3 a missing certificate is noticed only then.
pub(super) fn ended(case: &Case<'_>, alert: &str) -> Finding {
    let wanted =
        case.one.tls.as_ref().and_then(|tls| tls.result.as_ref().ok()).is_some_and(|done| done.wants_certificate);
    let has_own = case.endpoint.speech.tls.as_ref().is_some_and(|tls| tls.own_certificate);
    let finding = if wanted && !has_own {
        wants_certificate(case)
    } else {
        case.finding(Weight::Risk, Some(FAILED), "the upstream ends TLS instead of answering".to_owned())
            .why("If it does so with nginx's own handshake, every request is answered 502.")
            .fix("see the upstream's log; where nginx shows a certificate of its own, try it with `openssl s_client -connect … -cert … -key …`")
    };
    finding.seen(format!("after the handshake came the alert {alert}"))
}

/// A certificate that nginx will not take, or would not if it looked.
pub(super) fn certificate(case: &Case<'_>, seen: &TlsSeen) -> Option<Finding> {
    let fault = seen.result.as_ref().ok()?.certificate.as_ref()?;
    let tls = case.endpoint.speech.tls.as_ref()?;
    let prefix = case.endpoint.speech.protocol.prefix();
    let words = match fault {
        CertificateFault::Expired => "has expired".to_owned(),
        CertificateFault::NotYetValid => "is not valid yet".to_owned(),
        CertificateFault::UnknownIssuer => "is signed by nobody nginx trusts".to_owned(),
        CertificateFault::WrongName => format!("is not for {}", tls.name),
        CertificateFault::Revoked => "was revoked".to_owned(),
        CertificateFault::Other(error) => format!("may not be accepted: {error}"),
        CertificateFault::NoTrust(error) => format!("cannot be verified: {error}"),
    };
    let title = format!("the upstream's certificate {words}");
    if !tls.verify {
        // Only what is wrong in itself: nothing says whom nginx would trust.
        let wrong = matches!(fault, CertificateFault::Expired | CertificateFault::NotYetValid);
        return wrong.then(|| {
            case.finding(Weight::Note, Some("tls-certificate-invalid"), title)
                .seen(format!("nginx does not look ({prefix}_ssl_verify is off)"))
                .why("It works as long as nginx does not verify.")
                .fix("renew the certificate before verification is switched on")
        });
    }
    let weight = match fault {
        // This program's library is stricter than nginx's: no common names, no version 1 certificates.
        CertificateFault::Other(_) | CertificateFault::NoTrust(_) => Weight::Risk,
        _ => case.weight(),
    };
    let finding = case
        .finding(weight, Some("tls-certificate-invalid"), title)
        .seen(format!("{prefix}_ssl_verify is on, trusted: {}", tls.trusted.as_deref().unwrap_or("nothing")))
        .seen(format!("the name that is compared: {}", tls.name))
        .why("nginx ends the handshake and answers 502 for every request.");
    let finding = match fault {
        CertificateFault::Expired | CertificateFault::NotYetValid => {
            finding.fix("renew the upstream's certificate; see that both clocks are right")
        }
        CertificateFault::WrongName => finding
            .fix(format!("`{prefix}_ssl_name NAME;` with a name of the certificate, or a certificate for this name")),
        _ => finding
            .fix(format!("{prefix}_ssl_trusted_certificate with the certificate of the authority that signed it")),
    };
    Some(case.softened(finding))
}

fn reason(failure: &TlsFailure) -> String {
    match failure {
        TlsFailure::NotTls(bytes) => format!("to the handshake came {}", shown(bytes)),
        TlsFailure::Alert(alert) => format!("the upstream sent the alert {alert}"),
        TlsFailure::WantsCertificate(alert) => {
            format!("the upstream asked for a certificate, got none, and sent the alert {alert}")
        }
        TlsFailure::Closed => "the upstream closed during the handshake".to_owned(),
        TlsFailure::Reset => "the upstream reset the connection during the handshake".to_owned(),
        TlsFailure::Silent => "the upstream said nothing to the handshake".to_owned(),
        TlsFailure::Other(error) | TlsFailure::NotTried(error) => error.clone(),
    }
}

fn offered(tls: &Tls) -> String {
    let name =
        tls.server_name.as_deref().map_or_else(|| "without a name (SNI)".to_owned(), |name| format!("for {name}"));
    format!("offered: {}, {name}", tls.protocols.join(" "))
}
