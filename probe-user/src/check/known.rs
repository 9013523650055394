//! What is known of servers by their names.

/// Servers that close idle connections by default, by the beginning of their `Server` header: name and seconds.
const BY_HEADER: &[(&str, &str, u64)] = &[
    ("uvicorn", "uvicorn", 5),
    ("hypercorn", "Hypercorn", 5),
    ("gunicorn", "gunicorn", 2),
    ("Apache", "Apache httpd", 5),
    ("Jetty", "Jetty", 30),
    ("Cowboy", "Cowboy", 60),
    ("waitress", "waitress", 120),
    ("Kestrel", "Kestrel", 130),
    ("Microsoft-IIS", "IIS", 120),
    ("nginx", "nginx", 75),
    ("openresty", "OpenResty", 75),
];

/// The same by the process's name.
const BY_COMMAND: &[(&str, &str, u64)] = &[
    ("node", "Node.js", 5),
    ("gunicorn", "gunicorn", 2),
    ("uvicorn", "uvicorn", 5),
    ("puma", "Puma", 20),
    ("apache2", "Apache httpd", 5),
    ("httpd", "Apache httpd", 5),
];

/// After how many seconds a server closes idle connections, unless told otherwise, and what it is.
#[must_use]
pub fn idle_timeout(header: Option<&str>, command: Option<&str>) -> Option<(&'static str, u64)> {
    let lower = header.map(str::to_ascii_lowercase);
    let by_header =
        lower.and_then(|header| BY_HEADER.iter().find(|(start, ..)| header.starts_with(&start.to_ascii_lowercase())));
    let by_command = command.and_then(|command| {
        BY_COMMAND.iter().find(|(name, ..)| command == *name || command.starts_with(&format!("{name}:")))
    });
    by_header.or(by_command).map(|(_, name, seconds)| (*name, *seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_known_by_header_or_process() {
        assert_eq!(idle_timeout(Some("Apache/2.4.57 (Debian)"), None), Some(("Apache httpd", 5)));
        assert_eq!(idle_timeout(None, Some("node")), Some(("Node.js", 5)));
        assert_eq!(idle_timeout(Some("gunicorn/20"), Some("node")), Some(("gunicorn", 2)));
        assert_eq!(idle_timeout(Some("SimpleHTTP"), Some("python3")), None);
    }
}
