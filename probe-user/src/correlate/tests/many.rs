//! Very many connections to one upstream.

use proptest::prelude::*;

use super::*;
use crate::model::{
    flow::Flow,
    socket::{Syscall, SyscallEvent},
};

const UPSTREAM: &str = "127.0.0.1:8000";

/// A connection that nginx makes, by descriptor, and keeps.
fn connect(world: &mut World, number: u64, fd: i32) {
    let local = format!("127.1.{}.{}:{}", number / 250 % 250, number % 250 + 1, 1_024 + number % 60_000);
    let open = socket(&local, UPSTREAM, TcpState::SynSent);
    let call = Syscall::Connect { fd, address: None, result: Err(Errno::EINPROGRESS), socket: Some(open) };
    world.tell(Source::Kernel, Body::from(SyscallEvent { pid: WORKER, tid: WORKER, call }));
    world.state(socket(&local, UPSTREAM, TcpState::Established), TcpState::SynSent);
}

/// The server's own 502, of which nginx does not complain: the connection is found by its descriptor.
fn pass_on(world: &mut World, number: u64) {
    let fd = 20 + i32::try_from(number % 30_000).unwrap();
    let made = NginxEvent::Connection { worker: WORKER, number, request: Some(key(number)), fd };
    world.tell(Source::Kernel, Body::Nginx(made));
    connect(world, number, fd);
    world.status(StatusPoint::SendHeader, number, number, 502, &[(UPSTREAM, 502, Some(1))]);
}

#[test]
fn a_connection_is_found_among_very_many_without_looking_at_each() {
    let mut world = World::new();
    world.upstream(UPSTREAM);
    (0..20_000).for_each(|number| connect(&mut world, number, 20 + i32::try_from(number % 15_000).unwrap()));
    (20_000..20_100).for_each(|number| pass_on(&mut world, number));
    // A hundred failures looked at two million connections, which took a second and more.
    let began = std::time::Instant::now();
    let cases = world.cases();
    assert_eq!(cases.iter().filter(|case| case.attempts[0].flow.one().is_some()).count(), 100);
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
}

/// The client keeps its connection and nginx uses the request's memory again: what the request before had made is not this one's.
#[test]
fn a_connection_of_the_clients_request_before_is_not_this_ones() {
    let joined = |apart_ms: u64| {
        let mut world = World::new();
        world.upstream(UPSTREAM);
        let made = NginxEvent::Connection { worker: WORKER, number: 41, request: Some(key(1)), fd: 20 };
        world.tell(Source::Kernel, Body::Nginx(made));
        connect(&mut world, 41, 20);
        world.wait(apart_ms * MS);
        let said = ("connect() failed", Some(Errno::EADDRNOTAVAIL), CONNECTING);
        world.log((1, 41), said, UPSTREAM, None);
        world.answer(1, 41, 502, &[(UPSTREAM, 502, None)]);
        let cases = world.cases();
        cases[0].attempts[0].flow.one().is_some()
    };
    assert!(joined(0) && !joined(400));
}

proptest! {
    /// What the calls lead to is what looking at every connection finds.
    #[test]
    fn the_calls_lead_to_every_connection_that_can_be_meant(
        made in prop::collection::vec((0_u64..40, 3..6, 0..3_u64), 1..80),
        (from, length) in (0..4_000_u64, 0..2_000_u64),
    ) {
        let mut world = World::new();
        world.upstream(UPSTREAM);
        let start = world.now;
        for (number, fd, pause) in made {
            connect(&mut world, number, fd);
            world.wait(pause * 20_000);
        }
        let window = At::between(Moment(start + from * 1_000), Moment(start + (from + length) * 1_000));
        for fd in 3..6 {
            let meant = |flow: &Flow| {
                flow.events.iter().any(|event| match &event.body {
                    Body::Syscall(call) => {
                        matches!(call.call, Syscall::Connect { fd: of, .. } if of == fd) && event.at.overlaps(&window)
                    }
                    _ => false,
                })
            };
            let flows = &world.correlator.flows;
            let all: Vec<_> = flows.towards(address(UPSTREAM), window).filter(|flow| meant(flow)).map(|flow| flow.id).collect();
            let connected = flows.connected(address(UPSTREAM), WORKER, fd, window);
            prop_assert_eq!(connected.iter().map(|flow| flow.id).collect::<Vec<_>>(), all);
        }
    }
}
