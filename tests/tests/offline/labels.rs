//! Captures that others made: connection states as Zeek tells them, HTTP statuses, and nothing that hurts the program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use probe_tests::probe::binary;
use serde_json::Value;

/// Differences from the labels that are known, each with its reason.
const KNOWN: [(&str, u32, &str); 1] = [(
    "ndpi__fuzz-2006-09-29-28586.pcap",
    1,
    "a damaged packet with SYN among random flags and an impossible header length: the other tools begin a new connection \
     with it, although no host would take it",
)];

/// HTTP statuses that the labels leave out on purpose.
const MORE_STATUSES: [(&str, &str); 2] = [
    ("zeek__vlan-collisions.pcap", "the same addresses on three VLANs are three connections; the labels merge them"),
    ("ndpi__fuzz-2006-09-29-28586.pcap", "one answer follows a gap in the request, and the labels leave it out"),
];

/// The captures and their labels: `PROBE502_CAPTURES`, else what lies beside the repository. `None`: there are none here.
#[expect(clippy::print_stderr, reason = "what is not tested is told")]
fn corpus() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/pcaps/dev");
    let folder = env::var_os("PROBE502_CAPTURES").map_or(beside, PathBuf::from);
    let there = folder.join("labels/conn.tsv").exists();
    if !there {
        eprintln!("NOT TESTED: no captures in {}; PROBE502_CAPTURES names another folder", folder.display());
    }
    there.then_some(folder)
}

/// A table with a line of names at its head.
fn table(path: &Path) -> Result<Vec<BTreeMap<String, String>>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().context("an empty table")?.split('\t').collect();
    let row = |line: &str| names.iter().zip(line.split('\t')).map(|(n, v)| ((*n).to_owned(), v.to_owned())).collect();
    Ok(lines.map(row).collect())
}

/// What the program says of a capture.
fn analyze(capture: &Path) -> Result<Vec<Value>> {
    let output = Command::new(binary()?).args(["analyze", "--connections", "--json", "-q"]).arg(capture).output()?;
    ensure!(output.status.success(), "{}: {}", capture.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn end(row: &BTreeMap<String, String>, which: &str) -> Result<SocketAddr> {
    let ip: IpAddr = row[&format!("{which}_ip")].parse()?;
    Ok(SocketAddr::new(ip, row[&format!("{which}_port")].parse()?))
}

#[test]
fn connection_states_are_those_of_the_labels() -> Result<()> {
    let Some(folder) = corpus() else { return Ok(()) };
    let mut told: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let rows = table(&folder.join("labels/conn.tsv"))?;
    let (mut scored, mut differences) = (0, Vec::new());
    for row in rows.iter().filter(|row| row["score"] == "yes") {
        let file = &row["file"];
        if !told.contains_key(file) {
            told.insert(file.clone(), analyze(&folder.join(file))?);
        }
        let ends = BTreeSet::from([end(row, "orig")?.to_string(), end(row, "resp")?.to_string()]);
        let first: f64 = row["first_ts"].parse()?;
        let mut ours: Vec<&Value> = told[file]
            .iter()
            .filter(|line| line["type"] == "connection")
            .filter(|line| {
                let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
                BTreeSet::from([text("orig"), text("resp")]) == ends
            })
            .collect();
        // The same ends may have had several connections: the one that began when the label's did.
        let of_these = rows.iter().filter(|other| {
            other["file"] == *file
                && end(other, "orig").ok() == end(row, "orig").ok()
                && end(other, "resp").ok() == end(row, "resp").ok()
        });
        if of_these.count() > 1 {
            ours.sort_by(|a, b| distance(a, first).total_cmp(&distance(b, first)));
            ours.truncate(1);
        }
        scored += 1;
        let states: Vec<&str> = ours.iter().filter_map(|line| line["conn_state"].as_str()).collect();
        if states.is_empty() || states.iter().any(|state| *state != row["conn_state"]) {
            let stream: u32 = row["stream"].parse()?;
            let known = KNOWN.iter().find(|(name, number, _)| name == file && *number == stream);
            differences.push(format!("{file} stream {stream}: {states:?}, not {}: {known:?}", row["conn_state"]));
        }
    }
    ensure!(scored > 100, "only {scored} connections are scored");
    println!("{} of {scored} as labelled; {differences:#?}", scored - differences.len());
    ensure!(differences.len() * 100 <= scored, "{differences:#?}");
    ensure!(
        differences.iter().all(|difference| !difference.ends_with("None"))
            || env::var_os("PROBE502_CAPTURES").is_some(),
        "a difference without a reason: {differences:#?}"
    );
    Ok(())
}

/// Seconds between a connection's beginning and `first`.
fn distance(line: &Value, first: f64) -> f64 {
    let text = line["first"].as_str().unwrap_or_default();
    // Of two connections between the same ends within a day the time of day is enough.
    let part = |from: usize, to: usize| text.get(from..to).and_then(|part| part.parse::<f64>().ok()).unwrap_or(0.0);
    let of_day = part(11, 13) * 3_600.0 + part(14, 16) * 60.0 + part(17, 29);
    (of_day - first.rem_euclid(86_400.0)).abs()
}

#[test]
fn every_http_status_is_found() -> Result<()> {
    let Some(folder) = corpus() else { return Ok(()) };
    let mut expected: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for row in table(&folder.join("labels/http.tsv"))? {
        if !row["status"].is_empty() && row.get("note").is_none_or(|note| note != "gap") {
            *expected.entry(row["file"].clone()).or_default().entry(row["status"].clone()).or_default() += 1;
        }
    }
    ensure!(expected.len() > 20, "only {} captures have answers", expected.len());
    for (file, expected) in &expected {
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        for line in analyze(&folder.join(file))? {
            for (status, count) in line["http"]["statuses"].as_object().into_iter().flatten() {
                *found.entry(status.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        let more = MORE_STATUSES.iter().any(|(name, _)| name == file);
        for (status, count) in expected {
            let ours = found.get(status).copied().unwrap_or(0);
            ensure!(ours == *count || (more && ours > *count), "{file}: {ours} × {status}, not {count}");
        }
        ensure!(more || found == *expected, "{file}: {found:?}, not {expected:?}");
    }
    Ok(())
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).unwrap_or(1)).unwrap_or(0)
    }
}

/// What happens to files on their way: cut, bits flipped, one put behind another, a part taken out.
fn damage(bytes: &[u8], other: &[u8], kind: usize, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match kind {
        0 => bytes.truncate(dice.below(bytes.len())),
        1 | 2 => {
            for _ in 0..=dice.below(if kind == 1 { 4 } else { 400 }) {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
            }
        }
        3 => bytes.extend_from_slice(other),
        4 => {
            let at = dice.below(bytes.len());
            let length = dice.below((bytes.len() - at).min(64) + 1);
            bytes.drain(at..at + length);
        }
        _ => {
            // The lengths and numbers at the beginning are the most delicate.
            for _ in 0..8 {
                let at = dice.below(bytes.len().min(128));
                bytes[at] = u8::try_from(dice.below(256)).unwrap_or(0);
            }
        }
    }
    bytes
}

#[test]
fn damaged_captures_do_no_harm() -> Result<()> {
    let Some(folder) = corpus() else { return Ok(()) };
    let mut captures: Vec<PathBuf> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    captures
        .retain(|path| path.to_string_lossy().contains(".pcap") && fs::metadata(path).is_ok_and(|m| m.len() < 400_000));
    captures.sort();
    ensure!(captures.len() > 40, "only {} captures", captures.len());
    let mut dice = Dice(0x5eed_5eed_5eed_5eed);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged");
    for (index, capture) in captures.iter().enumerate() {
        let bytes = fs::read(capture)?;
        let other = fs::read(&captures[(index + 7) % captures.len()])?;
        for kind in 0..6 {
            fs::write(&path, damage(&bytes, &other, kind, &mut dice))?;
            let what = format!("{} with damage {kind}", capture.display());
            unharmed(&path).with_context(|| what)?;
        }
    }
    // Of all of them together the worst, in KiB.
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    ensure!(peak < 64 << 10, "a run took {peak} KiB");
    Ok(())
}

/// The program ends by itself, soon, with one of its own exit statuses.
fn unharmed(path: &Path) -> Result<()> {
    let started = Instant::now();
    let mut child = Command::new(binary()?)
        .args(["analyze", "--connections", "--exchanges", "--json"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > Duration::from_secs(30) {
            child.kill()?;
            anyhow::bail!("it did not end within 30 s");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut said)?;
    }
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(matches!(status.code(), Some(0 | 2)), "exits {status}: {said}");
    Ok(())
}
