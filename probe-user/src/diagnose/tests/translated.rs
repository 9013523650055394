//! An upstream whose address this host translates: what is said of the server, and what is not known of it.

use crate::{
    diagnose::{
        causes::{premature_close::tests::closed, upstream_refused::tests::refused},
        testing::{World, moment},
    },
    model::{
        evidence::Fact,
        flow::Led,
        host::HostFact,
        time::At,
        verdict::{Confidence, Explanation},
    },
};

const SERVICE: &str = "10.96.0.10:80";
const SERVER: &str = "10.244.0.5:8080";
const ANOTHER: &str = "10.244.0.6:8080";
/// nginx's end of the world's connection, and of another.
const OWN: &str = "127.0.0.1:41822";
const OTHER: &str = "127.0.0.1:41700";

impl World {
    /// The kernel's table told where a connection was led.
    fn told(&mut self, us: i64, local: &str, to: &str) {
        let fact = HostFact::Translated {
            upstream: SERVICE.parse().unwrap(),
            local: local.parse().unwrap(),
            netns: None,
            to: to.parse().unwrap(),
            seen_as: None,
        };
        self.host(us, fact);
    }

    /// The connection was led there, and what happened there was watched.
    fn led(&mut self) {
        let there = self.flow().sockets(crate::model::flow::Side::Upstream).map(|(event, _)| event.id).collect();
        self.flow().led = Some(Led { to: SERVER.parse().unwrap(), there });
    }

    /// A look at the host for a server.
    fn look_for(&mut self, server: &str, local: bool) {
        let upstream = server.parse().unwrap();
        let fact = HostFact::Listeners { upstream, netns: None, local, listeners: Vec::new(), nearby: Vec::new() };
        self.host(3_000, fact);
    }
}

fn blind(explanation: &Explanation) -> String {
    explanation.blind.iter().map(|need| need.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// The address that nginx has belongs to nobody: that says nothing of where the server is.
fn closed_at_a_service() -> World {
    let mut world = closed(SERVICE);
    world.look_up(false, Vec::new(), Vec::new());
    world
}

#[test]
fn a_server_of_this_host_that_was_not_watched_yet_is_not_on_another() {
    let mut world = closed_at_a_service();
    world.told(100, OWN, SERVER);
    world.look_for(SERVER, true);
    let explanation = world.expect("premature-close", Confidence::Likely);
    let blind = blind(&explanation);
    assert!(blind.contains(&format!("{SERVER} is on this host, and was not watched yet")), "{blind}");
    assert!(explanation.summary.contains(&format!("led the connection to {SERVER}")), "{}", explanation.summary);
    assert!(explanation.fix[0].contains(&format!("the server at {SERVER}")), "{:?}", explanation.fix);
}

/// A container's network namespace, and with it the address, goes with its last process.
#[test]
fn a_server_that_was_found_here_before_it_ended_is_not_on_another() {
    let mut world = closed_at_a_service();
    world.told(100, OWN, SERVER);
    let served = HostFact::Served {
        upstream: SERVER.parse().unwrap(),
        netns: Some(7),
        pid: crate::diagnose::testing::SERVER,
        command: None,
        seen: moment(-50_000),
        closed: None,
        ended: Some((moment(-60), crate::model::process::Ending::Exit(1))),
        signal: None,
    };
    world.host(-50, served);
    world.look_for(SERVER, false);
    let blind = blind(&world.expect("premature-close", Confidence::Likely));
    assert!(blind.contains("was not watched yet"), "{blind}");
}

#[test]
fn a_server_of_another_host_is_said_to_be_one() {
    let mut world = closed_at_a_service();
    world.told(100, OWN, SERVER);
    world.look_for(SERVER, false);
    let explanation = world.expect("premature-close", Confidence::Likely);
    let blind = blind(&explanation);
    assert!(blind.contains(&format!("{SERVER} was not found among this host")), "{blind}");
}

#[test]
fn where_the_server_is_may_not_be_known() {
    let mut world = closed_at_a_service();
    world.told(100, OWN, SERVER);
    let unasked = blind(&world.expect("premature-close", Confidence::Likely));
    assert!(unasked.contains("it is not known where the server is"), "{unasked}");
    // Others were led to a server of this host; whoever looked for it there knows nothing of this connection.
    let mut world = closed_at_a_service();
    world.told(-395_132, OTHER, SERVER);
    world.look_for(SERVER, true);
    let of_others = blind(&world.expect("premature-close", Confidence::Likely));
    assert!(of_others.contains("it is not known where the server is"), "{of_others}");
}

#[test]
fn what_was_told_of_others_is_not_said_of_this_connection() {
    let mut world = closed_at_a_service();
    world.told(-500_000, OTHER, ANOTHER);
    world.told(-395_132, OTHER, SERVER);
    let explanation = world.expect("premature-close", Confidence::Likely);
    let summary = &explanation.summary;
    assert!(summary.contains(&format!("led other connections to {SERVICE} to {SERVER}, {ANOTHER}")), "{summary}");
    assert!(!summary.contains("led the connection"), "{summary}");
    assert!(summary.starts_with(SERVICE), "{summary}");
    assert!(!explanation.because.iter().any(|evidence| matches!(evidence.fact, Fact::Translated { .. })));
}

/// nginx's port came back.
#[test]
fn what_was_told_of_an_older_one_with_its_addresses_is_of_another() {
    let mut world = closed_at_a_service();
    world.told(-395_132, OWN, SERVER);
    let explanation = world.expect("premature-close", Confidence::Likely);
    assert!(explanation.summary.contains("where it led this one was not seen"), "{}", explanation.summary);
}

#[test]
fn who_should_listen_is_named_where_the_connection_was_led() {
    let mut world = refused(SERVICE, true);
    world.led();
    world.case.host.clear();
    world.told(-395_132, OTHER, SERVER);
    world.look_for(SERVER, true);
    let explanation = world.expect("upstream-refused", Confidence::Confirmed);
    let summary = &explanation.summary;
    assert!(summary.starts_with(&format!("Nobody listens on {SERVER} on this host")), "{summary}");
    assert!(summary.contains(&format!("led the connection to {SERVER}")), "{summary}");
    assert!(explanation.fix[0].contains(&format!("should listen on {SERVER}")), "{:?}", explanation.fix);
    assert!(!format!("{:?}", explanation.fix).contains(SERVICE), "{:?}", explanation.fix);
    // It rests on what was seen of this connection at its other end, not on what was told of another.
    let proof = explanation.because.iter().find(|evidence| matches!(evidence.fact, Fact::Translated { .. })).unwrap();
    let seen = world.flow().events[0].clone();
    assert_eq!((proof.events.as_slice(), seen.at), ([seen.id].as_slice(), At::exactly(moment(-90))));
}

#[test]
fn a_refusal_of_an_unwatched_server_is_not_certain() {
    let mut world = refused(SERVICE, false);
    world.told(-50, OWN, SERVER);
    world.look_for(SERVER, true);
    let explanation = world.expect("upstream-refused", Confidence::Likely);
    assert!(explanation.rivals.contains(&"firewall-rejected"), "{:?}", explanation.rivals);
    let blind = blind(&explanation);
    assert!(blind.contains("was not watched yet"), "{blind}");
}
