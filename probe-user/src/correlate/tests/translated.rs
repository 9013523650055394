//! An upstream whose address the host translates.

use super::*;
use crate::model::flow::Side;

const MINE: &str = "10.0.0.1:40000";
const SERVICE: &str = "10.96.0.10:80";
const SERVER: &str = "10.244.0.5:8080";
/// nginx's end of another connection.
const OTHER: &str = "10.0.0.1:39000";

/// As it was told of another connection.
fn told(world: &mut World, upstream: &str, seen_as: Option<&str>) {
    tell(world, OTHER, upstream, seen_as);
}

/// As it was told of this connection to the Service.
fn told_of(world: &mut World, local: &str) {
    tell(world, local, SERVICE, None);
}

fn tell(world: &mut World, local: &str, upstream: &str, seen_as: Option<&str>) {
    let fact = HostFact::Translated {
        upstream: address(upstream),
        local: address(local),
        netns: Some(7),
        to: address(SERVER),
        seen_as: seen_as.map(address),
    };
    world.tell(Source::Probe, Body::from(fact));
}

fn theirs() -> Socket {
    Socket { tcp: None, ..socket(SERVER, MINE, TcpState::Established) }
}

/// nginx's end, and the server's end as its kernel has it, which resets the connection.
fn connect(world: &mut World) {
    world.state(socket(MINE, SERVICE, TcpState::Established), TcpState::SynSent);
    world.state(theirs(), TcpState::SynReceived);
}

fn reset(world: &mut World) {
    let change = SocketChange::ResetSent { reason: None, answered: None };
    world.tell(Source::Kernel, Body::from(SocketEvent { change, socket: theirs(), by: None }));
    let closed = socket(MINE, SERVICE, TcpState::Closed);
    world.reset_received(closed.clone());
    world.log((1, 41), ("recv() failed", Some(Errno::ECONNRESET), HEADER), SERVICE, Some(connection(1, closed)));
    world.answer(1, 41, 502, &[(SERVICE, 502, None)]);
}

const HEADER: &str = "reading response header from upstream";

/// What of the server's end belongs to the only case's attempt, where that was led if it was watched there, and what was told of which
/// connection.
fn found(world: &mut World) -> (usize, Option<SocketAddr>, Vec<(SocketAddr, SocketAddr)>) {
    let cases = world.cases();
    let [case] = cases.as_slice() else { panic!("{cases:#?}") };
    let flow = case.attempts[0].flow.one().expect("its connection");
    let told = case.host.iter().filter_map(|(.., fact)| match fact {
        HostFact::Translated { local, to, .. } => Some((*local, *to)),
        _ => None,
    });
    (flow.sockets(Side::Upstream).count(), flow.led.as_ref().map(|led| led.to), told.collect())
}

/// Its own end tells where it was led; that others were led there too is no news.
#[test]
fn the_servers_end_belongs_to_the_connection() {
    let mut world = World::new();
    world.upstream(SERVICE);
    told(&mut world, SERVICE, None);
    connect(&mut world);
    reset(&mut world);
    assert_eq!(found(&mut world), (2, Some(address(SERVER)), vec![]));
}

#[test]
fn what_was_seen_at_the_servers_end_is_shown_as_it_was_seen() {
    let mut world = World::new();
    world.upstream(SERVICE);
    told(&mut world, SERVICE, None);
    connect(&mut world);
    reset(&mut world);
    let cases = world.cases();
    let flow = cases[0].attempts[0].flow.one().expect("its connection");
    let shown = |side| {
        let (event, _) = flow.sockets(side).next().expect("an event of this side");
        let Body::Socket(shown) = flow.as_seen(event).into_owned().body else { panic!() };
        (shown.socket.local, shown.socket.remote)
    };
    assert_eq!(shown(Side::Upstream), (Some(address(SERVER)), Some(address(MINE))));
    assert_eq!(shown(Side::Nginx), (Some(address(MINE)), Some(address(SERVICE))));
}

/// What was not seen of its beginning would seem not to have happened.
#[test]
fn a_connection_from_before_is_left_alone() {
    let mut world = World::new();
    world.upstream(SERVICE);
    connect(&mut world);
    told(&mut world, SERVICE, None);
    reset(&mut world);
    // What was told is told of the connection that it was told of.
    assert_eq!(found(&mut world), (0, None, vec![(address(OTHER), address(SERVER))]));
}

/// The kernel's table tells of the connection itself, when it has failed.
#[test]
fn what_is_told_of_the_connection_itself_is_its_own() {
    let mut world = World::new();
    world.upstream(SERVICE);
    connect(&mut world);
    told_of(&mut world, MINE);
    reset(&mut world);
    assert_eq!(found(&mut world), (0, None, vec![(address(MINE), address(SERVER))]));
}

/// nginx's port comes back: what was told before it did is another connection's.
#[test]
fn what_was_told_of_an_older_connection_with_the_same_ends_is_not_its_own() {
    let mut world = World::new();
    world.upstream(SERVICE);
    told_of(&mut world, MINE);
    told(&mut world, SERVICE, Some("10.0.0.9:40000"));
    connect(&mut world);
    reset(&mut world);
    // Of the server only the newest that was told.
    assert_eq!(found(&mut world), (0, None, vec![(address(OTHER), address(SERVER))]));
}

#[test]
fn what_can_be_another_connection_is_left_alone() {
    // Two Services have the same server; nginx knows the server's address as well; nginx's own end is translated too.
    let spoilers: [fn(&mut World); 3] = [
        |world| told(world, "10.96.0.11:80", None),
        |world| world.upstream(SERVER),
        |world| told(world, SERVICE, Some("10.0.0.9:40000")),
    ];
    for spoil in spoilers {
        let mut world = World::new();
        world.upstream(SERVICE);
        told(&mut world, SERVICE, None);
        spoil(&mut world);
        connect(&mut world);
        // Where it was led is known, and yet what happened there is not put with it: nothing follows from its absence.
        told_of(&mut world, MINE);
        reset(&mut world);
        let (seen, led, _) = found(&mut world);
        assert_eq!((seen, led), (0, None));
    }
}

#[test]
fn a_recorder_keeps_what_was_told() {
    let mut world = World::new();
    told(&mut world, SERVICE, None);
    let id = EventId(world.events);
    assert!(world.correlator.memory().events.contains(&id));
}
