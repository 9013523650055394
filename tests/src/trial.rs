//! A trial: faults brought about before the eyes of the probe, amid healthy traffic, and everything it says compared with the truth.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::expect::{Report, Witness};
use crate::fault::Fault;
use crate::lab::Lab;
use crate::probe::{Ended, Probe};
use crate::recording::Recording;
use crate::site::Site;
use crate::view::{self, View};

/// The contract: an incident is printed so soon after the client has its answer.
pub const WITHIN: Duration = Duration::from_secs(1);

/// A trial in one view.
#[derive(Debug, Clone, Copy)]
pub struct Trial(pub View);

impl Trial {
    /// The probe with everything it can see.
    pub const WHOLE: Self = Self(view::EVERYTHING);
    /// The probe without uprobes.
    pub const WITHOUT_UPROBES: Self = Self(view::NO_UPROBES);
    /// The probe that looks at what fails only.
    pub const LIGHT: Self = Self(view::LIGHT);
    /// The probe that sees nginx's side alone.
    pub const ONLY_NGINX: Self = Self(view::ONLY_NGINX);

    /// Holds the trial: each fault once, in order, on one site. Every wrong or missing line is told, not only the first.
    pub fn hold(self, lab: &Lab, faults: &[Fault]) -> Result<Ended> {
        let site = Site::start(lab, faults)?;
        let healthy = faults.first().map_or("/ok", |fault| fault.healthy);
        let load = site.healthy(healthy, 200, 6)?;
        let recording = Recording::new()?;
        let probe = Probe::record_nginx(site.nginx().master(), recording.file(), self.0.arguments)?;
        let mut failures = String::new();
        let mut counts = [0_u64; 2];
        for fault in faults {
            let mut witnesses = site.provoke(fault)?;
            for witness in &mut witnesses {
                witness.expected = (self.0.adapt)(witness.expected.clone());
                match witness.expected.report {
                    Report::Incident => counts[0] += 1,
                    Report::NearMiss => counts[1] += 1,
                    Report::Nothing => {}
                }
            }
            if let Err(error) = check(&site, &probe, &witnesses) {
                let _ = writeln!(failures, "=== {}\n{error:#}", fault.name);
            }
        }
        if counts == [0, 0] {
            // Silence is only an answer after the time in which something might have been said.
            std::thread::sleep(WITHIN + Duration::from_millis(500));
        }
        let tally = load.stop()?;
        let ended = probe.stop()?;
        let summary = ended.summary()?;
        if !tally.all_ok() && !faults.iter().any(|fault| fault.starves) {
            let _ = writeln!(failures, "=== the healthy traffic suffered: {tally:?}");
        }
        if [summary.incidents, summary.near_misses] != counts {
            let reported: Vec<&str> = ended.lines.iter().map(|arrived| arrived.text.as_str()).collect();
            let reported = reported.join("\n");
            let _ =
                writeln!(failures, "=== {counts:?} incidents and near misses expected, not {summary:?}\n{reported}");
        }
        if summary.events_lost != 0 {
            let _ = writeln!(failures, "=== events lost: {summary:?}");
        }
        if let Err(error) = recording.check_replay(&ended) {
            let _ = writeln!(failures, "=== the recording\n{error:#}");
        }
        if !failures.is_empty() {
            bail!("{failures}\n--- stderr of the probe\n{}", ended.stderr);
        }
        Ok(ended)
    }
}

/// Checks the lines about the witnesses of one fault.
fn check(site: &Site<'_>, probe: &Probe, witnesses: &[Witness]) -> Result<()> {
    let workers = site.nginx().workers()?;
    for incident in probe.check_all(witnesses, WITHIN)? {
        let pid = incident.nginx.pid;
        ensure!(pid.is_some_and(|pid| workers.contains(&pid)), "nginx's pid {pid:?} is none of {workers:?}");
        ensure!(incident.nginx.version.as_deref().is_some_and(|version| version.contains('.')), "no version of nginx");
        let connection = logged_connection(&site.nginx().access_log()?, &incident);
        let said = incident.request.connection;
        ensure!(said.is_none() || said == connection, "connection {said:?}, though nginx logged {connection:?}");
    }
    Ok(())
}

/// nginx's own number of the client connection of an incident, from the access log: the last but one field before the request.
fn logged_connection(log: &str, incident: &crate::line::Incident) -> Option<u64> {
    let request = &incident.request;
    let port = request.client.as_deref()?.rsplit_once(':')?.1;
    let target = format!("{} {} ", request.method.as_deref()?, request.uri.as_deref()?);
    let line = log.lines().find(|line| line.contains(&format!(" {port} ")) && line.contains(&target))?;
    let (before, _request) = line.trim_end_matches('"').rsplit_once(" \"")?;
    before.rsplit_once(' ')?.1.parse().ok()
}
