//! What becomes of an attempt whose connection came about.

use super::{
    Became, CLOSED, Content, Death, Ended, Errno, Fate, HOST, MS, Outcome, Pid, READ_TIMEOUT, RECEIVE_FAILED, Race,
    Read, SECOND, STEP, Scene, Syscall, TcpState, US, Words, connect_failed, end_process,
};

impl Scene<'_, '_> {
    /// Connects where the connection is fresh, and sends the request. Returns when it was with the upstream's application's kernel.
    pub(super) fn begin(&mut self, t: u64, fresh: bool) -> u64 {
        let line = self.inner.line.clone();
        let mut from = t + 2 * US;
        let mut ready = 0;
        if fresh {
            let connected = self.connection.open(&mut self.stage.tape, from);
            let accepted = connected + self.connection.one_way() + self.latency(3, 1_500);
            self.take(accepted);
            self.state.connected = Some(connected);
            from = self.stage.turn(self.worker, connected + STEP);
            ready = accepted;
        } else {
            self.state.connected = Some(t);
        }
        self.state.sent = u64::from(self.bytes);
        let (arrived, _) = self.connection.request(&mut self.stage.tape, from, self.bytes, &line, HOST);
        ready.max(arrived) + 8 * STEP
    }

    /// A process of the upstream takes the connection.
    pub(super) fn take(&mut self, t: u64) {
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            server.needed.push(t);
            let holder = server.process(t);
            // As servers do that fork for a connection, or pass its descriptor to a worker.
            let acceptor = if self.stage.tape.dice.chance(150) { server.master } else { holder.0 };
            self.connection.accept_for(&mut self.stage.tape, t, acceptor, holder);
        }
    }

    pub(super) fn release(&mut self, t: u64) {
        let pid = self.connection.holder.0;
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            server.done(pid, t);
        }
    }

    pub(super) fn connected(mut self, t: u64, fresh: bool, fate: Fate) -> Outcome {
        let ready = self.begin(t, fresh);
        match fate {
            Fate::Answered(status) => self.answered(ready, fresh, status),
            Fate::Reset { read, header, after_us } => {
                self.read_part(read);
                let at = ready + u64::from(after_us) * US;
                let at = self.partial(at, header);
                self.aborted(at)
            }
            Fate::Closed { header, after_us } => {
                self.connection.upstream.read_all();
                let at = ready + u64::from(after_us) * US;
                let at = self.partial(at, header);
                self.closed(at)
            }
            Fate::Died { death, read, after_us } => {
                self.read_part(read);
                let at = ready + u64::from(after_us) * US;
                let gone = self.dies(at, death);
                if self.connection.upstream.unread() == 0 { self.closed(gone) } else { self.aborted(gone) }
            }
            Fate::TooBig => self.untaken(ready, true),
            Fate::Malformed => self.untaken(ready, false),
            Fate::EarlyLost => self.early_lost(ready),
            Fate::Injected { other_ttl, after_us } => self.injected(ready + u64::from(after_us) * US, other_ttl),
            Fate::Truncated { reset } => self.truncated(ready, reset),
            _ => self.silent(ready),
        }
    }

    pub(super) fn read_part(&mut self, read: Read) {
        match read {
            Read::Nothing => {}
            Read::Part => self.connection.upstream.read(self.bytes / 2),
            Read::All => self.connection.upstream.read_all(),
        }
    }

    /// Part of a response header, if any. Returns when the connection can end.
    pub(super) fn partial(&mut self, t: u64, header: u16) -> u64 {
        if header == 0 {
            return t;
        }
        let bytes = u32::from(header);
        let content = if header < 12 {
            Content::Other
        } else {
            Content::HttpStatus { code: 200, line: "HTTP/1.1 200 OK".into() }
        };
        let known = self.connection.response(&mut self.stage.tape, t, bytes, content);
        self.connection.nginx.read(bytes);
        self.state.received = u64::from(bytes);
        known + 30 * US
    }

    pub(super) fn aborted(mut self, t: u64) -> Outcome {
        let unread = self.connection.upstream.unread() > 0;
        let reason = if unread { "TCP_ABORT_ON_CLOSE" } else { "TCP_STATE" };
        let known = self.connection.upstream_abort(&mut self.stage.tape, t, reason);
        self.release(known);
        let noticed = known + self.latency(1, 80);
        self.fails(noticed, RECEIVE_FAILED, 502)
    }

    pub(super) fn closed(self, t: u64) -> Outcome {
        self.closed_with(t, CLOSED)
    }

    /// The upstream closes, and nginx says this.
    pub(super) fn closed_with(mut self, t: u64, words: Words) -> Outcome {
        let known = self.connection.upstream_close(&mut self.stage.tape, t);
        self.release(known);
        let noticed = known + self.latency(1, 80);
        self.connection.nginx.read_all();
        self.fails(noticed, words, 502)
    }

    pub(super) fn silent(mut self, ready: u64) -> Outcome {
        self.connection.upstream.read_all();
        let at = ready + self.stage.read_timeout + self.latency(5, 900);
        self.release(at + SECOND);
        self.fails(at, READ_TIMEOUT, 504)
    }

    pub(super) fn answered(mut self, ready: u64, fresh: bool, status: u16) -> Outcome {
        self.connection.upstream.read_all();
        let at = ready + self.latency(20, 30_000);
        let bytes = u32::try_from(self.stage.tape.dice.between(60, 900)).unwrap_or(60);
        let content = Content::HttpStatus { code: status, line: format!("HTTP/1.1 {status} -").into() };
        let mut known = self.connection.response(&mut self.stage.tape, at, bytes, content);
        let kept = !fresh || self.stage.tape.dice.chance(200);
        if !kept {
            known = known.max(self.connection.upstream_close(&mut self.stage.tape, known + 20 * US));
            self.release(known);
        }
        let at = self.stage.turn(self.worker, known + 2 * US);
        self.connection.nginx.read_all();
        if !kept {
            self.connection.nginx_close(&mut self.stage.tape, at + US);
            self.stage.port_free(&self.connection, at + 40 * MS);
        }
        self.state.received = u64::from(bytes);
        self.state.header = Some(at);
        self.state.status = Some(status);
        self.state.span.1 = at;
        self.inner.states.push(self.state);
        Outcome {
            ended: Ended::Answered { status },
            at: at + 30 * US,
            sent: true,
            became: Became::Ok,
            connection: Some(self.connection),
        }
    }

    pub(super) fn truncated(mut self, ready: u64, reset: bool) -> Outcome {
        self.connection.upstream.read_all();
        let content = Content::HttpStatus { code: 200, line: "HTTP/1.1 200 OK".into() };
        let known = self.connection.response(&mut self.stage.tape, ready + 100 * US, 1_000, content);
        let at = self.stage.turn(self.worker, known);
        self.connection.nginx.read_all();
        self.state.received = 1_000;
        self.state.header = Some(at);
        self.state.status = Some(200);
        self.state.span.1 = at;
        self.inner.states.push(self.state);
        let became = if reset { Became::Reset } else { Became::Closed };
        Outcome { ended: Ended::Broken { reset }, at, sent: true, became, connection: Some(self.connection) }
    }

    pub(super) fn race(mut self, t: u64, race: Race) -> Outcome {
        let line = self.inner.line.clone();
        let one_way = self.connection.one_way();
        let write = t + 20 * US;
        self.state.connected = Some(t);
        self.connection.upstream.read_all();
        match race {
            Race::FinBefore => {
                let early = one_way + self.latency(8, 80);
                self.connection.upstream_close(&mut self.stage.tape, t.saturating_sub(early));
                self.crossed(write, write + 30 * US)
            }
            Race::FinCrossed => {
                let span = one_way.saturating_sub(60 * US).max(1);
                let at = write.saturating_sub(span) + self.stage.tape.dice.between(1, 2 * span - 1);
                self.state.sent = u64::from(self.bytes);
                let arrived = self.connection.request_lost(&mut self.stage.tape, write, self.bytes, &line, HOST);
                let known = self.connection.upstream_close(&mut self.stage.tape, at);
                let noticed = self.stage.turn(self.worker, known + 3 * US);
                self.met(noticed, arrived)
            }
            Race::ResetBefore => {
                let early = one_way + self.latency(12, 80);
                self.connection.upstream_abort(&mut self.stage.tape, t.saturating_sub(early), "TCP_STATE");
                self.release(t);
                self.fails_in_turn(t + 5 * US, connect_failed(Errno::ECONNRESET), 502)
            }
            Race::Unread => {
                self.state.sent = u64::from(self.bytes);
                let (arrived, known) = self.connection.request(&mut self.stage.tape, write, self.bytes, &line, HOST);
                let at = arrived.max(if self.is_here() { known } else { 0 }) + self.latency(1, 3_000);
                self.aborted(at)
            }
            Race::Forgotten => {
                self.state.sent = u64::from(self.bytes);
                let arrived = self.connection.request_lost(&mut self.stage.tape, write, self.bytes, &line, HOST);
                let known = self.connection.gone_answers(&mut self.stage.tape, arrived, self.bytes, "NO_SOCKET");
                let noticed = known + self.latency(1, 80);
                self.fails(noticed, RECEIVE_FAILED, 502)
            }
        }
    }

    /// nginx writes into a connection that its peer has closed, at `write`, and reads the FIN in the same turn.
    pub(super) fn crossed(mut self, write: u64, read: u64) -> Outcome {
        let line = self.inner.line.clone();
        self.state.sent = u64::from(self.bytes);
        let arrived = self.connection.request_lost(&mut self.stage.tape, write, self.bytes, &line, HOST);
        self.met(read, arrived)
    }

    /// nginx reads the FIN at `read`; the RST that answers its request leaves the upstream at `arrived`.
    pub(super) fn met(mut self, read: u64, arrived: u64) -> Outcome {
        self.release(arrived);
        let returns = arrived + if self.is_here() { 0 } else { self.connection.one_way() };
        if returns + 6 * STEP <= read {
            self.connection.gone_answers(&mut self.stage.tape, arrived, self.bytes, "TCP_TIMEWAIT_SOCKET");
            self.connection.nginx.read_all();
            return self.fails_in_turn(read, CLOSED, 502);
        }
        self.connection.nginx.read_all();
        let outcome = self.fails_in_turn(read, CLOSED, 502);
        let later = arrived.max(read + 20 * US);
        self.connection.gone_answers(&mut self.stage.tape, later, self.bytes, "TCP_TIMEWAIT_SOCKET");
        outcome
    }

    pub(super) fn upstream_files(mut self, t: u64, stuck: bool) -> Outcome {
        let line = self.inner.line.clone();
        let connected = self.connection.open(&mut self.stage.tape, t + 2 * US);
        self.state.connected = Some(connected);
        let failed = connected + self.connection.one_way() + self.latency(2, 30);
        let (listener, command) =
            self.stage.servers.get(self.peer).map_or((Pid(1), String::new()), |s| (s.master, s.command.clone()));
        let accept_fails = |scene: &mut Self, at: u64| {
            if !scene.is_here() {
                return;
            }
            let mut socket = scene.connection.upstream_socket(at);
            socket.remote = None;
            socket.state = TcpState::Listen;
            socket.tcp = None;
            socket.accept_queue = Some((1, 128));
            let call = Syscall::Accept {
                listener: 5,
                result: Err(Errno::EMFILE),
                socket: Some(socket),
                peer: None,
                command: command.clone(),
            };
            scene.stage.tape.call(at, listener, call);
        };
        accept_fails(&mut self, failed);
        let until = if stuck { failed + self.stage.read_timeout + 100 * MS } else { failed + 100 * MS };
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            server.needed.push(failed);
            server.out_of_files.push((t, until));
        }
        if stuck {
            let from = self.stage.turn(self.worker, connected + STEP);
            self.state.sent = u64::from(self.bytes);
            self.connection.request(&mut self.stage.tape, from, self.bytes, &line, HOST);
            accept_fails(&mut self, failed + 300 * MS);
            let at = from + self.stage.read_timeout;
            return self.fails(at, READ_TIMEOUT, 504);
        }
        self.connection.accept(&mut self.stage.tape, failed + 12 * US, (listener, command.clone()));
        if self.is_here() {
            let known = self.connection.upstream_close(&mut self.stage.tape, failed + 20 * US);
            let write = self.stage.turn(self.worker, known.max(connected) + STEP);
            return self.crossed(write, write + 40 * US);
        }
        // The request came with the handshake's last packet and lies unread when the connection is closed.
        let from = self.stage.turn(self.worker, connected + STEP);
        self.state.sent = u64::from(self.bytes);
        let (arrived, _) = self.connection.request(&mut self.stage.tape, from, self.bytes, &line, HOST);
        self.aborted(arrived + 20 * US)
    }

    /// The process that holds the connection ends. Returns when its files are closed.
    pub(super) fn dies(&mut self, t: u64, death: Death) -> u64 {
        let (pid, command) = self.connection.holder.clone();
        let gone = end_process(self.stage, self.peer, t, (pid, &command), death);
        if let Some(server) = self.stage.servers.get_mut(self.peer) {
            server.gone(pid);
        }
        gone
    }
}
