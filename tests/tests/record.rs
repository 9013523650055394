//! The flight recorder: what it keeps replays to what was printed, it lets go what must not be kept, and it keeps to its limits.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use probe_tests::{
    client::Connection,
    fault::Fault,
    lab::Lab,
    load::Traffic,
    probe::{Probe, binary, output},
    process::Start,
    recording::Recording,
    site::Site,
    trial::WITHIN,
};
use probe502::bundle::section::{Found, Sections};

/// How long the soak lasts, seconds, unless `PROBE502_SOAK` says otherwise (an hour: 3600).
const SOAK: u64 = 60;

const SECRET: &str = "s3cr3tXYZZY";

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a name that is text")
}

/// Everything in a recording, unpacked.
fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    let mut sections = Sections::open(bytes.as_slice())?;
    let mut all = Vec::new();
    while let Found::Whole(_, content) = sections.read()? {
        all.extend(content);
    }
    Ok(all)
}

fn holds(bytes: &[u8], what: &str) -> bool {
    bytes.windows(what.len()).any(|window| window == what.as_bytes())
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?.path();
        if entry.is_dir() { all.extend(files(&entry)?) } else { all.push(entry) }
    }
    Ok(all)
}

/// A request with something to hide everywhere.
fn tell_secrets(site: &Site<'_>, uri: &str) -> Result<()> {
    let mut connection = Connection::open(site.lab().client(), site.address())?;
    let request = format!(
        "POST {uri}?token={SECRET}&n=1 HTTP/1.1\r\nHost: shop.example\r\nCookie: sid={SECRET}\r\n\
         Authorization: Bearer {SECRET}\r\nReferer: http://joe:{SECRET}@a.example/?q={SECRET}\r\n\
         Content-Length: {}\r\n\r\n{SECRET}",
        SECRET.len()
    );
    connection.send_bytes("POST", uri, request.as_bytes())?;
    let answer = connection.receive()?;
    ensure!(answer.status == Some(502), "{answer:?}");
    Ok(())
}

/// Makes a failure whose client had secrets, and says where they were left. `--depth deep` captures the requests themselves.
fn leave_traces(arguments: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let lab = Lab::new()?;
    let faults = [Fault::named("premature-close")?];
    let site = Site::start(&lab, &faults)?;
    let (recording, folder) = (Recording::new()?, tempfile::tempdir()?);
    let out = folder.path().join("incidents");
    let more = ["-vv", "--depth", "deep"].iter().chain(arguments).copied().collect::<Vec<_>>();
    let master = site.nginx().master();
    let recorder = Probe::record_nginx(master, recording.file(), &more)?;
    // Even what only a developer asks for.
    let mut command = Command::new(binary()?);
    command.env("PROBE502_LOG", "trace").args(["watch", "--json", "--pid", &master.to_string(), "--out", path(&out)?]);
    command.args(&more);
    let watcher = Probe::run(command, Start::default())?;
    watcher.wait_ready(Duration::from_secs(10))?;
    tell_secrets(&site, "/premature-close/pay")?;
    for probe in [&recorder, &watcher] {
        probe.wait_incident(Duration::from_secs(5), |_, incident| incident.status == Some(502))?;
    }
    let (recorded, watched) = (recorder.stop()?, watcher.stop()?);
    recording.check_replay_with(&recorded, arguments_of_analyze(arguments))?;
    let again = folder.path().join("again");
    let text = output(
        &[&["analyze", path(recording.file())?, "--out", path(&again)?], arguments_of_analyze(arguments)].concat(),
    )?;
    ensure!(text.status.success(), "{}", text.stderr);
    let mut traces = vec![
        ("the recording".to_owned(), unpacked(recording.file())?),
        ("what analyze prints".to_owned(), format!("{}\n{}", text.stdout, text.stderr).into_bytes()),
    ];
    for (name, ended) in [("record", &recorded), ("watch", &watched)] {
        let lines: Vec<&str> = ended.lines.iter().map(|arrived| arrived.text.as_str()).collect();
        traces.push((format!("what {name} prints"), format!("{}\n{}", lines.join("\n"), ended.stderr).into_bytes()));
    }
    for (input, format, name) in [
        (recording.file(), "html", "recording.html"),
        (recording.file(), "markdown", "recording.md"),
        (out.as_path(), "html", "folder.html"),
    ] {
        let page = folder.path().join(name);
        let report = ["report", path(input)?, "--format", format, "--out", path(&page)?];
        let made = output(&[&report[..], arguments_of_analyze(arguments)].concat())?;
        ensure!(made.status.success(), "{}", made.stderr);
        let text = fs::read(&page)?;
        ensure!(holds(&text, "premature-close"), "{name} does not tell of the failure");
        traces.push((format!("the report {name}"), text));
    }
    for folder in [&out, &again] {
        let files = files(folder)?;
        ensure!(files.len() >= 2, "an incident leaves two files: {files:?}");
        for file in files {
            traces.push((file.display().to_string(), fs::read(&file)?));
        }
    }
    Ok(traces)
}

fn arguments_of_analyze<'a>(arguments: &'a [&'a str]) -> &'a [&'a str] {
    if arguments.contains(&"--no-redact") { &["--no-redact"] } else { &[] }
}

#[test]
fn a_secret_is_in_nothing_that_is_left() -> Result<()> {
    for arguments in [&[][..], &["--no-uprobes"], &["--redact", "all"]] {
        for (name, bytes) in leave_traces(arguments)? {
            ensure!(!bytes.is_empty(), "{name} is empty");
            if let Some(at) = bytes.windows(SECRET.len()).position(|window| window == SECRET.as_bytes()) {
                let around = &bytes[at.saturating_sub(80)..(at + 40).min(bytes.len())];
                bail!("{arguments:?}: {name} holds the secret: {}", String::from_utf8_lossy(around));
            }
        }
    }
    Ok(())
}

#[test]
fn without_redaction_it_says_so_and_keeps_everything() -> Result<()> {
    let traces = leave_traces(&["--no-redact"])?;
    let (_, recording) = &traces[0];
    for what in [format!("token={SECRET}"), format!("Cookie: sid={SECRET}"), format!("\r\n\r\n{SECRET}")] {
        ensure!(holds(recording, &what), "the recording lacks {what:?}: the other test proves nothing");
    }
    let (_, printed) = &traces[2];
    ensure!(holds(printed, "NOT REDACTED") && holds(printed, &format!("token={SECRET}")), "not said, or not shown");
    Ok(())
}

#[test]
fn a_clients_address_can_be_taken_out_too() -> Result<()> {
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-refused")?];
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &["--redact", "all", "--depth", "deep"])?;
    let witnesses = site.provoke(&faults[0])?;
    let (_, incident, _) = probe.wait_incident(Duration::from_secs(5), |_, incident| incident.status == Some(502))?;
    let ended = probe.stop()?;
    recording.check_replay(&ended)?;
    let real = witnesses[0].exchange.local;
    let shown: std::net::SocketAddr = incident.request.client.context("a client")?.parse()?;
    ensure!(shown.ip() != real.ip() && shown.port() == real.port(), "{shown} for {real}");
    let all = unpacked(recording.file())?;
    let std::net::IpAddr::V4(address) = real.ip() else { bail!("{real}") };
    // Beside the port, as in a packet's header or a record: the four bytes alone may be anything.
    let port = real.port().to_be_bytes();
    let in_packet = all.windows(24).any(|w| w[..4] == address.octets() && w[8..10] == port);
    ensure!(!in_packet && !holds(&all, &format!("client: {address}")), "the client's address is in the recording");
    Ok(())
}

/// Many windows, and connections that are older than any of them: what matters from before is kept.
#[test]
fn short_windows_replay_alike() -> Result<()> {
    let lab = Lab::new()?;
    let faults: Vec<Fault> = Fault::sharing().into_iter().filter(|fault| !fault.apart).collect();
    let site = Site::start(&lab, &faults)?;
    let load = site.healthy("/ok", 200, 6)?;
    let recording = Recording::new()?;
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &["--before", "1s", "--after", "100ms"])?;
    for fault in &faults {
        let witnesses = site.provoke(fault)?;
        probe.check_all(&witnesses, WITHIN).with_context(|| fault.name)?;
        std::thread::sleep(Duration::from_millis(700));
    }
    load.stop()?;
    let ended = probe.stop()?;
    recording.check_replay(&ended)
}

#[test]
fn cut_anywhere_it_opens_up_to_there() -> Result<()> {
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-refused")?];
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &[])?;
    for _ in 0..4 {
        let witnesses = site.provoke(&faults[0])?;
        probe.check_all(&witnesses, WITHIN)?;
    }
    let ended = probe.stop()?;
    recording.check_replay(&ended)?;
    let whole = recording.replayed(&[])?;
    let bytes = fs::read(recording.file())?;
    let cut_file = recording.file().with_extension("cut");
    let mut most = 0;
    for part in 1..=12 {
        fs::write(&cut_file, &bytes[..bytes.len() * part / 13])?;
        let replayed = output(&["analyze", "--json", path(&cut_file)?])?;
        ensure!(
            replayed.status.success() || replayed.stderr.contains("cut off within its first"),
            "{}",
            replayed.stderr
        );
        let again: Vec<&str> = replayed.stdout.lines().filter(|line| line.contains("\"type\":\"incident\"")).collect();
        let whole: Vec<&str> = whole.iter().map(String::as_str).take(again.len()).collect();
        ensure!(again == whole, "cut after {part}/13: {again:#?}\ninstead of\n{whole:#?}");
        most = most.max(again.len());
    }
    ensure!(most > 0, "no cut leaves anything");
    Ok(())
}

#[test]
fn limits_take_out_the_oldest() -> Result<()> {
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-refused")?];
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let arguments = ["--before", "500ms", "--after", "100ms", "--max-incidents", "2"];
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &arguments)?;
    for _ in 0..5 {
        let witnesses = site.provoke(&faults[0])?;
        probe.check_all(&witnesses, WITHIN)?;
        // So long that the next window does not overlap.
        std::thread::sleep(Duration::from_secs(4));
    }
    let ended = probe.stop()?;
    let printed = Recording::cases(ended.lines.iter().map(|arrived| arrived.text.as_str()));
    let kept = recording.replayed(&[])?;
    ensure!((1..=2).contains(&kept.len()), "{} of {} cases are kept", kept.len(), printed.len());
    assert_eq!(kept, printed[printed.len() - kept.len()..]);
    let replayed = output(&["analyze", path(recording.file())?])?;
    ensure!(replayed.stderr.contains("were taken out"), "the recording does not say so: {}", replayed.stderr);
    Ok(())
}

/// So long that the next window does not overlap.
const APART: Duration = Duration::from_millis(3_200);

#[test]
fn rotation_keeps_the_last_files() -> Result<()> {
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-refused")?];
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let arguments = ["--before", "300ms", "--after", "100ms", "--max-incidents", "1", "--rotate", "1"];
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &arguments)?;
    for _ in 0..3 {
        let witnesses = site.provoke(&faults[0])?;
        probe.check_all(&witnesses, WITHIN)?;
        std::thread::sleep(APART);
    }
    let ended = probe.stop()?;
    let printed = Recording::cases(ended.lines.iter().map(|arrived| arrived.text.as_str()));
    ensure!(printed.len() == 3, "{printed:#?}");
    let older = recording.file().with_extension("p502.1");
    for (file, case) in [(recording.file(), &printed[2]), (older.as_path(), &printed[1])] {
        let replayed = output(&["analyze", "--json", path(file)?])?;
        let cases = Recording::cases(replayed.stdout.lines());
        ensure!(cases == [case.clone()], "{} holds {cases:#?}\ninstead of\n{case}", file.display());
    }
    ensure!(!recording.file().with_extension("p502.2").exists(), "more files than asked for");
    Ok(())
}

#[test]
fn killed_at_once_it_leaves_what_was_whole() -> Result<()> {
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-refused")?];
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let arguments = ["--before", "300ms", "--after", "100ms"];
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &arguments)?;
    for _ in 0..2 {
        let witnesses = site.provoke(&faults[0])?;
        probe.check_all(&witnesses, WITHIN)?;
        std::thread::sleep(APART);
    }
    probe.signal(nix::sys::signal::Signal::SIGKILL)?;
    let ended = probe.wait_end(Duration::from_secs(5))?;
    let printed = Recording::cases(ended.lines.iter().map(|arrived| arrived.text.as_str()));
    let replayed = recording.replayed(&[])?;
    ensure!(printed.len() == 2 && replayed == printed, "{replayed:#?}\ninstead of\n{printed:#?}");
    Ok(())
}

/// A file system that is full: one clear notice, and watching goes on.
#[test]
fn a_full_disk_ends_the_recording_only() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::mount(folder.path())?;
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-refused")?];
    let site = Site::start(&lab, &faults)?;
    let file = folder.path().join("full.p502");
    let probe = Probe::record_nginx(site.nginx().master(), &file, &["--after", "100ms"])?;
    // What is left of it is taken.
    let mut ballast = fs::File::create(folder.path().join("ballast"))?;
    while ballast.write_all(&[1; 4096]).is_ok() {}
    for _ in 0..3 {
        let witnesses = site.provoke(&faults[0])?;
        probe.check_all(&witnesses, WITHIN)?;
    }
    let notice = probe.wait_notice(Duration::from_secs(5), |notice| notice.what == "not-written")?;
    ensure!(notice.text.contains("full.p502") && notice.text.contains("watching goes on"), "{notice:?}");
    let ended = probe.stop()?;
    let said = ended.lines.iter().filter(|arrived| arrived.text.contains("not-written")).count();
    ensure!(said == 1, "said {said} times");
    let replayed = output(&["analyze", "--json", path(&file)?])?;
    ensure!(replayed.status.success(), "what was written before does not open: {}", replayed.stderr);
    drop(disk);
    Ok(())
}

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self> {
        use nix::mount::{MsFlags, mount};
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).context("mount a small disk")?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn what_is_no_recording_is_not_overwritten() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("letter.txt");
    fs::write(&file, "dear diary")?;
    let lab = Lab::new()?;
    let site = Site::start(&lab, &[Fault::named("upstream-refused")?])?;
    let master = site.nginx().master().to_string();
    let refused = output(&["record", "--pid", &master, "--out", path(&file)?])?;
    ensure!(
        refused.status.code() == Some(3) && refused.stderr.contains("it exists and is no recording"),
        "{refused:?}"
    );
    ensure!(fs::read_to_string(&file)? == "dear diary");
    Ok(())
}

/// Plain Wireshark shows what the verdict rests on.
#[test]
fn packets_carry_the_incident_as_comments() -> Result<()> {
    let lab = Lab::new()?;
    let faults = [Fault::named("upstream-reset")?];
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &[])?;
    let witnesses = site.provoke(&faults[0])?;
    let incident = probe.check_all(&witnesses, WITHIN)?.remove(0);
    let ended = probe.stop()?;
    recording.check_replay(&ended)?;
    let folder = tempfile::tempdir()?;
    let again = output(&["analyze", path(recording.file())?, "--out", path(folder.path())?])?;
    ensure!(again.status.success(), "{}", again.stderr);
    let packets = folder.path().join(&incident.id).join("packets.pcapng");
    let tshark = Command::new("tshark")
        .args([
            "-r",
            path(&packets)?,
            "-T",
            "fields",
            "-e",
            "frame.number",
            "-e",
            "frame.comment",
            "-e",
            "frame.interface_name",
        ])
        .output()
        .context("run tshark")?;
    let text = String::from_utf8_lossy(&tshark.stdout);
    let pid = format!("pid {}", incident.nginx.pid.context("a worker")?);
    for what in [incident.id.as_str(), "Process: nginx", &pid, "Evidence: RST", "upstream-reset", "Weight: symptom"] {
        ensure!(
            text.contains(what),
            "no packet's comment has {what:?}:\n{text}\n{}",
            String::from_utf8_lossy(&tshark.stderr)
        );
    }
    Ok(())
}

/// 2,000 requests a second with failures among them: memory stays flat, nothing is lost, every incident is in the recording.
#[test]
fn soak() -> Result<()> {
    let lasts = std::env::var("PROBE502_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(SOAK);
    let lasts = Duration::from_secs(lasts);
    let lab = Lab::new()?;
    let faults = ["upstream-refused", "premature-close", "upstream-reset"].map(Fault::named);
    let faults = faults.into_iter().collect::<Result<Vec<_>>>()?;
    let site = Site::start(&lab, &faults)?;
    let recording = Recording::new()?;
    let arguments = ["--before", "10s", "--after", "1s", "--memory", "32MiB"];
    let probe = Probe::record_nginx(site.nginx().master(), recording.file(), &arguments)?;
    let traffic =
        Traffic { target: site.address(), uri: "/ok".to_owned(), rate: 1_000, connections: 10, requests_each: None };
    let loads = [
        probe_tests::load::Load::start(lab.client(), &traffic)?,
        probe_tests::load::Load::start(lab.client(), &Traffic { requests_each: Some(10), ..traffic })?,
    ];
    // A failure a minute; where there are only minutes, more of them.
    let pause = if lasts >= Duration::from_mins(20) { Duration::from_mins(1) } else { Duration::from_millis(1_500) };
    let began = Instant::now();
    let (mut count, mut settled, mut most) = (0_usize, 0, 0);
    while began.elapsed() < lasts {
        let witnesses = site.provoke(&faults[count % faults.len()])?;
        probe.check_all(&witnesses, Duration::from_secs(3))?;
        count += witnesses.len();
        std::thread::sleep(pause);
        let now = resident(probe.pid())?;
        // Everything that is bounded has been filled once by then.
        if began.elapsed() < lasts / 2 { settled = settled.max(now) } else { most = most.max(now) }
    }
    for load in loads {
        let tally = load.stop()?;
        ensure!(tally.all_ok(), "the healthy traffic suffered: {tally:?}");
    }
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!(summary.incidents == count as u64, "{count} incidents, not {summary:?}");
    ensure!(summary.events_lost == 0 && summary.packets_dropped == 0, "lost: {summary:?}");
    ensure!(most < settled + settled / 10, "memory grew from {settled} to {most} KiB");
    recording.check_replay(&ended)
}

/// Resident memory, KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
