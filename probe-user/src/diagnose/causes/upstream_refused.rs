//! `upstream-refused`: nobody listens there.

use super::super::{
    cause::{Cause, Depth, Family, Finding, Page},
    reading::{Locality, Reading, duration, named, need},
    said::remark_moved_name,
};
use crate::model::{
    attempt::Outcome,
    complaint::{Message, Phase},
    coverage::Sensor,
    evidence::Fact,
    net::Errno,
};

/// The row.
pub(crate) const CAUSE: Cause = Cause {
    id: "upstream-refused",
    title: "nobody listens on the upstream's address",
    family: Family::Connect,
    statuses: &[502, 500],
    depth: Depth::Mechanism,
    page: Page {
        happened: "nginx asked for a connection (SYN) and was answered with a reset (RST): on that address and port no process \
                   listens. The request never reached an application. 500 instead of 502 when the request was one of auth_request.",
        proof: "The RST that answered the SYN, ECONNREFUSED on nginx's socket, and - where the upstream is on this host - the \
                kernel's own word that it found no socket (reset or drop reason NO_SOCKET). For an \
                upstream on another host a reset alone can also come from a firewall: the verdict is then likely.",
        refuted: "A listener that is alive on that address (then a packet filter answered in its place: firewall-rejected); an \
                  ICMP message instead of a RST; a connection that had been established (then it is upstream-reset).",
        remedies: &[
            (
                "nginx",
                "Point proxy_pass (fastcgi_pass, ...) or the upstream block's server lines at what really listens; name the \
                       address, not `localhost`, which is ::1 first on most hosts. With several servers, proxy_next_upstream error \
                       (the default) hides it as long as one is alive.",
            ),
            (
                "any server",
                "Is it running, and does it listen on this address? 127.0.0.1 inside a container is not the host's. On \
                            deploys let the new process listen before the old one stops (socket activation, SO_REUSEPORT, or a \
                            preStop pause while the load balancer learns).",
            ),
            (
                "gunicorn",
                "--bind 0.0.0.0:8000 (default 127.0.0.1:8000); reload with HUP, which keeps the listening socket.",
            ),
            ("uvicorn", "--host 0.0.0.0 --port 8000 (default 127.0.0.1:8000)."),
            (
                "Node.js",
                "server.listen(port, '0.0.0.0'); without a host it listens on :: where IPv6 is there, else 0.0.0.0.",
            ),
            ("Puma", "bind 'tcp://0.0.0.0:9292' in config/puma.rb; phased-restart (USR1) keeps the socket."),
            (
                "php-fpm",
                "listen = 127.0.0.1:9000 in the pool's file; listen.allowed_clients does not refuse, it closes.",
            ),
            ("uWSGI", "--http-socket or --socket with the address; --touch-reload keeps the socket."),
            ("Go", "http.Server{Addr: \":8080\"} listens on every address; \"localhost:8080\" only on loopback."),
            ("Java", "Spring Boot: server.port (8080) and server.address; the port opens only when the context is up."),
        ],
    },
    rule,
};

fn rule(reading: &Reading<'_>) -> Option<Finding> {
    reading.upstream()?;
    let logged = reading.complains_of(&[Message::ConnectFailed, Message::ConnectFailedAtOnce])
        && reading.phase() == Some(Phase::Connecting)
        && reading.errno() == Some(Errno::ECONNREFUSED);
    let told = reading.connect_error().filter(|(errno, _)| *errno == Errno::ECONNREFUSED);
    let said_otherwise = reading.complaint().is_some() && !logged;
    let on_the_wire = reading.outcome() == Outcome::Refused && reading.syn_reset().is_some();
    if (!logged && told.is_none() && !on_the_wire) || said_otherwise || reading.connected() == Some(true) {
        return None;
    }
    // An ICMP message, not a RST, can be what made ECONNREFUSED: that is a packet filter's answer.
    if reading.icmp().next().is_some() && reading.syn_reset().is_none() {
        return None;
    }
    let locality = reading.locality();
    let no_socket = reading.no_socket_for_syn();
    let kernel_silent = locality == Locality::Here
        && no_socket.is_none()
        && reading.sees(Sensor::ResetsSent)
        && reading.known_beforehand();
    let listens = reading.somebody_listens();
    if kernel_silent && listens.is_some() {
        return None;
    }

    let mut finding = Finding::default();
    finding.support(reading.complaint_evidence());
    let by_call = reading.connect_call_error().is_some_and(|(errno, _)| errno == Errno::ECONNREFUSED);
    finding.require(told.map(|(_, evidence)| evidence), || {
        need(Sensor::SocketErrors, "the error the kernel gave to nginx's socket")
    });
    if !by_call {
        finding.require(reading.syn_reset(), || need(Sensor::ResetsReceived, "the RST that answered the SYN"));
    }
    let kernel_said_so = finding.support(no_socket);
    let nobody = reading.nobody_listens();
    let nobody_seen = nobody.is_some();
    finding.support(nobody);
    if !kernel_said_so {
        match locality {
            // A look-up comes a little later than the SYN: it supports, and does not prove.
            Locality::Here if kernel_silent || nobody_seen => {
                finding.not_excluded(&["firewall-rejected"]);
                finding
                    .missing
                    .push(need(Sensor::ResetsSent, "the kernel's own record of finding no socket for the SYN"));
            }
            Locality::Here => {
                finding.missing.push(need(Sensor::Host, "whether a process of this host listens on the address"));
                finding.not_excluded(&["firewall-rejected"]);
            }
            Locality::Elsewhere | Locality::Unwatched | Locality::Unknown => {
                finding
                    .missing
                    .push(reading.unseen(Sensor::Host, "who sent the RST, the server's kernel or a firewall"));
                finding.not_excluded(&["firewall-rejected"]);
            }
        }
        finding.oppose(listens);
    }
    let former = reading.served_before().or_else(|| reading.former_listener());
    let died = former.as_ref().map(|evidence| evidence.fact.clone());
    finding.support(former);
    let nearby = reading.listens_nearby();
    describe(
        &mut finding,
        reading,
        locality,
        &nearby.iter().map(|e| e.fact.clone()).collect::<Vec<_>>(),
        died.as_ref(),
    );
    finding.because.extend(nearby);
    remark_moved_name(&mut finding, reading);
    Some(finding)
}

fn describe(finding: &mut Finding, reading: &Reading<'_>, locality: Locality, nearby: &[Fact], died: Option<&Fact>) {
    let upstream = reading.upstream_name();
    let place = if locality == Locality::Here { " on this host" } else { "" };
    finding.summary = if finding.missing.is_empty() {
        format!("Nobody listens on {upstream}{place}: the kernel refused the connection (ECONNREFUSED).")
    } else {
        format!("{upstream}{place} refused the connection (ECONNREFUSED): most likely nobody listens there.")
    };
    if let Some(Fact::ProcessEnded { process: (pid, command), how }) = died {
        let text = format!(" {command} (pid {pid}), which listened there, had ended: {}.", super::ending(*how));
        finding.summary.push_str(&text);
        finding.fix.push(format!("Start {command} again, and find out why it ended."));
    } else if let Some(Fact::FormerListener { process: (pid, command), how, signal, ago_us, .. }) = died {
        let ago = ago_us.map(|us| format!(" {} before", duration(us))).unwrap_or_default();
        if let Some(how) = how {
            let by = match signal {
                Some((number, Some(sender))) => {
                    let name = super::signal_name(*number);
                    format!(" ({name} from {}, pid {})", sender.command, sender.pid)
                }
                _ => String::new(),
            };
            finding.say(format_args!(
                " {command} (pid {pid}), which listened there, had ended{ago}: {}{by}.",
                super::ending(*how)
            ));
            finding.fix.push(format!("Start {command} again, and find out why it ended."));
        } else {
            finding.say(format_args!(
                " {command} (pid {pid}), which listened there, had closed its listening socket{ago}."
            ));
            finding
                .fix
                .push(format!("Find out why {command} (pid {pid}) stopped listening: a reload, or its own shutdown?"));
        }
    } else {
        finding.fix.push(format!("Start the server that should listen on {upstream}, or look why it does not."));
    }
    let other_family = |fact: &Fact| match (fact, reading.upstream()) {
        (Fact::ListensNearby { address, .. }, Some(asked)) => {
            asked.ip().is_loopback() && asked.is_ipv6() && address.is_ipv4() && address.port() == asked.port()
        }
        _ => false,
    };
    if nearby.iter().any(other_family) {
        finding.say(format_args!(" `localhost` is ::1 first on this host, and the server listens on IPv4 only."));
        finding.fix.push(
            "Write 127.0.0.1 instead of localhost in proxy_pass, or let the server listen on ::1 too.".to_owned(),
        );
    }
    for fact in nearby {
        if let Fact::ListensNearby { address, process } = fact {
            let who = named(*address, process.as_ref());
            finding.say(format_args!(" Nearby {who} does listen."));
            finding.fix.push(format!(
                "If {who} is the one that is meant: name that address in nginx's proxy_pass or upstream block."
            ));
        }
    }
    if finding.rivals.contains(&"firewall-rejected") {
        finding.fix.push(format!("On the upstream's host: `ss -ltn` shows whether something listens on {upstream}; if so, look for a REJECT rule."));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::super::testing::World;
    use crate::{
        diagnose::find,
        model::{
            complaint::{Message, Phase},
            coverage::Sensor,
            flow::Side,
            net::Errno,
            process::Ending,
            socket::{SocketChange, TcpState},
            verdict::{Confidence, Verdict},
        },
    };

    const TEXT: &str = "connect() failed (111: Connection refused) while connecting to upstream";

    pub(crate) fn refused(upstream: &str, local: bool) -> World {
        let mut world = World::at(upstream, 502);
        if local {
            world.reset_sent(-90, "NO_SOCKET", None);
        }
        world.reset_received(-80, TcpState::SynSent);
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ECONNREFUSED));
        let socket = world.socket(Side::Nginx, TcpState::Closed, Some(Errno::ECONNREFUSED));
        world.change(-78, socket, SocketChange::ErrorReported);
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), TEXT);
        world.look_up(local, Vec::new(), Vec::new());
        world
    }

    #[test]
    fn the_plain_case() {
        let explanation = refused("127.0.0.1:8000", true).expect("upstream-refused", Confidence::Confirmed);
        assert!(explanation.summary.contains("127.0.0.1:8000"), "{}", explanation.summary);
        assert!(explanation.rivals.is_empty());
    }

    #[test]
    fn a_look_up_without_listener_does_not_stand_in_for_the_kernels_word() {
        let mut world = refused("127.0.0.1:8000", true);
        world.flow().events.remove(0);
        let explanation = world.expect("upstream-refused", Confidence::Likely);
        assert_eq!(explanation.rivals, ["firewall-rejected"]);
        world.blind(Sensor::ResetsSent);
        world.expect("upstream-refused", Confidence::Likely);
    }

    #[test]
    fn on_another_host_a_firewall_can_have_answered() {
        let world = refused("10.9.9.9:8000", false);
        let explanation = world.expect("upstream-refused", Confidence::Likely);
        assert!(explanation.summary.contains("Not excluded: firewall-rejected"), "{}", explanation.summary);
    }

    #[test]
    fn a_live_listener_and_a_silent_kernel_are_not_it() {
        let mut world = refused("127.0.0.1:8000", true);
        world.flow().events.remove(0);
        world.case.host.clear();
        world.listening();
        assert_ne!(crate::report::cause(&world.judge()), "upstream-refused");
    }

    #[test]
    fn an_established_connection_was_not_refused() {
        let mut world = World::new(502);
        world.connect(-90);
        world.reset_received(-50, TcpState::Established);
        world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
        assert_ne!(crate::report::cause(&world.judge()), "upstream-refused");
    }

    #[test]
    fn each_need_removed_lowers_it_and_names_no_other() {
        for kept in 0..3 {
            let mut world = refused("127.0.0.1:8000", true);
            world.case.host.clear();
            world.case.coverage.events_lost = 1;
            world.flow().events.truncate(kept);
            let verdict = world.judge();
            let Verdict::Explained(explanation) = verdict else { panic!("{verdict:?}") };
            assert_eq!(explanation.cause, "upstream-refused");
            assert!(explanation.confidence < Confidence::Confirmed, "{kept} events kept: {explanation:?}");
        }
    }

    #[test]
    fn a_log_line_alone_makes_it_possible() {
        let mut world = World::new(502);
        for sensor in Sensor::ALL {
            world.blind(*sensor);
        }
        world.log(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), TEXT);
        world.expect("upstream-refused", Confidence::Possible);
    }

    #[test]
    fn who_listened_there_and_what_listens_nearby_is_said() {
        let mut world = refused("127.0.0.1:8000", true);
        let listener = world.listener("gunicorn");
        world.case.host.clear();
        world.look_up(true, vec![listener.clone()], Vec::new());
        world.exit(-5_000, Ending::Exit(3));
        let mut near = listener;
        near.address = "[::1]:8000".parse().unwrap();
        world.look_up(true, Vec::new(), vec![near]);
        let explanation = world.expect("upstream-refused", Confidence::Confirmed);
        assert!(explanation.summary.contains("exit status 3"), "{}", explanation.summary);
        assert!(explanation.summary.contains("[::1]:8000 (gunicorn, pid 88)"), "{}", explanation.summary);
    }

    #[test]
    fn it_is_in_the_catalogue() {
        assert!(find("upstream-refused").is_some());
    }
}
