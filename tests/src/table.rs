//! The table *fault × what was visible*: what the probe said of every fault in every view, as the README shows it.

use std::fmt::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::expect::{Expectation, Report, Witness};
use crate::fault::{Fault, Party};
use crate::line::{Confidence, Incident, Line, Link};
use crate::probe::{Ended, Probe};
use crate::site::Site;
use crate::trial::WITHIN;
use crate::view::{self, View};

/// Where the table stands in the README.
const BEGIN: &str = "<!-- fault x view: begin (written by `cargo xtask lab-table`) -->";
const END: &str = "<!-- fault x view: end -->";

/// What was said of a fault in one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Nothing, and there is nothing to say.
    Silence,
    /// Nothing, though something failed.
    Unseen,
    /// The failure, and that its cause is not known.
    Unknown,
    /// One of the causes that are right.
    Right(Confidence, Link),
    /// Another cause; never `confirmed`, unless it says less of the same thing.
    Other(String, Confidence, Link),
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |confidence: &Confidence| format!("{confidence:?}").to_lowercase();
        let tied = |link: &Link| format!("{link:?}").to_lowercase();
        match self {
            Self::Silence => formatter.write_str("–"),
            Self::Unseen => formatter.write_str("not seen"),
            Self::Unknown => formatter.write_str("unknown"),
            Self::Right(confidence, link) => write!(formatter, "{}, {}", word(confidence), tied(link)),
            Self::Other(cause, confidence, link) => {
                write!(formatter, "{cause} {}, {}", word(confidence), tied(link))
            }
        }
    }
}

impl Cell {
    /// What these incidents say of a witness; the surest where there are several.
    fn of(witness: &Witness, incidents: &[&Incident]) -> Self {
        let surest = incidents.iter().max_by_key(|incident| incident.verdict.confidence);
        match surest {
            None if witness.expected.report == Report::Nothing => Self::Silence,
            None => Self::Unseen,
            Some(incident) if incident.verdict.cause == "unknown" => Self::Unknown,
            Some(incident) => {
                let (verdict, link) = (&incident.verdict, incident.link);
                if witness.expected.cause.contains(&verdict.cause.as_str()) {
                    Self::Right(verdict.confidence, link)
                } else {
                    Self::Other(verdict.cause.clone(), verdict.confidence, link)
                }
            }
        }
    }
}

/// A fault's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The fault's name.
    pub fault: String,
    /// What the client sees, and the cause that is right.
    pub truth: String,
    /// What stands in its cells, one for each view.
    pub cells: Vec<String>,
}

/// What is true of a fault, from the witness that shows it: the last of which something must be said.
fn telling(witnesses: &[Witness]) -> Option<&Witness> {
    witnesses.iter().rfind(|witness| witness.expected.report != Report::Nothing).or(witnesses.last())
}

fn truth(expected: &Expectation) -> String {
    let status = expected.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let near = if expected.report == Report::NearMiss { " (near miss)" } else { "" };
    let causes = if expected.cause.is_empty() { "nothing".to_owned() } else { expected.cause.join(" or ") };
    format!("{status}{near} | {causes}")
}

/// The wrong things that were said for certain, in words.
fn lies(fault: &Fault, view: &View, witness: &Witness, incidents: &[&Incident]) -> Vec<String> {
    let said = |incident: &&&Incident| {
        let verdict = &incident.verdict;
        let adapted = (view.adapt)(witness.expected.clone());
        let wrong = match &adapted.permitted {
            Some(_) => adapted.objection(&verdict.cause, verdict.confidence).is_some(),
            None => verdict.confidence == Confidence::Confirmed && !witness.expected.cause.contains(&&*verdict.cause),
        };
        wrong || witness.expected.report == Report::Nothing
    };
    let wrong = incidents.iter().filter(said);
    wrong.map(|incident| format!("{}, {}: {incident:#?}", fault.name, view.name)).collect()
}

/// Faults, each with what is true of it and what was said of it.
pub type Looked = Vec<(Fault, String, Cell)>;

/// One of them, and how many events were lost meanwhile.
type Once = ((Fault, String, Cell), u64);

/// One site, one run of the probe in this view. A wrong thing said for certain is an error.
pub fn look(party: &Party, view: &View) -> Result<Looked> {
    Ok(look_once(party, view)?.into_iter().map(|(looked, _)| looked).collect())
}

/// The same, so many times at most for a fault of which the kernel kept something back: what is said of it then is less, and rightly so.
pub fn look_until_whole(party: &Party, view: &View, times: usize) -> Result<Looked> {
    let mut all = look_once(party, view)?;
    for _ in 1..times {
        let gaps: Vec<usize> = (0..all.len()).filter(|index| all[*index].1 > 0).collect();
        if gaps.is_empty() {
            break;
        }
        let faults = gaps.iter().map(|index| all[*index].0.0).collect();
        let again = look_once(&Party { faults, ..party.clone() }, view)?;
        for (index, looked) in gaps.into_iter().zip(again) {
            all[index] = looked;
        }
    }
    Ok(all.into_iter().map(|(looked, _)| looked).collect())
}

fn look_once(party: &Party, view: &View) -> Result<Vec<Once>> {
    let Party { faults, lab } = party;
    let lab = lab()?;
    let site = Site::start(&lab, faults)?;
    let healthy = faults.first().map_or("/ok", |fault| fault.healthy);
    let load = site.healthy(healthy, 60, 3)?;
    let probe = Probe::watch_nginx(site.nginx().master(), view.arguments)?;
    let mut provoked = Vec::new();
    for fault in faults {
        provoked.push((*fault, site.provoke(fault)?));
    }
    std::thread::sleep(WITHIN + Duration::from_millis(500));
    drop(load);
    let ended = probe.stop()?;
    let mut wrong = Vec::new();
    let mut looked = Vec::new();
    for (fault, witnesses) in provoked {
        for witness in &witnesses {
            wrong.extend(lies(&fault, view, witness, &about(witness, &ended)));
        }
        let witness = telling(&witnesses).with_context(|| format!("{} has no witness", fault.name))?;
        let about = about(witness, &ended);
        let lost = about.iter().map(|incident| incident.losses.events_lost).max().unwrap_or(0);
        looked.push(((fault, truth(&witness.expected), Cell::of(witness, &about)), lost));
    }
    if !wrong.is_empty() {
        bail!("wrong and certain:\n{}", wrong.join("\n"));
    }
    Ok(looked)
}

/// The incidents about a witness, also where its client's port is not known.
fn about<'a>(witness: &Witness, ended: &'a Ended) -> Vec<&'a Incident> {
    let mut witness = witness.clone();
    witness.expected.client_may_be_null = true;
    let incidents = ended.lines.iter().filter_map(|arrived| match &arrived.line {
        Ok(Line::Incident(incident) | Line::NearMiss(incident)) => Some(incident),
        _ => None,
    });
    incidents.filter(|incident| witness.is_meant_by(incident)).collect()
}

/// Every fault in every view; with a filter (or several, with commas between), those whose name has it in it and whoever shares their nginx, the other rows being taken from
/// the table there is. `say` is told how far it is.
pub fn make(readme: &str, filter: Option<&str>, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let wanted = |fault: &Fault| filter.is_none_or(|filter| filter.split(',').any(|part| fault.name.contains(part)));
    let mut parties = Fault::parties();
    parties.retain(|party| party.faults.iter().any(wanted));
    let again: Vec<&str> = parties.iter().flat_map(|party| &party.faults).map(|fault| fault.name).collect();
    let known = if filter.is_some() { read(readme)? } else { Vec::new() };
    let row = |fault: &Fault| {
        let old = known.iter().find(|row| row.fault == fault.name && !again.contains(&fault.name));
        old.cloned().unwrap_or_else(|| Row { fault: fault.name.to_owned(), truth: String::new(), cells: Vec::new() })
    };
    let mut rows: Vec<Row> = Fault::every().iter().map(row).collect();
    for view in &view::ALL {
        for party in &parties {
            let names: Vec<&str> = party.faults.iter().map(|fault| fault.name).collect();
            say(&format!("{}: {}", view.name, names.join(" ")));
            // A crowded machine can keep a fault from coming about; the second time counts.
            let looked = look(party, view).or_else(|first| {
                say(&format!("once more, because: {first:#}"));
                look(party, view)
            })?;
            for (fault, truth, cell) in looked {
                if let Some(row) = rows.iter_mut().find(|row| row.fault == fault.name) {
                    row.truth = truth;
                    row.cells.push(cell.to_string());
                }
            }
        }
    }
    let partial: Vec<_> = rows.iter().filter(|row| row.cells.len() != view::ALL.len()).map(|row| &row.fault).collect();
    ensure!(partial.is_empty(), "no whole row for {partial:?}");
    Ok(rows)
}

/// The table as it stands in the README.
#[must_use]
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from("| fault of the lab | client sees | cause |");
    for view in &view::ALL {
        let _ = write!(text, " {} |", view.name);
    }
    text.push_str("\n| --- | --- | --- |");
    text.push_str(&" --- |".repeat(view::ALL.len()));
    for Row { fault, truth, cells } in rows {
        let _ = write!(text, "\n| {fault} | {truth} |");
        for cell in cells {
            let _ = write!(text, " {cell} |");
        }
    }
    text
}

/// The README with this table in the place of the one it has.
pub fn replace(readme: &str, table: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("the README has no place for the table")?;
    let (_, after) = rest.split_once(END).context("the README's table has no end")?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

/// The rows of the README's table.
pub fn read(readme: &str) -> Result<Vec<Row>> {
    let (_, rest) = readme.split_once(BEGIN).context("the README has no place for the table")?;
    let (table, _) = rest.split_once(END).context("the README's table has no end")?;
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let row = |line: &str| {
        let mut fields = line.trim_matches('|').split('|').map(|field| field.trim().to_owned());
        let mut next = || fields.next().unwrap_or_default();
        let (fault, status, causes) = (next(), next(), next());
        Row { fault, truth: format!("{status} | {causes}"), cells: fields.collect() }
    };
    Ok(lines.map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, Cell, END, Row, read, render, replace};
    use crate::line::{Confidence, Link};

    #[test]
    fn what_is_written_is_read_again() {
        let cells = [
            Cell::Right(Confidence::Confirmed, Link::Exact),
            Cell::Other("syn-timeout".to_owned(), Confidence::Likely, Link::Inferred),
            Cell::Unknown,
            Cell::Unseen,
            Cell::Silence,
            Cell::Right(Confidence::Possible, Link::Strong),
        ];
        let cells = cells.iter().map(ToString::to_string).collect();
        let rows = [Row { fault: "some-fault".to_owned(), truth: "502 | some-cause".to_owned(), cells }];
        let readme = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let readme = replace(&readme, &render(&rows)).unwrap();
        assert!(readme.starts_with("before\n") && readme.ends_with("\nafter\n") && !readme.contains("old"));
        assert_eq!(read(&readme).unwrap(), rows);
    }
}
