//! `worker-connections-exhausted`: the worker has no connection slot left.

use super::{
    super::{
        cause::{Cause, Depth, Family, Finding, Page},
        reading::Reading,
        said::nginx_said,
    },
    servers::{KEPT_CONNECTIONS, and_servers},
};
use crate::model::complaint::Message;

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "worker-connections-exhausted",
    title: "the nginx worker has no connection slot left",
    family: Family::Connect,
    statuses: &[500],
    depth: Depth::Mechanism,
    page: Page {
        happened: "Every connection of a worker - clients, upstreams, idle ones - takes a slot of worker_connections (default 512). None was free for the upstream: nginx answers 500 and tries no other server.",
        proof: "nginx's own message at the moment it found no slot.",
        refuted: "EMFILE from socket(): then it is the limit of files (fd-exhausted-nginx).",
        remedies: &const {
            and_servers::<2, 10>(
                [
                    (
                        "nginx",
                        "events { worker_connections 4096; } and worker_rlimit_nofile at least twice that; a proxied request takes two slots. keepalive_timeout (75s for clients) and keepalive in upstream blocks bound the idle ones.",
                    ),
                    (
                        "any server",
                        "A slow one holds two slots for as long as it takes: proxy_read_timeout bounds that. What is kept for reuse holds one.",
                    ),
                ],
                KEPT_CONNECTIONS,
            )
        },
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    let (mut finding, _) = nginx_said(reading, &[Message::WorkerConnections])?;
    let configured = reading.case.configuration.as_ref().and_then(|configuration| configuration.worker_connections);
    let now = configured.map_or_else(|| "512 by default".to_owned(), |n| n.to_string());
    finding.summary = format!(
        "The nginx worker had no connection slot left (worker_connections is {now}), so it could not ask the upstream."
    );
    finding.fix.push(format!("Raise worker_connections (now {now}) in the events block, worker_rlimit_nofile to at least twice that, and reload."));
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
        let mut world = World::new(500);
        world.connect(-900);
        world.complain(Message::WorkerConnections, Phase::Connecting, None, "1024 worker_connections are not enough");
        world
    }

    #[test]
    fn the_plain_case() {
        world().expect("worker-connections-exhausted", Confidence::Confirmed);
    }

    #[test]
    fn another_message_is_not_it() {
        let mut world = World::new(500);
        world.complain(Message::Other, Phase::Connecting, None, "upstream did something else");
        assert_eq!(crate::report::cause(&world.judge()), "unknown");
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(500);
        world.log(Message::WorkerConnections, Phase::Connecting, None, "1024 worker_connections are not enough");
        world.expect("worker-connections-exhausted", Confidence::Possible);
    }
}
