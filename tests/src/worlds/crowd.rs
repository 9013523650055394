//! Many connections, most of them healthy: what memory must bear.

use probe502::merge::Arrival;

use super::{
    stage::{FIRST, MS, Stage, US},
    truth::{Peer, Place, World},
};

/// How a connection of the crowd ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrowdEnd {
    /// nginx closes it.
    Closed,
    /// The upstream resets it.
    Reset,
    /// Nobody listens.
    Refused,
    /// It stays open.
    Open,
}

/// One after the other, each so many milliseconds after the one before it.
#[must_use]
pub fn crowd(seed: u64, connections: &[(u16, CrowdEnd)]) -> Vec<Arrival> {
    let peer = |place| Peer { place, v6: false };
    let world = World {
        masters: 1,
        workers: 2,
        peers: vec![peer(Place::Loopback), peer(Place::Elsewhere)],
        counts_failures: false,
        detailed_access_log: false,
        requests: Vec::new(),
        noise: Vec::new(),
        seed,
    };
    let mut stage = Stage::new(&world);
    stage.introduce(FIRST - MS);
    let mut t = FIRST;
    for (index, (gap_ms, end)) in connections.iter().enumerate() {
        t += u64::from(*gap_ms) * MS + 10 * US;
        let mut connection = stage.connection(index % 2, index % 3, t);
        if *end == CrowdEnd::Refused {
            let sent = connection.connect(&mut stage.tape, t);
            let known = connection.refuse(&mut stage.tape, sent);
            stage.port_free(&connection, known);
            continue;
        }
        let connected = connection.open(&mut stage.tape, t);
        let (arrived, _) = connection.request(&mut stage.tape, connected + 10 * US, 100, "GET / HTTP/1.1", "x");
        let over = arrived + 50 * US + 4 * connection.one_way();
        match end {
            CrowdEnd::Closed => connection.nginx_close(&mut stage.tape, over),
            CrowdEnd::Reset => {
                connection.upstream_abort(&mut stage.tape, over, "TCP_ABORT_ON_CLOSE");
            }
            CrowdEnd::Refused | CrowdEnd::Open => continue,
        }
        stage.port_free(&connection, over + 40 * MS);
    }
    stage.tape.into_records().into_iter().map(|record| record.arrival).collect()
}
