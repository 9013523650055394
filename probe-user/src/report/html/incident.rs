//! One incident: the verdict, how it came about, what it rests on, what to do.

use super::{
    chart::ms,
    diagram, group,
    markup::{Html, grouped},
    overview::plural,
};
use crate::{
    diagnose,
    report::{
        UNKNOWN,
        digest::{Digest, Seen, length},
        json::{AttemptLine, EvidenceLine, Incident},
    },
};

/// What stands for something that is not known.
const NOT_KNOWN: &str = "not known";

/// How sure, as a class of the style sheet. `unknown` claims nothing, so it is not sure of anything.
pub(super) fn confidence_class(of: &Incident) -> &'static str {
    match (&*of.verdict.cause, &*of.verdict.confidence) {
        (UNKNOWN, _) => "unknown",
        (_, "confirmed") => "confirmed",
        (_, "likely") => "likely",
        _ => "possible",
    }
}

/// Everything about it.
pub(super) fn body(html: &mut Html, digest: &Digest<'_>, seen: &Seen<'_>) {
    let of = seen.incident;
    html.raw("<div class=body>\n");
    verdict(html, of);
    request(html, of);
    attempts(html, of);
    html.raw("<div class=seen>\n");
    diagram::figure(html, of);
    evidence(html, of);
    html.raw("</div>\n<div class=cols>\n");
    advice(html, digest, of);
    html.raw("</div>\n</div>");
}

fn verdict(html: &mut Html, of: &Incident) {
    html.raw("<p class=verdict><span class=\"sure ").raw(confidence_class(of)).raw("\">");
    html.text(&of.verdict.cause).raw(", ").text(&of.verdict.confidence).raw("</span> ");
    html.prose(&of.verdict.summary).raw("</p>\n");
    if of.losses.events_lost > 0 || of.losses.packets_dropped > 0 {
        let (records, packets) = (of.losses.events_lost, of.losses.packets_dropped);
        html.raw("<p class=lost>Lost while it happened: ").text(&plural(records, "kernel record")).raw(", ");
        html.text(&plural(packets, "packet")).raw(".</p>\n");
    }
}

fn request(html: &mut Html, of: &Incident) {
    let request = &of.request;
    html.raw("<dl class=facts>\n<div class=wide><dt>Request</dt><dd><code>");
    match (&request.method, &request.uri) {
        (None, None) => html.raw("its line was not seen"),
        (method, uri) => {
            html.text(method.as_deref().unwrap_or("?")).raw(" ").long(uri.as_deref().unwrap_or("?"));
            html.raw(" ").text(request.protocol.as_deref().unwrap_or_default())
        }
    };
    html.raw("</code>").raw(if of.subrequest { " in a subrequest" } else { "" }).raw("</dd></div>\n");
    fact(html, "Host", request.host.as_deref());
    fact(html, "Client", request.client.as_deref().or(request.client_address.as_deref()));
    fact(html, "Connection", request.connection.map(|number| format!("*{number}")).as_deref());
    fact(html, "nginx", of.nginx.pid.map(|pid| format!("worker {pid}")).as_deref());
    fact(html, "Version", of.nginx.version.as_deref());
    fact(html, "Decided", of.time.as_deref());
    fact(html, "Tied by", Some(&of.link));
    fact(html, "Case", Some(&of.id));
    html.raw("</dl>\n");
}

fn fact(html: &mut Html, name: &'static str, value: Option<&str>) {
    html.raw("<div><dt>").raw(name).raw("</dt><dd>");
    match value {
        Some(value) if !value.is_empty() => html.raw("<code>").long(value).raw("</code>"),
        _ => html.raw("<span class=dim>").raw(NOT_KNOWN).raw("</span>"),
    };
    html.raw("</dd></div>\n");
}

fn attempts(html: &mut Html, of: &Incident) {
    if of.attempts.is_empty() {
        html.raw("<p class=dim>nginx tried no upstream for this request.</p>\n");
        return;
    }
    html.raw("<div class=scroll tabindex=0 role=region aria-label=Attempts><table class=attempts>\n<caption>Attempts</caption>\n");
    html.raw("<thead><tr><th scope=col>#<th scope=col>Upstream<th scope=col>From<th scope=col>Outcome<th scope=col class=n>Took<th scope=col>Connection<th scope=col class=n>Bytes out<th scope=col class=n>in</thead>\n<tbody>\n");
    for (number, attempt) in (1_u32..).zip(&of.attempts) {
        html.raw("<tr><th scope=row>").number(number).raw("<td><code>");
        html.long(attempt.upstream.as_deref().or(attempt.peer.as_deref()).unwrap_or(NOT_KNOWN))
            .raw("</code><td><code>");
        html.text(attempt.local.as_deref().unwrap_or("?")).raw("</code>");
        html.raw(if attempt.outcome == "ok" { "<td class=ok>" } else { "<td class=bad>" }).text(&attempt.outcome);
        if let Some(errno) = &attempt.errno {
            html.raw(" ").text(errno);
        }
        html.raw("<td class=n>").text(&duration(attempt));
        html.raw("<td>").text(&kept(attempt));
        for bytes in [attempt.bytes_sent, attempt.bytes_received] {
            html.raw("<td class=n>").text(&bytes.map_or_else(|| "?".to_owned(), |bytes| grouped(i128::from(bytes))));
        }
        html.raw("\n");
    }
    html.raw("</tbody></table></div>\n");
}

/// How long an attempt took. On a kept connection that is nginx's own count, in whole milliseconds.
pub(super) fn duration(attempt: &AttemptLine) -> String {
    match attempt.duration_us {
        None => "?".to_owned(),
        Some(0) => "< 1 ms".to_owned(),
        Some(us) => length(i128::from(us) * 1_000),
    }
}

fn kept(attempt: &AttemptLine) -> String {
    match attempt.reused {
        None => NOT_KNOWN.to_owned(),
        Some(false) => "fresh".to_owned(),
        Some(true) => {
            let before = match attempt.requests_before {
                None => String::new(),
                Some(1) => " after 1 request".to_owned(),
                Some(n) => format!(" after {} requests", grouped(i128::from(n))),
            };
            let idle = attempt.idle_ms.map(|idle| format!(", idle {}", ms(idle))).unwrap_or_default();
            format!("kept{before}{idle}")
        }
    }
}

/// What a row proves, as a word for the eye that does not tell colours apart.
pub(super) fn proves(line: &EvidenceLine) -> (&'static str, &'static str) {
    match (line.against, line.weight.as_deref()) {
        (true, _) => ("against", "against"),
        (false, Some("direct")) => ("direct", "proves"),
        (false, Some("symptom")) => ("symptom", "supports"),
        (false, Some(_)) => ("fits", "fits"),
        (false, None) => ("", ""),
    }
}

fn evidence(html: &mut Html, of: &Incident) {
    html.raw("<div class=scroll tabindex=0 role=region aria-label=Evidence><table class=evidence>\n");
    html.raw("<caption>What was seen <span class=dim>µs from nginx’s decision</span></caption>\n");
    html.raw(
        "<thead><tr><th scope=col>#<th scope=col class=n>µs<th scope=col>Where<th scope=col>What</thead>\n<tbody>\n",
    );
    for (number, line) in (1_u32..).zip(&of.evidence) {
        let (class, word) = proves(line);
        html.raw("<tr class=\"e ").raw(class).raw("\"><th scope=row>").number(number).raw("<td class=n>");
        html.text(&moment(line));
        html.raw("<td><span class=\"src ")
            .raw(source_class(&line.source))
            .raw("\">")
            .text(&line.source)
            .raw("</span><td>");
        html.prose(&line.text);
        if !word.is_empty() {
            html.raw(" <span class=why>").raw(word).raw("</span>");
        }
        if let Some(reference) = &line.reference {
            // The incident's own file is named once, below.
            let shown = match reference.strip_prefix("packets.pcapng#") {
                Some(frame) => format!("frame {frame}"),
                None => reference.replace('#', " frame "),
            };
            html.tag(" <span class=ref>", &shown, "</span>");
        }
        html.raw("\n");
    }
    html.raw("</tbody></table></div>\n");
    if of.evidence.iter().any(|line| line.reference.as_deref().is_some_and(|of| of.starts_with("packets.pcapng#"))) {
        html.raw("<p class=\"dim frames\">Frames are those of ");
        match &of.packets_at {
            Some(place) => html.prose(place),
            None => html.raw("packets.pcapng in the folder of this incident, ").long(&of.id),
        };
        html.raw(".</p>\n");
    }
}

/// When, in microseconds; a moment known only roughly says so.
pub(super) fn moment(line: &EvidenceLine) -> String {
    let about = if line.uncertain_us > 0 { "~" } else { "" };
    let plus = if line.t_us >= 0 { "+" } else { "" };
    format!("{about}{plus}{}", grouped(i128::from(line.t_us)))
}

/// A source as a class of the style sheet.
pub(super) fn source_class(source: &str) -> &'static str {
    match source {
        "packet" => "packet",
        "syscall" => "syscall",
        "kernel" => "kernel",
        "process" => "process",
        "nginx" => "nginx",
        "log" => "log",
        "config" => "config",
        "host" => "host",
        _ => "other",
    }
}

fn advice(html: &mut Html, digest: &Digest<'_>, of: &Incident) {
    if !of.verdict.fix.is_empty() {
        html.raw("<section><h4>What to do</h4>\n<ol>\n");
        for fix in &of.verdict.fix {
            html.raw("<li>").prose(fix);
        }
        html.raw("</ol></section>\n");
    }
    if !of.verdict.missing.is_empty() {
        html.raw("<section><h4>What could not be seen</h4>\n<ul>\n");
        for need in &of.verdict.missing {
            html.raw("<li>").prose(&need.what);
            if let Some(sensor) = &need.sensor {
                html.tag(" <span class=dim>[", sensor, "]</span>");
            }
        }
        html.raw("</ul></section>\n");
    }
    refuted(html, of);
    if !of.verdict.blamed.is_empty() {
        html.raw("<section><h4>Caused by</h4>\n<ul>\n");
        for case in &of.verdict.blamed {
            match digest.by_id.get(case.as_str()).and_then(|number| digest.all.get(*number)) {
                Some(seen) => {
                    html.raw("<li><a href=\"#").text(&group::anchor(seen)).raw("\">").text(case).raw("</a> ");
                    html.text(&seen.incident.verdict.cause)
                }
                None => html.raw("<li><code>").long(case).raw("</code> <span class=dim>not in this report</span>"),
            };
        }
        html.raw("</ul></section>\n");
    }
}

/// What would have shown that it is something else, and what is not excluded.
fn refuted(html: &mut Html, of: &Incident) {
    let cause = diagnose::find(&of.verdict.cause);
    if cause.is_none() && of.verdict.rivals.is_empty() {
        return;
    }
    html.raw("<section class=aside><h4>What would have refuted it</h4>\n");
    if let Some(cause) = cause {
        html.tag("<p>", cause.page.refuted, "</p>\n");
    }
    if !of.verdict.rivals.is_empty() {
        let rivals: Vec<&str> = of.verdict.rivals.iter().map(|rival| &**rival).collect();
        html.raw(if of.verdict.contested { "<p>Equally well proved: " } else { "<p>Not excluded: " });
        html.tag("<b>", &rivals.join(", "), "</b>.</p>\n");
    }
    html.raw("</section>\n");
}
