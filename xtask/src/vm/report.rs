//! What a virtual machine told, whether that is good, and the README's table of it.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What the lines begin with that are for us; the kernel writes to the same console. (`probe_tests::vm::MARK`)
const MARK: &str = "@@ ";

/// Where the table stands in the README.
const BEGIN: &str = "<!-- kernel x verdict: begin (written by `cargo xtask vm-test`) -->";
const END: &str = "<!-- kernel x verdict: end -->";

/// What one boot told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The kernel's release.
    pub(crate) release: String,
    /// What was tried out, in order.
    pub(crate) settings: Vec<Setting>,
    /// The guest came to its end.
    pub(crate) ended: bool,
    /// What the kernel said of a mistake of its own.
    pub(crate) oopses: Vec<String>,
}

/// One way in which a kernel was used.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Setting {
    name: String,
    /// What `doctor` found.
    findings: Vec<Finding>,
    /// What was said of each fault.
    verdicts: Vec<(String, String)>,
    failures: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Finding {
    name: String,
    state: String,
    why: String,
}

impl Told {
    /// Reads a serial line.
    pub(crate) fn read(console: &str) -> Self {
        let mut told = Self::default();
        let oops = |line: &&str| {
            !line.contains(MARK) && ["BUG: ", "Oops: ", "WARNING: "].iter().any(|word| line.contains(word))
        };
        told.oopses = console.lines().filter(oops).map(|line| line.trim_end().to_owned()).collect();
        // Whatever the kernel writes may stand before it on the same line.
        let lines = console.lines().filter_map(|line| line.split_once(MARK)).map(|(_, text)| text.trim_end());
        for line in lines.filter_map(|text| serde_json::from_str::<Value>(text).ok()) {
            told.take(&line);
        }
        told
    }

    fn take(&mut self, line: &Value) {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        match line["is"].as_str() {
            Some("kernel") => self.release = text("release"),
            Some("doctor") => {
                let findings = line["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
                self.setting(&text("setting")).findings = findings.iter().map(Finding::of).collect();
            }
            Some("verdict") => self.setting(&text("setting")).verdicts.push((text("fault"), text("cell"))),
            Some("failure") => self.setting(&text("setting")).failures.push(text("error")),
            Some("end") => self.ended = true,
            _ => {}
        }
    }

    fn setting(&mut self, name: &str) -> &mut Setting {
        let known = self.settings.iter().position(|setting| setting.name == name);
        let index = known.unwrap_or_else(|| {
            self.settings.push(Setting { name: name.to_owned(), ..Setting::default() });
            self.settings.len() - 1
        });
        &mut self.settings[index]
    }

    /// What is not as it should be, one line each.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut all: Vec<String> = self.settings.iter().flat_map(Setting::complaints).collect();
        all.extend(self.oopses.iter().map(|line| format!("the kernel says: {line}")));
        if !self.ended {
            all.push("the machine did not come to its end; see the log".to_owned());
        } else if self.settings.is_empty() {
            all.push("nothing was tried out".to_owned());
        }
        all
    }
}

impl Finding {
    fn of(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self { name: text("name"), state: text("state"), why: text("why") }
    }
}

/// The faults of which nothing is to be said.
const SILENT: &str = "–";

/// The setting in which programs may not read the kernel's memory.
const CONFIDENTIAL: &str = "lockdown=confidentiality";

/// What is said where everything is seen.
const BEST: &str = "confirmed, exact";

impl Setting {
    /// The tier `doctor` named: one letter.
    fn tier(&self) -> &str {
        let tier = self.findings.iter().find(|finding| finding.name == "tier");
        tier.and_then(|finding| finding.why.split(':').next()).unwrap_or("none")
    }

    /// Hooks that are off, or by a stand-in: their names.
    fn hooks(&self, state: &str) -> Vec<&str> {
        let places = ["tier", "BTF", "nginx", "packet capture", "root", "eBPF"];
        let hooks = self.findings.iter().filter(|finding| finding.state == state && !places.contains(&&*finding.name));
        // `nginx 96 uprobe NAME` is one hook, whatever the process is.
        hooks.map(|finding| finding.name.rsplit(' ').next().unwrap_or_default()).collect()
    }

    fn complaints(&self) -> Vec<String> {
        let mut all = self.failures.clone();
        if self.findings.is_empty() {
            all.push("doctor found nothing".to_owned());
        }
        // What the kernel does not offer is a named gap. What it offers and refuses is a mistake of ours.
        let refused = self.findings.iter().filter(|finding| finding.why.contains("refused the program"));
        all.extend(refused.map(|finding| format!("{}: {}", finding.name, finding.why)));
        let allowed: &[&str] = match self.tier() {
            _ if self.name == CONFIDENTIAL => &[],
            "A" | "B" => &[BEST],
            "C" => &[BEST, "likely, exact"],
            _ => &[],
        };
        for (fault, cell) in &self.verdicts {
            // Where little is seen, little may be said; the guest has made sure that nothing wrong is said for certain.
            if cell != SILENT && !allowed.is_empty() && !allowed.contains(&cell.as_str()) {
                all.push(format!("{fault}: {cell}"));
            }
        }
        if self.verdicts.is_empty() && self.failures.is_empty() {
            all.push("no fault was tried out".to_owned());
        }
        all.into_iter().map(|text| format!("{}: {text}", self.name)).collect()
    }

    /// Its cells, without the name.
    fn cells(&self, faults: &[&str]) -> String {
        let mut text = format!(" {} |", self.tier());
        for fault in faults {
            let said = self.verdicts.iter().find(|(name, _)| name == fault).map_or("not tried", |(_, cell)| cell);
            let _ = write!(text, " {said} |");
        }
        let list = |names: Vec<&str>| if names.is_empty() { SILENT.to_owned() } else { names.join(", ") };
        let _ = write!(text, " {} | {} |", list(self.hooks("degraded")), list(self.hooks("off")));
        text
    }
}

/// The table: a row for each kernel and each way to use it that shows something else.
pub(crate) fn render(all: &[Told]) -> String {
    let mut faults: Vec<&str> = Vec::new();
    for (name, cell) in all.iter().flat_map(|told| &told.settings).flat_map(|setting| &setting.verdicts) {
        if !faults.contains(&name.as_str()) && cell != SILENT {
            faults.push(name);
        }
    }
    let mut text = String::from("| kernel | used | tier |");
    for fault in &faults {
        let _ = write!(text, " {fault} |");
    }
    text.push_str(" by a stand-in | not there |\n| --- | --- | --- |");
    text.push_str(&" --- |".repeat(faults.len() + 2));
    for told in all {
        let mut rows: Vec<(Vec<&str>, String)> = Vec::new();
        for setting in &told.settings {
            let cells = setting.cells(&faults);
            match rows.iter_mut().find(|(_, known)| *known == cells) {
                Some((names, _)) => names.push(&setting.name),
                None => rows.push((vec![&setting.name], cells)),
            }
        }
        for (names, cells) in rows {
            let _ = write!(text, "\n| {} | {} |{cells}", told.release, names.join("; "));
        }
    }
    text
}

/// The README with this table in the place of the one it has.
pub(crate) fn replace(readme: &str, table: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("the README has no place for the table of kernels")?;
    let (_, after) = rest.split_once(END).context("the README's table of kernels has no end")?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(cell: &str, why: &str) -> String {
        let line = |value: Value| format!("@@ {value}\r\n");
        let mut text = line(serde_json::json!({ "is": "kernel", "release": "6.1.0-50" }));
        text.push_str("[    1.2] some word of the kernel\r\n");
        for setting in ["whole", "no tracefs"] {
            let findings = serde_json::json!([
                { "name": "tier", "state": "degraded", "why": "B: types" },
                { "name": "nginx 96 uprobe ngx_get_connection", "state": "off", "why": why },
                { "name": "kfree_skb", "state": "on", "why": "" },
            ]);
            text.push_str(&line(serde_json::json!({ "is": "doctor", "setting": setting, "findings": findings })));
            for (fault, cell) in [("upstream-refused", cell), ("harmless-answers", "–")] {
                text.push_str(&line(
                    serde_json::json!({ "is": "verdict", "setting": setting, "fault": fault, "cell": cell }),
                ));
            }
        }
        text
    }

    #[test]
    fn a_good_run_has_no_complaint_and_one_row() {
        let whole = console("confirmed, exact", "not part of this depth") + "[ 9.1] x @@ {\"is\":\"end\"}\r\n";
        let told = Told::read(&whole);
        assert_eq!(told.complaints(), Vec::<String>::new());
        let table = render(&[told]);
        let last = table.lines().last().unwrap();
        assert_eq!(last, "| 6.1.0-50 | whole; no tracefs | B | confirmed, exact | – | ngx_get_connection |");
        let columns = |line: &str| line.matches('|').count();
        assert!(table.lines().all(|line| columns(line) == columns(last)), "{table}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = Told::read(&console("likely, exact", "the kernel's verifier refused the program (EACCES): R1"));
        let complaints = told.complaints().join("\n");
        for expected in
            ["whole: upstream-refused: likely, exact", "no tracefs: nginx 96 uprobe", "did not come to its end"]
        {
            assert!(complaints.contains(expected), "{complaints}");
        }
        assert!(Told::read("").complaints().len() == 1);
        assert!(Told::read("@@ {\"is\":\"end\"}").complaints()[0].contains("nothing"));
        let oops = "[   48.8] BUG: kernel NULL pointer dereference, address: 000000000000020c";
        assert!(Told::read(oops).complaints()[0].contains("NULL pointer"));
    }

    #[test]
    fn the_table_has_its_place() {
        let readme = format!("before\n{BEGIN}\nold\n{END}\nafter");
        assert_eq!(replace(&readme, "| new |").unwrap(), format!("before\n{BEGIN}\n| new |\n{END}\nafter"));
        assert!(replace("nothing", "| new |").is_err());
    }
}
