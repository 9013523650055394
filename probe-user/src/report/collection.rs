//! What a report is made from: the JSON lines of a run, or of many, read back.
//!
//! Every way of coming by incidents ends here: lines of `watch --json` or `analyze --json`, the files of `watch -o DIR`, or incidents that
//! were judged just now.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    json::{Incident, SCHEMA},
    redact,
};

/// No more than so many complaints about unreadable input are kept word for word; the others are counted.
const MOST_TROUBLES: usize = 20;

/// What a run said of itself when it began.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// The version of the program that watched.
    pub version: Option<String>,
    /// What it could see.
    pub sources: Vec<Source>,
}

/// A source of a run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// `on`, `off`, `degraded`.
    pub state: String,
    /// Why not fully.
    pub why: Option<String>,
}

/// Something was lost, reloaded, rotated, detached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// What kind of thing.
    pub what: String,
    /// How many.
    pub count: u64,
    /// In words.
    pub text: String,
}

/// What a run said at its end.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Kernel records lost.
    pub events_lost: u64,
    /// Packets dropped by the captures.
    pub packets_dropped: u64,
    /// How long it ran, seconds.
    pub duration_s: f64,
}

/// Everything a report is made from.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// Incidents and near misses, each once, in the order of their time; those without one come last.
    incidents: Vec<Incident>,
    ids: BTreeSet<String>,
    /// The runs' beginnings.
    pub ready: Vec<Ready>,
    /// What was lost, reloaded, rotated, detached.
    pub notices: Vec<Notice>,
    /// The runs' ends.
    pub summaries: Vec<Summary>,
    /// What could not be read, in words.
    pub troubles: Vec<String>,
    /// How much more could not be read.
    pub further_troubles: usize,
    /// Incidents that came more than once; one of each is kept.
    pub repeated: usize,
    /// Where the packets of the incidents lie that are read next, in words or as a path.
    pub packets_at: Option<String>,
}

impl Collection {
    /// The incidents and near misses in the order of their time; those without one come last.
    #[must_use]
    pub fn incidents(&self) -> &[Incident] {
        &self.incidents
    }

    /// Adds an incident.
    pub fn add(&mut self, mut incident: Incident) {
        if incident.packets_at.is_none() {
            incident.packets_at.clone_from(&self.packets_at);
        }
        if !incident.id.is_empty() && !self.ids.insert(incident.id.clone()) {
            self.repeated += 1;
            return;
        }
        // RFC 3339 in UTC with nine digits sorts as text; whoever wrote it otherwise is put in order when it is read as a time.
        let at = self.incidents.partition_point(|other| order(other) <= order(&incident));
        self.incidents.insert(at, incident);
    }

    /// Says that something could not be read.
    pub fn trouble(&mut self, text: &str) {
        if self.troubles.len() < MOST_TROUBLES {
            self.troubles.push(redact::text(text));
        } else {
            self.further_troubles += 1;
        }
    }

    /// Adds a text: one JSON value, or one a line. `name` is what the reader knows it by. Whether there was anything of ours in it.
    pub fn read(&mut self, name: &str, text: &str) -> bool {
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            return match value {
                Value::Array(values) => {
                    let mut any = false;
                    for (index, value) in values.into_iter().enumerate() {
                        any |= self.value(&format!("{name}, element {}", index + 1), value);
                    }
                    any
                }
                value => self.value(name, value),
            };
        }
        let mut any = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            match serde_json::from_str::<Value>(line) {
                Ok(value) => any |= self.value(&format!("{name}, line {number}"), value),
                Err(error) => self.trouble(&format!("{name}, line {number}: not JSON: {error}")),
            }
        }
        any
    }

    fn value(&mut self, name: &str, value: Value) -> bool {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "incident" | "near_miss" => match self.read_as::<Incident>(name, value) {
                Some(incident) if incident.schema > SCHEMA => {
                    let schema = incident.schema;
                    self.trouble(&format!("{name}: an incident of schema {schema}; this version reads {SCHEMA}"));
                }
                Some(incident) if incident.id.is_empty() => self.trouble(&format!("{name}: an incident without id")),
                Some(incident) => self.add(incident),
                None => return false,
            },
            "ready" => {
                if let Some(ready) = self.read_as(name, value) {
                    self.ready.push(ready);
                }
            }
            "notice" => {
                if let Some(notice) = self.read_as(name, value) {
                    self.notices.push(notice);
                }
            }
            "summary" => {
                if let Some(summary) = self.read_as(name, value) {
                    self.summaries.push(summary);
                }
            }
            // `analyze --connections` has these between the incidents; they are no part of a report.
            "connection" => {}
            other => {
                let what = if other.is_empty() { "no type".to_owned() } else { format!("the unknown type {other:?}") };
                self.trouble(&format!("{name}: JSON, but of {what}; nothing probe502 wrote"));
                return false;
            }
        }
        true
    }

    fn read_as<T: DeserializeOwned>(&mut self, name: &str, value: Value) -> Option<T> {
        serde_json::from_value(value).map_err(|error| self.trouble(&format!("{name}: {error}"))).ok()
    }

    /// What was lost: kernel records and packets. From the runs' ends where they are known, else the most that an incident says.
    #[must_use]
    pub fn lost(&self) -> (u64, u64) {
        if self.summaries.is_empty() {
            let most = |of: fn(&Incident) -> u64| self.incidents.iter().map(of).max().unwrap_or(0);
            return (most(|incident| incident.losses.events_lost), most(|incident| incident.losses.packets_dropped));
        }
        self.summaries.iter().fold((0, 0), |(records, packets), summary| {
            (records + summary.events_lost, packets + summary.packets_dropped)
        })
    }

    /// Sources that did not see everything they are made for: name, state, why; each once.
    #[must_use]
    pub fn blind(&self) -> Vec<(&str, &str, &str)> {
        let sources = self.ready.iter().flat_map(|ready| &ready.sources).filter(|source| source.state != "on");
        let unique: BTreeSet<(&str, &str, &str)> =
            sources.map(|s| (s.name.as_str(), s.state.as_str(), s.why.as_deref().unwrap_or_default())).collect();
        unique.into_iter().collect()
    }

    /// The notices, alike ones together: what, in words, how many of them, and the sum of what they count.
    #[must_use]
    pub fn notices(&self) -> Vec<(&str, &str, usize, u64)> {
        let mut alike: BTreeMap<(&str, &str), (usize, u64)> = BTreeMap::new();
        for notice in &self.notices {
            let entry = alike.entry((&notice.what, &notice.text)).or_default();
            *entry = (entry.0 + 1, entry.1.saturating_add(notice.count));
        }
        alike.into_iter().map(|((what, text), (times, count))| (what, text, times, count)).collect()
    }
}

fn order(incident: &Incident) -> (bool, Option<&str>) {
    (incident.time.is_none(), incident.time.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(id: &str, time: &str) -> String {
        format!(r#"{{"type":"incident","schema":1,"id":"{id}","time":"{time}","status":502,"new":"field"}}"#)
    }

    #[test]
    fn lines_values_and_arrays_are_read_and_put_in_order() {
        let (early, late) = (incident("a", "2026-11-21T10:00:00Z"), incident("b", "2026-11-21T11:00:00Z"));
        let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&late).unwrap()).unwrap();
        for text in [format!("{late}\n{early}\n"), format!("[{late},{early}]"), format!("{early}\n\n{late}")] {
            let mut all = Collection::default();
            assert!(all.read("x", &text));
            let ids: Vec<&str> = all.incidents().iter().map(|incident| incident.id.as_str()).collect();
            assert_eq!(ids, ["a", "b"]);
            assert!(all.read("y", &pretty));
            assert_eq!((all.incidents().len(), all.repeated), (2, 1));
            assert!(all.troubles.is_empty(), "{:?}", all.troubles);
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_rest_is_read() {
        let mut all = Collection::default();
        let newer = incident("c", "2026-11-21T10:00:00Z").replace("\"schema\":1", "\"schema\":2");
        let nameless = incident("", "2026-11-21T10:00:00Z");
        let text = format!("{}\n{{\"cut\":\n{newer}\n{nameless}\n7\n{{\"type\":\"\\u001b[2J\"}}\n", incident("a", "t"));
        assert!(all.read("in\u{1b}put", &text));
        assert_eq!(all.incidents().len(), 1);
        assert_eq!(all.troubles.len(), 5, "{:?}", all.troubles);
        assert!(all.troubles[1].contains("schema 2"), "{:?}", all.troubles);
        assert!(all.troubles.iter().all(|trouble| !trouble.contains('\u{1b}')));
        assert!(!Collection::default().read("x", "<html>"));
    }

    #[test]
    fn losses_come_from_the_ends_of_the_runs() {
        let mut all = Collection::default();
        let lossy = incident("a", "t").replace("\"new\"", "\"losses\":{\"events_lost\":3},\"new\"");
        all.read("x", &lossy);
        assert_eq!(all.lost(), (3, 0));
        all.read("x", r#"{"type":"summary","events_lost":5,"packets_dropped":2}"#);
        assert_eq!(all.lost(), (5, 2));
        all.read(
            "x",
            r#"{"type":"ready","sources":[{"name":"packets","state":"off","why":"no"},{"name":"x","state":"on"}]}"#,
        );
        assert_eq!(all.blind(), [("packets", "off", "no")]);
        all.read("x", r#"{"type":"notice","what":"lost","count":2,"text":"t"}"#);
        all.read("x", r#"{"type":"notice","what":"lost","count":3,"text":"t"}"#);
        assert_eq!(all.notices(), [("lost", "t", 2, 5)]);
    }
}
