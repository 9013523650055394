//! Healthy background traffic: a steady rate over many connections, every status counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::client::Connection;
use crate::namespace::Namespace;

/// What to send.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// nginx's address.
    pub target: SocketAddr,
    /// The request's target.
    pub uri: String,
    /// Requests a second, all connections together.
    pub rate: u32,
    /// Connections, one thread each.
    pub connections: u32,
    /// A connection is closed and replaced after so many requests; `None`: kept for ever.
    pub requests_each: Option<u32>,
}

/// What came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Responses by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests that got none.
    pub unanswered: u64,
    /// What went wrong first.
    pub first_error: Option<String>,
}

impl Tally {
    /// All requests.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.by_status.values().sum::<u64>() + self.unanswered
    }

    /// Whether every request was answered with 200.
    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.unanswered == 0 && self.by_status.keys().all(|status| *status == 200)
    }

    /// Adds another tally to this one.
    fn add(&mut self, other: Self) {
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        self.unanswered += other.unanswered;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// Running traffic; stops when dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts the traffic and returns once every connection has had its first answer.
    pub fn start(namespace: &Namespace, traffic: &Traffic) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        let pause = Duration::from_secs(1) * traffic.connections / traffic.rate.max(1);
        for number in 0..traffic.connections {
            let mut connection = Connection::open(namespace, traffic.target)?;
            let mut tally = Tally::default();
            count(&mut tally, connection.get(&traffic.uri));
            let (traffic, stop) = (traffic.clone(), Arc::clone(&stop));
            let place = namespace.file().try_clone().context("share the namespace")?;
            let offset = pause * number / traffic.connections;
            load.threads.push(std::thread::spawn(move || {
                if let Err(error) = nix::sched::setns(&place, nix::sched::CloneFlags::CLONE_NEWNET) {
                    tally.first_error = Some(format!("enter the client's namespace: {error}"));
                    tally.unanswered += 1;
                    return tally;
                }
                std::thread::sleep(offset);
                flow(&traffic, connection, pause, &stop, tally)
            }));
        }
        Ok(load)
    }

    /// Stops the traffic and gives the sum.
    pub fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads.drain(..) {
            sum.add(thread.join().map_err(|_panic| anyhow!("a thread of the traffic panicked"))?);
        }
        Ok(sum)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The requests of one connection (and of those that replace it), evenly spaced. A late one is not made up for by more
/// than a few at once: the rate is a rate, not a debt.
fn flow(traffic: &Traffic, first: Connection, pause: Duration, stop: &AtomicBool, mut tally: Tally) -> Tally {
    let mut connection = Some(first);
    let mut used = 1;
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if traffic.requests_each.is_some_and(|limit| used >= limit) {
            connection = None;
        }
        let mut open = match connection.take() {
            Some(open) => open,
            None => match Connection::open_here(traffic.target) {
                Ok(open) => {
                    used = 0;
                    open
                }
                Err(error) => {
                    count(&mut tally, Err(error));
                    continue;
                }
            },
        };
        let answer = open.get(&traffic.uri);
        used += 1;
        let closes = answer.as_ref().map_or(true, |exchange| exchange.header("connection") == Some("close"));
        count(&mut tally, answer);
        if !closes {
            connection = Some(open);
        }
        due += pause;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(wait) => std::thread::sleep(wait),
            None if now - due > pause * 20 => due = now,
            None => {}
        }
    }
    tally
}

/// Counts one answer.
fn count(tally: &mut Tally, answer: Result<crate::client::Exchange>) {
    match answer.map(|exchange| exchange.status) {
        Ok(Some(status)) => *tally.by_status.entry(status).or_default() += 1,
        Ok(None) => {
            tally.unanswered += 1;
            tally.first_error.get_or_insert_with(|| "closed without an answer".to_owned());
        }
        Err(error) => {
            tally.unanswered += 1;
            tally.first_error.get_or_insert_with(|| format!("{error:#}"));
        }
    }
}
