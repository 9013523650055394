//! `probe502 watch`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc},
    time::MissedTickBehavior,
};

use super::{
    AppError,
    output::{self, Folder, Form, Printer, SharedInterfaces, SharedTally},
};
use crate::{
    cli::plan::{Depth, Watch},
    decode::kernel::Names,
    live::{
        clock,
        ebpf::{self, Kernel, LoadOptions, Losses},
        follow::{Change, Followers},
        host::Lookup,
        nginx,
        scope::{self, Scope},
        sources::{Counts, RingReader},
        thinker::{self, Delivery, Intake, Said},
    },
    model::{
        case::CaseKind,
        coverage::{Coverage, Sensor, Sight},
        event::{Body, Source},
        time::{At, Moment},
    },
    pipeline::{Arrival, Limits, Question, Settings},
    report::json,
};

/// The contract: a new nginx is picked up within a second. The kernel side tells at once; this is for hosts where it cannot.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A started nginx needs a moment until its workers are there.
const SETTLE: Duration = Duration::from_millis(30);

/// How often the progress line is renewed.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Size of the ring, bytes: at 600 bytes a failure's records, a second of 10,000 failures.
const RING_BYTES: u32 = 8 << 20;

/// Runs it.
pub fn run(plan: &Watch) -> Result<(), AppError> {
    log_to_stderr(plan);
    if !nix::unistd::geteuid().is_root() {
        return Err(AppError::host(anyhow::anyhow!(
            "watching nginx needs root (eBPF, packet capture, other users' processes); run it with sudo"
        )));
    }
    let folder = plan.out.as_deref().map(Folder::open).transpose().map_err(AppError::host)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
        .map_err(AppError::host)?;
    runtime.block_on(watch(plan, folder))
}

fn log_to_stderr(plan: &Watch) {
    let level = match (plan.output.quiet, plan.output.verbosity) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("PROBE502_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // A second initialisation (tests) keeps the first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).without_time().try_init();
}

fn scope(plan: &Watch) -> Scope {
    Scope {
        pids: plan.pids.clone(),
        interfaces: plan.interfaces.clone(),
        depth: match plan.depth {
            Depth::Light => scope::Depth::Light,
            Depth::Standard => scope::Depth::Standard,
            Depth::Deep => scope::Depth::Deep,
        },
        uprobes: plan.uprobes,
        packets: plan.packets,
    }
}

/// Why the watch ends.
enum End {
    /// It was asked to, or has done what it should.
    Ordered,
    /// Nobody reads the output any more.
    OutputGone,
}

async fn watch(plan: &Watch, folder: Option<Folder>) -> Result<(), AppError> {
    let started = Instant::now();
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut terminate = handler(SignalKind::terminate())?;
    let form = Form::choose(plan.output.json);
    if !wait_for_nginx(plan, &mut interrupt, &mut terminate).await? {
        return finish_early(form, started);
    }

    let tally = SharedTally::default();
    let interfaces = SharedInterfaces::default();
    let printer = Printer::new(form, clock::wall(), folder, Arc::clone(&interfaces), Arc::clone(&tally));
    let settings = Settings { limits: Limits::default(), clock: clock::wall(), statuses: plan.statuses.clone() };
    let (said, mut sayings) = mpsc::unbounded_channel();
    let (intake, thinking) = thinker::start(settings, Box::new(printer), said)
        .context("cannot start the thinking thread")
        .map_err(AppError::host)?;

    let counts = Arc::new(Counts::default());
    let processes = Arc::new(Notify::new());
    let (kernel, reader, problem) = load(plan, &intake, &counts, &processes)?;
    let mut session = Session {
        plan,
        form,
        followers: Followers::new(scope(plan), kernel, problem, intake.clone(), Arc::clone(&counts)),
        intake: intake.clone(),
        counts,
        interfaces,
        tally,
        losses: Losses::default(),
        crowded_out: 0,
        packets_dropped: 0,
        checked: clock::now(),
        progress: plan.output.quiet.then_some(()).map_or_else(|| io::stderr().is_terminal(), |()| false),
    };
    session.look()?;
    session.ready();
    let lookups = answer_questions(intake.clone());

    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut progress = tokio::time::interval(PROGRESS_EVERY);
    let deadline = plan.duration.map(|duration| tokio::time::Instant::now() + duration);
    let end = loop {
        tokio::select! {
            _ = interrupt.recv() => break End::Ordered,
            _ = terminate.recv() => break End::Ordered,
            () = sleep_until(deadline) => break End::Ordered,
            Some(saying) = sayings.recv() => match saying {
                // The lookup thread ends only with the program.
                Said::Question(question) => drop(lookups.send(question)),
                Said::Case(CaseKind::Incident) if session.is_enough() => break End::Ordered,
                Said::Case(_) => session.report_trouble(),
                Said::OutputGone => break End::OutputGone,
                Said::Ended => break End::Ordered,
            },
            () = processes.notified() => {
                tokio::time::sleep(SETTLE).await;
                session.look()?;
            }
            _ = look.tick() => session.look()?,
            _ = progress.tick() => {
                session.count_losses();
                session.show_progress();
            }
        }
    };
    session.hide_progress();
    // In order: nothing more is captured, what was captured is read, thought through and written, and only then are we gone. A second
    // signal does not wait for that.
    let finish = tokio::task::spawn_blocking({
        let intake = intake.clone();
        move || {
            if let Some(reader) = reader {
                // Records of the last failures are on their way; their late evidence is what the ring holds by then.
                std::thread::sleep(Duration::from_millis(120));
                reader.finish();
            }
            intake.deliver(Delivery::End);
            thinking.join()
        }
    });
    tokio::select! {
        _ = finish => {}
        _ = interrupt.recv() => std::process::exit(130),
        _ = terminate.recv() => std::process::exit(143),
    }
    session.count_losses();
    session.report_trouble();
    if matches!(end, End::Ordered) {
        session.summary(started);
    }
    Ok(())
}

fn handler(kind: SignalKind) -> Result<Signal, AppError> {
    signal(kind).context("cannot handle signals").map_err(AppError::host)
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Whether there is an nginx to watch; waits for one if asked to. `false`: it was interrupted meanwhile.
async fn wait_for_nginx(plan: &Watch, interrupt: &mut Signal, terminate: &mut Signal) -> Result<bool, AppError> {
    let wanted = |master: &nginx::Master| {
        plan.pids.is_empty() || plan.pids.iter().any(|pid| *pid == master.pid || master.workers.contains(pid))
    };
    let mut said = false;
    loop {
        let masters = nginx::masters();
        if masters.iter().any(wanted) {
            return Ok(true);
        }
        if !plan.wait {
            let error = match plan.pids.as_slice() {
                [] => anyhow::anyhow!("no nginx runs on this host; start it first, or wait for it with --wait"),
                pids => {
                    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
                    anyhow::anyhow!(
                        "process {} is no nginx master or worker; leave --pid out to watch every nginx",
                        pids.join(", ")
                    )
                }
            };
            return Err(AppError::host(error));
        }
        if !said && !plan.output.quiet {
            said = true;
            let _ = writeln!(io::stderr(), "probe502: no nginx yet; waiting for one");
        }
        tokio::select! {
            _ = interrupt.recv() => return Ok(false),
            _ = terminate.recv() => return Ok(false),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

fn finish_early(form: Form, started: Instant) -> Result<(), AppError> {
    if form.json {
        let summary = json::Summary { duration_s: started.elapsed().as_secs_f64(), ..json::Summary::default() };
        output::print(&json::line(&summary)).context("cannot write to stdout").map_err(AppError::host)?;
    }
    Ok(())
}

type Loaded = (Option<Kernel>, Option<RingReader>, Option<String>);

/// The kernel programs, and the thread that reads what they tell. Their absence is a gap, not an end.
fn load(plan: &Watch, intake: &Intake, counts: &Arc<Counts>, processes: &Arc<Notify>) -> Result<Loaded, AppError> {
    let options = LoadOptions {
        depth: if plan.depth == Depth::Light { ebpf::Depth::Light } else { ebpf::Depth::Standard },
        hide_btf: plan.hide_btf,
        ring_bytes: RING_BYTES,
        statuses: plan.statuses.clone(),
    };
    let mut kernel = match Kernel::load(&options) {
        Ok(kernel) => kernel,
        Err(error) => {
            tracing::warn!("{error}");
            return Ok((None, None, Some(error.to_string())));
        }
    };
    let names = Names {
        drop_reasons: kernel.drop_reasons().clone(),
        reset_reasons: kernel.reset_reasons().clone(),
        hz: Kernel::hz(),
    };
    let ring = kernel.take_ring().map_err(AppError::host)?;
    let reader = RingReader::start(ring, names, intake.clone(), Arc::clone(counts), Arc::clone(processes))
        .context("cannot start the thread that reads the kernel's ring")
        .map_err(AppError::host)?;
    Ok((Some(kernel), Some(reader), None))
}

/// A thread that looks things up on the host: reading `/proc` may take milliseconds and must not hold anything else up.
fn answer_questions(intake: Intake) -> std::sync::mpsc::Sender<Question> {
    let (sender, receiver) = std::sync::mpsc::channel::<Question>();
    let started = std::thread::Builder::new().name("lookup".into()).spawn(move || {
        let mut lookup = Lookup::default();
        while let Ok(question) = receiver.recv() {
            let before = clock::now();
            if let Some(fact) = lookup.answer(question) {
                let at = At::between(before, clock::now());
                let arrival = Arrival { at, source: Source::Probe, body: Body::Host(fact) };
                intake.deliver(Delivery::Arrivals(vec![arrival]));
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!("nothing can be looked up on this host: {error}");
    }
    sender
}

/// A running watch.
struct Session<'a> {
    plan: &'a Watch,
    form: Form,
    followers: Followers,
    intake: Intake,
    counts: Arc<Counts>,
    interfaces: SharedInterfaces,
    tally: SharedTally,
    losses: Losses,
    crowded_out: u64,
    packets_dropped: u64,
    checked: Moment,
    progress: bool,
}

impl Session<'_> {
    fn look(&mut self) -> Result<(), AppError> {
        let first = self.followers.instances().next().is_none();
        let changes = self.followers.look().map_err(AppError::host)?;
        self.interfaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&self.followers.interfaces().to_vec());
        if first {
            // The first look is told by `ready`.
            return Ok(());
        }
        for change in changes {
            let (what, text) = match change {
                Change::Appeared(instance) => ("nginx-appeared", format!("nginx {} is watched too", instance.master)),
                Change::Changed(instance) => {
                    let workers: Vec<String> = instance.workers.iter().map(ToString::to_string).collect();
                    ("nginx-changed", format!("nginx {} has workers {}", instance.master, workers.join(", ")))
                }
                Change::Gone(pid) => ("nginx-gone", format!("nginx {pid} is gone")),
            };
            self.notice(what, 1, &text);
        }
        Ok(())
    }

    fn is_enough(&self) -> bool {
        self.report_trouble();
        let incidents = output::with(&self.tally, |tally| tally.incidents);
        self.plan.count.is_some_and(|count| incidents >= count)
    }

    fn ready(&self) {
        let nginx: Vec<json::ReadyNginx> = self.followers.instances().map(json::ReadyNginx::from).collect();
        if self.form.json {
            let sources = self
                .followers
                .sensors()
                .map(|(sensor, sight, why)| json::ReadySource {
                    name: sensor.name().to_owned(),
                    state: json::sight(sight),
                    why: why.map(str::to_owned),
                })
                .collect();
            let ready = json::Ready { version: env!("CARGO_PKG_VERSION").to_owned(), nginx, sources };
            // A reader that is gone is noticed with the first incident.
            let _ = output::print(&json::line(&ready));
        }
        if self.plan.output.quiet {
            return;
        }
        let mut lines = Vec::new();
        if self.plan.depth_auto {
            lines.push("depth auto: standard, and it stays that".to_owned());
        }
        if !self.form.json {
            for instance in self.followers.instances() {
                let workers: Vec<String> = instance.workers.iter().map(ToString::to_string).collect();
                let version = instance.version.as_deref().unwrap_or("of unknown version");
                lines.push(format!(
                    "watching nginx {version}, master {}, workers {}",
                    instance.master,
                    workers.join(", ")
                ));
            }
            for (sensor, sight, why) in self.followers.sensors() {
                let expected = why.is_some_and(|why| why.starts_with("not "));
                if sight != Sight::On && !expected {
                    let how = if sight == Sight::Off { "off" } else { "degraded" };
                    lines.push(format!("{sensor} is {how}: {}", why.unwrap_or("no reason is known")));
                }
            }
            lines.extend(self.followers.gaps().map(|(pid, gap)| format!("nginx {pid}: not learnt: {gap}")));
        }
        for line in lines {
            let _ = writeln!(io::stderr(), "probe502: {line}");
        }
    }

    /// What was lost since the last look becomes coverage and a notice.
    fn count_losses(&mut self) {
        let now = clock::now();
        let span = At::between(self.checked, now);
        self.checked = now;
        let losses = self.followers.kernel().and_then(|kernel| kernel.losses().ok()).unwrap_or(self.losses);
        let unreadable = self.counts.unreadable.load(Ordering::Relaxed);
        let crowded_out = self.counts.crowded_out.load(Ordering::Relaxed) + unreadable;
        let dropped = self.followers.packet_statistics().dropped();
        let news = [
            (None, losses.ring_full - self.losses.ring_full, "kernel records found the ring full"),
            (
                None,
                losses.map_full - self.losses.map_full,
                "connections or processes could not be watched: a map is full",
            ),
            (
                None,
                crowded_out - self.crowded_out,
                "records came faster than they could be thought about, or could not be read",
            ),
            (Some(Sensor::Packets), dropped - self.packets_dropped, "packets were dropped by the capture"),
        ];
        (self.losses, self.crowded_out, self.packets_dropped) = (losses, crowded_out, dropped);
        for (sensor, count, why) in news.into_iter().filter(|(_, count, _)| *count > 0) {
            let lost = Coverage::Lost { sensor, count, why: why.to_owned() };
            let arrival = Arrival { at: span, source: Source::Probe, body: Body::Coverage(lost) };
            self.intake.deliver(Delivery::Arrivals(vec![arrival]));
            self.notice("lost", count, &format!("{count} {why}"));
        }
    }

    fn events_lost(&self) -> u64 {
        self.losses.ring_full + self.losses.map_full + self.crowded_out
    }

    fn report_trouble(&self) {
        for text in output::with(&self.tally, |tally| std::mem::take(&mut tally.trouble)) {
            self.notice("not-written", 1, &text);
        }
    }

    fn notice(&self, what: &str, count: u64, text: &str) {
        if self.form.json {
            let notice = json::Notice { what: what.to_owned(), count, text: text.to_owned() };
            let _ = output::print(&json::line(&notice));
        }
        if !self.plan.output.quiet {
            self.hide_progress();
            let _ = writeln!(io::stderr(), "probe502: {text}");
        }
    }

    fn show_progress(&mut self) {
        if !self.progress {
            return;
        }
        let responses =
            self.followers.kernel().and_then(|kernel| kernel.counters().ok()).map_or(0, |counters| counters.responses);
        let (incidents, near_misses) = output::with(&self.tally, |tally| (tally.incidents, tally.near_misses));
        let lost = self.events_lost() + self.packets_dropped;
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{responses} responses seen, {incidents} failed, {near_misses} near misses, {lost} records or packets lost"
        );
        let _ = io::stderr().flush();
    }

    fn hide_progress(&self) {
        if self.progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }

    fn summary(&self, started: Instant) {
        let tally = output::with(&self.tally, |tally| tally.clone());
        let seconds = started.elapsed().as_secs_f64();
        if self.form.json {
            let summary = json::Summary {
                incidents: tally.incidents,
                near_misses: tally.near_misses,
                by_cause: tally.by_cause,
                events_lost: self.events_lost(),
                packets_dropped: self.packets_dropped,
                duration_s: (seconds * 1_000.0).round() / 1_000.0,
            };
            let _ = output::print(&json::line(&summary));
        } else if !self.plan.output.quiet {
            let causes: Vec<String> = tally.by_cause.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
            let _ = writeln!(
                io::stderr(),
                "probe502: {} incidents, {} near misses in {seconds:.1} s{}{}; {} records and {} packets lost",
                tally.incidents,
                tally.near_misses,
                if causes.is_empty() { "" } else { ": " },
                causes.join(", "),
                self.events_lost(),
                self.packets_dropped,
            );
        }
    }
}
