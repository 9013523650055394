//! The sequence diagram of an incident: who did what to whom, on one axis of time.
//!
//! Rows stand in the order of time and not to its scale: microseconds and minutes are in one picture. Each row says its time, and a gap of a
//! millisecond or more is drawn and measured.

use jiff::Timestamp;

use super::{
    incident::{duration, moment, proves, source_class},
    lanes::{CLIENT, Lanes, NGINX, Position},
    markup::{Html, grouped},
};
use crate::report::{
    digest::length,
    json::{AttemptLine, EvidenceLine, Incident},
    place::Place,
};

/// Width of a lane, and of the column of times, in the picture's units (pixels where it is shown unscaled).
const LANE: i64 = 114;
const GUTTER: i64 = 94;
/// Room for labels beside the last lane.
const MARGIN: i64 = 56;
/// So many lanes fit on a phone; a picture with more is not made smaller than can be read, and scrolls there.
const MOST_NARROW: usize = 3;
/// Height of the participants' names, of a row, and of a gap in time.
const HEAD: i64 = 46;
const ROW: i64 = 27;
const GAP: i64 = 22;
/// A gap this long is drawn, microseconds.
const GAP_US: i64 = 1_000;
/// nginx's clock of attempts on kept connections.
const NGINX_TICK_US: i64 = 1_000;
/// Width of a letter of an address, tenths of a unit.
const LETTER_MONO: i64 = 66;

/// A row of the picture.
enum Row<'a> {
    Evidence(usize, &'a EvidenceLine),
    /// The client's request: it came before nginx began the first attempt; `None`: at about this time.
    Request(Option<i64>),
    /// The client is answered, once nginx has decided.
    Answer(u16),
}

/// A row with its height in the picture.
struct Placed<'a> {
    row: Row<'a>,
    y: i64,
    t_us: i64,
}

/// The picture with what its signs mean; nothing where there is nothing to draw.
pub(super) fn figure(html: &mut Html, of: &Incident) {
    if of.evidence.is_empty() {
        return;
    }
    let lanes = Lanes::of(of);
    let mut rows = rows(of);
    let gaps = lay_out(&mut rows);
    let width = GUTTER + LANE * i64::try_from(lanes.all.len()).unwrap_or(2) + MARGIN;
    let height = rows.last().map_or(HEAD, |row| row.y) + ROW;
    html.raw("<figure class=diagram><div class=scroll tabindex=0 role=region aria-label=Diagram>\n<svg");
    html.raw(if lanes.all.len() > MOST_NARROW { " class=wide viewBox=\"0 0 " } else { " viewBox=\"0 0 " });
    html.number(width).raw(" ").number(height).raw("\" width=").number(width).raw(" height=").number(height);
    html.raw(" role=img aria-label=\"").text(&in_words(of, &lanes)).raw("\">\n");
    let mut picture = Picture { html, width, lanes: &lanes };
    picture.bands(&rows);
    picture.heads(height);
    for (y, us) in gaps {
        picture.gap(y, us);
    }
    for (number, attempt) in of.attempts.iter().enumerate() {
        picture.attempt(of, number, attempt, &rows);
    }
    for row in &rows {
        picture.row(of, row);
    }
    html.raw("</svg></div>\n<figcaption>");
    legend(html, of);
    html.raw("</figcaption></figure>\n");
}

fn in_words(of: &Incident, lanes: &Lanes) -> String {
    let names: Vec<String> = lanes.all.iter().map(|lane| format!("{} {}", lane.name, lane.detail)).collect();
    format!(
        "Sequence diagram of {} events between {}; the table of evidence says the same",
        of.evidence.len(),
        names.join(", ")
    )
}

/// Evidence in order, with the client's request and answer where they are known to belong.
fn rows(of: &Incident) -> Vec<Placed<'_>> {
    let placed = |row, t_us| Placed { row, y: 0, t_us };
    let mut rows: Vec<Placed<'_>> =
        of.evidence.iter().enumerate().map(|(n, line)| placed(Row::Evidence(n + 1, line), line.t_us)).collect();
    let decided = of.evidence.iter().rposition(|line| line.place.as_ref().is_some_and(Place::decides));
    if let (Some(decided), Some(status)) = (decided, of.status) {
        let t_us = of.evidence.get(decided).map_or(0, |line| line.t_us);
        rows.insert(decided + 1, placed(Row::Answer(status), t_us));
    }
    let first =
        of.attempts.iter().filter_map(|attempt| Some((earliest_us(of, attempt)?, attempt))).min_by_key(|first| first.0);
    if let Some((began, attempt)) = first {
        let before = rows.iter().position(|row| row.t_us >= began).unwrap_or(rows.len());
        // Where the moment is known to the millisecond only, its neighbours say when: they are those it cannot have come after.
        let t_us = if is_rough(attempt) { rows.get(before).map_or(began, |row| row.t_us) } else { began };
        rows.insert(before, placed(Row::Request((!is_rough(attempt)).then_some(began)), t_us));
    }
    rows
}

/// When an attempt began, microseconds after the decision.
fn began_us(of: &Incident, attempt: &AttemptLine) -> Option<i64> {
    let ns = |text: Option<&str>| text?.parse::<Timestamp>().ok().map(Timestamp::as_nanosecond);
    let after = ns(attempt.started.as_deref())? - ns(of.time.as_deref())?;
    i64::try_from(after.div_euclid(1_000)).ok()
}

/// No later than this it began.
fn earliest_us(of: &Incident, attempt: &AttemptLine) -> Option<i64> {
    began_us(of, attempt).map(|began| if is_rough(attempt) { began.saturating_sub(NGINX_TICK_US) } else { began })
}

/// nginx's own clock of the time an attempt took counts milliseconds.
const fn is_rough(attempt: &AttemptLine) -> bool {
    matches!(attempt.duration_us, Some(us) if us.is_multiple_of(1_000))
}

/// Gives each row its height; the gaps in time between them.
fn lay_out(rows: &mut [Placed<'_>]) -> Vec<(i64, i64)> {
    let mut gaps = Vec::new();
    let mut y = HEAD + ROW * 3 / 4;
    let mut before: Option<i64> = None;
    for row in rows {
        if let Some(before) = before {
            let us = row.t_us.saturating_sub(before);
            y += ROW;
            if us >= GAP_US {
                gaps.push((y - ROW / 2 + GAP / 2 - 2, us));
                y += GAP;
            }
        }
        row.y = y;
        before = Some(row.t_us);
    }
    gaps
}

struct Picture<'a> {
    html: &'a mut Html,
    width: i64,
    lanes: &'a Lanes,
}

impl Picture<'_> {
    fn x(lane: usize) -> i64 {
        GUTTER + LANE / 2 + LANE * i64::try_from(lane).unwrap_or(0)
    }

    /// What the verdict rests on lies on a band.
    fn bands(&mut self, rows: &[Placed<'_>]) {
        for row in rows {
            let Row::Evidence(number, line) = &row.row else { continue };
            let (class, _) = proves(line);
            self.html.raw("<rect class=\"band ").raw(class).raw("\" data-e=").count_plain(*number).raw(" x=0 y=");
            self.html.number(row.y - ROW / 2).raw(" width=").number(self.width).raw(" height=").number(ROW).raw(" />");
        }
    }

    fn heads(&mut self, height: i64) {
        for (index, lane) in self.lanes.all.iter().enumerate() {
            let x = Self::x(index);
            let most = usize::try_from((LANE - 4) * 10 / LETTER_MONO).unwrap_or(0);
            self.html
                .raw("<g class=lane><title>")
                .text(&format!("{} {}", lane.name, lane.detail))
                .raw("</title><line x1=");
            self.html.number(x).raw(" y1=").number(HEAD - 8).raw(" x2=").number(x).raw(" y2=").number(height - 6);
            self.html.raw(" /><text class=who x=").number(x).raw(" y=14>").text(&fit(&lane.name, LANE * 10));
            self.html.raw("</text><text class=id x=").number(x).raw(" y=29>").text(&cut_front(&lane.detail, most));
            self.html.raw("</text></g>\n");
        }
    }

    fn gap(&mut self, y: i64, us: i64) {
        self.html.raw("<g class=gap><line x1=").number(GUTTER - 4).raw(" y1=").number(y).raw(" x2=").number(self.width);
        self.html.raw(" y2=").number(y).raw(" /><text x=").number(GUTTER - 10).raw(" y=").number(y + 4).raw(">");
        self.html.text(&length(i128::from(us) * 1_000)).raw(" later</text></g>\n");
    }

    /// nginx is busy with an attempt: a bar on its lane.
    fn attempt(&mut self, of: &Incident, number: usize, attempt: &AttemptLine, rows: &[Placed<'_>]) {
        let (Some(began), Some(took)) = (earliest_us(of, attempt), attempt.duration_us) else { return };
        let slack = if is_rough(attempt) { NGINX_TICK_US } else { 0 };
        let ended = began.saturating_add(slack).saturating_add(i64::try_from(took).unwrap_or(i64::MAX));
        let of_it = |row: &&Placed<'_>| matches!(row.row, Row::Evidence(..)) && row.t_us >= began;
        let Some(top) = rows.iter().find(of_it).map(|row| row.y - 10) else { return };
        let bottom = rows.iter().rev().find(|row| row.t_us <= ended.saturating_add(1)).map_or(top, |row| row.y + 10);
        self.html.raw("<g class=\"attempt ").raw(if attempt.outcome == "ok" { "ok" } else { "bad" }).raw("\"><title>");
        let text = format!("attempt {}: {}, took {}", number + 1, attempt.outcome, duration(attempt));
        self.html
            .text(&text)
            .raw("</title><rect x=")
            .number(Self::x(NGINX) - 5)
            .raw(" y=")
            .number(top)
            .raw(" width=10 height=");
        self.html.number((bottom - top).max(8)).raw(" rx=3 /></g>\n");
    }

    fn row(&mut self, of: &Incident, placed: &Placed<'_>) {
        let y = placed.y;
        match placed.row {
            Row::Request(began) => {
                let method = of.request.method.as_deref().unwrap_or("request");
                let text = format!("{method} {}", of.request.uri.as_deref().unwrap_or_default());
                let time =
                    began.map_or_else(|| "±1 ms".to_owned(), |began| format!("≤ {}", grouped(i128::from(began))));
                self.html
                    .raw("<g class=\"r derived\"><title>The request came before nginx began the first attempt</title>");
                self.time(y, &time, None);
                self.arrow(y, Self::x(CLIENT), Self::x(NGINX), false);
                self.over(y, Self::x(CLIENT), Self::x(NGINX), &text);
                self.html.raw("</g>\n");
            }
            Row::Answer(status) => {
                self.html.raw("<g class=\"r derived\"><title>What the client saw, once nginx had decided</title>");
                self.arrow(y, Self::x(NGINX), Self::x(CLIENT), false);
                self.over(y, Self::x(NGINX), Self::x(CLIENT), &status.to_string());
                self.html.raw("</g>\n");
            }
            Row::Evidence(number, line) => {
                let (class, _) = proves(line);
                self.html.raw("<g class=\"r ").raw(source_class(&line.source)).raw(" ").raw(class).raw("\" data-e=");
                self.html.count_plain(number).raw(">");
                self.time(y, &moment(line), Some(number));
                self.evidence(y, line);
                self.html.raw("</g>\n");
            }
        }
    }

    fn evidence(&mut self, y: i64, line: &EvidenceLine) {
        let brief = line.place.as_ref().map_or(line.text.as_str(), |place| place.brief.as_str());
        match self.lanes.position(line) {
            Position::Travels(from, to) => {
                let lost = line.source != "packet" && brief.starts_with("dropped");
                let (from, to) = match (from, to) {
                    (Some(from), Some(to)) => (Self::x(from), Self::x(to)),
                    (Some(from), None) => (Self::x(from), Self::x(from) + LANE * 2 / 3),
                    (None, Some(to)) => (Self::x(to) + LANE * 2 / 3, Self::x(to)),
                    (None, None) => return,
                };
                self.arrow(y, from, to, lost);
                self.over(y, from, to, brief);
            }
            Position::At(lane) => {
                let x = Self::x(lane);
                self.sign(x, y, &line.source);
                self.beside(x, y, brief);
            }
            Position::Nowhere => self.label(GUTTER + 4, y + 4, "start", brief, self.width - GUTTER - 8),
        }
    }

    fn time(&mut self, y: i64, text: &str, number: Option<usize>) {
        if let Some(number) = number {
            self.html.raw("<text class=num x=4 y=").number(y + 4).raw(">").count_plain(number).raw("</text>");
        }
        self.html
            .raw("<text class=at x=")
            .number(GUTTER - 10)
            .raw(" y=")
            .number(y + 4)
            .raw(">")
            .text(text)
            .raw("</text>");
    }

    /// A packet; one that was dropped ends half way, in a cross.
    fn arrow(&mut self, y: i64, from: i64, to: i64, lost: bool) {
        let toward = if to >= from { 1 } else { -1 };
        let end = if lost { i64::midpoint(from, to) } else { to - toward };
        self.html.raw("<path class=line d=\"M").number(from).raw(" ").number(y + 5).raw("H").number(end).raw("\" />");
        if lost {
            self.html.raw("<path class=cross d=\"M").number(end - 5).raw(" ").number(y).raw("l10 10m0 -10l-10 10\" />");
        } else {
            self.html.raw("<path class=tip d=\"M").number(end).raw(" ").number(y + 5);
            self.html.raw(if toward > 0 { "l-8 -4v8z\" />" } else { "l8 -4v8z\" />" });
        }
    }

    /// Each kind of source has a shape of its own, so that colour is not all that tells them apart.
    fn sign(&mut self, x: i64, y: i64, source: &str) {
        match source {
            "kernel" => {
                self.html.raw("<rect class=sign x=").number(x - 4).raw(" y=").number(y - 4).raw(" width=9 height=9 />")
            }
            "process" => {
                self.html.raw("<path class=sign d=\"M").number(x).raw(" ").number(y - 6).raw("l6 11h-12z\" />")
            }
            "host" | "config" => self
                .html
                .raw("<path class=\"sign hollow\" d=\"M")
                .number(x)
                .raw(" ")
                .number(y - 6)
                .raw("l6 6l-6 6l-6 -6z\" />"),
            "log" | "nginx" => {
                self.html.raw("<path class=sign d=\"M").number(x - 4).raw(" ").number(y - 6).raw("h6l3 3v9h-9z\" />")
            }
            _ => self.html.raw("<circle class=sign cx=").number(x).raw(" cy=").number(y).raw(" r=5 />"),
        };
    }

    /// A label to the right of its sign, or to the left where there is no room for it.
    fn beside(&mut self, x: i64, y: i64, text: &str) {
        let (left, right) = (x - GUTTER - 12, self.width - x - 12);
        if right >= left || text.chars().map(breadth).sum::<i64>() / 10 <= right {
            self.label(x + 11, y + 4, "start", text, right);
        } else {
            self.label(x - 11, y + 4, "end", text, left);
        }
    }

    /// A label over an arrow.
    fn over(&mut self, y: i64, from: i64, to: i64, text: &str) {
        let middle = i64::midpoint(from, to);
        let room = 2 * (middle - GUTTER).min(self.width - middle);
        self.label(middle, y, "middle", text, room);
    }

    fn label(&mut self, x: i64, y: i64, anchor: &'static str, text: &str, room: i64) {
        let text = fit(text, room * 10);
        self.html.raw("<text class=what text-anchor=").raw(anchor).raw(" x=").number(x).raw(" y=").number(y).raw(">");
        self.html.text(&text).raw("</text>");
    }
}

/// How broad a letter of a label may be, tenths of a unit: as in the broadest font that a browser may take, in bold.
const fn breadth(c: char) -> i64 {
    match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' | '(' | ')' | '[' | ']' => 45,
        'f' | 'r' | 't' | '/' | '-' => 54,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '…' => 122,
        'A'..='Z' | '=' | '<' | '>' | '→' | '+' => 90,
        '_' => 58,
        '\u{0}'..='\u{ff}' => 75,
        _ => 125,
    }
}

/// As much of a text as has room, tenths of a unit, with an ellipsis for the rest.
fn fit(text: &str, room: i64) -> String {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += breadth(c);
        if used <= room {
            continue;
        }
        let mut out = text.get(..at).unwrap_or_default().to_owned();
        used -= breadth(c);
        while used > room - breadth('…') {
            let Some(last) = out.pop() else { break };
            used -= breadth(last);
        }
        out.push('…');
        return out;
    }
    text.to_owned()
}

/// The last characters of an address tell more than the first.
fn cut_front(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(length + 1 - most)).collect()
}

/// What the signs mean, of those that are there.
fn legend(html: &mut Html, of: &Incident) {
    let there = |sources: &[&str]| of.evidence.iter().any(|line| sources.contains(&&*line.source));
    let mut signs = Html::default();
    let mut picture = Picture { html: &mut signs, width: 0, lanes: &Lanes::of(&Incident::default()) };
    for (sources, class, name) in [
        (&["packet"][..], "packet", "packet"),
        (&["kernel"], "kernel", "kernel"),
        (&["syscall"], "syscall", "system call"),
        (&["process"], "process", "process"),
        (&["nginx", "log"], "nginx", "nginx and its logs"),
        (&["host", "config"], "host", "host, configuration"),
    ] {
        if !there(sources) {
            continue;
        }
        picture
            .html
            .raw("<span class=legend><svg width=18 height=14 viewBox=\"0 0 18 14\" aria-hidden=true><g class=\"r ");
        picture.html.raw(class).raw("\">");
        if class == "packet" {
            picture.arrow(2, 1, 17, false);
        } else {
            picture.sign(8, 7, class);
        }
        picture.html.raw("</g></svg> ").raw(name).raw("</span> ");
    }
    html.append(&signs);
    html.raw("<span class=legend><i class=\"swatch direct\"></i> proves</span> <span class=legend><i class=\"swatch symptom\"></i> supports</span> ");
    if of.evidence.iter().any(|line| line.against) {
        html.raw("<span class=legend><i class=\"swatch against\"></i> speaks against</span> ");
    }
    html.raw("<span class=dim>Not to scale: gaps of a millisecond or more are drawn and measured.</span>");
}
