//! Where the host does not allow it: one clear line, the documented exit status, no panic, no half-written file.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use probe_tests::expect::Report;
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::line::{Incident, Line, SourceState};
use probe_tests::probe::{Ended, Probe, binary};
use probe_tests::process::Start;
use probe_tests::site::Site;

/// What every refusal has in common: the status, one line that says what and what to do, no panic.
fn refused(ended: &Ended, statuses: &[i32], words: &[&str]) -> Result<()> {
    let Ended { status, stderr, lines } = ended;
    ensure!(status.code().is_some_and(|code| statuses.contains(&code)), "exit {status}, not {statuses:?}: {stderr}");
    ensure!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "a panic: {stderr}");
    let said: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(said.len() == 1, "one line, not {}:\n{stderr}", said.len());
    let lower = said[0].to_lowercase();
    for word in words {
        ensure!(lower.contains(word), "no {word:?} in: {stderr}");
    }
    ensure!(!lines.iter().any(|arrived| matches!(arrived.line, Ok(Line::Ready(_)))), "it claimed to be ready");
    Ok(())
}

fn watch(arguments: &[&str], start: Start<'_>) -> Result<Ended> {
    let mut command = Command::new(binary()?);
    command.args(["watch", "--json"]).args(arguments);
    Probe::run(command, start)?.wait_end(Duration::from_secs(15))
}

#[test]
fn without_root() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    // nobody may not look into the directory of the build.
    let copy = lab.directory().join("probe502");
    fs::copy(binary()?, &copy).context("copy the program under test")?;
    let mut command = Command::new(copy);
    command.args(["watch", "--json", "--pid", &site.nginx().master().to_string()]);
    let start = Start { user: Some(65_534), ..Start::default() };
    let ended = Probe::run(command, start)?.wait_end(Duration::from_secs(15))?;
    refused(&ended, &[3], &["root"])
}

#[test]
fn without_nginx() -> Result<()> {
    // Other nginx may run on this host; a fresh pid namespace has none.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(binary()?).args(["watch", "--json"]);
    let ended = Probe::run(command, Start::default())?.wait_end(Duration::from_secs(15))?;
    refused(&ended, &[3], &["nginx"])
}

#[test]
fn with_a_pid_that_is_no_nginx() -> Result<()> {
    let pid = std::process::id().to_string();
    refused(&watch(&["--pid", &pid], Start::default())?, &[2, 3], &["nginx", &pid])
}

#[test]
fn on_an_interface_that_does_not_exist() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[])?;
    let pid = site.nginx().master().to_string();
    // A mistyped name is bad usage, a name that is missing today is the host's state: both are documented.
    refused(&watch(&["--pid", &pid, "-i", "nosuch0"], Start::default())?, &[2, 3], &["nosuch0"])
}

/// Runs `work` where a tmpfs of 64 KiB is mounted on `directory`, seen by nobody else.
fn on_a_tiny_disk<T: Send>(directory: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("a private mount namespace")?;
            // Slave, not private: a lab's namespace that goes away outside must go away in here too.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
            mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
                .context("a tiny tmpfs")?;
            work()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[test]
fn on_a_full_disk() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let directory = lab.subdirectory("out")?;
    on_a_tiny_disk(&directory, || {
        // A little room is left: enough to begin, not enough to finish.
        fs::write(directory.join("filler"), vec![0; 56 * 1024]).context("fill the disk")?;
        let out = directory.join("incidents");
        let out = out.to_str().context("a path in UTF-8")?;
        let probe = Probe::watch_nginx(site.nginx().master(), &["-o", out])?;
        let mut reported = 0;
        for _ in 0..6 {
            reported += site.provoke(&fault)?.len();
            std::thread::sleep(Duration::from_millis(200));
        }
        std::thread::sleep(Duration::from_millis(1500));
        probe.signal(nix::sys::signal::Signal::SIGINT).ok();
        let ended = probe.wait_end(Duration::from_secs(10))?;
        ensure!(matches!(ended.status.code(), Some(0 | 3)), "exit {}: {}", ended.status, ended.stderr);
        ensure!(!ended.stderr.contains("panicked"), "a panic: {}", ended.stderr);
        let told = |text: &str| text.contains("No space left") && text.contains(out);
        let noticed = ended.lines.iter().any(|arrived| told(&arrived.text));
        ensure!(told(&ended.stderr) || noticed, "nobody said that {out} is full: {}", ended.stderr);
        if ended.status.code() == Some(0) {
            ensure!(ended.summary()?.incidents == reported as u64, "the verdicts go on without the disk");
        }
        whole_files(&directory.join("incidents"))
    })
}

/// What lies under its final name is whole.
fn whole_files(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    for entry in entries {
        let incident = entry?.path();
        let json = incident.join("incident.json");
        if json.exists() {
            let text = fs::read_to_string(&json)?;
            let whole = serde_json::from_str::<Incident>(&text);
            ensure!(whole.is_ok(), "half a file: {}: {whole:?}\n{text}", json.display());
        }
        let packets = incident.join("packets.pcapng");
        if packets.exists() {
            let read = Command::new("tcpdump").arg("-nr").arg(&packets).stdin(Stdio::null()).output()?;
            let said = String::from_utf8_lossy(&read.stderr).into_owned();
            ensure!(read.status.success() && !said.contains("truncated"), "half a file: {}: {said}", packets.display());
        }
    }
    Ok(())
}

#[test]
fn without_btf_the_rest_works() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &["--hide-btf"])?;
    let ready = probe.wait_ready(Duration::from_secs(1))?;
    let because_of_btf = ready.sources.iter().any(|source| {
        source.state != SourceState::On
            && source.why.as_deref().is_some_and(|why| why.contains("BTF") || why.contains("kernel's types"))
    });
    ensure!(because_of_btf, "`ready` says what is off for want of BTF: {:?}", ready.sources);
    let witnesses = site.provoke(&fault)?;
    let uri = witnesses[0].exchange.uri.as_str();
    let (report, incident, _at) =
        probe.wait_incident(Duration::from_secs(5), |_, incident| incident.request.uri.as_deref() == Some(uri))?;
    assert_eq!(report, Report::Incident);
    assert_eq!(incident.status, Some(502));
    let cause = incident.verdict.cause.as_str();
    ensure!(["upstream-refused", "unknown"].contains(&cause), "less is seen, nothing is made up: {incident:#?}");
    probe.stop()?;
    Ok(())
}
