//! What nginx writes: its logs and its configuration.

use probe502::{
    decode::{
        access_log::{self, Pattern},
        config, error_log,
    },
    redact::{Key, Level, Redactor},
};

fn redactors() -> [Redactor; 2] {
    [Level::Default, Level::All].map(|level| Redactor::new(level, Key::new([7; 16])))
}

/// A line of the error log.
pub fn error_log(bytes: &[u8]) {
    let whole = error_log::decode(bytes);
    let mut kept = bytes.to_vec();
    let [default, all] = redactors();
    default.error_line(&mut kept);
    assert_eq!(kept.len(), bytes.len(), "redaction changes a length");
    // Behind what others put before a line, a second one is as good as the first, and may be the one that is not blanked.
    let begins = |decoded: &error_log::Decoded| {
        let stamp = decoded.local.to_string().replace('-', "/").replace('T', " ");
        bytes.starts_with(stamp.as_bytes())
    };
    if let (Ok(whole), Ok(kept)) = (&whole, &error_log::decode(&kept))
        && begins(whole)
    {
        assert_eq!(
            (whole.local, whole.line.number, whole.line.pid),
            (kept.local, kept.line.number, kept.line.pid),
            "redaction changes what is nginx's"
        );
    }
    all.error_line(&mut bytes.to_vec());
}

/// A line of the access log: the format up to the first line end, the line behind it.
pub fn access_log(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (format, line) = bytes.split_at(end);
    let format = String::from_utf8_lossy(format);
    let line = line.get(1..).unwrap_or_default();
    let pattern = if format.is_empty() { Pattern::compile(access_log::COMBINED) } else { Pattern::compile(&format) };
    // What cannot be read is said to be so; that is no failure.
    let _ = access_log::decode(&pattern, line);
    let text = String::from_utf8_lossy(line).into_owned();
    let places = pattern.places(&text);
    for (name, place) in &places {
        assert!(text.get(place.clone()).is_some(), "{name} lies outside of its line");
    }
    for redactor in redactors() {
        let mut kept = text.clone().into_bytes();
        redactor.access_line(&mut kept, &places);
        assert!(redactor.level() == Level::All || kept.len() == text.len(), "redaction changes a length");
    }
}

/// A configuration, or what `nginx -T` prints.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (decoded, layout) = (config::decode(&text), config::layout::read(&text));
    assert_eq!(decoded.is_ok(), layout.is_ok(), "one reader takes what the other refuses");
    if let Ok(decoded) = decoded {
        for (_, format) in &decoded.configuration.log_formats {
            let _ = Pattern::compile(format);
        }
    }
}
