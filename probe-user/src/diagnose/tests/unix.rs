//! The process behind a unix socket: who accepted the connection, and whether its end was the connection's.

use crate::{
    diagnose::testing::{SERVER, World},
    model::{
        attempt::Joined,
        complaint::{Message, Phase},
        coverage::Sensor,
        event::{Body, Source},
        net::{Address, Errno},
        process::{Ending, ProcessEvent, Role},
        socket::{Socket, Syscall, SyscallEvent},
        verdict::Confidence,
    },
};

/// nginx's end of the connection.
const INODE: u64 = 5_001;
const FAULT: Ending = Ending::Signal { signal: 11, core: false };

/// A connection over a unix socket ends without a byte of an answer.
fn world() -> World {
    let mut world = World::new(502);
    let attempt = world.attempt();
    attempt.upstream = Some(Address::Unix("/run/app.sock".to_owned()));
    attempt.flow = Joined::None;
    attempt.socket_at_failure = Some(Socket::over_unix(INODE));
    attempt.bytes_sent = Some(80);
    world.closed_before_header();
    world
}

fn accept(world: &mut World) {
    let call = Syscall::Accept {
        listener: 3,
        result: Ok(9),
        socket: Some(Socket::over_unix(INODE + 1)),
        peer: Some(INODE),
        command: "gunicorn".to_owned(),
    };
    let body = Body::from(SyscallEvent { pid: SERVER, tid: SERVER, call });
    let event = world.event(-90, Source::Kernel, body);
    world.attempt().syscalls.push(event);
}

fn accepted() -> World {
    let mut world = world();
    accept(&mut world);
    world
}

fn held(world: &mut World, us: i64, connections: Vec<u64>) {
    world.process(us, ProcessEvent::Held { pid: SERVER, role: Role::Upstream, connections, all: true });
}

/// It ends by a fault of its own, and still holds the connection.
fn crashed() -> World {
    let mut world = accepted();
    world.signal(-50, 11, None);
    held(&mut world, -41, vec![INODE - 7, INODE]);
    world.exit(-40, FAULT);
    world
}

#[test]
fn the_end_of_the_process_that_held_it_is_the_connections() {
    let explanation = crashed().expect("upstream-crashed", Confidence::Confirmed);
    assert!(explanation.summary.contains("gunicorn (pid 88), which held this connection"), "{}", explanation.summary);
    let mut exited = accepted();
    held(&mut exited, -41, vec![INODE]);
    exited.exit(-40, Ending::Exit(3));
    exited.expect("upstream-exited", Confidence::Confirmed);
    let mut killed = accepted();
    killed.signal(-50, 9, Some((1, "systemd")));
    held(&mut killed, -41, vec![INODE]);
    killed.exit(-40, Ending::Signal { signal: 9, core: false });
    killed.expect("upstream-killed", Confidence::Confirmed);
}

#[test]
fn without_what_it_held_the_order_is_not_known() {
    let mut world = crashed();
    world.case.processes.retain(|event| !matches!(event.body, Body::Process(ProcessEvent::Held { .. })));
    world.expect("upstream-crashed", Confidence::Likely);
}

#[test]
fn what_it_had_closed_before_it_ended_was_not_its_ends_doing() {
    let mut world = accepted();
    held(&mut world, -41, vec![INODE - 7]);
    world.exit(-40, Ending::Exit(0));
    world.expect("premature-close", Confidence::Confirmed);
}

#[test]
fn an_end_after_the_failure_is_another_story() {
    let mut world = accepted();
    held(&mut world, 30_000, vec![INODE]);
    world.exit(30_001, FAULT);
    world.expect("premature-close", Confidence::Confirmed);
}

#[test]
fn somebody_elses_end_is_not_the_holders() {
    let mut world = crashed();
    world.attempt().syscalls.clear();
    world.expect("premature-close", Confidence::Likely);
    accept(&mut world);
    world.expect("upstream-crashed", Confidence::Confirmed);
}

#[test]
fn a_close_by_a_process_that_lives_on() {
    accepted().expect("premature-close", Confidence::Confirmed);
    world().expect("premature-close", Confidence::Likely);
    let mut blind = accepted();
    blind.blind(Sensor::Processes);
    blind.expect("premature-close", Confidence::Likely);
    let mut asked = accepted();
    asked.signal(-500, 15, Some((80, "gunicorn")));
    asked.expect("premature-close", Confidence::Likely);
}

#[test]
fn an_idle_close_that_crossed_the_request() {
    let mut world = World::new(502);
    let attempt = world.attempt();
    attempt.upstream = Some(Address::Unix("/run/app.sock".to_owned()));
    attempt.flow = Joined::None;
    attempt.socket_at_failure = Some(Socket::over_unix(INODE));
    (attempt.reused, attempt.requests_before) = (Some(true), Some(3));
    let text = "writev() failed";
    world.complain(Message::SendFailed, Phase::Sending, Some(Errno::EPIPE), text);
    world.expect("keepalive-race", Confidence::Likely);
    accept(&mut world);
    world.expect("keepalive-race", Confidence::Confirmed);
}

#[test]
fn a_close_over_a_request_unread_is_a_reset() {
    let mut world = accepted();
    world.attempt().complaint = None;
    world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
    world.expect("upstream-reset", Confidence::Confirmed);
    world.attempt().syscalls.clear();
    world.expect("upstream-reset", Confidence::Likely);
}
