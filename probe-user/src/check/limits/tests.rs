//! What is used up, and the nearest that is not.

use super::*;
use crate::{
    check::seen::{GroupSeen, Here, Owner, Try},
    decode::config::layout,
    model::{host::Listener, net::Address, process::Pid},
};

fn worker(open_files: u64, sockets: u64) -> ProcessSeen {
    let command = "nginx".to_owned();
    ProcessSeen { pid: Pid(8), command, is_nginx: true, is_worker: true, open_files, open_limit: Some(1_024), sockets }
}

fn judged(change: impl FnOnce(&mut HostSeen)) -> Vec<(Weight, Option<&'static str>)> {
    let text = "events { worker_connections 512; } http { server { location / { proxy_pass http://10.0.0.1; } } }";
    let mut host = HostSeen { processes: vec![worker(20, 10)], ..HostSeen::default() };
    change(&mut host);
    let layout = layout::read(text).unwrap();
    let endpoints = plan::endpoints(&layout, None);
    let seen = Seen { layout, endpoints, host: Some(host), ..Seen::default() };
    judge(&seen).into_iter().map(|finding| (finding.weight, finding.cause)).collect()
}

#[test]
fn a_quiet_host_has_nothing_to_say() {
    let quiet = judged(|host| {
        host.port_range = Some((32_768, 60_999));
        host.syn_retries = Some(6);
        host.conntrack = Some((10, 65_536));
        host.listen_overflows = Some(Growth { before: 0, after: 0 });
        host.system_files = Some((1_000, 100_000));
        host.pressure = vec![("cpu".to_owned(), 3.0)];
    });
    assert_eq!(quiet, []);
}

#[test]
fn what_is_used_up_is_told() {
    assert_eq!(judged(|host| host.processes = vec![worker(1_024, 10)]), [(Weight::Fault, Some("fd-exhausted-nginx"))]);
    assert_eq!(judged(|host| host.processes = vec![worker(900, 10)]), [(Weight::Risk, Some("fd-exhausted-nginx"))]);
    assert_eq!(
        judged(|host| host.processes = vec![worker(600, 512)]),
        [(Weight::Fault, Some("worker-connections-exhausted"))]
    );
    let upstream = "10.0.0.1:80".parse().unwrap();
    let full = judged(|host| {
        host.port_range = Some((40_000, 40_009));
        host.ports_used.insert(upstream, 10);
    });
    assert_eq!(full, [(Weight::Fault, Some("ephemeral-ports-exhausted"))]);
    assert_eq!(judged(|host| host.syn_retries = Some(1)), [(Weight::Note, Some("syn-timeout"))]);
    let grew = judged(|host| host.listen_overflows = Some(Growth { before: 3, after: 5 }));
    assert_eq!(grew, [(Weight::Risk, Some("accept-queue-overflow"))]);
    let drops = judged(|host| host.syn_drops = Some(Growth { before: 5, after: 5 }));
    assert_eq!(drops, [(Weight::Note, Some("accept-queue-overflow"))]);
    assert_eq!(judged(|host| host.conntrack = Some((95, 100))), [(Weight::Risk, Some("firewall-dropped"))]);
    assert_eq!(judged(|host| host.conntrack = Some((60, 100))), []);
    assert_eq!(judged(|host| host.system_files = Some((95, 100))), [(Weight::Risk, Some("fd-exhausted-system"))]);
    assert_eq!(judged(|host| host.somaxconn = Some(128)), [(Weight::Note, Some("accept-queue-overflow"))]);
    assert_eq!(judged(|host| host.somaxconn = Some(4_096)), []);
    assert_eq!(
        judged(|host| host.pressure = vec![("memory".to_owned(), 60.0)]),
        [(Weight::Risk, Some("read-timeout"))]
    );
}

#[test]
fn control_groups_and_what_they_hold_back() {
    let with = |group: GroupSeen| judged(|host| host.groups = vec![group]);
    let group = || GroupSeen { path: "/app".to_owned(), members: vec!["app 5".to_owned()], ..GroupSeen::default() };
    assert_eq!(with(group()), []);
    let oom = Some("upstream-oom-killed");
    assert_eq!(with(GroupSeen { oom_kills: Some(1), ..group() }), [(Weight::Risk, oom)]);
    assert_eq!(
        with(GroupSeen { oom_kills: Some(1), is_above: true, ..group() }),
        [],
        "somebody else's, or told already"
    );
    assert_eq!(with(GroupSeen { memory: Some(96), memory_limit: Some(100), ..group() }), [(Weight::Risk, oom)]);
    assert_eq!(with(GroupSeen { memory: Some(96), memory_limit: Some(100), is_above: true, ..group() }).len(), 1);
    assert_eq!(with(GroupSeen { memory: Some(96), memory_limit: None, ..group() }), []);
    let throttled = GroupSeen { throttled: Some(30), periods: Some(100), ..group() };
    assert_eq!(with(throttled), [(Weight::Risk, Some("read-timeout"))]);
    assert_eq!(with(GroupSeen { throttled: Some(3), periods: Some(100), ..group() }), []);
    assert_eq!(with(GroupSeen { throttled: Some(0), periods: Some(0), ..group() }), []);
}

#[test]
fn security_modules_that_confine_nginx() {
    let denied = [(Weight::Risk, Some("connect-denied"))];
    let selinux = |enforcing: bool, label: &str, may: bool| {
        judged(|host| {
            host.nginx_label = Some(label.to_owned());
            host.selinux_enforcing = Some(enforcing);
            host.httpd_can_network_connect = Some(may);
        })
    };
    assert_eq!(selinux(true, "system_u:system_r:httpd_t:s0", false), denied);
    assert_eq!(selinux(true, "system_u:system_r:httpd_t:s0", true), []);
    assert_eq!(selinux(false, "system_u:system_r:httpd_t:s0", false), [], "permissive");
    assert_eq!(selinux(true, "system_u:system_r:unconfined_t:s0", false), []);
    let apparmor = |label: &str, on: bool| {
        judged(|host| {
            host.nginx_label = Some(label.to_owned());
            host.apparmor = on;
        })
    };
    assert_eq!(apparmor("/usr/sbin/nginx (enforce)", true), [(Weight::Note, Some("connect-denied"))]);
    assert_eq!(apparmor("/usr/sbin/nginx (complain)", true), []);
    assert_eq!(apparmor("unconfined", true), []);
    assert_eq!(apparmor("docker-default (enforce)", true), []);
    assert_eq!(apparmor("/usr/sbin/nginx (enforce)", false), [], "another module's label");
}

#[test]
fn accept_queues_of_the_upstreams() {
    let with = |queue: (u32, u32)| {
        let layout = layout::read("http { server { location / { proxy_pass http://10.0.0.1; } } }").unwrap();
        let endpoints = plan::endpoints(&layout, None);
        let listener = Listener {
            address: "10.0.0.1:80".parse().unwrap(),
            netns: None,
            pid: Some(Pid(9)),
            command: Some("app".to_owned()),
            accept_queue: Some(queue),
        };
        let here = Here { local: true, listeners: vec![Owner { listener, unit: None }], nearby: Vec::new() };
        let one = Try { here: Some(here), ..Try::new(0, Address::parse("10.0.0.1:80").unwrap()) };
        let tries = vec![one.clone(), one];
        let seen = Seen { layout, endpoints, tries, host: Some(HostSeen::default()), ..Seen::default() };
        judge(&seen).into_iter().map(|finding| finding.weight).collect::<Vec<_>>()
    };
    assert_eq!(with((0, 511)), []);
    assert_eq!(with((1, 1)), [Weight::Note], "the one that waits may be ours");
    assert_eq!(with((0, 5)), [Weight::Note]);
    assert_eq!(with((110, 128)), [Weight::Risk]);
}

/// As measured on Linux 6.18 by connecting to an address that nobody has: 3.1, 7.1, 19.3 and 134.7 seconds.
#[test]
fn the_kernel_gives_up_when_it_does() {
    assert_eq!([1, 2, 3, 6].map(|retries| gives_up_s(retries, 4)), [3, 7, 19, 131]);
    assert_eq!([1, 6].map(|retries| gives_up_s(retries, 0)), [3, 127]);
    assert!(gives_up_s(u64::MAX, u64::MAX) > 0, "whatever /proc says");
}
