//! nginx's way to write times (<https://nginx.org/en/docs/syntax.html>).

/// Milliseconds of `60s`, `1h 30m`, `500ms`; a bare number is seconds. `None` for anything else and for more than fits.
#[must_use]
pub fn milliseconds(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        let factor = match unit {
            "ms" => 1,
            "s" | "" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            "M" => 2_592_000_000,
            "y" => 31_536_000_000,
            _ => return None,
        };
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = after.trim_start_matches(' ');
    }
    Some(total)
}

/// Bytes of `4k`, `8m`, `1024`. `None` for anything else and for more than fits.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, factor) = match text.trim() {
        text if text.ends_with(['k', 'K']) => (&text[..text.len() - 1], 1 << 10),
        text if text.ends_with(['m', 'M']) => (&text[..text.len() - 1], 1 << 20),
        text if text.ends_with(['g', 'G']) => (&text[..text.len() - 1], 1 << 30),
        text => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}
