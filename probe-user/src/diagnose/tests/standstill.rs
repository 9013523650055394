//! A server that stands still: stopped by a signal, held by a debugger, frozen; and processes that do, which are not the reason.

use super::super::{
    causes,
    testing::{LENGTH, SERVER, World, counters, moment},
};
use crate::model::{
    coverage::Sensor,
    event::{Body, Source},
    evidence::Fact,
    flow::Side,
    host::HostFact,
    net::{Address, Errno},
    process::{Acceptor, Halt, Pid, ProcessEvent, Role, Sender},
    socket::{Socket, Syscall, SyscallEvent, TcpCounters, TcpState},
    verdict::{Confidence, Explanation},
};

const STOP: u32 = 19;
const CONT: u32 = 18;
const BASH: Option<(u32, &str)> = Some((99, "bash"));

fn acceptor(pid: Pid, parent: u32, halt: Option<Halt>) -> Acceptor {
    Acceptor { pid, parent: Pid(parent), command: "gunicorn".to_owned(), halt, files: Some((12, Some(1_024))) }
}

fn acceptors(world: &mut World, processes: Vec<Acceptor>) {
    let upstream = Address::parse("127.0.0.1:8000").unwrap();
    world.host(3_000, HostFact::Acceptors { upstream, netns: None, processes, all: true });
}

/// The connection of [`causes::read_timeout::tests::silent_here`], which nobody accepted.
fn queued() -> World {
    let mut world = causes::read_timeout::tests::silent_here();
    world.flow().accepted_by = None;
    world.flow().events.pop_back();
    world.state(-1_998_990, Side::Upstream, TcpState::SynReceived, TcpState::Established, None);
    let tcp = TcpCounters { bytes_received: u64::from(LENGTH) + 1, rcv_nxt: LENGTH + 1, ..counters(0, 0) };
    world.state_with(90, Side::Upstream, TcpState::Established, TcpState::CloseWait, tcp);
    world
}

fn says(explanation: &Explanation, piece: &str) {
    let told = explanation.summary.contains(piece) || explanation.fix.iter().any(|fix| fix.contains(piece));
    assert!(told, "{piece}: {explanation:#?}");
}

fn is_silent_of(explanation: &Explanation, piece: &str) {
    let told = explanation.summary.contains(piece) || explanation.fix.iter().any(|fix| fix.contains(piece));
    assert!(!told, "{piece}: {explanation:#?}");
}

fn told_signals(explanation: &Explanation) -> Vec<u32> {
    let signal = |fact: &Fact| match fact {
        Fact::Signalled { signal, .. } => Some(*signal),
        _ => None,
    };
    explanation.because.iter().filter_map(|evidence| signal(&evidence.fact)).collect()
}

#[test]
fn a_stopped_server_that_never_accepted_is_certain() {
    let mut world = queued();
    world.signal(-60_000_000, STOP, BASH);
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Stopped))]);
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    says(&explanation, "gunicorn (pid 88) stands still: SIGSTOP from bash (pid 99) 58.0 s before this attempt began");
    says(&explanation, "Nobody accepted the connection: it lay in the accept queue (0 waiting, limit 128)");
    says(&explanation, "`kill -CONT 88`");
    is_silent_of(&explanation, "take its stack");
    assert_eq!(told_signals(&explanation), [STOP]);
    assert!(explanation.because.iter().any(|evidence| evidence.fact == Fact::NeverAccepted));
}

#[test]
fn each_need_removed_leaves_it_likely() {
    let mut known = queued();
    acceptors(&mut known, vec![acceptor(SERVER, 1, None)]);
    known.expect("read-timeout", Confidence::Confirmed);

    let explanation = queued().expect("read-timeout", Confidence::Likely);
    assert_eq!(explanation.rivals, ["fd-exhausted-upstream"], "nobody looked at its descriptors");

    let mut full = queued();
    acceptors(&mut full, vec![Acceptor { files: Some((1_024, Some(1_024))), ..acceptor(SERVER, 1, None) }]);
    full.expect("read-timeout", Confidence::Likely);

    let mut others = queued();
    let upstream = Address::parse("127.0.0.1:8000").unwrap();
    let processes = vec![acceptor(SERVER, 1, None)];
    others.host(3_000, HostFact::Acceptors { upstream, netns: None, processes, all: false });
    others.expect("read-timeout", Confidence::Likely);

    let mut early = queued();
    let upstream = Address::parse("127.0.0.1:8000").unwrap();
    let processes = vec![acceptor(SERVER, 1, None)];
    early.host(-2_100_000, HostFact::Acceptors { upstream, netns: None, processes, all: true });
    early.expect("read-timeout", Confidence::Likely);

    let mut late = known.clone();
    late.flow().events.remove(1);
    late.state(-700_000, Side::Upstream, TcpState::SynReceived, TcpState::Established, None);
    let explanation = late.expect("read-timeout", Confidence::Likely);
    assert_eq!(explanation.rivals, ["accept-queue-overflow"], "it had to be sent again");

    let mut unwatched = known.clone();
    unwatched.case.configuration = None;
    unwatched.expect("read-timeout", Confidence::Likely);

    let mut read = known.clone();
    read.flow().events.pop_back();
    let tcp = TcpCounters { bytes_received: 313, rcv_nxt: 313, copied_seq: 312, ..counters(0, 0) };
    read.state_with(90, Side::Upstream, TcpState::Established, TcpState::CloseWait, tcp);
    read.expect("read-timeout", Confidence::Likely);

    known.blind(Sensor::Syscalls);
    known.expect("read-timeout", Confidence::Likely);
}

#[test]
fn an_accept_that_failed_for_want_of_descriptors_is_not_excluded() {
    let mut world = queued();
    acceptors(&mut world, vec![acceptor(SERVER, 1, None)]);
    let socket = Socket { remote: None, ..world.socket(Side::Upstream, TcpState::Listen, None) };
    let (result, socket, command) = (Err(Errno::EMFILE), Some(socket), "gunicorn".to_owned());
    world.syscall_of(-9_000_000, SERVER, Syscall::Accept { listener: 3, result, socket, peer: None, command });
    let explanation = world.explained();
    assert_ne!(
        (explanation.cause, explanation.confidence),
        ("read-timeout", Confidence::Confirmed),
        "{explanation:#?}"
    );
}

#[test]
fn a_server_that_has_the_request_and_is_stopped() {
    let mut world = causes::read_timeout::tests::silent_here();
    world.signal(-500_000, STOP, BASH);
    let (wait_channel, call) = (Some("do_signal_stop".to_owned()), None);
    let command = "gunicorn".to_owned();
    world.host(100, HostFact::ProcessState { pid: SERVER, command, state: 'T', wait_channel, call, halt: None });
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    says(
        &explanation,
        "gunicorn (pid 88) accepted it. gunicorn (pid 88) stands still: SIGSTOP from bash (pid 99) 499.9 ms before nginx gave up",
    );
    assert_eq!(told_signals(&explanation), [STOP]);
}

#[test]
fn who_stopped_it_is_not_claimed_where_it_was_not_seen() {
    let mut world = queued();
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Stopped))]);
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    says(&explanation, "who did that was not seen");
    // And what came before it had last gone on is another story.
    world.signal(-60_000_000, STOP, BASH);
    world.signal(-50_000_000, CONT, BASH);
    let explanation = world.explained();
    says(&explanation, "who did that was not seen");
    assert!(told_signals(&explanation).is_empty());
}

#[test]
fn a_stop_that_was_over_before_is_not_told() {
    let mut world = causes::read_timeout::tests::silent_here();
    world.signal(-9_000_000, STOP, BASH);
    world.signal(-8_000_000, CONT, BASH);
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    is_silent_of(&explanation, "SIGSTOP");
    assert!(told_signals(&explanation).is_empty());
}

#[test]
fn a_stop_that_came_when_nginx_had_given_up_is_not_told() {
    let mut world = queued();
    world.signal(50_000, STOP, BASH);
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Stopped))]);
    is_silent_of(&world.explained(), "still");
}

#[test]
fn a_stop_of_some_of_the_time_is_told_with_its_length() {
    let mut world = causes::read_timeout::tests::silent_here();
    world.signal(-1_500_000, STOP, BASH);
    world.signal(-700_000, CONT, Some((100, "sh")));
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    says(
        &explanation,
        "stood still: SIGSTOP from bash (pid 99) 1.4 s before nginx gave up, and 800.0 ms later SIGCONT from sh (pid 100)",
    );
    is_silent_of(&explanation, "kill -CONT");
    assert_eq!(told_signals(&explanation), [STOP, CONT]);
}

/// A program may have a handler for it.
#[test]
fn a_terminals_stop_is_told_only_of_a_process_that_was_found_stopped() {
    let mut world = causes::read_timeout::tests::silent_here();
    world.signal(-1_500_000, 20, None);
    is_silent_of(&world.explained(), "SIGTSTP");
    let (wait_channel, call, command) = (None, None, "gunicorn".to_owned());
    world.host(100, HostFact::ProcessState { pid: SERVER, command, state: 'T', wait_channel, call, halt: None });
    says(&world.explained(), "SIGTSTP from the kernel 1.4 s before nginx gave up");
}

#[test]
fn another_process_that_is_stopped_is_not_told() {
    let mut world = causes::read_timeout::tests::silent_here();
    let sender = Some(Sender { pid: Pid(99), command: "bash".to_owned() });
    world.process(
        -1_500_000,
        ProcessEvent::Signalled { target: Pid(4_711), role: Role::Upstream, signal: STOP, sender },
    );
    acceptors(&mut world, vec![acceptor(SERVER, 1, None), acceptor(Pid(4_711), 1, Some(Halt::Stopped))]);
    is_silent_of(&world.explained(), "still");
}

#[test]
fn a_master_that_stands_still_hinders_nobody() {
    let mut world = queued();
    world.signal(-60_000_000, STOP, BASH);
    let master = acceptor(SERVER, 1, Some(Halt::Stopped));
    let worker = |pid, halt| acceptor(Pid(pid), SERVER.0, halt);
    acceptors(&mut world, vec![master.clone(), worker(89, None), worker(90, None)]);
    is_silent_of(&world.explained(), "still");
    world.case.host.pop();
    acceptors(&mut world, vec![master.clone(), worker(89, Some(Halt::Stopped)), worker(90, None)]);
    says(&world.explained(), "1 of the 2 processes that may accept there stands still (gunicorn (pid 89))");
    world.case.host.pop();
    let stopped = Some(Halt::Stopped);
    acceptors(&mut world, vec![master, worker(89, stopped.clone()), worker(90, stopped)]);
    let explanation = world.explained();
    says(&explanation, "All 3 processes that may accept there stand still");
    says(&explanation, "`kill -CONT 88 89 90`");
}

#[test]
fn a_debugger_and_a_freezer_are_named() {
    let mut world = queued();
    let gdb = Sender { pid: Pid(5), command: "gdb".to_owned() };
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Traced(Some(gdb))))]);
    says(&world.expect("read-timeout", Confidence::Confirmed), "gdb (pid 5) holds it as a debugger does");
    world.case.host.pop();
    let switch = "/sys/fs/cgroup/pod/cgroup.freeze".to_owned();
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Frozen(switch)))]);
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    says(&explanation, "its control group is frozen (/sys/fs/cgroup/pod/cgroup.freeze)");
    says(&explanation, "`echo 0 > /sys/fs/cgroup/pod/cgroup.freeze`");
}

#[test]
fn a_full_accept_queue_of_a_stopped_server_says_so() {
    let mut world = causes::accept_queue_overflow::tests::full();
    world.signal(-60_000_000, STOP, BASH);
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Stopped))]);
    let explanation = world.expect("accept-queue-overflow", Confidence::Likely);
    says(&explanation, "gunicorn (pid 88) stands still: SIGSTOP from bash (pid 99)");
    says(&explanation, "`kill -CONT 88`");
}

/// It went on as soon as nginx had given up, and found the connection in its queue.
#[test]
fn what_was_accepted_too_late_was_not_accepted() {
    let mut world = queued();
    acceptors(&mut world, vec![acceptor(SERVER, 1, None)]);
    world.accepted();
    let mut known = world.clone();
    says(&known.explained(), "accepted it");
    let accept = |world: &mut World, us| {
        let (socket, command) = (Some(world.socket(Side::Upstream, TcpState::CloseWait, None)), "gunicorn".to_owned());
        let call = Syscall::Accept { listener: 3, result: Ok(7), socket, peer: None, command };
        let event = world.event(us, Source::Kernel, Body::from(SyscallEvent { pid: SERVER, tid: SERVER, call }));
        world.flow().events.push_back(event);
    };
    accept(&mut known, -1_000_000);
    says(&known.explained(), "accepted it");
    accept(&mut world, 60_000);
    says(&world.expect("read-timeout", Confidence::Confirmed), "Nobody accepted the connection");
}

/// The connection found room, and those after it did not: the queue is why nobody connects now, and not why this one was not answered.
#[test]
fn a_queue_that_filled_up_behind_it_is_not_why() {
    let mut world = queued();
    world.case.host.clear();
    let mut listener = world.listener("gunicorn");
    (listener.netns, listener.accept_queue) = (Some(7), Some((129, 128)));
    world.look_up(true, vec![listener], Vec::new());
    world.host(-2_500_000, HostFact::ListenOverflows { netns: 7, count: 10 });
    world.host(1_000, HostFact::ListenOverflows { netns: 7, count: 13 });
    acceptors(&mut world, vec![acceptor(SERVER, 1, Some(Halt::Stopped))]);
    let explanation = world.expect("read-timeout", Confidence::Confirmed);
    says(&explanation, "129 waiting, limit 128");
    assert!(world.attempt().started < Some(moment(-1_000_000)));
}
