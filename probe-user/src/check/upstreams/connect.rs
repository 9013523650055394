//! Connections that did not come about.

use super::{Case, milliseconds};
use crate::{
    check::{
        finding::Finding,
        seen::{Barrier, ConnectFailure, Here, Icmp, Owner, PathPart},
    },
    decode::rules::Fate,
    model::{
        net::{Address, Errno},
        socket::is_full,
    },
};

pub(super) fn judge(case: &Case<'_>, failure: &ConnectFailure) -> Finding {
    let finding = match (&case.one.address, failure.errno) {
        (Address::Unix(path), errno) => unix(case, path, errno),
        (Address::Ip(_), Some(errno)) if failure.at_bind => unbound(case, errno),
        (Address::Ip(_), Some(Errno::ECONNREFUSED)) => refused(case, failure),
        (Address::Ip(_), None | Some(Errno::ETIMEDOUT)) => silent(case),
        (Address::Ip(_), Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN)) => unreachable(case, failure),
        (Address::Ip(_), Some(Errno::EACCES | Errno::EPERM)) => denied(case, failure),
        (Address::Ip(address), Some(Errno::EADDRNOTAVAIL)) if address.is_ipv4() => no_ports(case),
        (Address::Ip(_), Some(errno)) => case
            .finding(case.weight(), Some("no-route"), format!("connect() fails at once: {errno}"))
            .why("nginx's connect() fails the same way, and no packet leaves.")
            .fix("see `ip route get` for the address where nginx runs; for IPv6 see that it is enabled there, or give nginx IPv4 addresses"),
    };
    let finding = match failure.errno {
        Some(errno) => finding.seen(format!(
            "{} from where nginx runs: {errno}{} after {}",
            if failure.at_bind { "bind() to the address of `proxy_bind`" } else { "connect()" },
            errno.text().map(|text| format!(" ({text})")).unwrap_or_default(),
            milliseconds(case.one.connect_us)
        )),
        None => finding.seen(format!("no answer to connect() within {}", milliseconds(case.one.connect_us))),
    };
    let finding = case.one.route.iter().fold(finding, |finding, route| finding.seen(format!("its route: {route}")));
    let finding = case.one.rules.iter().fold(finding, |finding, barrier| {
        let place = if barrier.at_upstream { "where the upstream runs" } else { "where nginx runs" };
        let doubt = if barrier.hit.certain { "" } else { "perhaps " };
        let what = if barrier.answer { "the answer to this connection" } else { "this connection" };
        finding.seen(format!("packet filter {place}, {doubt}met by {what}: {}", barrier.hit.text))
    });
    let finding = failure.icmp.into_iter().fold(finding, |finding, icmp| finding.seen(said(icmp)));
    let finding = case.one.here.iter().fold(finding, about_host);
    case.softened(finding)
}

fn refused(case: &Case<'_>, failure: &ConnectFailure) -> Finding {
    if let Some(finding) = filtered(case, failure) {
        return finding;
    }
    match &case.one.here {
        Some(here) if !here.listeners.is_empty() => {
            rejected(case, "the connection is refused though a listener is there".to_owned())
        }
        here => {
            let remote = here.as_ref().is_some_and(|here| !here.local);
            let title = if remote {
                "the upstream's host, or a packet filter before it, refuses the connection"
            } else {
                "nobody listens there"
            };
            let finding = case.finding(case.weight(), Some("upstream-refused"), title.to_owned());
            let finding = finding
                .why("Every request that nginx sends there is answered 502 at once, or goes to the next server.");
            let finding = finding.fix("start the upstream, or see in its own log why it ended");
            let nearby = here.iter().flat_map(|here| &here.nearby).next();
            match nearby {
                // The same port on another address or family; a process on another port is only worth a look.
                Some(owner)
                    if Some(owner.listener.address.port()) == case.one.address.ip().map(|address| address.port()) =>
                {
                    finding.fix(format!(
                        "if the one on {} is meant: make it listen on {}, or let nginx ask where it listens",
                        owner.listener.address, case.one.address
                    ))
                }
                _ => finding,
            }
        }
    }
}

fn rejected(case: &Case<'_>, title: String) -> Finding {
    case.finding(case.weight(), Some("firewall-rejected"), title)
        .why("A rule with REJECT makes nginx's connect() fail as if nobody listened: 502.")
        .fix("look for the rule with `nft list ruleset` or `iptables-save`, where nginx runs and where the upstream runs")
}

fn silent(case: &Case<'_>) -> Finding {
    let full = case.one.here.iter().flat_map(|here| &here.listeners).find_map(|owner| {
        let (waiting, limit) = owner.listener.accept_queue?;
        is_full((waiting, limit)).then_some((owner, waiting, limit))
    });
    if let Some((owner, waiting, limit)) = full {
        return case
            .finding(
                case.weight(),
                Some("accept-queue-overflow"),
                "the upstream listens and does not accept".to_owned(),
            )
            .seen(format!("{}: {waiting} connections wait to be accepted, {limit} may", described(owner)))
            .why("The kernel drops further SYNs: nginx answers 504 after its connect timeout.")
            .fix("find out why the upstream does not accept: all its workers busy, stopped, or out of descriptors")
            .fix("a larger backlog (listen() and net.core.somaxconn) helps against bursts only");
    }
    if has_rule(case, Fate::Dropped) {
        return case
            .finding(case.weight(), Some("firewall-dropped"), "a packet filter drops the connection request".to_owned())
            .why("nginx waits for its connect timeout, then answers 504 (or 502 when the kernel gives up first).")
            .fix("let the rule pass connections from nginx to the upstream");
    }
    case.finding(case.weight(), Some("syn-timeout"), "nobody answers the connection request".to_owned())
        .why("nginx waits for its connect timeout, then answers 504 (or 502 when the kernel gives up first).")
        .fix("see whether the host is up and the address still its own")
        .fix("see whether a packet filter or security group between drops it: `tcpdump` at both ends tells where the SYN is lost")
}

/// A packet filter's doing: its ICMP message says so, or a rule that is listed. A host that says of itself that it cannot be reached
/// has been reached.
fn filtered(case: &Case<'_>, failure: &ConnectFailure) -> Option<Finding> {
    let address = case.one.address.ip().map(|address| address.ip());
    let by_itself = |icmp: Icmp| icmp.from.is_some() && icmp.from == address && icmp.from != own(case);
    if failure.icmp.is_some_and(|icmp| icmp.is_filter() || by_itself(icmp)) {
        return Some(rejected(case, "a packet filter answers for the upstream".to_owned()));
    }
    // Without a route no packet came as far as a rule.
    (case.one.route.is_some() && has_rule(case, Fate::Rejected))
        .then(|| rejected(case, "a packet filter refuses the connection".to_owned()))
}

/// Our own address towards it, which speaks for neighbours that do not answer.
fn own(case: &Case<'_>) -> Option<std::net::IpAddr> {
    case.one.route.as_ref().and_then(|route| route.source)
}

/// A rule that is sure to do this to the connection. Whatever is done to the answer, nginx hears nothing.
fn has_rule(case: &Case<'_>, fate: Fate) -> bool {
    let does = |barrier: &&Barrier| if barrier.answer { fate == Fate::Dropped } else { barrier.hit.fate == fate };
    case.one.rules.iter().filter(does).any(|barrier| barrier.hit.certain)
}

fn unreachable(case: &Case<'_>, failure: &ConnectFailure) -> Finding {
    if let Some(finding) = filtered(case, failure) {
        return finding;
    }
    match failure.icmp {
        // A failed neighbour lookup comes back as an ICMP message of our own, some seconds later.
        Some(_) => host_unreachable(case),
        None if case.one.connect_us > 200_000 => host_unreachable(case),
        None => case
            .finding(case.weight(), Some("no-route"), "there is no route to the upstream".to_owned())
            .why("nginx's connect() fails at once and no packet leaves: 502.")
            .fix(
                "see `ip route get` for the address where nginx runs, and add the route or the network that is missing",
            ),
    }
}

fn host_unreachable(case: &Case<'_>) -> Finding {
    case.finding(case.weight(), Some("host-unreachable"), "the upstream's host cannot be reached".to_owned())
        .why("Nobody has the address on its network, or a router says so: nginx answers 502.")
        .fix("see whether the host is up, and whether the address is still its own (`ip neigh` shows FAILED)")
}

fn denied(case: &Case<'_>, failure: &ConnectFailure) -> Finding {
    if let Some(finding) = filtered(case, failure) {
        return finding;
    }
    case.finding(case.weight(), Some("connect-denied"), "the kernel denies the connection".to_owned())
        .why("nginx's connect() fails the same way: 502.")
        .fix("look for a route of type `prohibit` (`ip route get`) and for packet filter rules on this host's output")
        .fix("with SELinux: `setsebool -P httpd_can_network_connect on`")
}

fn no_ports(case: &Case<'_>) -> Finding {
    case.finding(case.weight(), Some("ephemeral-ports-exhausted"), "no local port is left for this upstream".to_owned())
        .why("Every connection to one address and port needs a local port of its own: 502 until some are free.")
        .fix("let nginx keep connections (`keepalive` in the upstream)")
        .fix("widen net.ipv4.ip_local_port_range, or give nginx more source addresses (`proxy_bind`)")
}

fn unbound(case: &Case<'_>, errno: Errno) -> Finding {
    if errno == Errno::EADDRINUSE {
        return no_ports(case);
    }
    case.finding(case.weight(), Some("bind-failed"), "nginx cannot take the address that `proxy_bind` gives".to_owned())
        .why("bind() fails before anything is sent: nginx answers 500 to every such request.")
        .fix("give it an address that an interface of nginx's host has (`ip address`), or take the `proxy_bind` out")
}

fn unix(case: &Case<'_>, path: &str, errno: Option<Errno>) -> Finding {
    let parts = case.one.path.as_deref().unwrap_or_default();
    match errno {
        Some(Errno::ENOENT | Errno::ENOTDIR) => {
            let missing = parts.iter().find(|part| part.mode.is_none()).map_or(path, |part| part.path.as_str());
            case.finding(case.weight(), Some("unix-socket-missing"), "the unix socket is not there".to_owned())
                .seen(format!("{missing} does not exist where nginx runs"))
                .why("nginx's connect() fails at once: 502.")
                .fix("start the upstream, or correct the path on one of the two sides")
                .fix("with PrivateTmp= or in a container nginx sees another /tmp or /run: share the directory")
        }
        Some(Errno::EACCES | Errno::EPERM) => {
            let finding =
                case.finding(case.weight(), Some("unix-socket-denied"), "nginx may not use the unix socket".to_owned());
            let barred = parts.iter().find(|part| !part.allowed && part.mode.is_some());
            let finding = match barred {
                Some(part) => finding.seen(format!("barred at {}", permissions(part))),
                None => finding.seen("the modes of the path would allow it: a security module may forbid it"),
            };
            finding
                .why("nginx's workers connect as their own user and need to pass every directory and to write to the socket: 502.")
                .fix("let the upstream make its socket for nginx's group (php-fpm: listen.owner, listen.group, listen.mode)")
                .fix("give the worker's user x on the directory it is barred at")
        }
        Some(Errno::EAGAIN) => case
            .finding(case.weight(), Some("unix-backlog-full"), "the unix socket's queue is full".to_owned())
            .why("The upstream does not accept: nginx's connect() fails at once with EAGAIN, 502.")
            .fix("give the upstream more workers, or find out what holds those it has")
            .fix("a larger backlog (php-fpm: listen.backlog, and net.core.somaxconn) helps against bursts only"),
        _ => case
            .finding(case.weight(), Some("unix-socket-refused"), "nobody listens on the unix socket".to_owned())
            .seen(format!("{path} is there; the process that made it is gone, or it is no stream socket"))
            .why("A socket's file stays when its process ends: nginx's connect() is refused, 502.")
            .fix("start the upstream: it replaces the stale file"),
    }
}

fn about_host(finding: Finding, here: &Here) -> Finding {
    if !here.local {
        return finding;
    }
    let finding = match here.listeners.as_slice() {
        [] => finding.seen("the address is this host's own, and no process listens on it"),
        listeners => {
            listeners.iter().fold(finding, |finding, owner| finding.seen(format!("there listens {}", described(owner))))
        }
    };
    match here.nearby.as_slice() {
        [] => finding,
        nearby => {
            let names: Vec<String> = nearby.iter().take(4).map(described).collect();
            finding.seen(format!("nearby listens {}", names.join("; ")))
        }
    }
}

fn described(owner: &Owner) -> String {
    let listener = &owner.listener;
    let mut text = listener.command.clone().unwrap_or_else(|| "a process".to_owned());
    if let Some(pid) = listener.pid {
        text = format!("{text} (pid {})", pid.0);
    }
    text = format!("{text} on {}", listener.address);
    if let Some((waiting, limit)) = listener.accept_queue {
        text = format!("{text}, {waiting} of {limit} waiting");
    }
    match &owner.unit {
        Some(unit) => format!("{text}, in {unit}"),
        None => text,
    }
}

fn permissions(part: &PathPart) -> String {
    let mode = part.mode.map_or_else(|| "?".to_owned(), |mode| format!("{:o}", mode & 0o7777));
    format!("{} (mode {mode}, uid {}, gid {})", part.path, part.uid, part.gid)
}

fn said(icmp: Icmp) -> String {
    let family = if icmp.v6 { "ICMPv6" } else { "ICMP" };
    let from = icmp.from.map_or_else(String::new, |from| format!(" from {from}"));
    format!("{family} type {} code {}{from} about the SYN", icmp.kind, icmp.code)
}

#[cfg(test)]
mod tests {
    use crate::{
        check::{
            Weight, judge,
            plan::endpoints,
            seen::{ConnectFailure, Here, Icmp, Owner, Seen, Try},
        },
        decode::config::layout,
        model::{
            host::Listener,
            net::{Address, Errno},
        },
    };

    fn seen(failure: ConnectFailure, here: Option<Here>) -> Seen {
        let layout = layout::read("http { server { location / { proxy_pass http://10.0.0.1:80; } } }").unwrap();
        let endpoints = endpoints(&layout, None);
        let one =
            Try { connect_us: 50, connect: Err(failure), here, ..Try::new(0, Address::parse("10.0.0.1:80").unwrap()) };
        Seen { layout, endpoints, tries: vec![one], ..Seen::default() }
    }

    fn listener(queue: (u32, u32)) -> Here {
        let listener = Listener {
            address: "10.0.0.1:80".parse().unwrap(),
            netns: None,
            pid: None,
            command: None,
            accept_queue: Some(queue),
        };
        Here { local: true, listeners: vec![Owner { listener, unit: None }], nearby: Vec::new() }
    }

    fn cause(failure: ConnectFailure, here: Option<Here>) -> Option<&'static str> {
        let findings = judge(&seen(failure, here));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].weight, Weight::Fault);
        findings[0].cause
    }

    #[test]
    fn each_way_to_fail_has_its_cause() {
        let error = |errno| ConnectFailure { errno: Some(errno), ..ConnectFailure::default() };
        let icmp = |errno, kind, code| {
            let icmp = Icmp { from: None, v6: false, kind, code };
            ConnectFailure { errno: Some(errno), icmp: Some(icmp), at_bind: false }
        };
        let nobody = || Some(Here { local: true, ..Here::default() });
        let cases = [
            (error(Errno::ECONNREFUSED), nobody(), "upstream-refused"),
            (error(Errno::ECONNREFUSED), Some(Here::default()), "upstream-refused"),
            (error(Errno::ECONNREFUSED), Some(listener((0, 128))), "firewall-rejected"),
            (icmp(Errno::ECONNREFUSED, 3, 3), nobody(), "firewall-rejected"),
            (icmp(Errno::EHOSTUNREACH, 3, 13), None, "firewall-rejected"),
            (icmp(Errno::EHOSTUNREACH, 3, 1), None, "host-unreachable"),
            (error(Errno::ENETUNREACH), None, "no-route"),
            (error(Errno::EACCES), None, "connect-denied"),
            (error(Errno::EADDRNOTAVAIL), None, "ephemeral-ports-exhausted"),
            (ConnectFailure { at_bind: true, ..error(Errno::EADDRNOTAVAIL) }, None, "bind-failed"),
            (ConnectFailure { at_bind: true, ..error(Errno::EADDRINUSE) }, None, "ephemeral-ports-exhausted"),
            (ConnectFailure::default(), None, "syn-timeout"),
            (ConnectFailure::default(), Some(listener((0, 128))), "syn-timeout"),
            (ConnectFailure::default(), Some(listener((129, 128))), "accept-queue-overflow"),
        ];
        for (failure, here, expected) in cases {
            assert_eq!(cause(failure.clone(), here.clone()), Some(expected), "{failure:?} {here:?}");
        }
    }
}
