//! `fastcgi-error`: the FastCGI, uwsgi or SCGI peer broke its protocol.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::Reading,
    said::nginx_said,
};
use crate::model::complaint::Message;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "fastcgi-error",
    title: "the FastCGI, uwsgi or SCGI peer broke its protocol",
    family: Family::Protocol,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream did not speak the protocol of fastcgi_pass (uwsgi_pass, scgi_pass): another protocol on that port, or an application that ended its output without a header.",
        proof: "nginx's own message as its parser gave up.",
        refuted: "A close without a byte (premature-close).",
        remedies: &[
            ("php-fpm", "A fatal error before any output: see the pool log; display_errors=Off with log_errors=On."),
            ("uWSGI", "--socket speaks uwsgi, --fastcgi-socket FastCGI, --http-socket HTTP: each needs its directive."),
            ("nginx", "fastcgi_pass to an HTTP port fails like this."),
            (
                "gunicorn",
                "Speaks HTTP: proxy_pass. `unsupported FastCGI protocol version: 72` is the H of its answer `HTTP/1.1 400`.",
            ),
            ("uvicorn", "Speaks HTTP: proxy_pass."),
            ("Node.js", "Speaks HTTP: proxy_pass."),
            ("Puma", "Speaks HTTP: proxy_pass."),
            ("Go", "net/http speaks HTTP (proxy_pass); fcgi.Serve of net/http/fcgi is what fastcgi_pass wants."),
            ("Java", "Speaks HTTP: proxy_pass. Tomcat's AJP port (8009) is for none of nginx's directives."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, complaint) = nginx_said(reading, &[Message::FastCgi])?;
    let upstream = reading.upstream_name();
    finding.summary = format!("{upstream} broke the FastCGI protocol (\"{}\").", complaint.text);
    if complaint.text.contains("version: 72") {
        // 'H' is 72.
        finding.say(format_args!(" 72 is the letter H: it answered in HTTP."));
        finding.fix.push("The port speaks HTTP: proxy_pass, not fastcgi_pass.".to_owned());
    }
    if complaint.text.contains("prematurely closed FastCGI stdout") {
        finding.say(format_args!(" The application ended before it had written a header."));
    }
    finding.fix.push("Check that the port speaks FastCGI, and the application's own log: output that ends without a header is mostly a fatal error.".to_owned());
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
            Message::FastCgi,
            Phase::ReadingHeader,
            None,
            "upstream sent unsupported FastCGI protocol version: 72",
        );
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("fastcgi-error", Confidence::Confirmed);
    }

    #[test]
    fn another_message_is_not_it() {
        let mut world = World::new(502);
        world.complain(Message::Other, Phase::ReadingHeader, None, "upstream did something else");
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        world.log(
            Message::FastCgi,
            Phase::ReadingHeader,
            None,
            "upstream sent unsupported FastCGI protocol version: 72",
        );
        world.expect("fastcgi-error", Confidence::Possible);
    }
}
