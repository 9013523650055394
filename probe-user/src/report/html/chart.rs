//! Failures over time, and idle times, as bars. The bars stretch with the page; what is written beside them is text of the page, so that
//! it can be read at every width.

use jiff::Timestamp;

use super::{
    markup::{Html, grouped},
    written,
};
use crate::report::digest::{Digest, Seen, length};

/// No more bars than this.
const MOST_BARS: i128 = 72;
/// Widths of a bar that people think in, seconds.
const WIDTHS: [i128; 17] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400];
/// Causes with a colour of their own; the others share one.
pub(super) const COLOURS: usize = 7;
/// Bars of the histogram.
const HISTOGRAM: usize = 16;

const NS: i128 = 1_000_000_000;

/// Failures and near misses over time, stacked by cause.
pub(super) fn over_time(html: &mut Html, digest: &Digest<'_>) {
    let Some((first, last)) = digest.count.span else { return };
    let (from, to) = (first.as_nanosecond(), last.as_nanosecond());
    let least = (to - from) / MOST_BARS / NS + 1;
    let width = WIDTHS.into_iter().find(|width| *width >= least).unwrap_or_else(|| (least / 86_400 + 1) * 86_400) * NS;
    let start = from.div_euclid(width) * width;
    // A single burst does not fill the page; a quarter of a bar's room on its own would look like nothing either.
    let bars = usize::try_from((to - start) / width + 1).unwrap_or(1);
    let mut counts = vec![[0_usize; COLOURS + 2]; bars];
    for seen in &digest.all {
        let Some(time) = seen.time else { continue };
        let bar = usize::try_from((time.as_nanosecond() - start) / width).unwrap_or(0);
        if let Some(series) = counts.get_mut(bar).and_then(|bar| bar.get_mut(series(digest, seen))) {
            *series += 1;
        }
    }
    let highest = counts.iter().map(|bar| bar.iter().sum::<usize>()).max().unwrap_or(1).max(1);
    let room = bars.max(12);
    html.raw("<figure class=chart>\n<figcaption>Failures over time <span class=dim>one bar is ").text(&length(width));
    html.raw("</span>");
    if digest.count.near_misses > 0 {
        html.raw(" <span class=dim><span class=\"key k8\"></span>near misses</span>");
    }
    html.raw("</figcaption>\n<div class=plot><div class=axis aria-hidden=true><span>").count(highest);
    html.raw("</span><span>0</span></div>\n<svg viewBox=\"0 0 ")
        .count_plain(room * 10)
        .raw(" 100\" preserveAspectRatio=none role=img");
    html.raw(" aria-label=\"").text(&in_words(digest, &counts, start, width)).raw("\">");
    for (index, bar) in counts.iter().enumerate() {
        let all: usize = bar.iter().sum();
        if all == 0 {
            continue;
        }
        html.raw("<g><title>").text(&clock(start, width, index)).raw(": ").count(all).raw("</title>");
        let mut below = 0;
        for (series, count) in bar.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (top, bottom) = ((below + count) * 1000 / highest, below * 1000 / highest);
            html.raw("<rect class=s").count_plain(series).raw(" x=").count_plain(index * 10 + 1).raw(" width=8 y=");
            html.tenths(1000 - top).raw(" height=").tenths((top - bottom).max(12)).raw(" />");
            below += count;
        }
        html.raw("</g>");
    }
    html.raw("</svg></div>\n<div class=ticks aria-hidden=true>");
    let end = start + i128::try_from(room).unwrap_or(1) * width;
    for at in [start, i128::midpoint(start, end), end] {
        html.tag("<span>", &tick(at, width), "</span>");
    }
    html.raw("</div>\n</figure>\n");
}

/// Which colour an incident has: that of its cause, or the one of near misses.
fn series(digest: &Digest<'_>, seen: &Seen<'_>) -> usize {
    if seen.is_near_miss() {
        return COLOURS + 1;
    }
    digest.by_cause.iter().position(|row| row.name == seen.incident.verdict.cause).unwrap_or(COLOURS).min(COLOURS)
}

fn in_words(digest: &Digest<'_>, counts: &[[usize; COLOURS + 2]], start: i128, width: i128) -> String {
    let sums: Vec<usize> = counts.iter().map(|bar| bar.iter().sum()).collect();
    let highest = sums.iter().max().copied().unwrap_or(0);
    let peak = sums.iter().position(|sum| *sum == highest).unwrap_or(0);
    format!(
        "Bar chart: {} failures and {} near misses; the most, {highest}, within {} from {}",
        digest.count.incidents,
        digest.count.near_misses,
        length(width),
        clock(start, width, peak)
    )
}

fn clock(start: i128, width: i128, bar: usize) -> String {
    tick(start + i128::try_from(bar).unwrap_or(0) * width, width)
}

fn tick(ns: i128, width: i128) -> String {
    let Ok(time) = Timestamp::from_nanosecond(ns) else { return String::new() };
    written(time, if width >= 3_600 * NS { "%m-%d %H:%M" } else { "%H:%M:%S" })
}

/// How long connections had been idle, milliseconds in ascending order.
pub(super) fn idle_times(html: &mut Html, idle_ms: &[f64]) {
    let (Some(least), Some(most)) = (idle_ms.first().copied(), idle_ms.last().copied()) else { return };
    if idle_ms.len() < 2 {
        return;
    }
    // From at least a tenth below to a tenth above, so that times that are all alike stand in the middle and not at an edge.
    let margin = ((most - least) / 14.0).max(most / 100.0).max(0.5);
    let (from, width) = ((least - margin).max(0.0), (most - least + 2.0 * margin) / HISTOGRAM_F);
    let mut bars = [0_usize; HISTOGRAM];
    for idle in idle_ms {
        if let Some(bar) = bars.get_mut(whole((idle - from) / width).min(HISTOGRAM - 1)) {
            *bar += 1;
        }
    }
    let highest = bars.iter().max().copied().unwrap_or(1).max(1);
    let median = idle_ms.get(idle_ms.len() / 2).copied().unwrap_or(least);
    let said = format!("shortest {}, median {}, longest {}", ms(least), ms(median), ms(most));
    html.raw("<figure class=\"chart small\">\n<figcaption>Idle before the failure <span class=dim>").text(&said);
    html.raw("</span></figcaption>\n<div class=plot><div class=axis aria-hidden=true><span>").count(highest);
    html.raw(
        "</span><span>0</span></div>\n<svg viewBox=\"0 0 160 100\" preserveAspectRatio=none role=img aria-label=\"",
    );
    html.text(&format!("Histogram of {} idle times: {said}", idle_ms.len())).raw("\">");
    for (index, count) in bars.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = (count * 1000 / highest).max(12);
        html.raw("<rect class=s0 x=").count_plain(index * 10 + 1).raw(" width=8 y=").tenths(1000 - height);
        html.raw(" height=").tenths(height).raw("><title>");
        let low = width.mul_add(float(index), from);
        html.text(&format!("{} to {}: {}", ms(low), ms(low + width), grouped(i128::try_from(*count).unwrap_or(0))));
        html.raw("</title></rect>");
    }
    html.raw("</svg></div>\n<div class=ticks aria-hidden=true>");
    for at in [from, width.mul_add(HISTOGRAM_F / 2.0, from), width.mul_add(HISTOGRAM_F, from)] {
        html.tag("<span>", &ms(at), "</span>");
    }
    html.raw("</div>\n</figure>\n");
}

const HISTOGRAM_F: f64 = 16.0;

/// Milliseconds as people say them.
pub(super) fn ms(ms: f64) -> String {
    match ms {
        _ if ms < 10.0 => format!("{ms:.2} ms"),
        _ if ms < 1_000.0 => format!("{ms:.0} ms"),
        _ if ms < 100_000.0 => format!("{:.2} s", ms / 1_000.0),
        _ => format!("{:.0} s", ms / 1_000.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "the number of a bar")]
const fn float(index: usize) -> f64 {
    index as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number of a bar; what is out of range is put into the last"
)]
const fn whole(value: f64) -> usize {
    value as usize
}
