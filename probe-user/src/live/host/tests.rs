use std::{net::TcpListener, time::Instant};

use super::*;

fn facts(fact: HostFact) -> (bool, Vec<Listener>, Vec<Listener>) {
    match fact {
        HostFact::Listeners { local, listeners, nearby, .. } => (local, listeners, nearby),
        other => panic!("{other:?}"),
    }
}

fn at(ip: &str, listener: &TcpListener) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), listener.local_addr().unwrap().port())
}

#[test]
fn as_root_a_listener_is_found_with_its_process() {
    assert!(nix::unistd::geteuid().is_root(), "this test looks into namespaces: run it as root");
    let own = Pid(std::process::id());
    let listener = TcpListener::bind("127.0.0.5:0").unwrap();
    let mut host = Host::default();
    let (local, listeners, nearby) = facts(host.listeners(None, listener.local_addr().unwrap()));
    assert!(local && nearby.is_empty());
    let [found] = listeners.as_slice() else { panic!("{listeners:?}") };
    assert_eq!((found.address, found.pid), (listener.local_addr().unwrap(), Some(own)));
    assert_eq!(found.netns, process::netns(own.0));
    assert!(found.command.is_some());
    assert!(found.accept_queue.is_some_and(|(waiting, limit)| waiting == 0 && limit >= 128));

    let upstreams = [listener.local_addr().unwrap(), at("127.0.0.6", &listener)];
    let holders = host.holders(None, &upstreams);
    let who: Vec<_> = holders.iter().map(|(upstream, pid, _)| (*upstream, *pid)).collect();
    // Tests that start programs hold it for a moment too: between fork and exec.
    assert!(who.contains(&(upstreams[0], own)) && who.iter().all(|(upstream, _)| *upstream == upstreams[0]), "{who:?}");

    // Another loopback address: nobody, but the port is taken nearby.
    let (local, listeners, nearby) = facts(host.listeners(None, at("127.0.0.6", &listener)));
    assert!(local && listeners.is_empty());
    assert_eq!(nearby.iter().map(|one| one.pid).collect::<Vec<_>>(), [Some(own)]);

    // The address is not this host's.
    let (local, listeners, nearby) = facts(host.listeners(None, at("192.0.2.1", &listener)));
    assert!(!local && listeners.is_empty() && nearby.is_empty());

    // A connection that nobody accepts waits.
    let _waiting = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_, listeners, _) = facts(host.listeners(None, listener.local_addr().unwrap()));
    assert_eq!(listeners[0].accept_queue.map(|(waiting, _)| waiting), Some(1));

    // Gone: the same process elsewhere is worth a hint.
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, listeners, nearby) = facts(host.listeners(None, gone));
    assert!(listeners.is_empty());
    assert!(
        nearby.iter().any(|one| one.address == elsewhere.local_addr().unwrap() && one.pid == Some(own)),
        "{nearby:?}"
    );
}

#[test]
fn as_root_an_ipv6_wildcard_takes_ipv4() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let (_, listeners, _) = facts(Host::default().listeners(None, at("127.0.0.9", &listener)));
    assert_eq!(listeners.iter().map(|one| one.address).collect::<Vec<_>>(), [listener.local_addr().unwrap()]);
}

#[test]
fn as_root_other_namespaces_are_looked_into() {
    // A namespace with a listener on an address of its own, held by a thread.
    let (ready, wait) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up =
            |arguments: &[&str]| assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
        up(&["link", "set", "lo", "up"]);
        up(&["address", "add", "203.0.113.77/32", "dev", "lo"]);
        let listener = TcpListener::bind("203.0.113.77:8123").unwrap();
        // Only a process makes a namespace known; a child of this thread stands for it.
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        ready.send(process::netns(child.id()).unwrap()).unwrap();
        let _ = stopped.recv();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(listener);
    });
    let netns = wait.recv().unwrap();
    let upstream = "203.0.113.77:8123".parse().unwrap();
    let mut host = Host::default();
    let (local, listeners, _) = facts(host.listeners(None, upstream));
    assert!(local);
    assert_eq!(listeners.iter().map(|one| one.netns).collect::<Vec<_>>(), [Some(netns)]);
    // Loopback there is not loopback here.
    let (_, listeners, nearby) = facts(host.listeners(None, "127.0.0.1:8123".parse().unwrap()));
    assert!(listeners.is_empty() && nearby.is_empty());
    let (_, listeners, nearby) = facts(host.listeners(Some(netns), "127.0.0.1:8123".parse().unwrap()));
    assert!(listeners.is_empty() && nearby.len() == 1);
    stop.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn files_and_states_of_processes() {
    let own = Pid(std::process::id());
    let Some(HostFact::OpenFiles { open, limit, .. }) = open_files(own) else { panic!() };
    assert!(open > 2 && limit.is_none_or(|limit| limit >= open));
    let Some(HostFact::ProcessState { state, .. }) = process_state(own) else { panic!() };
    assert!(matches!(state, 'R' | 'S'));
    assert!(open_files(Pid(u32::MAX)).is_none() && process_state(Pid(u32::MAX)).is_none());
}

#[test]
fn a_question_is_cheap() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut host = Host::default();
    host.listeners(None, listener.local_addr().unwrap());
    let began = Instant::now();
    host.listeners(None, listener.local_addr().unwrap());
    assert!(began.elapsed().as_millis() < 100, "{:?}", began.elapsed());
}
