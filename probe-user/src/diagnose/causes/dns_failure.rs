//! `dns-failure`: nginx's resolver got no usable answer.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::Reading,
        said::nginx_said,
    },
    servers::{ADDRESSES, and_servers},
};
use crate::model::{complaint::Message, net::Errno};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "dns-failure",
    title: "nginx's resolver got no usable answer",
    family: Family::Connect,
    statuses: &[502],
    depth: Depth::Mechanism,
    page: Page {
        happened: "The upstream's address is given by a name that nginx resolves while it runs (a variable in proxy_pass, or `server ... resolve`). The name server did not answer, or said that the name does not exist, or failed. nginx answers 502 - also when DNS timed out - and nothing was tried.",
        proof: "nginx's own message, with the name server's verdict (2 server failure, 3 no such name, 5 refused) or 110 for silence.",
        refuted: "An address that was reached: then the name was resolved.",
        remedies: &const {
            and_servers::<4, 12>(
                [
                    (
                        "nginx",
                        "resolver ADDRESS valid=10s ipv6=off; resolver_timeout 5s (default 30s). Without a resolver directive a variable cannot be resolved at all. /etc/resolv.conf and /etc/hosts are not read.",
                    ),
                    ("docker", "resolver 127.0.0.11."),
                    (
                        "Kubernetes",
                        "resolver kube-dns.kube-system.svc.cluster.local, and full names (app.default.svc.cluster.local): search domains are not used.",
                    ),
                    (
                        "any server",
                        "On this same host no name is needed: proxy_pass to the address that it listens on.",
                    ),
                ],
                ADDRESSES,
            )
        },
    },
    rule,
};

/// The name in nginx's words, where they are at hand and not only their format.
fn name_of(text: &str) -> Option<&str> {
    let name = match text.split_once(" could not be resolved") {
        Some((name, _)) => name,
        None => text.strip_prefix("no resolver defined to resolve ")?,
    };
    (!name.contains('%') && !name.contains(' ') && !name.is_empty()).then_some(name)
}

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, complaint) = nginx_said(reading, &[Message::NotResolved])?;
    let why = match complaint.errno {
        _ if complaint.text.starts_with("no resolver defined") => ": no resolver is configured",
        // nginx says so too where the name server cannot be reached, or answers what is no answer.
        Some(Errno::ETIMEDOUT) => ": no usable answer of the name server came in time",
        _ if complaint.text.contains("(110:") => ": no usable answer of the name server came in time",
        _ if complaint.text.contains("(2:") => ": the name server failed (SERVFAIL)",
        _ if complaint.text.contains("(3:") => ": there is no such name (NXDOMAIN), or it has no address",
        _ if complaint.text.contains("(5:") => ": the name server refused to answer",
        _ => "",
    };
    let name = name_of(&complaint.text);
    let called = name.map(|name| format!(" {name}")).unwrap_or_default();
    finding.summary = format!("nginx could not resolve the upstream's name{called}{why}; nothing was tried.");
    let asked = name.unwrap_or("NAME");
    if complaint.text.starts_with("no resolver defined") {
        finding.fix.push(format!("Add `resolver ADDRESS valid=10s;`, or write {asked} without a variable: then nginx resolves it when it starts."));
        return Some(finding);
    }
    finding.fix.push(format!("Ask the name server in nginx's `resolver` directive yourself: `dig @ADDRESS {asked}`."));
    finding.fix.push(
        "nginx reads neither /etc/hosts nor search domains: give it the full name and a resolver that knows it."
            .to_owned(),
    );
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
            Message::NotResolved,
            Phase::Other,
            None,
            "app.example could not be resolved (3: Host not found)",
        );
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("dns-failure", Confidence::Confirmed);
    }

    #[test]
    fn another_message_is_not_it() {
        let mut world = World::new(502);
        world.complain(Message::Other, Phase::Other, None, "upstream did something else");
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        world.log(Message::NotResolved, Phase::Other, None, "app.example could not be resolved (3: Host not found)");
        world.expect("dns-failure", Confidence::Possible);
    }
}
