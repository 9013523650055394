//! Asking each nginx what it is and how it is configured, beside everything else: `nginx -T` opens its logs, looks up its upstreams' names
//! and takes as long as that takes. Nobody waits for it but what needs its answer.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use probe_abi::nginx::Layout;
use tokio::sync::Notify;

use super::functions;
use crate::live::nginx::{self, Found, Master};

/// So many nginx are asked at the same time: a host with a hundred containers has work of its own.
const AT_ONCE: usize = 4;

/// Asking is bounded everywhere (`nginx -V`, `nginx -T`, names, each with its patience). What takes longer hangs in the kernel, on a file system
/// that does not answer, and keeps nobody else from being asked.
const HANGS: Duration = Duration::from_secs(15);

/// An nginx is asked again so long after its last answer, and no sooner: workers that crash all the time are no reason to test the
/// configuration all the time.
const PAUSE: Duration = Duration::from_millis(200);

/// What was learnt.
#[derive(Debug)]
pub(super) struct Examined {
    /// Whom it is about, as it was when it was asked.
    pub(super) master: Master,
    pub(super) found: Found,
    /// Where it keeps what, checked against its machine code.
    pub(super) layout: Option<Layout>,
}

/// A master: its pid and its start.
type Name = (u32, u64);

fn name(master: &Master) -> Name {
    (master.pid, master.started)
}

/// One that is being asked.
struct Running {
    since: Instant,
    thread: JoinHandle<()>,
    /// It has changed meanwhile.
    again: Option<Master>,
}

/// Who is being asked, one question at a time for each.
pub(super) struct Examinations {
    sender: mpsc::Sender<Examined>,
    answers: mpsc::Receiver<Examined>,
    /// Told of every answer.
    answered: Arc<Notify>,
    examine: fn(&Master) -> Examined,
    running: BTreeMap<Name, Running>,
    waiting: VecDeque<Master>,
    /// When those that are not asked now have answered.
    rested: BTreeMap<Name, Instant>,
}

impl Default for Examinations {
    fn default() -> Self {
        Self::of(examine)
    }
}

/// Everything that takes its time.
fn examine(master: &Master) -> Examined {
    let found = nginx::examine(master);
    let layout = functions::layout_of(master, &found);
    Examined { master: master.clone(), found, layout }
}

impl Examinations {
    fn of(examine: fn(&Master) -> Examined) -> Self {
        let (sender, answers) = mpsc::channel();
        Self {
            sender,
            answers,
            answered: Arc::default(),
            examine,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            rested: BTreeMap::new(),
        }
    }

    /// What is told when there is an answer to take.
    pub(super) fn answered(&self) -> Arc<Notify> {
        Arc::clone(&self.answered)
    }

    /// Whether an answer of this one is still to come.
    pub(super) fn expects(&self, master: &Master) -> bool {
        self.running.contains_key(&name(master)) || self.waiting.iter().any(|other| name(other) == name(master))
    }

    /// Asks it, or asks it again once it has answered the question before.
    pub(super) fn ask(&mut self, master: &Master) {
        if let Some(running) = self.running.get_mut(&name(master)) {
            running.again = Some(master.clone());
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| name(waiting) == name(master)) {
            waiting.clone_from(master);
        } else {
            self.waiting.push_back(master.clone());
        }
        self.start();
    }

    /// It is gone: nobody needs its answer any more.
    pub(super) fn forget(&mut self, master: &Master) {
        self.waiting.retain(|waiting| name(waiting) != name(master));
        self.rested.remove(&name(master));
        if let Some(running) = self.running.get_mut(&name(master)) {
            running.again = None;
        }
    }

    /// What has been answered.
    pub(super) fn take(&mut self) -> Vec<Examined> {
        let mut taken = Vec::new();
        while let Ok(examined) = self.answers.try_recv() {
            self.end(&examined);
            taken.push(examined);
        }
        self.start();
        taken
    }

    /// Waits until all are answered that were asked, or hang.
    pub(super) fn take_all(&mut self) -> Vec<Examined> {
        let mut taken = self.take();
        let deadline = Instant::now() + HANGS;
        while !self.running.is_empty() || !self.waiting.is_empty() {
            let Ok(examined) = self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                for (pid, _) in self.running.keys() {
                    tracing::warn!(
                        "nginx {pid} is not watched yet: what it is cannot be found out, its files do not answer"
                    );
                }
                break;
            };
            self.end(&examined);
            taken.push(examined);
            self.start();
        }
        taken
    }

    fn end(&mut self, examined: &Examined) {
        let name = name(&examined.master);
        if let Some(running) = self.running.remove(&name) {
            // It has said its last word. (A panic there has been reported by the runtime.)
            let _ = running.thread.join();
            self.waiting.extend(running.again);
        }
        self.rested.retain(|_, since| since.elapsed() < PAUSE);
        self.rested.insert(name, Instant::now());
    }

    /// Starts what waits, as far as there is room.
    fn start(&mut self) {
        let mut later = VecDeque::new();
        while let Some(master) = self.waiting.pop_front() {
            let busy = self.running.values().filter(|running| running.since.elapsed() < HANGS).count();
            let rests = self.rested.get(&name(&master)).is_some_and(|since| since.elapsed() < PAUSE);
            if busy >= AT_ONCE || rests || !self.start_one(&master) {
                later.push_back(master);
            }
        }
        self.waiting = later;
    }

    fn start_one(&mut self, master: &Master) -> bool {
        let (sender, answered, examine, asked) =
            (self.sender.clone(), Arc::clone(&self.answered), self.examine, master.clone());
        let spawned = thread::Builder::new().name("examine".into()).spawn(move || {
            // Nobody takes the answer when the program ends.
            let _ = sender.send(examine(&asked));
            answered.notify_one();
        });
        match spawned {
            Ok(thread) => {
                let running = Running { since: Instant::now(), thread, again: None };
                self.running.insert(name(master), running);
                true
            }
            Err(error) => {
                tracing::warn!("nginx {} cannot be asked now: {error}", master.pid);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{host::NginxInstance, process::Pid};

    fn master(pid: u32, workers: &[u32]) -> Master {
        Master {
            pid,
            parent: 1,
            started: 7,
            workers: workers.to_vec(),
            others: Vec::new(),
            command_line: String::new(),
        }
    }

    fn said(master: &Master) -> Examined {
        let instance = NginxInstance {
            master: Pid(master.pid),
            workers: master.workers.iter().copied().map(Pid).collect(),
            version: None,
            netns: None,
            configuration: None,
        };
        let found = Found {
            instance,
            build: None,
            error_logs: Vec::new(),
            access_logs: Vec::new(),
            unreadable_logs: Vec::new(),
            gaps: Vec::new(),
            unannounced: None,
        };
        Examined { master: master.clone(), found, layout: None }
    }

    /// An nginx whose pid is 13 does not answer for long.
    fn slowly(master: &Master) -> Examined {
        thread::sleep(if master.pid == 13 { Duration::from_secs(3) } else { Duration::from_millis(20) });
        said(master)
    }

    fn until(examinations: &mut Examinations, count: usize) -> Vec<Examined> {
        let (began, mut taken) = (Instant::now(), Vec::new());
        while taken.len() < count && began.elapsed() < Duration::from_secs(2) {
            taken.extend(examinations.take());
            thread::sleep(Duration::from_millis(1));
        }
        taken
    }

    #[test]
    fn one_that_hangs_keeps_nobody_waiting() {
        let mut examinations = Examinations::of(slowly);
        let began = Instant::now();
        for pid in [13, 1, 2] {
            examinations.ask(&master(pid, &[]));
        }
        let mut answered: Vec<u32> = until(&mut examinations, 2).iter().map(|examined| examined.master.pid).collect();
        answered.sort_unstable();
        assert_eq!(answered, [1, 2]);
        assert!(began.elapsed() < Duration::from_secs(2));
        assert!(examinations.expects(&master(13, &[])) && !examinations.expects(&master(1, &[])));
    }

    #[test]
    fn one_that_changes_meanwhile_is_asked_once_more_and_not_at_once() {
        let mut examinations = Examinations::of(slowly);
        let began = Instant::now();
        for workers in 0..50 {
            examinations.ask(&master(5, &[workers]));
        }
        let workers: Vec<Vec<u32>> =
            until(&mut examinations, 2).into_iter().map(|examined| examined.master.workers).collect();
        assert_eq!(workers, [vec![0], vec![49]], "the first, and the last of those that came while it was asked");
        assert!(began.elapsed() >= PAUSE, "{:?}", began.elapsed());
        assert!(!examinations.expects(&master(5, &[])));
    }

    #[test]
    fn one_that_is_gone_is_not_asked_again() {
        let mut examinations = Examinations::of(slowly);
        for _ in 0..2 {
            examinations.ask(&master(5, &[]));
        }
        examinations.forget(&master(5, &[]));
        assert_eq!(until(&mut examinations, 1).len(), 1);
        assert!(!examinations.expects(&master(5, &[])));
    }

    #[test]
    fn at_the_start_all_are_waited_for() {
        let mut examinations = Examinations::of(slowly);
        for pid in 20..30 {
            examinations.ask(&master(pid, &[]));
        }
        assert_eq!(examinations.take_all().len(), 10);
    }
}
