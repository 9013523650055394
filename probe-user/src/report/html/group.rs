//! Incidents of the same cause and circumstances, and the line that each incident is folded into.

use super::{
    chart, clock, day, incident,
    markup::{Html, cut},
    overview::{many, sure},
    packed::Packer,
};
use crate::{
    diagnose,
    report::{
        UNKNOWN,
        digest::{Digest, Group, Seen, length},
    },
};

/// So many incidents of a group are shown; more are folded.
const SHOWN: usize = 5;
/// The first incident of so many groups is open from the start, with or without a script, and so is printed.
const OPEN: usize = 12;
/// A URI in an incident's line, characters.
const URI: usize = 96;

/// The groups, after what searches in them.
pub(super) fn sections(html: &mut Html, digest: &Digest<'_>) {
    html.raw("<section id=incidents aria-labelledby=incidents-h tabindex=-1>\n<h2 id=incidents-h>Incidents</h2>\n");
    if digest.all.is_empty() {
        html.raw("<p>There is none.</p>\n</section>\n");
        return;
    }
    // Only a script can search, so it shows this.
    html.raw("<form class=tools id=tools role=search hidden>\n<label for=q>Search</label>\n");
    html.raw("<input type=search id=q autocomplete=off spellcheck=false placeholder=\"URI, address, cause, log text, pid …\" aria-describedby=hint>\n");
    html.raw("<button type=button id=unfold>Unfold all</button>\n<button type=button id=fold>Fold all</button>\n");
    html.raw("<output id=found for=q></output>\n");
    html.raw("<p id=hint class=dim><kbd>/</kbd> search, <kbd>j</kbd> <kbd>k</kbd> next and previous, <kbd>Enter</kbd> fold or unfold, <kbd>Esc</kbd> clear. Several words: all of them.</p>\n</form>\n");
    let mut packer = Packer::new(digest.all.len());
    for (number, group) in digest.groups.iter().enumerate() {
        section(html, &mut packer, digest, number, group);
    }
    packer.finish(html);
    html.raw("<p id=none hidden>Nothing matches.</p>\n</section>\n");
}

fn section(html: &mut Html, packer: &mut Packer, digest: &Digest<'_>, number: usize, group: &Group<'_>) {
    let common = &group.common;
    html.raw("<section class=group aria-labelledby=g")
        .count_plain(number)
        .raw(">\n<h3 id=g")
        .count_plain(number)
        .raw(">");
    status(html, common.status, common.near_miss);
    html.raw(" ").text(&common.cause);
    if common.contested {
        html.raw(" (contested)");
    }
    if let Some(cause) = diagnose::find(&common.cause) {
        html.tag(" <small>", cause.title, "</small>");
    }
    html.raw("</h3>\n<p class=common>");
    let noun = if common.near_miss { "near miss" } else { "failure" };
    html.tag("<b>", &many(group.members.len(), noun), "</b>");
    if common.cause != UNKNOWN {
        html.raw(", ").text(&sure(&group.count));
    }
    match &common.upstream {
        Some(upstream) => html.tag(" · upstream <code>", &cut(upstream, URI), "</code>"),
        None => html.raw(" · no upstream was tried"),
    };
    if let Some(outcome) = &common.outcome {
        html.raw(" · ").text(outcome);
    }
    if let Some(errno) = &common.errno {
        html.raw(" ").text(errno);
    }
    if let Some((first, last)) = group.count.span.filter(|(first, last)| first != last) {
        html.raw(" · first ").text(&clock(Some(first))).raw(", last ");
        if day(first) != day(last) {
            html.text(&day(last)).raw(" ");
        }
        html.text(&clock(Some(last))).raw(", within ").text(&length(last.as_nanosecond() - first.as_nanosecond()));
    }
    html.raw("</p>\n");
    if common.cause == "keepalive-race" {
        chart::idle_times(html, &group.idle_ms);
    }
    let folded = group.members.len() > SHOWN + 2;
    for (place, seen) in group.members.iter().enumerate() {
        if folded && place == SHOWN {
            html.raw("<details class=rest><summary>").count(group.members.len() - SHOWN).raw(" more");
            html.raw(" <span class=dim>from ").text(&clock(seen.time)).raw("</span></summary>\n");
        }
        fold(html, packer, digest, seen, if number < OPEN && place == 0 { None } else { Some(place) });
    }
    html.raw(if folded { "</details>\n</section>\n" } else { "</section>\n" });
}

/// The status in a badge; a near miss is told apart by word and not by colour alone.
fn status(html: &mut Html, status: Option<u16>, near_miss: bool) {
    html.raw(if near_miss { "<span class=\"status near\">near miss " } else { "<span class=status>" });
    html.text(&status.map_or_else(|| "?".to_owned(), |status| status.to_string())).raw("</span>");
}

/// An incident: a line, and what it unfolds to; open if it has no place among those that are folded.
fn fold(html: &mut Html, packer: &mut Packer, digest: &Digest<'_>, seen: &Seen<'_>, place: Option<usize>) {
    let of = seen.incident;
    let mut body = Html::default();
    incident::body(&mut body, digest, seen);
    let mut plain = Html::default();
    let packed = match place {
        None => {
            plain.append(&body);
            None
        }
        Some(place) => packer.put(&mut plain, body, place),
    };
    html.raw("<details class=incident id=").text(&anchor(seen));
    if let Some((block, position)) = packed {
        html.raw(" data-p=").count_plain(block).raw(".").count_plain(position);
    }
    html.raw(if place.is_none() { " open><summary>" } else { "><summary>" });
    html.tag("<time>", &clock(seen.time), "</time> ");
    status(html, of.status, seen.is_near_miss());
    html.raw(" <span class=req>");
    html.text(of.request.method.as_deref().unwrap_or_default()).raw(" ");
    html.text(&of.request.uri.as_deref().map_or_else(|| "request not seen".to_owned(), |uri| cut(uri, URI)));
    html.raw("</span> <span class=to>");
    if let Some(host) = &of.request.host {
        html.text(&cut(host, 48));
    }
    html.raw("</span> <span class=\"sure ").raw(incident::confidence_class(of)).raw("\">");
    html.text(&of.verdict.confidence).raw("</span></summary>").append(&plain).raw("</details>\n");
}

/// What links to an incident: its position among all, because its own id may be anything.
pub(super) fn anchor(seen: &Seen<'_>) -> String {
    format!("i{}", seen.number)
}
