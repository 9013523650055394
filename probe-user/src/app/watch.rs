//! `probe502 watch`.

use std::{
    io::{self, Write as _},
    sync::Arc,
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
    folder::{self, Folder, Owner},
    output::{self, Form, Printer, SharedTally},
    recording,
    session::Session,
};
use crate::{
    bundle::tape::Interfaces,
    cli::{
        plan::{Depth, Watch},
        record::Record,
    },
    live::{
        self, clock,
        delivery::Delivery,
        ebpf::{self, Kernel, LoadOptions, cost},
        follow::Followers,
        host::Desks,
        memory, nginx,
        privilege::Account,
        scope::{self, Scope},
        sources::{Counts, RingReader},
        thinker::{self, Intake, Said},
    },
    model::{case::CaseKind, time::WallClock},
    pipeline::{Limits, Settings},
    redact::{Level, Redactor},
    report::json,
};

/// The contract: a new nginx is picked up within a second. The kernel side tells at once; this is for hosts where it cannot.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A started nginx needs a moment until its workers are there.
const SETTLE: Duration = Duration::from_millis(30);

/// How often the progress line is renewed.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How often it is asked what was lost: well within the time that a case waits for its late evidence, and not oftener, because some thirty
/// programs are asked.
const LOSSES_EVERY: Duration = Duration::from_millis(120);

/// How long the sources go on after the end was asked for: the delay with which a case closes, and the stream's lag behind the clock.
const LAST_WAIT: Duration = Duration::from_millis(320);

/// Size of the ring, bytes: read every 15 ms, it holds what 100,000 connections a second leave in that time. Mapped twice, it counts twice.
const RING_BYTES: u32 = 4 << 20;

/// Runs it.
pub fn run(plan: &Watch, record: Option<&Record>) -> Result<(), AppError> {
    log_to_stderr(plan);
    let lacking = live::privilege::lacking();
    if !lacking.is_empty() {
        return Err(AppError::host(anyhow::anyhow!(
            "watching nginx needs root (eBPF, packet capture, other users' processes), or {}; run it with sudo",
            lacking.join(", ")
        )));
    }
    live::privilege::reduce().context("cannot give up the rights that are not needed").map_err(AppError::host)?;
    if plan.depth != Depth::Deep {
        // There, two threads allocate for each packet, and would wait for one another.
        memory::share_a_heap();
    }
    let account = account(plan)?;
    let owner = account.map_or_else(folder::owner_by_sudo, |account| Some(account.numbers()));
    let folder = plan.out.as_deref().map(|path| Folder::open(path, owner)).transpose().map_err(AppError::host)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
        .map_err(AppError::host)?;
    runtime.block_on(watch(plan, record, folder, account, owner))
}

/// Whom to become once everything is attached.
fn account(plan: &Watch) -> Result<Option<Account>, AppError> {
    if plan.follows {
        return Ok(None);
    }
    live::privilege::expect_to_retire();
    let found = Account::find(plan.user.as_deref());
    found.map(Some).context("cannot become another user; choose one with --user").map_err(AppError::host)
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

fn scope(plan: &Watch, records: bool) -> Scope {
    Scope {
        pids: plan.pids.clone(),
        interfaces: plan.interfaces.clone(),
        depth: match plan.depth {
            Depth::Light => scope::Depth::Light,
            Depth::Standard => scope::Depth::Standard,
            Depth::Deep => scope::Depth::Deep,
        },
        depth_auto: plan.depth_auto,
        uprobes: plan.uprobes,
        packets: plan.packets,
        keeps_packets: records || plan.out.is_some(),
        only_nginx: plan.only_nginx,
        follows: plan.follows,
    }
}

/// What prints, and leaves incidents in their folder.
fn printer(
    plan: &Watch,
    form: Form,
    clock: WallClock,
    folder: Option<Folder>,
    interfaces: &Interfaces,
    tally: &SharedTally,
) -> Printer {
    let printer = Printer::new(form, clock, folder, Arc::clone(interfaces), Arc::clone(tally));
    printer.with_whole_uris(plan.redaction == Level::None)
}

/// What takes out of every input what must not be kept.
fn redactor(plan: &Watch) -> Result<Arc<Redactor>, AppError> {
    let key = live::secret().context("cannot read random bytes for the redaction").map_err(AppError::host)?;
    Ok(Arc::new(Redactor::new(plan.redaction, key)))
}

/// Why the watch ends.
enum End {
    /// It was asked to, or has done what it should.
    Ordered,
    /// Nobody reads the output any more.
    OutputGone,
    /// The thinking thread is gone before its time.
    Broken,
}

async fn watch(
    plan: &Watch,
    record: Option<&Record>,
    folder: Option<Folder>,
    account: Option<Account>,
    owner: Option<Owner>,
) -> Result<(), AppError> {
    let started = Instant::now();
    let [mut interrupt, mut terminate, mut asked_for_cost] = handlers()?;
    let form = Form::choose(plan.output.json);
    if !wait_for_nginx(plan, &mut interrupt, &mut terminate).await? {
        return finish_early(form, started);
    }

    let tally = SharedTally::default();
    let interfaces = Interfaces::default();
    let clock = clock::wall();
    let place = folder.as_ref().map(|folder| folder.path().to_owned());
    let printer = printer(plan, form, clock, folder, &interfaces, &tally);
    let settings = Settings { limits: Limits::live(), clock, statuses: plan.statuses.clone() };
    let (said, mut sayings) = mpsc::unbounded_channel();
    let counts = Arc::new(Counts::default());
    let redactor = redactor(plan)?;
    let (kernel, problem) = load(plan);
    let _counting = counting(plan);
    let recorder = record
        .map(|record| recording::start(record, clock, kernel.as_ref(), &interfaces, &tally, owner))
        .transpose()
        .map_err(AppError::host)?;
    let (intake, thinking) =
        thinker::start(settings, Box::new(printer), said, Arc::clone(&counts), recorder, redactor, place)
            .context("cannot start the thinking thread")
            .map_err(AppError::host)?;

    let processes = Arc::new(Notify::new());
    let (kernel, reader) = listen(kernel, &intake, &counts, &processes)?;
    let scope = scope(plan, record.is_some());
    let followers = Followers::new(scope, kernel, problem, intake.clone(), Arc::clone(&counts), interfaces);
    let mut session = Session::new(plan, form, followers, intake.clone(), counts, tally, record.is_some());
    session.begin(account)?;
    memory::give_back();
    let (desks, mut led) = Desks::open(&intake, plan.follows, session.followers.lookup());

    let learnt = session.followers.learnt();
    let [mut look, mut losses, mut progress] = [LOOK_EVERY, LOSSES_EVERY, PROGRESS_EVERY].map(every);
    let deadline = plan.duration.map(|duration| tokio::time::Instant::now() + duration);
    let end = loop {
        tokio::select! {
            _ = interrupt.recv() => break End::Ordered,
            _ = terminate.recv() => break End::Ordered,
            () = sleep_until(deadline) => break End::Ordered,
            _ = asked_for_cost.recv() => session.tell_own_cost(started),
            saying = sayings.recv() => {
                let Some(saying) = saying else { break End::Broken };
                if let Some(end) = heed(&mut session, saying, &desks) {
                    break end;
                }
            }
            Some(found) = led.recv() => session.followers.take_translations(found),
            () = processes.notified(), if plan.follows => {
                tokio::time::sleep(SETTLE).await;
                session.look_closely()?;
            }
            () = learnt.notified(), if plan.follows => session.look()?,
            _ = look.tick(), if plan.follows && session.is_rested() => session.look()?,
            () = sleep_until(session.deeper_until) => session.end_deeper(),
            _ = losses.tick(), if !intake.rest().is_on() => session.count_losses_if_due(),
            // What was due meanwhile is done at once.
            () = intake.rest().ended() => {}
            _ = progress.tick() => {
                session.count_losses_if_due();
                session.tell_losses();
                session.report_trouble();
                session.show_progress();
            }
        }
    };
    session.hide_progress();
    // While its threads still run: what they took is counted by thread.
    session.tell_own_cost_at_the_end(started);
    // In order: nothing more is captured, what was captured is read, thought through and written, and only then are we gone. A second
    // signal does not wait for that.
    let finish = tokio::task::spawn_blocking({
        let intake = intake.clone();
        move || {
            // The last failures still wait for their late evidence, as every case does: nobody is judged on half of it.
            std::thread::sleep(LAST_WAIT);
            if let Some(reader) = reader {
                reader.finish();
            }
            intake.deliver(Delivery::End(clock::now()));
            thinking.join()
        }
    });
    let whole = settle(&mut session, finish, [interrupt, terminate], losses).await;
    session.count_losses();
    session.tell_losses();
    session.report_trouble();
    if matches!(end, End::Ordered) {
        session.summary(started);
    }
    if !whole {
        let what =
            "the thread that judges what was seen has failed (its message stands above): failures may be missing";
        return Err(AppError::fault(anyhow::anyhow!(
            "{what}; this is a fault of probe502, which its makers want to know of"
        )));
    }
    Ok(())
}

/// Does what the thinking thread's word asks for; whether that is the end.
fn heed(session: &mut Session<'_>, saying: Said, desks: &Desks) -> Option<End> {
    match saying {
        Said::Question(question) => desks.ask(question),
        Said::Stranger(question) => desks.wonder(question),
        Said::Case(CaseKind::Incident) if session.is_enough() => return Some(End::Ordered),
        Said::Case(_) => session.report_trouble(),
        Said::TooShallow => session.deepen(),
        Said::OutputGone => return Some(End::OutputGone),
        Said::Ended => return Some(End::Ordered),
    }
    None
}

/// Waits until the last failure is judged, and goes on counting what is lost until then. False if the thinking thread did not come to its
/// end.
async fn settle(
    session: &mut Session<'_>,
    mut finish: tokio::task::JoinHandle<std::thread::Result<u64>>,
    [mut interrupt, mut terminate]: [Signal; 2],
    mut losses: tokio::time::Interval,
) -> bool {
    loop {
        tokio::select! {
            finished = &mut finish => return match finished {
                Ok(Ok(late)) => {
                    tracing::info!("{late} records and packets came too late for their place in the stream");
                    true
                }
                Ok(Err(_)) | Err(_) => false,
            },
            _ = interrupt.recv() => std::process::exit(130),
            _ = terminate.recv() => std::process::exit(143),
            _ = losses.tick() => session.count_losses_if_due(),
        }
    }
}

/// Ticks that do not catch up.
fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Of SIGINT, SIGTERM and SIGUSR1.
fn handlers() -> Result<[Signal; 3], AppError> {
    let [interrupt, terminate, cost] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::user_defined1()];
    Ok([handler(interrupt)?, handler(terminate)?, handler(cost)?])
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

/// The kernel programs. Their absence is a gap, not an end.
fn load(plan: &Watch) -> (Option<Kernel>, Option<String>) {
    if !plan.ebpf {
        return (None, Some("switched off (--no-ebpf)".to_owned()));
    }
    let options = LoadOptions {
        depth: if plan.depth == Depth::Light { ebpf::Depth::Light } else { ebpf::Depth::Standard },
        reach: if plan.depth_auto { ebpf::Depth::Standard } else { ebpf::Depth::Light },
        hide_btf: plan.hide_btf,
        only: plan.hooks.clone(),
        ring_bytes: RING_BYTES,
        statuses: plan.statuses.clone(),
    };
    match Kernel::load(&options) {
        Ok(kernel) => (Some(kernel), None),
        Err(error) => {
            tracing::warn!("{error}");
            (None, Some(error.to_string()))
        }
    }
}

/// With `--self-stats` the kernel times its programs.
fn counting(plan: &Watch) -> Option<cost::Counting> {
    plan.self_stats.then(cost::count_run_times).transpose().unwrap_or_else(|error| {
        tracing::warn!("the kernel does not time its programs (Linux 5.8 does): {error}");
        None
    })
}

/// The thread that reads what they tell.
fn listen(
    kernel: Option<Kernel>,
    intake: &Intake,
    counts: &Arc<Counts>,
    processes: &Arc<Notify>,
) -> Result<(Option<Kernel>, Option<RingReader>), AppError> {
    let Some(mut kernel) = kernel else { return Ok((None, None)) };
    let names = recording::names(&kernel);
    let ring = kernel.take_ring().map_err(AppError::host)?;
    let reader = RingReader::start(ring, names, intake.clone(), Arc::clone(counts), Arc::clone(processes))
        .context("cannot start the thread that reads the kernel's ring")
        .map_err(AppError::host)?;
    Ok((Some(kernel), Some(reader)))
}
