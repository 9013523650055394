//! Cases whose server was told to end.

use super::*;
use crate::model::{
    process::Sender,
    socket::{Syscall, SyscallEvent},
};

const SERVER: Pid = Pid(88);

/// A server accepts, is sent SIGABRT, and closes the connection; nginx answers 502.
fn aborted(world: &mut World) {
    let (local, upstream) = ("127.0.0.1:40000", "127.0.0.1:8000");
    world.upstream(upstream);
    world.state(socket(local, upstream, TcpState::Established), TcpState::SynSent);
    let accepted = socket(upstream, local, TcpState::Established);
    let call = Syscall::Accept {
        listener: 3,
        result: Ok(9),
        socket: Some(accepted.clone()),
        peer: None,
        command: "gunicorn".to_owned(),
    };
    world.tell(Source::Kernel, Body::from(SyscallEvent { pid: SERVER, tid: SERVER, call }));
    let sender = Some(Sender { pid: Pid(80), command: "gunicorn".to_owned() });
    let signal = ProcessEvent::Signalled { target: SERVER, role: Role::Upstream, signal: 6, sender };
    world.tell(Source::Kernel, Body::Process(signal));
    world.state(socket(local, upstream, TcpState::CloseWait), TcpState::Established);
    let said = ("upstream prematurely closed connection", None, CONNECTING);
    let closed = socket(local, upstream, TcpState::CloseWait);
    world.log((1, 41), said, upstream, Some(connection(1, closed)));
    world.answer(1, 41, 502, &[(upstream, 502, None)]);
}

fn poll(world: &mut World, ns: u64) -> Option<Case> {
    world.wait(ns);
    world.correlator.poll_case()
}

fn ends(case: &Case) -> usize {
    let ended = |event: &&Event| matches!(event.body, Body::Process(ProcessEvent::Exited { .. }));
    case.processes.iter().filter(ended).count()
}

#[test]
fn a_case_waits_for_the_end_that_was_asked_for() {
    let mut world = World::new();
    aborted(&mut world);
    assert_eq!(poll(&mut world, 300 * MS), None);
    world.exited(SERVER, Ending::Exit(1));
    let case = poll(&mut world, 400 * MS).expect("a case");
    assert_eq!(ends(&case), 1, "{:#?}", case.processes);
}

#[test]
fn but_not_for_ever() {
    let mut world = World::new();
    aborted(&mut world);
    assert_eq!(poll(&mut world, 300 * MS), None);
    let case = poll(&mut world, 400 * MS).expect("a case");
    assert_eq!(ends(&case), 0);
}

#[test]
fn an_end_that_was_seen_is_not_waited_for() {
    let mut world = World::new();
    aborted(&mut world);
    world.nobody_listens("127.0.0.1:8000");
    world.exited(SERVER, Ending::Exit(1));
    let case = poll(&mut world, 300 * MS).expect("a case");
    assert_eq!(ends(&case), 1);
}

#[test]
fn what_came_to_see_has_not_seen_what_was_before() {
    let mut world = World::new();
    world.upstream("127.0.0.1:8000");
    let hear = |world: &mut World, sight| {
        let why = (sight != Sight::On).then(|| "not yet".to_owned());
        world.tell(Source::Probe, Body::Coverage(Coverage::Sensor { sensor: Sensor::Syscalls, sight, why }));
    };
    let sight = |world: &mut World, number| {
        let peer = "127.0.0.1:8000";
        let closed = world.refused("127.0.0.1:40000", peer, 1);
        let said = ("connect() failed", Some(Errno::ECONNREFUSED), CONNECTING);
        world.log((number, number), said, peer, Some(connection(1, closed)));
        world.wait(MS);
        if number == 1 {
            hear(world, Sight::On);
        }
        world.answer(number, number, 502, &[(peer, 502, None)]);
        world.cases()[0].coverage.sight(Sensor::Syscalls)
    };
    hear(&mut world, Sight::Off);
    assert_eq!(sight(&mut world, 1), Sight::Off, "the attempt began before");
    world.wait(1_000 * MS);
    assert_eq!(sight(&mut world, 2), Sight::On);
    hear(&mut world, Sight::Degraded);
    assert_eq!(sight(&mut world, 3), Sight::Degraded, "what is seen less is less at once");
}

#[test]
fn an_icmp_message_may_come_before_the_call_has_returned() {
    use crate::model::{
        packet::IcmpPacket,
        socket::{Syscall, SyscallEvent},
    };
    let mut world = World::new();
    let (local, upstream) = ("10.0.0.1:40000", "10.9.9.9:8000");
    world.upstream(upstream);
    let about = (address(local), address(upstream));
    let from = "10.0.0.254".parse().unwrap();
    let icmp = IcmpPacket { from, icmp_type: 3, code: 13, v6: false, about, syn: Some(7) };
    let packet = PacketEvent { reference: PacketRef(1), netns: Some(7), body: PacketBody::Icmp(icmp) };
    let said = world.tell(Source::Packet, Body::Packet(packet));
    let mut asking = socket(local, upstream, TcpState::SynSent);
    if let Some(tcp) = &mut asking.tcp {
        tcp.write_seq = 8;
    }
    let call =
        Syscall::Connect { fd: 13, address: None, result: Err(Errno::EINPROGRESS), socket: Some(asking.clone()) };
    let called = world.tell(Source::Kernel, Body::from(SyscallEvent { pid: WORKER, tid: WORKER, call }));
    let complaint = ("connect() failed", Some(Errno::EHOSTUNREACH), CONNECTING);
    world.log((1, 41), complaint, upstream, Some(connection(1, asking)));
    world.answer(1, 41, 502, &[(upstream, 502, None)]);
    let cases = world.cases();
    let flow = cases[0].attempts[0].flow.one().expect("its connection");
    assert_eq!(flow.events.iter().map(|event| event.id).collect::<Vec<_>>(), [said, called]);
}
