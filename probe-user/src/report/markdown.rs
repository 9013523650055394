//! The report for pasting into an issue: of each group of alike incidents the first in full, the others by their time.
//!
//! What came from outside stands in code: there no markup, link or mention of a name can come of it.

use std::fmt::Write as _;

use super::{
    collection::Collection,
    digest::{CONFIDENCE, Count, Digest, Group, Seen, failing, length},
    json::{EvidenceLine, Incident},
    redact,
};
use crate::diagnose;

/// Issue trackers refuse more than about 65,000 characters: past this many, bytes, further groups are one line each.
const ENOUGH: usize = 48_000;
/// So many lines of groups at most.
const MOST_LINES: usize = 60;
/// So many further incidents of a group are named.
const MOST_NAMED: usize = 10;
/// A value or a line of evidence, characters.
const LONGEST: usize = 240;

/// The report.
#[must_use]
pub fn page(collection: &Collection, title: Option<&str>) -> String {
    let digest = Digest::of(collection.incidents());
    let mut out = Markdown::default();
    out.line(format_args!("# {}", words(title.unwrap_or("nginx gateway failures"))));
    out.blank();
    out.line(format_args!("{}", lead(&digest)));
    out.blank();
    if !digest.all.is_empty() {
        table(&mut out, "Cause", &digest.by_cause);
        table(&mut out, "Upstream", &digest.by_upstream);
    }
    sight(&mut out, collection, &digest);
    let mut left_out = 0;
    for (number, group) in digest.groups.iter().enumerate() {
        if out.text.len() < ENOUGH {
            in_full(&mut out, number + 1, group);
        } else if left_out < MOST_LINES {
            left_out += 1;
            out.line(format_args!("- {}. {}: not shown for its length", number + 1, heading(group)));
        } else {
            out.line(format_args!("- and {} more groups", digest.groups.len() - number));
            break;
        }
    }
    out.text
}

#[derive(Default)]
struct Markdown {
    text: String,
}

impl Markdown {
    fn line(&mut self, words: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(words);
        self.text.push('\n');
    }

    fn blank(&mut self) {
        self.text.push('\n');
    }
}

/// Text among markup. A word that could be read as markup, link or mention stands in code.
fn words(text: &str) -> String {
    let harmless = |word: &str| {
        let plain = |c: char| c.is_alphanumeric() || ".,;:'()%/→…-?\"=+ ".contains(c);
        word.chars().all(plain) && !word.contains("//") && !word.starts_with(['-', '+', '=']) && !word.contains("www.")
    };
    let clean = redact::text(text);
    let parts: Vec<String> =
        clean.split(' ').map(|word| if harmless(word) { word.to_owned() } else { code(word) }).collect();
    parts.join(" ")
}

/// Text in code, on one line.
fn code(text: &str) -> String {
    let clean = cut(&redact::text(text));
    if clean.is_empty() {
        return String::new();
    }
    let fence = "`".repeat(longest_run(&clean) + 1);
    let pad = if clean.starts_with('`') || clean.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{clean}{pad}{fence}")
}

/// The most backticks in a row.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(LONGEST).collect();
    out.push('…');
    out
}

fn lead(digest: &Digest<'_>) -> String {
    let span = digest.count.span.map_or_else(String::new, |(first, last)| {
        format!(", {first:.3} to {last:.3}, within {}", length(last.as_nanosecond() - first.as_nanosecond()))
    });
    format!("{} failures and {} near misses{span}.", digest.count.incidents, digest.count.near_misses)
}

fn table(out: &mut Markdown, name: &str, rows: &[Count]) {
    out.line(format_args!("| {name} | Failures | Near misses | How sure | First | Last |"));
    out.line(format_args!("| --- | ---: | ---: | --- | --- | --- |"));
    for row in rows.iter().take(MOST_LINES) {
        let time = |time: Option<jiff::Timestamp>| time.map_or_else(String::new, |time| format!("{time:.3}"));
        let (first, last) = (time(row.span.map(|span| span.0)), time(row.span.map(|span| span.1)));
        let name = code(&row.name).replace('|', "\\|");
        out.line(format_args!(
            "| {name} | {} | {} | {} | {first} | {last} |",
            row.incidents,
            row.near_misses,
            sure(row)
        ));
    }
    if rows.len() > MOST_LINES {
        out.line(format_args!("| and {} more | | | | | |", rows.len() - MOST_LINES));
    }
    out.blank();
}

fn sure(row: &Count) -> String {
    let parts = row.confidence.iter().zip(CONFIDENCE).filter(|(count, _)| **count > 0);
    parts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

fn sight(out: &mut Markdown, collection: &Collection, digest: &Digest<'_>) {
    let (records, packets) = collection.lost();
    out.line(format_args!(
        "Lost while watching: {records} kernel records, {packets} packets; {} cases had losses.",
        digest.lossy
    ));
    for (name, state, why) in collection.blind() {
        out.line(format_args!("- {} was {}: {}", words(name), words(state), words(why)));
    }
    for (what, text, times, _) in collection.notices() {
        out.line(format_args!("- notice {}: {} ({times} times)", words(what), words(text)));
    }
    let unread = collection.troubles.len() + collection.further_troubles;
    if unread > 0 {
        out.line(format_args!(
            "- {unread} pieces of the input could not be read; the first: {}",
            code(&collection.troubles.concat())
        ));
    }
    out.blank();
}

fn heading(group: &Group<'_>) -> String {
    let common = &group.common;
    let status = common.status.map_or_else(|| "?".to_owned(), |status| status.to_string());
    let kind = if common.near_miss { "near miss, client saw " } else { "" };
    let title = diagnose::find(&common.cause).map(|cause| format!(": {}", cause.title)).unwrap_or_default();
    format!("{kind}{status} {}{title} ({} times)", words(&common.cause), group.members.len())
}

/// The first of a group in full, the others by their time.
fn in_full(out: &mut Markdown, number: usize, group: &Group<'_>) {
    let Some((first, others)) = group.members.split_first() else { return };
    out.line(format_args!("## {number}. {}", heading(group)));
    out.blank();
    incident(out, first);
    idle(out, group);
    if others.is_empty() {
        return;
    }
    let name = |seen: &Seen<'_>| code(seen.incident.time.as_deref().unwrap_or(&seen.incident.id));
    let named: Vec<String> = others.iter().take(MOST_NAMED).map(name).collect();
    let more = others.len().saturating_sub(MOST_NAMED);
    let last = others.last().filter(|_| more > 0).map(name);
    let last = last.map(|last| format!(" and {more} more, the last {last}")).unwrap_or_default();
    out.line(format_args!("Likewise: {}{last}.", named.join(", ")));
    out.blank();
}

fn incident(out: &mut Markdown, seen: &Seen<'_>) {
    let of = seen.incident;
    out.line(format_args!("**{}**: {}", words(&of.verdict.confidence), words(&of.verdict.summary)));
    out.blank();
    out.line(format_args!("- request: {}", request(of)));
    for attempt in &of.attempts {
        let peer = attempt.upstream.as_deref().or(attempt.peer.as_deref()).unwrap_or("not known");
        let errno = attempt.errno.as_deref().map(|errno| format!(" {}", code(errno))).unwrap_or_default();
        let took =
            attempt.duration_us.map(|us| format!(" after {}", length(i128::from(us) * 1_000))).unwrap_or_default();
        let idle = attempt.idle_ms.map(|idle| format!(", idle for {idle:.1} ms before")).unwrap_or_default();
        out.line(format_args!("- attempt: {} {}{errno}{took}{idle}", code(peer), words(&attempt.outcome)));
    }
    out.line(format_args!(
        "- case {}, decided {}, link {}",
        code(&of.id),
        code(of.time.as_deref().unwrap_or("at an unknown time")),
        words(&of.link)
    ));
    out.blank();
    evidence(out, of);
    list(out, "What to do", of.verdict.fix.iter().map(String::as_str));
    list(out, "What could not be seen", of.verdict.missing.iter().map(|need| need.what.as_str()));
    let refuted = diagnose::find(&of.verdict.cause).map(|cause| cause.page.refuted);
    list(out, "What would have refuted it", refuted.into_iter());
    list(out, "Not excluded", of.verdict.rivals.iter().map(AsRef::as_ref));
}

fn request(of: &Incident) -> String {
    let request = &of.request;
    let line: Vec<&str> =
        [&request.method, &request.uri, &request.protocol].into_iter().filter_map(|part| part.as_deref()).collect();
    let line = if line.is_empty() { "its line was not seen".to_owned() } else { code(&line.join(" ")) };
    let host = request.host.as_deref().map(|host| format!(" for {}", code(host))).unwrap_or_default();
    let client = request.client.as_deref().or(request.client_address.as_deref());
    let client = client.map(|client| format!(" from {}", code(client))).unwrap_or_default();
    format!("{line}{host}{client}")
}

fn evidence(out: &mut Markdown, of: &Incident) {
    let lines: &[EvidenceLine] = &of.evidence;
    if lines.is_empty() {
        return;
    }
    let rows: Vec<String> = lines
        .iter()
        .map(|line| {
            let mark = match (line.against, line.weight.as_deref()) {
                (true, _) => '-',
                (false, Some("direct")) => '*',
                (false, Some(_)) => '+',
                (false, None) => ' ',
            };
            let time = if line.uncertain_us > 0 { format!("~{}", line.t_us) } else { format!("{:+}", line.t_us) };
            let reference = line.reference.as_deref().map(|of| format!("  [{}]", redact::text(of))).unwrap_or_default();
            format!(
                "{mark} {time:>12}  {:<8} {}{reference}",
                redact::text(&line.source),
                cut(&redact::text(&line.text))
            )
        })
        .collect();
    let fence = "`".repeat(rows.iter().map(|row| longest_run(row)).max().unwrap_or(0).max(2) + 1);
    out.line(format_args!("{fence}text\nµs from nginx's decision; * proves, + supports, - speaks against"));
    for row in rows {
        out.line(format_args!("{row}"));
    }
    out.line(format_args!("{fence}"));
    out.blank();
    if let Some(place) = of.packets_at.as_deref().filter(|_| lines.iter().any(|line| line.reference.is_some())) {
        out.line(format_args!("Packets: {}", code(place)));
        out.blank();
    }
}

fn list<'a>(out: &mut Markdown, title: &str, items: impl Iterator<Item = &'a str>) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return;
    }
    out.line(format_args!("**{title}**"));
    out.blank();
    for item in items {
        out.line(format_args!("- {}", words(item)));
    }
    out.blank();
}

fn idle(out: &mut Markdown, group: &Group<'_>) {
    let races = group.common.cause == "keepalive-race" && group.idle_ms.len() > 1;
    if let (true, Some(least), Some(most)) = (races, group.idle_ms.first(), group.idle_ms.last()) {
        let median = group.idle_ms.get(group.idle_ms.len() / 2).unwrap_or(least);
        out.line(format_args!(
            "Idle before the failure: shortest {least:.1} ms, median {median:.1} ms, longest {most:.1} ms."
        ));
        out.blank();
    }
    let failed = group.members.iter().filter(|seen| failing(seen.incident).count() > 1).count();
    if failed > 0 {
        out.line(format_args!("Several attempts failed in {failed} of them."));
        out.blank();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hostile(raw: &str) -> String {
        let line = serde_json::json!({
            "type": "incident", "schema": 1, "id": raw.to_owned() + "x", "time": raw, "status": 502,
            "request": {"method": raw, "uri": raw, "host": raw, "client": raw},
            "attempts": [{"upstream": raw, "outcome": raw, "errno": raw}],
            "verdict": {"cause": raw, "confidence": raw, "summary": raw, "fix": [raw], "rivals": [raw], "missing": [{"what": raw}]},
            "evidence": [{"source": raw, "text": raw, "ref": raw}],
        });
        let mut all = Collection::default();
        assert!(all.read("x", &line.to_string()));
        page(&all, Some(raw))
    }

    /// As `CommonMark` reads it: a run of backticks opens code that the next run of the same length closes.
    fn without_code(text: &str) -> String {
        let mut out = String::new();
        let mut left = text;
        while let Some(at) = left.find('`') {
            out.push_str(&left[..at]);
            let run = left[at..].len() - left[at..].trim_start_matches('`').len();
            let fence = "`".repeat(run);
            let inside = &left[at + run..];
            let ends = inside
                .match_indices(&fence)
                .map(|(end, _)| end)
                .find(|end| !inside[..*end].ends_with('`') && !inside[end + run..].starts_with('`'));
            left = &inside[ends.expect("code is closed") + run..];
        }
        out + left
    }

    #[test]
    fn what_came_from_outside_is_code() {
        let out = hostile("<b> @team `x` ```js\n[a](http://b) |c| \u{1b}[31m");
        let outside = without_code(out.split("\n````text").next().unwrap());
        for sign in ["<b>", "@team", "[a](", "http:"] {
            assert!(!outside.contains(sign), "{sign} in {outside}");
        }
        assert!(!out.contains('\u{1b}'));
        assert!(out.contains("\n````text\n"), "a fence longer than the one inside: {out}");
    }

    #[test]
    fn directives_are_code_and_sentences_are_not() {
        assert_eq!(words("set proxy_read_timeout 5s; now."), "set `proxy_read_timeout` 5s; now.");
        assert_eq!(code("a`b"), "``a`b``");
        assert_eq!(code("`b"), "`` `b ``");
    }

    #[test]
    fn it_stays_short_enough_for_an_issue_and_says_what_it_leaves_out() {
        let mut all = Collection::default();
        for number in 0..600 {
            let summary = "word ".repeat(60);
            let line = serde_json::json!({
                "type": "incident", "schema": 1, "id": number.to_string(), "status": 502,
                "attempts": [{"upstream": format!("10.0.0.1:{number}"), "outcome": "reset"}],
                "verdict": {"cause": "upstream-reset", "confidence": "confirmed", "summary": summary},
            });
            all.read("x", &line.to_string());
        }
        let out = page(&all, None);
        assert!(out.len() < 65_000, "{}", out.len());
        assert!(out.contains("not shown for its length"));
        assert!(out.contains("more groups"));
    }

    proptest! {
        #[test]
        fn nothing_dangerous_survives(raw in ".*") {
            let out = hostile(&raw);
            prop_assert!(!out.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
