//! The page for the postmortem: one HTML file that needs nothing else.
//!
//! It can be read without a script: the details of an incident stand in a `noscript` inside its `details`. Where scripts run, a browser takes
//! that for mere text, which costs nothing until the incident is opened. Of hundreds of incidents the first of each kind are there in that
//! way, and the others compressed (`packed`): so a thousand open as fast as one, and go through the mail.

mod chart;
mod diagram;
mod group;
mod incident;
mod lanes;
mod markup;
mod overview;
mod packed;

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use self::markup::Html;
use super::{collection::Collection, digest::Digest};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page, as the bytes of a file. `title` is the reader's own; without one it says what the page is about.
#[must_use]
pub fn page(collection: &Collection, title: Option<&str>) -> String {
    let digest = Digest::of(collection.incidents());
    let title = title.map_or_else(|| overview::title(&digest), str::to_owned);
    let mut html = Html::default();
    html.raw("<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<meta http-equiv=Content-Security-Policy content=\"");
    html.text(&policy());
    html.raw("\">\n<meta name=viewport content=\"width=device-width,initial-scale=1\">\n");
    html.raw("<meta name=color-scheme content=\"light dark\">\n<meta name=referrer content=no-referrer>\n");
    html.raw("<meta name=generator content=\"probe502 ").text(env!("CARGO_PKG_VERSION")).raw("\">\n");
    html.raw("<link rel=icon href=\"data:,\">\n").tag("<title>", &title, "</title>\n");
    html.raw("<style>").raw(STYLE).raw("</style>\n</head>\n<body>\n");
    html.raw("<a class=skip href=#incidents>Skip to the incidents</a>\n<header>\n");
    html.tag("<h1>", &title, "</h1>\n");
    overview::lead(&mut html, &digest);
    html.raw("</header>\n<main>\n");
    overview::sections(&mut html, collection, &digest);
    group::sections(&mut html, &digest);
    html.raw("</main>\n<footer>\n<p>Made by probe502 ").text(env!("CARGO_PKG_VERSION"));
    html.raw(". All times are UTC. What was hidden when it was recorded stays hidden here.</p>\n</footer>\n");
    html.raw("<script>").raw(SCRIPT).raw("</script>\n</body>\n</html>\n");
    html.into_string()
}

/// Nothing is loaded, and only this page's own style and script count, by their hashes: text that slipped through as markup could do
/// nothing.
fn policy() -> String {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
        base64(&Sha256::digest(STYLE)),
        base64(&Sha256::digest(SCRIPT)),
    )
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_usize, |word, byte| word << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = ALPHABET.get(word >> (18 - 6 * place) & 63).copied().map_or('=', char::from);
            out.push(if place <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

/// A time of day for a table: `10:26:23.356`.
fn clock(time: Option<jiff::Timestamp>) -> String {
    time.map_or_else(|| "time unknown".to_owned(), |time| written(time, "%H:%M:%S%.3f"))
}

/// A day: `2026-11-21`.
fn day(time: jiff::Timestamp) -> String {
    written(time, "%Y-%m-%d")
}

fn written(time: jiff::Timestamp, form: &str) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail, and every form here is a literal of this program.
    let _ = write!(out, "{}", time.strftime(form));
    out
}

#[cfg(test)]
mod tests;
