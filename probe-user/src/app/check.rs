//! `probe502 check`.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    process::ExitCode,
    time::Instant,
};

use super::{
    AppError,
    output::{Form, print},
};
use crate::{
    check::{self, Finding, Weight, seen::Seen},
    cli::check::Check,
    live::{
        self,
        check::{CheckError, Options, Prepared, Question},
        nginx::{self, Master},
    },
    report::{
        findings::{self, Counts},
        redact,
    },
};

/// Looks at every nginx, or at one configuration; 1 when there is a fault.
pub fn run(plan: &Check) -> Result<ExitCode, AppError> {
    let began = Instant::now();
    let mut left_out = Vec::new();
    if let Err(error) = live::privilege::reduce() {
        left_out.push(format!("giving up the rights that are not needed: {error}"));
    }
    let prepared = prepare(plan, &mut left_out)?;
    let question = plan.request.then(|| Question {
        path: plan.probe_path.clone(),
        method: if plan.head { "HEAD" } else { "GET" },
        patience: ANSWER,
    });
    let options = Options { question, measure_idle: plan.measure_idle, since: plan.since };
    let form = Form::choose(plan.output.json);
    let mut counts = Counts::default();
    let mut by_cause: BTreeMap<&str, usize> = BTreeMap::new();
    for one in prepared {
        announce(plan, &one);
        let seen = one.look(&options);
        let found = check::judge(&seen);
        counts = counts.and(Counts::of(&found));
        for cause in found.iter().filter(|finding| finding.weight == Weight::Fault).filter_map(|finding| finding.cause)
        {
            *by_cause.entry(cause).or_default() += 1;
        }
        tell(form, &seen, &found).map_err(AppError::host)?;
        left_out.extend(seen.left_out);
    }
    if !nix::unistd::geteuid().is_root() {
        left_out.push("what only root may see: other users' processes and their files (run it with sudo)".to_owned());
    }
    end(form, counts, &by_cause, &left_out, began).map_err(AppError::host)?;
    Ok(if counts.faults > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// For an answer's header.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(5);

/// What there is to look at; nginx that cannot be looked at is left out while there is another.
fn prepare(plan: &Check, left_out: &mut Vec<String>) -> Result<Vec<Prepared>, AppError> {
    if let Some(path) = &plan.conf {
        return Ok(vec![Prepared::file(path).map_err(|error| match error {
            CheckError::Unknown { .. } | CheckError::Elsewhere { .. } => AppError::host(error),
            error => AppError::usage(error),
        })?]);
    }
    let masters: Vec<Master> = nginx::masters().into_iter().filter(|master| is_wanted(master, &plan.pids)).collect();
    if masters.is_empty() {
        let why = if plan.pids.is_empty() {
            anyhow::anyhow!("no nginx runs on this host; start it, or name its configuration with --conf FILE")
        } else {
            anyhow::anyhow!("no nginx has one of these pids: {:?}; see `pgrep -a nginx`", plan.pids)
        };
        return Err(AppError::host(why));
    }
    let mut prepared = Vec::new();
    let mut last = None;
    for master in &masters {
        match Prepared::running(master) {
            Ok(one) => prepared.push(one),
            Err(error) => {
                left_out.push(error.to_string());
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if prepared.is_empty() => Err(AppError::host(error)),
        _ => Ok(prepared),
    }
}

fn is_wanted(master: &Master, pids: &[u32]) -> bool {
    pids.is_empty() || pids.iter().any(|pid| *pid == master.pid || master.workers.contains(pid))
}

/// Says what will be sent before it is.
fn announce(plan: &Check, one: &Prepared) {
    if plan.output.quiet {
        return;
    }
    let what = one.announced();
    let nginx = title(one.nginx().master.map(|pid| pid.0), one.nginx().version.as_deref());
    let request = if plan.request {
        let method = if plan.head { "HEAD" } else { "GET" };
        format!(
            "{} (`{method} {}`, or what the protocol has for a greeting; at most three more where the answer makes no sense)",
            if plan.measure_idle { "two requests each" } else { "one request each" },
            redact::uri(&plan.probe_path)
        )
    } else {
        "no request".to_owned()
    };
    // stderr closed is no reason not to look.
    let _ = writeln!(
        io::stderr(),
        "probe502 check: {nginx}: will look up {}, connect to {}, make {}, send {request}; changes nothing",
        many(what.names, "name"),
        many(what.servers, "upstream server"),
        many(what.handshakes, "TLS handshake"),
    );
}

fn many(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn title(master: Option<u32>, version: Option<&str>) -> String {
    match master {
        Some(pid) => format!("nginx {pid} ({})", redact::text(version.unwrap_or("of unknown version"))),
        None => "a configuration that nobody runs".to_owned(),
    }
}

fn tell(form: Form, seen: &Seen, found: &[Finding]) -> io::Result<()> {
    let mut out = String::new();
    if form.json {
        for one in &seen.tries {
            out.push_str(&findings::upstream_json(seen, one).to_string());
            out.push('\n');
        }
        for finding in found {
            out.push_str(&findings::json(finding).to_string());
            out.push('\n');
        }
    } else {
        out.push_str(&title(seen.nginx.master.map(|pid| pid.0), seen.nginx.version.as_deref()));
        out.push_str("\n\n");
        for finding in found {
            out.push_str(&findings::text(finding, form.style));
            out.push('\n');
        }
        out.push_str("upstreams as they were found\n");
        out.push_str(&findings::upstreams_text(seen));
    }
    if out.is_empty() { Ok(()) } else { print(&out) }
}

fn end(
    form: Form,
    counts: Counts,
    by_cause: &BTreeMap<&str, usize>,
    left_out: &[String],
    began: Instant,
) -> io::Result<()> {
    if form.json {
        let left_out: Vec<String> = left_out.iter().map(|text| redact::text(text)).collect();
        return print(
            &serde_json::json!({
                "type": "summary",
                "faults": counts.faults,
                "risks": counts.risks,
                "notes": counts.notes,
                "by_cause": by_cause,
                "left_out": left_out,
                "duration_s": began.elapsed().as_secs_f64(),
            })
            .to_string(),
        );
    }
    let mut out = String::from("\n");
    if !left_out.is_empty() {
        out.push_str("left out\n");
        for text in left_out {
            for (index, part) in crate::report::text::wrap(&redact::text(text), 96).into_iter().enumerate() {
                out.push_str(if index == 0 { "  " } else { "    " });
                out.push_str(&part);
                out.push('\n');
            }
        }
        out.push('\n');
    }
    out.push_str(&findings::counted(counts));
    print(&out)
}
