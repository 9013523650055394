//! What nginx, its upstreams and the kernel may use, and what they do use.

use std::collections::BTreeSet;

use super::{
    finding::{Area, Finding, Weight},
    plan,
    seen::{Growth, HostSeen, ProcessSeen, Seen},
};

/// From this share on something is nearly used up.
const NEARLY_PERCENT: u64 = 80;
/// The kernel sends the first SYN again after a second, then after two more, and so on.
const FIRST_RETRY_S: u64 = 1;
/// A share of time in which everything waits (PSI, 10 s average) that slows requests down.
const PRESSURE_PERCENT: f64 = 40.0;

/// Judges the limits.
pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let Some(host) = &seen.host else { return Vec::new() };
    let mut findings = Vec::new();
    findings.extend(host.processes.iter().filter_map(open_files));
    findings.extend(worker_connections(seen, host));
    findings.extend(files_of_system(host));
    findings.extend(ports(seen, host));
    findings.extend(syn_retries(seen, host));
    findings.extend(conntrack(host));
    findings.extend(counters(host));
    findings.extend(backlogs(seen, host));
    findings.extend(groups(host));
    findings.extend(pressure(host));
    findings.extend(security(host));
    findings.extend(confined(host));
    findings
}

fn finding(weight: Weight, cause: Option<&'static str>, subject: &str, title: impl Into<String>) -> Finding {
    Finding::new(weight, Area::Limits, cause, subject, title)
}

fn percent(used: u64, limit: u64) -> u64 {
    used.saturating_mul(100).checked_div(limit).unwrap_or(0)
}

fn open_files(process: &ProcessSeen) -> Option<Finding> {
    let limit = process.open_limit?;
    let share = percent(process.open_files, limit);
    if share < NEARLY_PERCENT {
        return None;
    }
    let subject = format!("{} {}", process.command, process.pid.0);
    let (cause, fix) = if process.is_nginx {
        ("fd-exhausted-nginx", "`worker_rlimit_nofile` of at least twice worker_connections")
    } else {
        (
            "fd-exhausted-upstream",
            "raise its limit (systemd: LimitNOFILE=; container: --ulimit nofile), or find the descriptors it leaks",
        )
    };
    let full = process.open_files >= limit;
    let title = if full { "no file descriptor is left" } else { "file descriptors are nearly used up" };
    Some(
        finding(if full { Weight::Fault } else { Weight::Risk }, Some(cause), &subject, title)
            .seen(format!("{} of {limit} descriptors open ({share} %)", process.open_files))
            .why("At the limit accept() and socket() fail with EMFILE: 500 from nginx, refused or hanging connections to an upstream.")
            .fix(fix),
    )
}

fn worker_connections(seen: &Seen, host: &HostSeen) -> Vec<Finding> {
    // 512: ngx_event_core_module's default.
    let limit = seen.layout.worker_connections.unwrap_or(512);
    let mut findings = Vec::new();
    for worker in host.processes.iter().filter(|process| process.is_worker) {
        let share = percent(worker.sockets, limit);
        if share >= NEARLY_PERCENT {
            let full = worker.sockets >= limit;
            let title = if full { "no connection is left" } else { "connections are nearly used up" };
            findings.push(
                finding(
                    if full { Weight::Fault } else { Weight::Risk },
                    Some("worker-connections-exhausted"),
                    &format!("nginx worker {}", worker.pid.0),
                    title,
                )
                .seen(format!("about {} of {limit} worker_connections in use", worker.sockets))
                .why("A proxied request needs two. Without a free one nginx answers 500 or closes.")
                .fix("raise `worker_connections`, and `worker_rlimit_nofile` to twice as much"),
            );
        }
    }
    let file_limit =
        host.processes.iter().filter(|process| process.is_worker).filter_map(|worker| worker.open_limit).min();
    if let Some(file_limit) = file_limit.filter(|files| *files < limit) {
        findings.push(
            finding(
                Weight::Risk,
                Some("fd-exhausted-nginx"),
                "worker_rlimit_nofile",
                "workers may have more connections than files",
            )
            .seen(format!("worker_connections {limit}, limit of open files {file_limit}"))
            .why("Under load the files run out first: accept() and socket() fail with EMFILE, 500.")
            .fix(format!("`worker_rlimit_nofile {};`", limit.saturating_mul(2))),
        );
    }
    findings
}

fn files_of_system(host: &HostSeen) -> Option<Finding> {
    let (used, limit) = host.system_files?;
    let share = percent(used, limit);
    (share >= NEARLY_PERCENT).then(|| {
        finding(Weight::Risk, Some("fd-exhausted-system"), "fs.file-max", "the whole system's files are nearly used up")
            .seen(format!("{used} of {limit}"))
            .why("At the limit socket() fails with ENFILE for everybody: 500.")
            .fix("raise fs.file-max, or find who holds them")
    })
}

fn ports(seen: &Seen, host: &HostSeen) -> Vec<Finding> {
    let Some((low, high)) = host.port_range else { return Vec::new() };
    let size = u64::from(high.saturating_sub(low)) + 1;
    let bound = seen.endpoints.iter().any(|endpoint| endpoint.speech.bind.is_some());
    let busiest = host.ports_used.iter().map(|(upstream, used)| (*used, *upstream)).max();
    let mut findings = Vec::new();
    if let Some((used, upstream)) = busiest.filter(|(used, _)| percent(*used, size) >= NEARLY_PERCENT) {
        let full = used >= size;
        let title = if full {
            "no local port is left for this upstream"
        } else {
            "local ports for this upstream are nearly used up"
        };
        findings.push(
            finding(
                if full { Weight::Fault } else { Weight::Risk },
                Some("ephemeral-ports-exhausted"),
                &upstream.to_string(),
                title,
            )
            .seen(format!("{used} connections to {upstream}, waiting ones included; {size} ports ({low}-{high})"))
            .why("connect() fails with EADDRNOTAVAIL when none is left: 502.")
            .fix("let nginx keep connections (`keepalive` in the upstream, HTTP/1.1)")
            .fix("widen net.ipv4.ip_local_port_range, or more source or destination addresses"),
        );
    } else if size < 10_000 && !bound && !seen.endpoints.is_empty() {
        findings.push(
            finding(Weight::Note, Some("ephemeral-ports-exhausted"), "net.ipv4.ip_local_port_range", "there are few local ports")
                .seen(format!("{size} ports ({low}-{high}) where nginx runs"))
                .why("A port rests for a minute after its connection: more than this many connections a minute to one upstream fail with EADDRNOTAVAIL, 502.")
                .fix("the kernel's default is 32768-60999; keep connections open (`keepalive`)"),
        );
    }
    findings
}

/// Whether the kernel gives up before nginx does.
fn syn_retries(seen: &Seen, host: &HostSeen) -> Option<Finding> {
    let retries = host.syn_retries?;
    let kernel_s = gives_up_s(retries, host.syn_linear_timeouts.unwrap_or(0));
    let passes = seen.layout.passes.iter();
    let nginx_ms = passes.map(|pass| plan::timeout_ms(&seen.layout, pass, "connect_timeout")).max()?;
    (nginx_ms / 1_000 > kernel_s).then(|| {
        finding(
            Weight::Note,
            Some("syn-timeout"),
            "net.ipv4.tcp_syn_retries",
            "the kernel gives up connecting before nginx does",
        )
        .seen(format!(
            "tcp_syn_retries {retries}: about {kernel_s} s; the longest connect timeout: {} s",
            nginx_ms / 1_000
        ))
        .why("A server that does not answer makes a 502 (ETIMEDOUT) instead of nginx's 504.")
        .fix("a connect timeout of a few seconds")
    })
}

/// When the kernel gives up connecting, seconds: at the first timer after 1 + 2 + 4 + … seconds. Kernels from 6.5 repeat the SYN some times a
/// second apart before the waits double (`tcp_write_timeout()`, `tcp_retransmit_timer()`,
/// <https://elixir.bootlin.com/linux/v6.12/source/net/ipv4/tcp_timer.c>).
fn gives_up_s(retries: u64, linear: u64) -> u64 {
    let model = (0..=retries.min(16)).map(|n| FIRST_RETRY_S << n).sum::<u64>();
    let (mut at, mut wait, mut fired) = (0, FIRST_RETRY_S, 0);
    while at < model {
        at += wait;
        fired += 1;
        if fired > linear {
            wait <<= 1;
        }
    }
    at
}

fn conntrack(host: &HostSeen) -> Option<Finding> {
    let (count, limit) = host.conntrack?;
    let share = percent(count, limit);
    if share < NEARLY_PERCENT {
        return None;
    }
    let full = count >= limit;
    let weight = if full { Weight::Fault } else { Weight::Risk };
    Some(
        finding(
            weight,
            Some("firewall-dropped"),
            "net.netfilter.nf_conntrack_max",
            "the table of tracked connections is nearly full",
        )
        .seen(format!("{count} of {limit} entries ({share} %)"))
        .why("When it is full new connections are dropped without a word: 504.")
        .fix("raise nf_conntrack_max, or exempt the upstreams' traffic (notrack)"),
    )
}

fn counters(host: &HostSeen) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut tell = |growth: Option<Growth>, name: &str, title: &str, fix: &str| {
        let Some(growth) = growth.filter(|growth| growth.after > 0) else { return };
        let grew = growth.after.saturating_sub(growth.before);
        let weight = if grew > 0 { Weight::Risk } else { Weight::Note };
        findings.push(
            finding(weight, Some("accept-queue-overflow"), name, title)
                .seen(format!("{} since the network namespace exists, {grew} during this check", growth.after))
                .why("A listener of this network namespace was too slow to accept, now or some time ago: its clients saw timeouts (504).")
                .fix(fix),
        );
    };
    tell(
        host.listen_overflows,
        "ListenOverflows",
        "connections were dropped because an accept queue was full",
        "`ss -ltn` shows whose Recv-Q is above its Send-Q; give that server more workers or a larger backlog (net.core.somaxconn limits it)",
    );
    tell(
        host.syn_drops,
        "TCPReqQFullDrop",
        "SYNs were dropped because too many handshakes were unfinished",
        "`ss -tn state syn-recv` shows them: a flood, or clients whose packets do not come through; net.ipv4.tcp_syncookies=1 gets by without the queue",
    );
    findings
}

/// nginx's own backlog (`NGX_LISTEN_BACKLOG`, 511), which somaxconn cuts down.
const NGINX_BACKLOG: u64 = 511;
/// A backlog below this is full after a moment's pause of the server.
const SMALL_BACKLOG: u32 = 64;

/// Accept queues of the upstreams on this host, and what limits them.
fn backlogs(seen: &Seen, host: &HostSeen) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut known = BTreeSet::new();
    for owner in seen.tries.iter().flat_map(|one| &one.here).flat_map(|here| &here.listeners) {
        let listener = &owner.listener;
        let Some((waiting, limit)) = listener.accept_queue.filter(|_| known.insert((listener.address, listener.netns)))
        else {
            continue;
        };
        let whom = listener.command.as_deref().unwrap_or("a process");
        let subject = listener.address.to_string();
        let queue = format!("{whom} on {}: {waiting} connections wait to be accepted, {limit} may", listener.address);
        // One of those that wait may be this check's own.
        if waiting > 1 && percent(u64::from(waiting), u64::from(limit)) >= NEARLY_PERCENT {
            findings.push(
                finding(Weight::Risk, Some("accept-queue-overflow"), &subject, "an accept queue is nearly full")
                    .seen(queue)
                    .why("When it is full the kernel drops further SYNs: nginx answers 504 after its connect timeout.")
                    .fix(
                        "find out why the server does not accept: all its workers busy, stopped, or out of descriptors",
                    ),
            );
        } else if limit < SMALL_BACKLOG {
            findings.push(
                finding(Weight::Note, Some("accept-queue-overflow"), &subject, "the upstream's backlog is small")
                    .seen(queue)
                    .why("In a burst the queue is full before the server comes to accept: SYNs are dropped, connections take a second longer or time out.")
                    .fix("a larger backlog in the server's own settings (listen(fd, 511)); net.core.somaxconn limits it"),
            );
        }
    }
    if let Some(most) = host.somaxconn.filter(|most| *most < NGINX_BACKLOG) {
        findings.push(
            finding(
                Weight::Note,
                Some("accept-queue-overflow"),
                "net.core.somaxconn",
                "the kernel cuts backlogs short",
            )
            .seen(format!("net.core.somaxconn {most} where nginx runs; nginx itself asks for {NGINX_BACKLOG}"))
            .why("No listener of this network namespace has a longer queue, whatever it asks for.")
            .fix("net.core.somaxconn of 4096 (the kernel's default since 5.4), and restart the servers"),
        );
    }
    findings
}

fn groups(host: &HostSeen) -> Vec<Finding> {
    let mut findings = Vec::new();
    for group in &host.groups {
        let whom = group.members.join(", ");
        // Those of a group above are counted in the processes' own group too, or are somebody else's.
        if !group.is_above && group.oom_kills.is_some_and(|kills| kills > 0) {
            let kills = group.oom_kills.unwrap_or(0);
            findings.push(
                finding(
                    Weight::Risk,
                    Some("upstream-oom-killed"),
                    &whom,
                    format!("the kernel has killed {kills} processes here for want of memory"),
                )
                .seen(format!("{}: oom_kill {kills}", group.path))
                .why("Whoever was being answered by them got a 502.")
                .fix("raise the memory limit, or find what grows: fewer workers, limits within the application"),
            );
        }
        if let (Some(used), Some(limit)) = (group.memory, group.memory_limit)
            && percent(used, limit) >= 95
        {
            findings.push(
                finding(Weight::Risk, Some("upstream-oom-killed"), &whom, "memory is nearly used up")
                    .seen(format!(
                        "{}: {} of {} MiB (with what the kernel caches)",
                        group.path,
                        used >> 20,
                        limit >> 20
                    ))
                    .why("When nothing can be reclaimed the kernel kills a process of the group.")
                    .fix("raise the memory limit, or find what grows"),
            );
        }
        if let (Some(throttled), Some(periods)) = (group.throttled, group.periods)
            && periods > 0
            && percent(throttled, periods) >= 25
        {
            findings.push(
                finding(Weight::Risk, Some("read-timeout"), &whom, "the CPU limit is reached often")
                    .seen(format!("{}: held back in {throttled} of {periods} periods", group.path))
                    .why("Held back, an upstream answers late and a full accept queue drops connections: 504.")
                    .fix("raise the CPU limit, or remove it and set a weight instead"),
            );
        }
    }
    findings
}

fn pressure(host: &HostSeen) -> Vec<Finding> {
    let each = host.pressure.iter().filter(|(_, share)| *share >= PRESSURE_PERCENT).map(|(what, share)| {
        finding(
            Weight::Risk,
            Some("read-timeout"),
            &format!("pressure: {what}"),
            format!("the host is short of {what}"),
        )
        .seen(format!("in {share:.0} % of the last 10 s something waited for {what}"))
        .why("Everything takes longer: answers come after nginx's timeouts, 504.")
        .fix("`top`, `iotop`: find who uses it up")
    });
    each.collect()
}

fn security(host: &HostSeen) -> Option<Finding> {
    let label = host.nginx_label.as_deref()?;
    let enforced = host.selinux_enforcing == Some(true) && label.contains("httpd_t");
    let may_connect = host.httpd_can_network_connect?;
    (enforced && !may_connect).then(|| {
        finding(Weight::Risk, Some("connect-denied"), "httpd_can_network_connect", "SELinux keeps nginx from connecting to most ports")
            .seen(format!("SELinux enforces, nginx runs as {label}, httpd_can_network_connect is off"))
            .why("connect() to a port that policy does not allow fails with EACCES: 502. This check is not confined as nginx is, and gets through.")
            .fix("`setsebool -P httpd_can_network_connect on`")
    })
}

/// `AppArmor` confines nginx, and not this check.
fn confined(host: &HostSeen) -> Option<Finding> {
    let profile = host.nginx_label.as_deref().filter(|_| host.apparmor)?.strip_suffix(" (enforce)")?;
    // What container runtimes give to everybody lets connections through.
    let usual = ["docker-default", "crio-default", "cri-containerd.apparmor.d", "containers-default"];
    if usual.iter().any(|name| profile.starts_with(name)) {
        return None;
    }
    Some(
        finding(Weight::Note, Some("connect-denied"), profile, "AppArmor confines nginx")
            .seen(format!("nginx runs under the profile {profile}, in enforce mode"))
            .why("A connect() or a unix socket that the profile does not allow fails with EACCES: 502. This check is not confined, and gets through.")
            .fix("`journalctl -k -g apparmor=.DENIED` shows what it denied; `aa-complain` lets it through for a try"),
    )
}

#[cfg(test)]
mod tests;
