//! nginx that does not stay what it was: reloaded all the time, workers that crash, another program in its place, its container gone.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use probe_tests::attached::Attached;
use probe_tests::config::Config;
use probe_tests::lab::Lab;
use probe_tests::line::Notice;
use probe_tests::probe::Probe;
use probe_tests::process::{send, wait_until};
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

use crate::scene::{KINDS, all_is_well, check_summary, fail_for, faults, lasts, notices};

/// Amid a storm of processes that come and go the machine is theirs: a debug build that shares it with other work may need the second that the
/// contract allows once more.
const AMID_STORM: Duration = Duration::from_secs(2);

/// Does something again and again beside the work, each time a little later.
fn meanwhile<T>(
    pause: Duration,
    again: impl Fn() -> Result<()> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, u32)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                again()?;
                count += 1;
                std::thread::sleep(pause);
            }
            anyhow::Ok(count)
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let count = beside.join().map_err(|_panic| anyhow!("the thread beside panicked"))??;
        Ok((done?, count))
    })
}

/// A reload every 200 ms (20 s with `PROBE502_STORM=20`): every failure amid them is explained, once, by nginx's own word.
#[test]
fn reload_storm() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let master = site.nginx().master();
    let probe = Probe::watch_nginx(master, &[])?;
    let (witnesses, reloads) = meanwhile(
        Duration::from_millis(200),
        || send(master, Signal::SIGHUP),
        || fail_for(&site, lasts(8), Duration::from_millis(60)),
    )?;
    ensure!(reloads > 10, "{reloads} reloads are no storm");
    probe.check_all(&witnesses, AMID_STORM)?;
    let after = all_is_well(&site, &probe, witnesses.len())?;
    check_summary(&probe.stop()?, witnesses.len() + after)
}

/// The same from the error log: it is followed on, and no line is read twice.
#[test]
fn reload_storm_without_nginxs_functions() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let master = site.nginx().master();
    let probe = Probe::watch_nginx(master, &["--no-uprobes"])?;
    let (mut witnesses, _) = meanwhile(
        Duration::from_millis(200),
        || send(master, Signal::SIGHUP),
        || fail_for(&site, lasts(3), Duration::from_millis(60)),
    )?;
    for witness in &mut witnesses {
        witness.expected = witness.expected.clone().at_light().without_uprobes();
    }
    probe.check_all(&witnesses, AMID_STORM)?;
    let ended = probe.stop()?;
    check_summary(&ended, witnesses.len())
}

/// nginx is asked for its configuration and does not answer (a file that it includes is a pipe that nobody writes to): what fails meanwhile is
/// told in time, of its new worker too, and the change once the question was given up.
#[test]
fn configuration_that_hangs() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start_with(&lab, "site", &faults()?, |plan| plan.config.workers = 1)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let before = all_is_well(&site, &probe, 0)?;
    let pipe = site.nginx().directory().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).context("make a pipe")?;
    let conf = site.nginx().directory().join("nginx.conf");
    let text = std::fs::read_to_string(&conf)?;
    std::fs::write(&conf, format!("include {};\n{text}", pipe.display()))?;
    // The new worker is a change; nginx itself does not read its configuration for it.
    let worker = site.nginx().kill_worker(site.nginx().workers()?[0])?;
    let began = std::time::Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(4) {
        let witness = KINDS[count % KINDS.len()].provoke(&site, 100 + count)?;
        for incident in probe.check_all(&[witness], WITHIN)? {
            ensure!(incident.nginx.pid == Some(worker), "{incident:#?}");
        }
        count += 1;
    }
    let changed = |notice: &Notice| notice.what == "nginx-changed" && notice.text.contains(&worker.to_string());
    ensure!(probe.wait_notice(Duration::ZERO, changed).is_err(), "it was not asked: the pipe keeps nobody waiting");
    probe.wait_notice(Duration::from_secs(8), changed)?;
    let after = all_is_well(&site, &probe, 1000)?;
    check_summary(&probe.stop()?, before + count + after)
}

/// The only worker crashes every 100 ms: what fails between two crashes is explained, and the crashes are not blamed on anybody.
#[test]
fn worker_crash_loop() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start_with(&lab, "site", &faults()?, |plan| plan.config.workers = 1)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let crash = || {
        for worker in site.nginx().workers()? {
            // It may have crashed already.
            let _ = send(worker, Signal::SIGSEGV);
        }
        Ok(())
    };
    let (witnesses, crashes) =
        meanwhile(Duration::from_millis(100), crash, || fail_for(&site, lasts(3), Duration::from_millis(30)))?;
    ensure!(crashes > 20, "{crashes} crashes are no loop");
    probe.check_all(&witnesses, AMID_STORM)?;
    let after = all_is_well(&site, &probe, witnesses.len())?;
    check_summary(&probe.stop()?, witnesses.len() + after)
}

/// A binary upgrade as nginx's documentation has it: USR2, both run, the old one is told to leave. The new master is watched though only
/// the old one was asked for (`--pid`).
#[test]
fn binary_upgrade() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let mut config = Config { port: 8085, ..Config::default() };
    for kind in [
        "upstream-reset/ { proxy_pass http://10.77.2.2:9001/reset/0/; }",
        "upstream-refused/ { proxy_pass http://10.77.2.2:9091; }",
        "premature-close/ { proxy_pass http://10.77.2.2:9001/close/; }",
    ] {
        let _ = writeln!(config.server, "location /{kind}");
    }
    // nginx ignores USR2 as long as its parent is the one that started it, so it has to be a daemon.
    let directory = lab.subdirectory("upgraded")?;
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config.render(&directory).replace("daemon off;", "daemon on;"))?;
    let program = which("nginx")?;
    let mut start = Command::new("ip");
    start.args(["netns", "exec", lab.proxy().name()]).arg(program).arg("-c").arg(&file).arg("-p").arg(&directory);
    let status = start.arg("-e").arg(directory.join("error.log")).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "nginx did not start: {status}");
    let pid_in = |name: &str| -> Result<u32> {
        let path = directory.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim().parse().context("a pid")
    };
    let target = SocketAddr::new(lab.proxy_address(false), config.port);
    wait_until("nginx answers", Duration::from_secs(5), || {
        Ok(probe_tests::client::Connection::open(lab.client(), target).is_ok())
    })?;
    let old = pid_in("nginx.pid")?;
    let probe = Probe::watch_nginx(old, &[])?;
    let mut number = 0;
    let mut fail = |probe: &Probe, times: usize| -> Result<()> {
        for _ in 0..times {
            let witness = KINDS[number % KINDS.len()].provoke_at(&site, target, number)?;
            number += 1;
            probe.check_all(&[witness], WITHIN)?;
        }
        Ok(())
    };
    fail(&probe, 3)?;
    send(old, Signal::SIGUSR2)?;
    wait_until("the new master runs", Duration::from_secs(5), || {
        Ok(pid_in("nginx.pid").is_ok_and(|pid| pid != old) && pid_in("nginx.pid.oldbin").is_ok())
    })?;
    let new = pid_in("nginx.pid")?;
    fail(&probe, 6)?;
    send(old, Signal::SIGQUIT)?;
    wait_until("the old master is gone", Duration::from_secs(5), || {
        Ok(!std::path::Path::new(&format!("/proc/{old}/exe")).exists())
    })?;
    fail(&probe, 6)?;
    let ended = probe.stop()?;
    send(new, Signal::SIGTERM)?;
    check_summary(&ended, 15)?;
    let told = notices(&ended, "nginx-appeared");
    ensure!(told.iter().any(|notice| notice.text.contains(&new.to_string())), "{new} is not told: {told:?}");
    Ok(())
}

fn which(program: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").context("PATH")?;
    let mut found = std::env::split_paths(&path).map(|directory| directory.join(program)).filter(|file| file.is_file());
    found.next().with_context(|| format!("no {program}"))
}

/// The container of one nginx is killed; the other nginx is watched on, and what was told stays told.
#[test]
fn container_stopped() -> Result<()> {
    let lab = Lab::new()?;
    let inner_lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let container = Site::start_with(&inner_lab, "container", &faults()?, |plan| plan.config.container = true)?;
    let pids = [site.nginx().master().to_string(), container.nginx().master().to_string()];
    let probe = Probe::watch(["--pid", &pids[0], "--pid", &pids[1]])?;
    let attached = Attached::of(probe.pid())?;
    let inside = all_is_well(&container, &probe, 0)?;
    // As a runtime does it that has lost patience: everything in the pid namespace is killed with its first process.
    send(container.nginx().master(), Signal::SIGKILL)?;
    let gone = probe.wait_notice(Duration::from_secs(3), |notice| notice.what == "nginx-gone")?;
    ensure!(gone.text.contains(&pids[1]), "{gone:?}");
    drop(container);
    let outside = all_is_well(&site, &probe, inside)?;
    check_summary(&probe.stop()?, inside + outside)?;
    attached.wait_gone(Duration::from_secs(3))
}
