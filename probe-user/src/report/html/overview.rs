//! The first screen: how many, when, what, where; and how much of it was seen.

use super::{
    chart, clock, day,
    markup::{Html, cut, grouped},
};
use crate::{
    diagnose,
    report::{
        UNKNOWN,
        collection::Collection,
        digest::{Count, Digest, length},
    },
};

/// Rows of a table that are shown at once.
const MOST_ROWS: usize = 10;
/// Causes of an upstream that are named.
const MOST_CAUSES: usize = 4;
/// An upstream's name in a table, characters.
const NAME: usize = 72;

/// What the page is called when nobody says it.
pub(super) fn title(digest: &Digest<'_>) -> String {
    match digest.count.span {
        None => "nginx gateway failures".to_owned(),
        Some((first, last)) if day(first) == day(last) => format!("nginx gateway failures, {}", day(first)),
        Some((first, last)) => format!("nginx gateway failures, {} to {}", day(first), day(last)),
    }
}

/// One sentence under the title.
pub(super) fn lead(html: &mut Html, digest: &Digest<'_>) {
    html.raw("<p class=lead>");
    if digest.all.is_empty() {
        html.raw("No failure and no near miss was recorded.</p>\n");
        return;
    }
    html.text(&format!(
        "{} and {}",
        many(digest.count.incidents, "failure"),
        many(digest.count.near_misses, "near miss")
    ));
    if let Some((first, last)) = digest.count.span {
        let took = length(last.as_nanosecond() - first.as_nanosecond());
        let end = if day(first) == day(last) { String::new() } else { format!("{} ", day(last)) };
        html.text(&match digest.all.len() {
            1 => format!(" at {} {} UTC", day(first), clock(Some(first))),
            _ => format!(" within {took}: {} {} to {end}{} UTC", day(first), clock(Some(first)), clock(Some(last))),
        });
    }
    html.raw(".</p>\n");
}

/// `1 failure`, `2 failures`, `no near miss`.
pub(super) fn many(number: usize, noun: &str) -> String {
    let plural = if noun.ends_with('s') { "es" } else { "s" };
    match number {
        0 => format!("no {noun}"),
        1 => format!("1 {noun}"),
        _ => format!("{} {noun}{plural}", grouped(i128::try_from(number).unwrap_or(i128::MAX))),
    }
}

/// The same for what is counted as `u64`.
pub(super) fn plural(number: u64, noun: &str) -> String {
    many(usize::try_from(number).unwrap_or(usize::MAX), noun)
}

/// The summary's sections.
pub(super) fn sections(html: &mut Html, collection: &Collection, digest: &Digest<'_>) {
    html.raw("<section id=summary aria-labelledby=summary-h>\n<h2 id=summary-h class=sr>Summary</h2>\n");
    tiles(html, collection, digest);
    if !digest.all.is_empty() {
        chart::over_time(html, digest);
        causes(html, digest);
        upstreams(html, digest);
    }
    html.raw("</section>\n");
    sight(html, collection, digest);
}

fn tiles(html: &mut Html, collection: &Collection, digest: &Digest<'_>) {
    let [confirmed, likely, possible] = digest.count.confidence;
    let unknown = digest.by_cause.iter().find(|row| row.name == UNKNOWN).map_or(0, Count::all);
    let (records, packets) = collection.lost();
    html.raw("<dl class=tiles>\n");
    tile(html, "Failures", digest.count.incidents, "the client saw them");
    tile(html, "Near misses", digest.count.near_misses, "failed, and answered all the same");
    tile(
        html,
        "Causes",
        digest.by_cause.iter().filter(|row| row.name != UNKNOWN).count(),
        &match unknown {
            0 => "every verdict names one".to_owned(),
            _ => format!("and {} unexplained", grouped(i128::try_from(unknown).unwrap_or(0))),
        },
    );
    tile(html, "Confirmed", confirmed, &format!("of {}; {likely} likely, {possible} possible", digest.all.len()));
    let lost = usize::try_from(records.saturating_add(packets)).unwrap_or(usize::MAX);
    tile(
        html,
        "Lost while watching",
        lost,
        &format!("{}, {}", plural(records, "kernel record"), plural(packets, "packet")),
    );
    html.raw("</dl>\n");
}

fn tile(html: &mut Html, name: &str, number: usize, note: &str) {
    html.raw("<div><dt>").text(name).raw("</dt><dd><b>").count(number).raw("</b> <small>").text(note);
    html.raw("</small></dd></div>\n");
}

fn causes(html: &mut Html, digest: &Digest<'_>) {
    html.raw("<div class=scroll tabindex=0 role=region aria-label=\"By cause\"><table class=counts>\n<caption>By cause</caption>\n");
    html.raw("<thead><tr><th scope=col>Cause<th scope=col class=n>Count<th scope=col>How sure<th scope=col>First<th scope=col>Last</thead>\n<tbody>\n");
    let most = digest.by_cause.first().map_or(1, Count::all).max(1);
    for (place, row) in digest.by_cause.iter().enumerate() {
        html.raw("<tr><th scope=row><span class=\"key k")
            .count_plain(place.min(chart::COLOURS))
            .raw("\"></span><a href=\"#g");
        html.count_plain(first_group(digest, &row.name)).raw("\">").text(&row.name).raw("</a>");
        if let Some(cause) = diagnose::find(&row.name) {
            html.tag("<small>", cause.title, "</small>");
        }
        html.raw("<td class=n>");
        bar(html, row.all(), most);
        html.raw("<td>").text(&sure(row));
        if row.near_misses > 0 {
            html.tag("<small>", &many(row.near_misses, "near miss"), "</small>");
        }
        times(html, row);
    }
    html.raw("</tbody></table></div>\n");
}

fn first_group(digest: &Digest<'_>, cause: &str) -> usize {
    digest.groups.iter().position(|group| group.common.cause == cause).unwrap_or(0)
}

/// `confirmed`, or `3 confirmed, 1 likely`.
pub(super) fn sure(row: &Count) -> String {
    let words: Vec<(usize, &str)> =
        row.confidence.into_iter().zip(crate::report::digest::CONFIDENCE).filter(|(count, _)| *count > 0).collect();
    match words.as_slice() {
        [(_, word)] => (*word).to_owned(),
        several => several.iter().map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", "),
    }
}

fn bar(html: &mut Html, count: usize, most: usize) {
    html.count(count)
        .raw("<svg class=bar viewBox=\"0 0 100 6\" preserveAspectRatio=none aria-hidden=true><rect width=");
    html.tenths((count * 1000 / most).max(10)).raw(" height=6 /></svg>");
}

fn times(html: &mut Html, row: &Count) {
    html.tag("<td class=t>", &row.span.map(|span| clock(Some(span.0))).unwrap_or_default(), "");
    html.tag("<td class=t>", &row.span.map(|span| clock(Some(span.1))).unwrap_or_default(), "\n");
}

fn upstreams(html: &mut Html, digest: &Digest<'_>) {
    let most = digest.by_upstream.first().map_or(1, Count::all).max(1);
    let (shown, folded) = digest.by_upstream.split_at(MOST_ROWS.min(digest.by_upstream.len()));
    upstream_table(html, shown, most);
    if !folded.is_empty() {
        html.raw("<details><summary>").text(&many(folded.len(), "more upstream")).raw("</summary>\n");
        upstream_table(html, folded, most);
        html.raw("</details>\n");
    }
}

fn upstream_table(html: &mut Html, rows: &[Count], most: usize) {
    html.raw("<div class=scroll tabindex=0 role=region aria-label=\"By upstream\"><table class=\"counts ups\">\n");
    html.raw("<caption>By upstream</caption>\n");
    html.raw("<thead><tr><th scope=col>Upstream<th scope=col class=n>Count<th scope=col>Causes<th scope=col>First<th scope=col>Last</thead>\n<tbody>\n");
    for row in rows {
        html.tag("<tr><th scope=row><code>", &cut(&row.name, NAME), "</code>").raw("<td class=n>");
        bar(html, row.all(), most);
        html.raw("<td>");
        let causes = row.ranked_causes();
        for (place, (cause, count)) in causes.iter().enumerate().take(MOST_CAUSES) {
            html.raw(if place > 0 { ", " } else { "" }).text(cause);
            if causes.len() > 1 {
                html.raw(" <span class=dim>").count(*count).raw("</span>");
            }
        }
        if causes.len() > MOST_CAUSES {
            html.raw(" <span class=dim>and ").count(causes.len() - MOST_CAUSES).raw(" more causes</span>");
        }
        times(html, row);
    }
    html.raw("</tbody></table></div>\n");
}

/// How much was seen: losses, blind sources, what verdicts would have needed, what could not be read.
fn sight(html: &mut Html, collection: &Collection, digest: &Digest<'_>) {
    let (records, packets) = collection.lost();
    html.raw("<section id=sight aria-labelledby=sight-h>\n<h2 id=sight-h>How much was seen</h2>\n<ul class=plain>\n");
    let over = if collection.summaries.is_empty() { "as far as the incidents tell" } else { "over the whole run" };
    html.raw("<li>").text(&match (records, packets) {
        (0, 0) => format!("Nothing was lost, {over}."),
        _ => format!(
            "Lost, {over}: {} and {}; {} had losses meanwhile.",
            plural(records, "kernel record"),
            plural(packets, "packet"),
            many(digest.lossy, "case")
        ),
    });
    if collection.ready.is_empty() {
        html.raw("<li>Which sources were on is not in the input; each incident says what it lacked.");
    } else if collection.blind().is_empty() {
        html.raw("<li>Every source was on.");
    }
    for (name, state, why) in collection.blind() {
        html.tag("<li><b>", name, "</b> was ").text(state);
        if !why.is_empty() {
            html.raw(": ").text(why);
        }
    }
    for (what, text, times, _) in collection.notices() {
        html.tag("<li>Notice, <b>", what, "</b>: ").text(text);
        if times > 1 {
            html.raw(" (").count(times).raw(" times)");
        }
    }
    for trouble in &collection.troubles {
        html.raw("<li>Not read: ").long(trouble);
    }
    if collection.further_troubles > 0 {
        html.raw("<li>Not read: ").count(collection.further_troubles).raw(" more pieces of the input");
    }
    if collection.repeated > 0 {
        html.raw("<li>").text(&many(collection.repeated, "incident")).raw(" came more than once; each is told once");
    }
    html.raw("</ul>\n");
    needs(html, digest);
    html.raw("</section>\n");
}

fn needs(html: &mut Html, digest: &Digest<'_>) {
    if digest.missing.is_empty() {
        return;
    }
    html.raw("<details class=needs><summary>What verdicts lacked: ").text(&many(digest.missing.len(), "kind"));
    html.raw(" of evidence that could not be had</summary>\n<ul>\n");
    for (need, times) in &digest.missing {
        html.raw("<li>").text(&need.what);
        if let Some(sensor) = &need.sensor {
            html.tag(" <span class=dim>[", sensor, "]</span>");
        }
        html.tag(" <span class=dim>in ", &many(*times, "case"), "</span>\n");
    }
    html.raw("</ul></details>\n");
}
