//! Whatever form the same packets come in, the same is said of them.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use probe_tests::{
    capture::{Capture, Form, Frame, Wrap},
    line::Incident,
    probe::binary,
};
use probe502::bundle::section;

use super::scene::{Desk, FORM, NGINX, UPSTREAM, scene, scene_v6};

/// What is told of the scene, whatever it came in.
fn told(incident: &Incident) -> Result<()> {
    ensure!(incident.status == Some(502) && incident.attempts.len() == 1, "{incident:#?}");
    let attempt = &incident.attempts[0];
    ensure!(incident.verdict.cause == "upstream-reset", "{incident:#?}");
    ensure!(attempt.upstream.as_deref().is_some_and(|upstream| upstream.ends_with(":8000")), "{attempt:?}");
    ensure!(attempt.local.as_deref().is_some_and(|local| local.ends_with(":42000")), "{attempt:?}");
    ensure!(incident.request.client.as_deref().is_some_and(|client| client.ends_with(":51000")), "{incident:#?}");
    Ok(())
}

#[test]
fn every_wrapping_says_the_same() -> Result<()> {
    let desk = Desk::new()?;
    for (name, capture) in [("v4", scene()?), ("v6", scene_v6()?)] {
        for wrap in Wrap::ALL {
            for (form, bytes) in [("pcap", capture.pcap(FORM, wrap)), ("pcapng", capture.pcapng(wrap))] {
                let what = format!("{name} in {wrap:?} in {form}");
                desk.put("in", bytes)?;
                let said = desk.analyze(&["--json", "-q", "in"])?;
                told(&said.incident().with_context(|| what.clone())?).with_context(|| what)?;
            }
        }
    }
    Ok(())
}

#[test]
fn byte_orders_resolutions_and_fragments_say_the_same() -> Result<()> {
    let desk = Desk::new()?;
    let capture = scene()?;
    for big_endian in [false, true] {
        for nanoseconds in [false, true] {
            for (name, capture) in [("whole", &capture), ("in fragments", &capture.fragmented())] {
                desk.put("in", capture.pcap(Form { big_endian, nanoseconds }, Wrap::Ethernet))?;
                let said = desk.analyze(&["--json", "-q", "in"])?;
                let what = format!("{name}, big endian {big_endian}, nanoseconds {nanoseconds}");
                told(&said.incident().with_context(|| what.clone())?).with_context(|| what)?;
            }
        }
    }
    Ok(())
}

/// By the tools that people compress with.
#[test]
fn compressed_or_piped_it_says_the_same() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    let plain = desk.analyze(&["--json", "in.pcap"])?;
    told(&plain.incident()?)?;
    let bytes = fs::read(desk.path().join("in.pcap"))?;
    for (program, arguments, name) in [
        ("gzip", &["-k"][..], "in.pcap.gz"),
        ("zstd", &["-q", "-k"], "in.pcap.zst"),
        ("zstd", &["-q", "-19", "-k", "-f"], "in.pcap.zst"),
    ] {
        let made = Command::new(program).args(arguments).arg("in.pcap").current_dir(desk.path()).status();
        ensure!(made.with_context(|| format!("run {program}"))?.success(), "{program} fails");
        let said = desk.analyze(&["--json", name])?;
        ensure!(said.stdout == plain.stdout.replace("in.pcap", name), "{name}: {said:?}");
        // Compression is told by the bytes, not by the name; and standard input has no name.
        let packed = fs::read(desk.path().join(name))?;
        for piped in [&packed, &bytes] {
            let said = desk.analyze_with(&["--json", "-"], Some(piped))?;
            ensure!(said.stdout == plain.stdout.replace("in.pcap", "standard input"), "{name} piped: {said:?}");
        }
    }
    Ok(())
}

/// Whether a frame is of a connection to this port.
fn of_port(frame: &Frame, port: u16) -> bool {
    let port = port.to_be_bytes();
    frame.packet.get(20..22) == Some(&port) || frame.packet.get(22..24) == Some(&port)
}

#[test]
fn the_two_sides_captured_apart_say_the_same() -> Result<()> {
    let desk = Desk::new()?;
    let whole = scene()?;
    let clients = whole.only(|frame| of_port(frame, 80));
    let upstreams = whole.only(|frame| of_port(frame, 8_000));
    ensure!(clients.frames.len() + upstreams.frames.len() == whole.frames.len());
    desk.put("clients.pcap", clients.pcap(FORM, Wrap::Ethernet))?;
    desk.put("upstreams.pcapng", upstreams.pcapng(Wrap::Sll))?;
    for inputs in [["clients.pcap", "upstreams.pcapng"], ["upstreams.pcapng", "clients.pcap"]] {
        let said = desk.analyze(&[&["--json"][..], &inputs].concat())?;
        let incident = said.incident()?;
        told(&incident)?;
        // Evidence names the file that holds the packet, whatever the order they were named in.
        let references: Vec<&str> = incident.evidence.iter().filter_map(|line| line.reference.as_deref()).collect();
        ensure!(references.len() >= 3, "{incident:#?}");
        ensure!(references.iter().all(|reference| reference.starts_with("upstreams.pcapng#")), "{references:?}");
    }
    // The same packets twice are the same packets.
    desk.put("whole.pcap", whole.pcap(FORM, Wrap::Ethernet))?;
    let said = desk.analyze(&["--json", "whole.pcap", "upstreams.pcapng"])?;
    told(&said.incident()?)?;
    ensure!(said.stderr.contains("captured more than once"), "{}", said.stderr);
    Ok(())
}

/// With the upstream's side alone there is no 502 to see, and no request that was made for another: the user has to say who is who.
#[test]
fn an_upstream_that_is_named_is_believed() -> Result<()> {
    let desk = Desk::new()?;
    let upstreams = scene()?.only(|frame| of_port(frame, 8_000));
    desk.put("in.pcap", upstreams.pcap(FORM, Wrap::Ethernet))?;
    let said = desk.analyze(&["--json", "--upstream", UPSTREAM, "in.pcap"])?;
    let cases: Vec<_> = said.lines("incident")?.into_iter().chain(said.lines("near_miss")?).collect();
    ensure!(cases.len() == 1, "{said:?}");
    ensure!(
        cases[0]["attempts"][0]["upstream"] == UPSTREAM && cases[0]["attempts"][0]["outcome"] == "reset",
        "{said:?}"
    );
    ensure!(cases[0]["request"]["client"].is_null(), "nobody saw the client: {said:?}");
    ensure!(cases[0]["verdict"]["confidence"] != "confirmed" || cases[0]["status"].is_null(), "{said:?}");
    Ok(())
}

/// What went well, as `healthy.pcap`.
fn put_healthy(desk: &Desk) -> Result<()> {
    let healthy = scene()?.only(|frame| !of_port(frame, 51_000) && !of_port(frame, 42_000));
    desk.put("healthy.pcap", healthy.pcap(FORM, Wrap::Ethernet))?;
    Ok(())
}

#[test]
fn exit_statuses_are_the_contracts() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    put_healthy(&desk)?;
    desk.put("text", "neither\n")?;
    desk.put("empty", "")?;
    desk.put("header.pcap", Capture::default().pcap(FORM, Wrap::Ethernet))?;
    for (arguments, code, says) in [
        (&["in.pcap"][..], 0, ""),
        (&["--fail-on-incident", "in.pcap"], 1, ""),
        (&["--fail-on-incident", "healthy.pcap"], 0, ""),
        (&["--fail-on-incident", "--status", "504", "in.pcap"], 0, ""),
        (&["header.pcap"], 0, ""),
        (&["text"], 2, "neither pcap nor pcapng"),
        (&["empty"], 2, "it is empty"),
        (&["--error-log", ".", "in.pcap"], 2, "cannot read the error log .: it is a directory"),
        (&["absent.pcap"], 2, "absent.pcap"),
        (&["."], 2, "directory"),
        (&["-", "-"], 2, "only once"),
        (&["--status", "42", "in.pcap"], 2, "--status"),
        (&["--error-log", "absent.log", "in.pcap"], 2, "absent.log"),
        (&[], 2, "INPUT"),
    ] {
        let said = desk.analyze(arguments)?;
        ensure!(said.code == Some(code), "{arguments:?} exits {:?}, not {code}: {said:?}", said.code);
        ensure!(said.stderr.contains(says), "{arguments:?} does not say {says:?}: {said:?}");
        ensure!(code != 2 || says == "INPUT" || said.stderr.lines().count() == 1, "more than a line: {said:?}");
    }
    Ok(())
}

/// What is left in the folder is what was printed, and points into the capture.
#[test]
fn incidents_are_left_where_they_are_asked_for() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    let said = desk.analyze(&["--json", "-o", "out", "in.pcap"])?;
    let incident = said.incident()?;
    let left = fs::read_to_string(desk.path().join("out").join(&incident.id).join("incident.json"))?;
    ensure!(said.stdout.contains(left.trim_end()), "{left} is not what was printed: {said:?}");
    ensure!(left.contains("\"in.pcap#"), "no evidence points into the capture: {left}");
    // Text on the screen, the same file in the folder.
    desk.analyze(&["-o", "again", "in.pcap"])?;
    let again = fs::read_to_string(desk.path().join("again").join(&incident.id).join("incident.json"))?;
    ensure!(again == left, "{again} is not {left}");
    // What is there already stays; that it does is said, and the rest goes on.
    let said = desk.analyze(&["--json", "-o", "out", "in.pcap"])?;
    ensure!(said.stderr.contains("cannot write out/") && said.incident()?.id == incident.id, "{said:?}");
    Ok(())
}

/// What is in the text is what is in the JSON.
#[test]
fn people_read_the_same_verdict() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    let text = desk.analyze(&["in.pcap"])?;
    for what in ["502 upstream-reset", UPSTREAM, "/cart?token=", "link inferred"] {
        ensure!(text.stdout.contains(what), "no {what:?} in {}", text.stdout);
    }
    let exchanges = desk.analyze(&["--exchanges", "--connections", "in.pcap"])?;
    ensure!(exchanges.stdout.contains(NGINX) && exchanges.stdout.matches("/list").count() >= 2, "{}", exchanges.stdout);
    Ok(())
}

/// On a terminal, and only when it takes longer than a second.
#[test]
fn progress_is_shown_to_who_waits() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    let binary = binary()?;
    let program = binary.display();
    let run = |command: &str| -> Result<String> {
        // `script` gives it a terminal.
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", command, "/dev/null"])
            .current_dir(desk.path())
            .output()
            .context("run script")?;
        ensure!(output.status.success(), "{command}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let slow = "(head -c 200 in.pcap; sleep 1.3; tail -c +201 in.pcap)";
    ensure!(run(&format!("{slow} | {program} analyze -"))?.contains("MB read"), "no progress after a second");
    for (command, why) in [
        (format!("{program} analyze in.pcap"), "it is over at once"),
        (format!("{slow} | {program} analyze -q -"), "-q"),
        (format!("{slow} | {program} analyze - 2>err; cat err"), "stderr is no terminal"),
    ] {
        let said = run(&command)?;
        ensure!(!said.contains("MB read") && said.contains("upstream-reset"), "{why}: {said}");
    }
    Ok(())
}

/// A pipe gives its first bytes only once: what it holds is found out by who reads it.
#[test]
fn a_pipe_that_is_named_like_a_file_is_read() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    let from_file = desk.analyze(&["--json", "in.pcap"])?.incident()?;
    let bytes = fs::read(desk.path().join("in.pcap"))?;
    let piped = desk.analyze_with(&["--json", "/dev/stdin"], Some(&bytes))?;
    ensure!(piped.incident()?.verdict.cause == from_file.verdict.cause, "{piped:?}");
    let recording = [section::header(), section::section(section::Kind::Manifest, b"{}")].concat();
    let recorded = desk.analyze_with(&["-"], Some(&recording))?;
    ensure!(recorded.code == Some(0) && recorded.stderr.contains("no incident"), "{recorded:?}");
    let empty = desk.analyze_with(&["-"], Some(&[]))?;
    ensure!(empty.code == Some(2) && empty.stderr.contains("standard input: it is empty"), "{empty:?}");
    Ok(())
}

/// Nothing that was read, or was not, goes without a word.
#[test]
fn silence_is_explained() -> Result<()> {
    let desk = Desk::new()?;
    desk.put_scene()?;
    put_healthy(&desk)?;
    let said = desk.analyze(&["healthy.pcap"])?;
    ensure!(said.stdout.is_empty() && said.stderr.contains("no failure of a gateway"), "{said:?}");
    let quiet = desk.analyze(&["-q", "healthy.pcap"])?;
    ensure!(quiet.stderr.is_empty(), "{quiet:?}");
    let alone = desk.analyze(&["--log-format", "$status", "in.pcap"])?;
    ensure!(alone.code == Some(2) && alone.stderr.contains("--access-log"), "{alone:?}");
    Ok(())
}
