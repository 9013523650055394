//! Markup that no string from outside can become part of.

use crate::report::redact;

/// A longer value is folded: this much of it is shown at once, characters.
const VALUE: usize = 160;
/// A longer text of sentences is folded likewise.
const PROSE: usize = 900;

/// A piece of HTML or SVG. Markup enters as literals of this program only; everything else enters as text and is escaped.
#[derive(Clone, Debug, Default)]
pub(super) struct Html {
    out: String,
}

impl Html {
    /// Markup, written here.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.out.push_str(markup);
        self
    }

    /// Text from anywhere: control characters and deceiving ones are written out, markup is escaped. Good between tags and in quoted
    /// attributes.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        for c in redact::text(text).chars() {
            match c {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                '\'' => self.out.push_str("&#39;"),
                c => self.out.push(c),
            }
        }
        self
    }

    /// Markup, text, markup.
    pub(super) fn tag(&mut self, open: &'static str, text: &str, close: &'static str) -> &mut Self {
        self.raw(open).text(text).raw(close)
    }

    /// A whole number.
    pub(super) fn number(&mut self, number: impl Into<i128>) -> &mut Self {
        self.out.push_str(&number.into().to_string());
        self
    }

    /// A number of things.
    pub(super) fn count(&mut self, number: usize) -> &mut Self {
        self.out.push_str(&grouped(i128::try_from(number).unwrap_or(i128::MAX)));
        self
    }

    /// A number for an attribute: no grouping.
    pub(super) fn count_plain(&mut self, number: usize) -> &mut Self {
        self.out.push_str(&number.to_string());
        self
    }

    /// Tenths as a decimal for an attribute.
    pub(super) fn tenths(&mut self, tenths: usize) -> &mut Self {
        self.count_plain(tenths / 10);
        self.out.push('.');
        self.count_plain(tenths % 10)
    }

    /// Markup made elsewhere.
    pub(super) fn append(&mut self, other: &Self) -> &mut Self {
        self.out.push_str(&other.out);
        self
    }

    /// Bytes, as letters that are no markup (RFC 4648, section 4).
    pub(super) fn base64(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.push_str(&super::base64(bytes));
        self
    }

    /// How long it is, bytes.
    pub(super) const fn len(&self) -> usize {
        self.out.len()
    }

    /// A value that may be long: beyond some length the rest is folded away, and all of it is there.
    pub(super) fn long(&mut self, text: &str) -> &mut Self {
        self.folded(text, VALUE)
    }

    /// Sentences, likewise.
    pub(super) fn prose(&mut self, text: &str) -> &mut Self {
        self.folded(text, PROSE)
    }

    fn folded(&mut self, text: &str, shown: usize) -> &mut Self {
        let length = text.chars().count();
        if length <= shown + shown / 4 {
            return self.text(text);
        }
        self.raw("<details class=more><summary>").text(&cut(text, shown)).raw(" <span class=dim>(");
        self.count(length).raw(" characters)</span></summary>").text(text).raw("</details>")
    }

    /// The markup.
    pub(super) fn into_string(self) -> String {
        self.out
    }
}

/// At most so many characters, the last of them an ellipsis where some are missing.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(most.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// `12,345`, with a real minus sign.
pub(super) fn grouped(number: i128) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::from(if number < 0 { "−" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_text_is_folded_and_whole() {
        let mut html = Html::default();
        html.long(&"x".repeat(8192));
        let out = html.into_string();
        assert!(out.contains(&"x".repeat(8192)));
        assert!(out.contains("8,192 characters"));
        let mut html = Html::default();
        html.long("short");
        assert_eq!(html.into_string(), "short");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1_000, -97_942, 12_345_678].map(grouped),
            ["0", "999", "1,000", "−97,942", "12,345,678"].map(str::to_owned)
        );
    }

    proptest! {
        #[test]
        fn text_stays_text(raw in ".*") {
            let mut html = Html::default();
            html.text(&raw);
            let out = html.into_string();
            prop_assert!(!out.contains(['<', '>', '"', '\'']));
            prop_assert!(!out.chars().any(char::is_control));
        }
    }
}
