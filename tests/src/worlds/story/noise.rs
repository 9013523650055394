//! What happens beside the requests and has nothing to do with them.

use super::{Content, ForeignEnd, MS, Noise, NoiseKind, Pid, Play, SECOND, US, fate};

impl Play<'_> {
    pub(super) fn noise(&mut self, t: u64, noise: Noise) {
        let peer = self.stage.world.peer_index(noise.peer);
        match noise.kind {
            NoiseKind::Foreign(end) => {
                self.stage.tape.foreign = true;
                self.foreign(t, peer, end);
                self.stage.tape.foreign = false;
            }
            NoiseKind::OtherDeath(death) => {
                let Some((pid, command)) = self.stage.servers.get_mut(peer).map(|server| server.process(t)) else {
                    return;
                };
                fate::end_process(&mut self.stage, peer, t, (pid, &command), death);
                if let Some(server) = self.stage.servers.get_mut(peer) {
                    server.gone(pid);
                }
            }
        }
    }

    /// Somebody else's connection to the same server.
    pub(super) fn foreign(&mut self, t: u64, peer: usize, end: ForeignEnd) {
        if self.stage.servers.get(peer).is_some_and(|server| server.is_down(t)) {
            return;
        }
        let mut connection = self.stage.connection_of(Pid(7_777), 3, peer, t);
        let connected = connection.open(&mut self.stage.tape, t);
        if let Some(server) = self.stage.servers.get_mut(peer) {
            server.needed.push(connected);
            let holder = server.process(t);
            server.done(holder.0, connected + SECOND);
            connection.accept(&mut self.stage.tape, connected + connection.one_way() + 50 * US, holder);
        }
        let (arrived, acknowledged) =
            connection.request(&mut self.stage.tape, connected + 10 * US, 120, "GET /health HTTP/1.1", "x");
        let at = arrived.max(acknowledged) + 100 * US;
        let over = match end {
            ForeignEnd::Served => {
                connection.upstream.read_all();
                let content = Content::HttpStatus { code: 200, line: "HTTP/1.1 200 OK".into() };
                let known = connection.response(&mut self.stage.tape, at, 300, content);
                connection.upstream_close(&mut self.stage.tape, known)
            }
            ForeignEnd::Reset => connection.upstream_abort(&mut self.stage.tape, at, "TCP_ABORT_ON_CLOSE"),
            ForeignEnd::Closed => {
                connection.upstream.read_all();
                connection.upstream_close(&mut self.stage.tape, at)
            }
        };
        connection.nginx.read_all();
        connection.nginx_close(&mut self.stage.tape, over + 10 * US);
        self.stage.port_free(&connection, over + 100 * MS);
    }
}
