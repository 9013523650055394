//! Servers that end.

use super::*;

/// A server that held the connection ends 120 µs before nginx decides; its FIN follows.
pub(crate) fn broken_by_exit(how: Ending) -> World {
    let mut world = World::new(502);
    world.listening();
    world.accepted();
    world.attempt().started = Some(moment(-50_000));
    world.connect(-49_900);
    world.exit(-120, how);
    let tcp = counters(START + LENGTH, START + LENGTH);
    world.state_with(-80, Side::Nginx, TcpState::Established, TcpState::CloseWait, tcp);
    world.sent(TcpState::CloseWait, START + LENGTH);
    world.closed_before_header();
    world
}

/// A server whose handler of a signal closes what is open, 400 µs before nginx decides, and ends 20 ms later.
pub(crate) fn closed_by_handler(how: Ending) -> World {
    let mut world = World::new(502);
    world.listening();
    world.accepted();
    world.attempt().started = Some(moment(-2_000_000));
    world.connect(-1_999_900);
    let change = SocketChange::State { from: TcpState::Established };
    let socket = world.socket(Side::Upstream, TcpState::FinWait1, None);
    world.of_flow(-400, Source::Kernel, Body::from(SocketEvent { change, socket, by: Some(SERVER) }));
    let tcp = counters(START + LENGTH, START + LENGTH);
    world.state_with(-380, Side::Nginx, TcpState::Established, TcpState::CloseWait, tcp);
    world.sent(TcpState::CloseWait, START + LENGTH);
    world.closed_before_header();
    world.exit(20_000, how);
    world
}

/// The upstream listens, and nobody accepts; 100 µs before nginx decides this process closes the listener.
pub(crate) fn unaccepted(closer: Pid) -> World {
    let mut world = World::new(502);
    world.listening();
    world.attempt().started = Some(moment(-50_000));
    world.connect(-49_900);
    listener_closed(&mut world, -100, closer);
    world.state(-60, Side::Upstream, TcpState::Established, TcpState::Closed, None);
    world.reset_sent(-59, "TCP_STATE", None);
    world.reset_received(-58, TcpState::Established);
    world.sent(TcpState::Closed, START + LENGTH);
    world.complain(Message::ReceiveFailed, Phase::ReadingHeader, Some(Errno::ECONNRESET), "recv() failed");
    world
}

/// A process closes its listener on the upstream's address.
pub(crate) fn listener_closed(world: &mut World, us: i64, closer: Pid) {
    let socket = Socket { remote: None, ..world.socket(Side::Upstream, TcpState::Closed, None) };
    let change = SocketChange::State { from: TcpState::Listen };
    let event = world.event(us, Source::Kernel, Body::from(SocketEvent { change, socket, by: Some(closer) }));
    world.case.processes.push(event);
}

/// The upstream's end of the connection is closed by this process.
pub(crate) fn closed_by(world: &mut World, us: i64, pid: Pid) {
    let change = SocketChange::State { from: TcpState::Established };
    let socket = world.socket(Side::Upstream, TcpState::FinWait1, None);
    world.of_flow(us, Source::Kernel, Body::from(SocketEvent { change, socket, by: Some(pid) }));
}
