//! Names that the kernel and nginx give again at once: pids, socket pointers, request pointers.

use super::*;
use crate::model::socket::{Syscall, SyscallEvent};

const SERVER: Pid = Pid(88);

fn accepted(world: &mut World, local: &str, upstream: &str) {
    let call = Syscall::Accept {
        listener: 3,
        result: Ok(9),
        socket: Some(socket(upstream, local, TcpState::Established)),
        peer: None,
        command: "gunicorn".to_owned(),
    };
    world.tell(Source::Kernel, Body::from(SyscallEvent { pid: SERVER, tid: SERVER, call }));
}

fn closed_without_an_answer(world: &mut World, request: u64, local: &str, upstream: &str) {
    world.state(socket(local, upstream, TcpState::CloseWait), TcpState::Established);
    let said = ("upstream prematurely closed connection", None, CONNECTING);
    world.log(
        (request, 40 + request),
        said,
        upstream,
        Some(connection(1, socket(local, upstream, TcpState::CloseWait))),
    );
    world.answer(request, 40 + request, 502, &[(upstream, 502, None)]);
}

/// A process is killed and ten microseconds later another one with its pid serves: its end is nobody's reason.
#[test]
fn a_pid_given_again_is_another_process() {
    let mut world = World::new();
    let (first, second, upstream) = ("127.0.0.1:40000", "127.0.0.1:40001", "127.0.0.1:8000");
    world.upstream(upstream);
    world.state(socket(first, upstream, TcpState::Established), TcpState::SynSent);
    accepted(&mut world, first, upstream);
    world.exited(SERVER, Ending::Signal { signal: 9, core: false });
    world.state(socket(second, upstream, TcpState::Established), TcpState::SynSent);
    accepted(&mut world, second, upstream);
    closed_without_an_answer(&mut world, 2, second, upstream);
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    let flow = case.attempts[0].flow.one().expect("its flow");
    assert_eq!(flow.local, Some(address(second)));
    let began = flow.events.front().map(|event| event.at).expect("events");
    let ends = case.processes.iter().filter(|event| matches!(event.body, Body::Process(ProcessEvent::Exited { .. })));
    for end in ends {
        assert!(end.at.before(&began), "the end of the one before is told as what it is: {end:#?}");
    }
}

/// Two connections that fail one after another, whose sockets lie at the same address in the kernel.
#[test]
fn a_socket_pointer_given_again_is_another_connection() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    world.upstream("127.0.0.1:8001");
    for (request, local, upstream) in
        [(1, "127.0.0.1:40000", "127.0.0.1:8000"), (2, "127.0.0.1:40001", "127.0.0.1:8001")]
    {
        let closed = world.refused(local, upstream, 7);
        let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
        world.log((request, request), said, upstream, Some(connection(1, closed)));
        world.answer(request, request, 502, &[(upstream, 502, None)]);
    }
    let cases = world.cases();
    let flows: Vec<_> = cases.iter().map(|case| case.attempts[0].flow.one().expect("its flow")).collect();
    let told: Vec<_> = flows.iter().map(|flow| (flow.local, flow.upstream, flow.events.len())).collect();
    let flow = |local, upstream| (Some(address(local)), address(upstream), 3);
    assert_eq!(told, [flow("127.0.0.1:40000", "127.0.0.1:8000"), flow("127.0.0.1:40001", "127.0.0.1:8001")]);
}

/// nginx's pools give the same memory to the next request of the worker.
#[test]
fn a_request_pointer_given_again_is_another_request() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    world.upstream("127.0.0.1:8001");
    for (number, local, upstream) in
        [(41, "127.0.0.1:40000", "127.0.0.1:8000"), (42, "127.0.0.1:40001", "127.0.0.1:8001")]
    {
        let closed = world.refused(local, upstream, 7);
        let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
        world.log((1, number), said, upstream, Some(connection(1, closed)));
        world.answer(1, number, 502, &[(upstream, 502, None)]);
    }
    let cases = world.cases();
    let told: Vec<_> = cases
        .iter()
        .map(|case| (case.request.connection, case.attempts.len(), case.attempts[0].upstream.clone()))
        .collect();
    let upstream = |text| Some(Address::Ip(address(text)));
    assert_eq!(told, [(Some(41), 1, upstream("127.0.0.1:8000")), (Some(42), 1, upstream("127.0.0.1:8001"))]);
}

/// A connection is kept open for an hour, and then its upstream closes it before it has answered: whether somebody asked for it meanwhile,
/// or whether it was let sleep, its case is the same, and it has everything from the first moment on.
#[test]
fn a_connection_that_has_slept_is_told_whole() {
    let told = |hour: u64| {
        let mut world = World::new();
        let (local, upstream) = ("127.0.0.1:40000", "127.0.0.1:8000");
        world.upstream(upstream);
        world.state(socket(local, upstream, TcpState::Established), TcpState::SynSent);
        accepted(&mut world, local, upstream);
        world.wait(1);
        for _ in 0..60 {
            world.wait(hour / 60);
        }
        let known = world.correlator.memory().events;
        closed_without_an_answer(&mut world, 2, local, upstream);
        // The time between is all that may differ.
        let cases = world.cases();
        let [case] = cases.as_slice() else { panic!("{cases:#?}") };
        let flow = case.attempts[0].flow.one().expect("its flow").clone();
        let events: Vec<_> = flow.events.iter().map(|event| (event.id, event.source, event.body.clone())).collect();
        (known, flow.accepted_by, flow.seen_from_start, events)
    };
    let slept = told(3_600_000 * MS);
    assert_eq!((slept.1.clone(), slept.2, slept.3.len()), (Some((SERVER, "gunicorn".to_owned())), true, 3));
    assert_eq!(slept, told(0));
}

/// `post_action`: the client has its 200 when the upstream of the action fails. nginx makes a 502 of that and sends none.
#[test]
fn what_fails_after_the_answer_is_no_failure_of_it() {
    for world in [World::new, World::without_headers] {
        let told = |answered: Option<u16>| {
            let mut world = world();
            world.upstream("127.0.0.1:8000");
            world.answered = answered;
            let closed = world.refused("127.0.0.1:40000", "127.0.0.1:8000", 1);
            let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
            world.log((1, 41), said, "127.0.0.1:8000", Some(connection(1, closed)));
            world.answer(1, 41, 502, &[("127.0.0.1:8000", 502, None)]);
            let cases = world.cases();
            assert_eq!(cases.len(), 1, "{cases:#?}");
            (cases[0].kind, cases[0].status)
        };
        assert_eq!(told(Some(200)), (CaseKind::NearMiss, Some(200)));
        assert_eq!(told(None), (CaseKind::Incident, Some(502)));
    }
}
