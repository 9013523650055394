//! The demonstration: a lab, things that break one after another, and `probe502 watch` explaining each. Leaves nothing behind.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use probe_tests::attached::Attached;
use probe_tests::expect::Report;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::probe::binary;
use probe_tests::process::{Process, Start};
use probe_tests::site::Site;

/// What is shown, in this order; all on one site.
const SHOWN: [&str; 9] = [
    "upstream-refused",
    "upstream-reset",
    "premature-close-half",
    "keepalive-race-post",
    "masked-retry",
    "syn-timeout-kernel",
    "read-timeout",
    "fd-exhausted-upstream-node",
    "no-live-upstreams",
];
/// What needs an nginx of its own.
const APART: &str = "fd-exhausted-nginx";
/// What must be met with silence.
const HARMLESS: &str = "harmless-answers";

/// The probe prints within a second of the client's answer; a little more, so that its words come before the next act.
const PAUSE: Duration = Duration::from_millis(1300);

/// Set by Ctrl-C: the demonstration ends after the act that is on.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn main() -> Result<()> {
    let mut arguments = std::env::args();
    let called = arguments.next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == "upstream") {
        // `cargo run --bin demo` builds nothing else, so the demonstration is its own upstream.
        return probe_tests::server::serve(arguments);
    }
    let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores into an atomic and does nothing else.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handle {signal}"))?;
    }
    show()
}

/// Says a line of narration.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if colour {
        writeln!(out, "\x1b[1;36m{text}\x1b[0m")?;
    } else {
        writeln!(out, "{text}")?;
    }
    out.flush()?;
    Ok(())
}

/// The whole demonstration.
fn show() -> Result<()> {
    let began = Instant::now();
    let shown = SHOWN.iter().chain([&HARMLESS]).map(|name| Fault::named(name)).collect::<Result<Vec<_>>>()?;
    let apart = Fault::named(APART)?;

    say("Making two small networks: client | nginx | upstreams, each in its own namespace ...")?;
    let (lab, small_lab) = (Lab::new()?, Lab::new()?);
    let site = Site::start(&lab, &shown)?;
    let small_site = Site::start(&small_lab, &[apart])?;
    let load = site.healthy("/ok", 100, 4)?;

    let mut probe = watch(&[site.nginx().master(), small_site.nginx().master()])?;
    wait_attached(&mut probe)?;
    let attached = Attached::of(probe.pid())?;
    let (programs, links) = attached.counts();
    say(&format!(
        "probe502 watches ({programs} kernel programs, {links} links) amid 100 healthy requests a second.\n"
    ))?;

    let acts = shown.iter().map(|fault| (&site, fault)).chain([(&small_site, &apart)]);
    for (site, fault) in acts {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        act(site, fault)?;
    }

    say("\nCtrl-C: everything is detached, the summary is printed.")?;
    probe.signal(Signal::SIGINT)?;
    let status = probe.wait(Duration::from_secs(10))?;
    let tally = load.stop()?;
    attached.wait_gone(Duration::from_secs(3))?;
    drop((site, small_site));
    drop((lab, small_lab));
    say(&format!(
        "\nNothing is left behind. {} healthy requests, {}. {:.0} s.",
        tally.sent(),
        if tally.all_ok() { "all answered with 200" } else { "not all answered with 200" },
        began.elapsed().as_secs_f64()
    ))?;
    if !status.success() {
        bail!("probe502 ended with {status}");
    }
    Ok(())
}

/// One act: says what breaks, breaks it, says what the client saw, and leaves the word to the probe.
fn act(site: &Site<'_>, fault: &Fault) -> Result<()> {
    say(&format!("── now: {}", fault.story))?;
    for witness in site.provoke(fault)? {
        let exchange = &witness.exchange;
        let status = exchange.status.map_or("no answer".to_owned(), |status| status.to_string());
        let silence = if witness.expected.report == Report::Nothing { " (not nginx's doing: no report)" } else { "" };
        let (method, uri, took) = (&exchange.method, &exchange.uri, exchange.took.as_millis());
        say(&format!("   {} {method} {uri} → {status} after {took} ms{silence}", exchange.local))?;
    }
    std::thread::sleep(PAUSE);
    Ok(())
}

/// Starts `probe502 watch` on our own nginx alone, with the terminal as its own.
fn watch(masters: &[u32]) -> Result<Process> {
    let mut command = Command::new(program()?);
    command.arg("watch").stdin(Stdio::null());
    for master in masters {
        command.arg("--pid").arg(master.to_string());
    }
    Process::spawn("probe502", command, Start::default())
}

/// The probe: `PROBE502_BIN`, else the one built beside the demonstration.
fn program() -> Result<PathBuf> {
    if std::env::var_os("PROBE502_BIN").is_some() {
        return binary();
    }
    let beside = std::env::current_exe().context("find the running program")?.with_file_name("probe502");
    if !beside.is_file() {
        bail!("no probe502 at {}: run `cargo xtask demo`, which builds it, or set PROBE502_BIN", beside.display());
    }
    Ok(beside)
}

/// Waits until the number of attached programs stays the same for half a second: the text form has no line that says so.
fn wait_attached(probe: &mut Process) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut last = (0, 0);
    let mut since = Instant::now();
    while last.0 == 0 || since.elapsed() < Duration::from_millis(500) {
        if let Some(status) = probe.ended()? {
            bail!("probe502 ended at once: {status}");
        }
        if Instant::now() > deadline {
            bail!("probe502 has attached nothing within 15 s");
        }
        std::thread::sleep(Duration::from_millis(100));
        let counts = Attached::of(probe.pid()).map_or((0, 0), |attached| attached.counts());
        if counts != last {
            (last, since) = (counts, Instant::now());
        }
    }
    Ok(())
}
