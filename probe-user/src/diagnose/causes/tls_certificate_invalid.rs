//! `tls-certificate-invalid`: verification of the upstream's certificate failed.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::Reading,
    said::nginx_said,
};
use crate::model::complaint::Message;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "tls-certificate-invalid",
    title: "the upstream's certificate was not accepted",
    family: Family::Protocol,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "proxy_ssl_verify is on, and the upstream's certificate is expired, not signed by an authority of proxy_ssl_trusted_certificate, or made for another name.",
        proof: "nginx's own message after the handshake.",
        refuted: "An alert from the upstream (tls-handshake-failed).",
        remedies: &[
            (
                "nginx",
                "proxy_ssl_trusted_certificate with the right authority; proxy_ssl_verify_depth (1) for intermediate ones; proxy_ssl_name and proxy_ssl_server_name on for the name that is checked.",
            ),
            (
                "any server",
                "Renew the certificate; send the intermediate certificates too: `openssl s_client -connect HOST:PORT -servername NAME`.",
            ),
            (
                "gunicorn",
                "--certfile holds the certificate and, after it, the intermediate ones; a new file needs a reload (SIGHUP).",
            ),
            ("uvicorn", "--ssl-certfile likewise; a new file needs a restart."),
            ("Node.js", "cert holds the chain; server.setSecureContext() takes a new one while it runs."),
            ("Puma", "ssl_bind cert: holds the chain."),
            ("uWSGI", "The file of --https-socket holds the chain."),
            (
                "Go",
                "tls.LoadX509KeyPair takes the chain in the certificate's file; GetCertificate reads a new one while it runs.",
            ),
            (
                "Java",
                "`keytool -list -v` shows the chain in the keystore; Spring Boot reloads with ssl bundles (reload-on-update).",
            ),
            ("php-fpm", "Speaks no TLS: the certificate is that of the nginx or the tunnel before it."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, complaint) = nginx_said(reading, &[Message::TlsCertificate])?;
    let upstream = reading.upstream_name();
    let text = complaint.text.as_str();
    let wanted = text.split('"').nth(1).filter(|name| !name.contains('%'));
    // `upstream SSL certificate verify error: (10:certificate has expired)`; the log alone has the reason.
    let reason = text.rsplit_once(':').map(|(_, reason)| reason.trim_end_matches(')')).filter(|_| !text.contains('%'));
    let (what, fix) = match (text.contains("does not match"), wanted, reason) {
        (true, Some(name), _) => (
            format!("is made for another name than \"{name}\""),
            format!(
                "Set {} to the name on the certificate, or have one made for {name}.",
                reading.directive_name("ssl_name")
            ),
        ),
        (true, None, _) => (
            "is made for another name".to_owned(),
            format!("Set {} to the name on the certificate.", reading.directive_name("ssl_name")),
        ),
        (false, _, Some(reason)) if reason.contains("expired") => {
            ("has expired".to_owned(), "Renew the upstream's certificate, and have its server load it.".to_owned())
        }
        (false, _, Some(reason)) => (
            format!("could not be verified ({reason})"),
            format!(
                "Put the authority that signed it into {}; have the server send its intermediate certificates too, or raise {}.",
                reading.directive_name("ssl_trusted_certificate"),
                reading.directive_name("ssl_verify_depth")
            ),
        ),
        (false, _, None) => (
            "could not be verified".to_owned(),
            format!("Put the authority that signed it into {}.", reading.directive_name("ssl_trusted_certificate")),
        ),
    };
    finding.summary =
        format!("The certificate of {upstream} {what}, and {} is on.", reading.directive_name("ssl_verify"));
    finding.fix.push(fix);
    finding
        .fix
        .push(format!("`openssl s_client -connect {upstream} -servername NAME -showcerts` shows what it sends."));
    Some(finding)
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        diagnose::testing::World,
        model::{
            complaint::{Message, Phase},
            verdict::Confidence,
        },
    };

    pub(crate) fn world() -> World {
        let mut world = World::new(502);
        world.connect(-900);
        world.complain(
            Message::TlsCertificate,
            Phase::TlsHandshake,
            None,
            "upstream SSL certificate verify error: (10:certificate has expired)",
        );
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("tls-certificate-invalid", Confidence::Confirmed);
    }

    #[test]
    fn another_message_is_not_it() {
        let mut world = World::new(502);
        world.complain(Message::Other, Phase::TlsHandshake, None, "upstream did something else");
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        world.log(
            Message::TlsCertificate,
            Phase::TlsHandshake,
            None,
            "upstream SSL certificate verify error: (10:certificate has expired)",
        );
        world.expect("tls-certificate-invalid", Confidence::Possible);
    }
}
