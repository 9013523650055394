//! The report for people: verdict first, then how it came about, then what to do. At most 100 columns, readable at 3 a.m.

use super::{contested_summary, redact, timeline, wording};
use crate::model::{
    attempt::Attempt,
    case::{Case, CaseKind, Folded},
    evidence::Weight,
    time::WallClock,
    verdict::{Confidence, Explanation, Need, Verdict},
};

/// No line is wider.
pub const COLUMNS: usize = 100;
/// A URI, host or name longer than this is cut.
const LONGEST_NAME: usize = 160;

/// How to write it. The caller knows whether there is a terminal, and `NO_COLOR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// With colour.
    pub color: bool,
    /// With the values of URIs' queries.
    pub whole_uris: bool,
}

/// What a piece of text is.
#[derive(Clone, Copy)]
enum Ink {
    Bad,
    Unsure,
    Strong,
    Quiet,
}

impl Style {
    fn paint(self, ink: Ink, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Bad => "1;31",
            Ink::Unsure => "1;33",
            Ink::Strong => "1",
            Ink::Quiet => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A word that says how much a finding weighs.
    pub(super) fn weight(self, weight: crate::check::Weight, text: &str) -> String {
        let ink = match weight {
            crate::check::Weight::Fault => Ink::Bad,
            crate::check::Weight::Risk => Ink::Unsure,
            crate::check::Weight::Note => Ink::Quiet,
        };
        self.paint(ink, text)
    }

    /// What is to be read first.
    pub(super) fn strong(self, text: &str) -> String {
        self.paint(Ink::Strong, text)
    }
}

/// An incident or near miss as text: several lines, with a line end after the last.
#[must_use]
pub fn incident(case: &Case, verdict: &Verdict, clock: WallClock, style: Style) -> String {
    let mut page = Page { out: String::new(), style };
    head(&mut page, case, verdict, clock);
    request(&mut page, case);
    for (index, attempt) in case.attempts.iter().enumerate() {
        attempt_line(&mut page, index, case.attempts.len(), attempt);
    }
    page.line("");
    page.heading("what was seen (µs from nginx's decision)");
    for row in timeline::rows(case, verdict) {
        let mark = match (row.against, row.weight) {
            (true, _) => '-',
            (false, Some(Weight::Direct)) => '*',
            (false, Some(_)) => '+',
            (false, None) => ' ',
        };
        let time = if row.uncertain_us > 0 { format!("~{}", row.t_us) } else { format!("{:+}", row.t_us) };
        page.item(&format!("  {mark} {time:>12}  {:<8}", row.source), &row.text);
    }
    advice(&mut page, verdict);
    let losses = &case.coverage;
    if losses.events_lost > 0 || losses.packets_dropped > 0 {
        let text = format!("{} kernel records and {} packets", losses.events_lost, losses.packets_dropped);
        page.item("  lost meanwhile: ", &text);
    }
    page.line(&style.paint(Ink::Quiet, &format!("  case {}  link {}", redact::text(&case.id.0), case.link.name())));
    page.out
}

struct Page {
    out: String,
    style: Style,
}

impl Page {
    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    fn heading(&mut self, text: &str) {
        let text = self.style.paint(Ink::Strong, text);
        self.line(&format!("  {text}"));
    }

    /// A text after a prefix; its further lines begin below the text.
    fn item(&mut self, prefix: &str, text: &str) {
        let indent = width(prefix).min(COLUMNS / 2);
        let mut first = true;
        for part in wrap(text, COLUMNS - indent) {
            let lead = if first { prefix.to_owned() } else { " ".repeat(indent) };
            self.line(&format!("{lead}{part}"));
            first = false;
        }
    }
}

fn head(page: &mut Page, case: &Case, verdict: &Verdict, clock: WallClock) {
    let kind = match case.kind {
        CaseKind::Incident => "",
        CaseKind::NearMiss => "near miss, client saw ",
    };
    let status = case.status.map_or_else(|| "?".to_owned(), |status| status.to_string());
    let (id, certainty, ink) = match verdict {
        Verdict::Explained(explanation) => {
            let ink = if explanation.confidence == Confidence::Confirmed { Ink::Bad } else { Ink::Unsure };
            (explanation.cause.to_owned(), format!(" ({})", explanation.confidence.name()), ink)
        }
        Verdict::Contested(_) => (super::UNKNOWN.to_owned(), " (contested)".to_owned(), Ink::Unsure),
        Verdict::Unexplained { .. } => (super::UNKNOWN.to_owned(), String::new(), Ink::Unsure),
    };
    let time = super::json::rfc3339(clock, timeline::origin(case)).unwrap_or_else(|| "time unknown".to_owned());
    let title = page.style.paint(ink, &format!("{kind}{status} {id}{certainty}"));
    let time = page.style.paint(Ink::Quiet, &time);
    page.line(&format!("{title}  {time}"));
    let summary = match verdict {
        Verdict::Explained(explanation) => explanation.summary.clone(),
        Verdict::Contested(explanations) => contested_summary(explanations),
        Verdict::Unexplained { summary, .. } => summary.clone(),
    };
    page.item("  ", &redact::text(&summary));
    page.line("");
}

fn request(page: &mut Page, case: &Case) {
    let request = &case.request;
    let mut words: Vec<String> = Vec::new();
    words.extend(request.method.as_deref().map(redact::text));
    let uri = if page.style.whole_uris { redact::text } else { redact::uri };
    words.extend(request.uri.as_deref().map(|text| cut(&uri(text))));
    words.extend(request.protocol.as_deref().map(redact::text));
    if words.is_empty() {
        words.push("a request whose line was not seen".to_owned());
    }
    words.extend(request.host.as_deref().map(|host| format!("for {}", cut(&redact::text(host)))));
    let client = request.client.map(|client| client.to_string());
    let client = client.or_else(|| request.client_address.as_deref().map(redact::text));
    words.extend(client.map(|client| format!("from {client}")));
    words.extend(request.connection.map(|number| format!("(*{number})")));
    words.extend(case.worker.map(|worker| format!("by worker {worker}")));
    words.extend(case.subrequest.then(|| "in a subrequest".to_owned()));
    page.item("  request   ", &words.join(" "));
}

fn attempt_line(page: &mut Page, index: usize, total: usize, attempt: &Attempt) {
    let mut words: Vec<String> = Vec::new();
    let peer = attempt.upstream.as_ref().map(ToString::to_string).or_else(|| attempt.peer_name.clone());
    words.push(peer.map_or_else(|| "no peer".to_owned(), |peer| cut(&redact::text(&peer))));
    if let Some(local) = attempt.flow.one().and_then(|flow| flow.local) {
        words.push(format!("from {local}"));
    }
    words.push(attempt.outcome.name().to_owned());
    words.extend(attempt.errno.map(|errno| errno.to_string()));
    words.extend(attempt.duration_us.map(|us| format!("after {}", milliseconds(us))));
    if attempt.reused == Some(true) {
        let before =
            attempt.requests_before.map(|n| format!(" after {}", wording::counted(n, "request"))).unwrap_or_default();
        let idle = attempt.idle_us.map(|us| format!(", idle {}", milliseconds(us))).unwrap_or_default();
        words.push(format!("(reused{before}{idle})"));
    }
    if let (Some(sent), Some(received)) = (attempt.bytes_sent, attempt.bytes_received) {
        words.push(format!("{sent} bytes out, {received} in"));
    }
    let label = if total > 1 { format!("  attempt {} ", index + 1) } else { "  attempt   ".to_owned() };
    page.item(&label, &words.join(" "));
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1_000, us % 1_000)
}

fn advice(page: &mut Page, verdict: &Verdict) {
    let (fixes, needs): (Vec<&str>, Vec<&Need>) = match verdict {
        Verdict::Explained(explanation) => (fixes(explanation), explanation.blind.iter().collect()),
        Verdict::Contested(explanations) => (
            explanations.iter().flat_map(fixes).collect(),
            explanations.iter().flat_map(|explanation| explanation.blind.iter()).collect(),
        ),
        Verdict::Unexplained { needed, fix, .. } => (fix.iter().map(String::as_str).collect(), needed.iter().collect()),
    };
    if !needs.is_empty() {
        page.heading("what could not be seen");
        for need in needs {
            let sensor = need.sensor.map(|sensor| format!(" [{sensor}]")).unwrap_or_default();
            page.item("    ", &format!("{}{sensor}", redact::text(&need.what)));
        }
    }
    if !fixes.is_empty() {
        page.heading("what to do");
        for (index, fix) in fixes.iter().enumerate() {
            page.item(&format!("    {}. ", index + 1), &redact::text(fix));
        }
    }
}

fn fixes(explanation: &Explanation) -> Vec<&str> {
    explanation.fix.iter().map(String::as_str).collect()
}

/// Cuts what is too long to read.
fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST_NAME {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(LONGEST_NAME).collect();
    out.push('…');
    out
}

/// Columns a character takes on a terminal: two for the wide ones of East Asia and for pictures.
const fn columns(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// Breaks text at spaces into lines of at most so many columns; a word that is longer is broken where it must.
pub(crate) fn wrap(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let word_width = width(word);
        if used > 0 && used + 1 + word_width > most {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        for c in word.chars() {
            if used + columns(c) > most {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += columns(c);
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// How many failures were like a case, and not explained one by one.
#[must_use]
pub fn folded(folded: &Folded) -> String {
    let Folded { kind, like, count, from, to } = folded;
    let what = match (kind, count) {
        (CaseKind::Incident, 1) => "more incident",
        (CaseKind::Incident, _) => "more incidents",
        (CaseKind::NearMiss, 1) => "more near miss",
        (CaseKind::NearMiss, _) => "more near misses",
    };
    let milliseconds = to.since_ns(*from).div_ceil(1_000_000).max(1);
    format!(
        "{count} {what} like {} within {milliseconds} ms: counted only, there were too many to explain each",
        like.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::testing::World;
    use crate::model::{
        complaint::{Message, Phase},
        flow::Side,
        net::Errno,
        socket::TcpState,
    };
    use proptest::prelude::*;

    fn refused() -> World {
        let mut world = World::new(502);
        world.reset_sent(-90, "NO_SOCKET", None);
        world.reset_received(-80, TcpState::SynSent);
        world.state(-79, Side::Nginx, TcpState::SynSent, TcpState::Closed, Some(Errno::ECONNREFUSED));
        world.packet_from_upstream(-85, 0x14, 0);
        world.complain(Message::ConnectFailed, Phase::Connecting, Some(Errno::ECONNREFUSED), "connect() failed");
        world.look_up(true, Vec::new(), Vec::new());
        world
    }

    const CLOCK: WallClock = WallClock { offset_ns: 1_795_000_000_000_000_000 };

    #[test]
    fn the_verdict_comes_first_and_nothing_is_too_wide() {
        let world = refused();
        let text = incident(&world.case, &world.judge(), CLOCK, Style::default());
        assert!(text.starts_with("502 upstream-refused (confirmed)"), "{text}");
        assert!(text.lines().all(|line| width(line) <= COLUMNS), "{text}");
        assert!(text.contains("-90"), "{text}");
        assert!(text.contains("reason NO_SOCKET"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn colour_only_when_asked() {
        let world = refused();
        assert!(
            incident(&world.case, &world.judge(), CLOCK, Style { color: true, whole_uris: false })
                .contains("\u{1b}[1;31m")
        );
    }

    proptest! {
        #[test]
        fn hostile_requests_fit_and_obey_nothing(uri in ".*", host in ".*") {
            let mut world = refused();
            world.case.request.uri = Some(uri);
            world.case.request.host = Some(host);
            let text = incident(&world.case, &world.judge(), CLOCK, Style::default());
            prop_assert!(text.lines().all(|line| width(line) <= COLUMNS));
            prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        }

        #[test]
        fn wrapping_loses_nothing(text in "[a-z ]{0,300}", most in 5usize..80) {
            let lines = wrap(&text, most);
            prop_assert!(lines.iter().all(|line| width(line) <= most));
            let letters = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
