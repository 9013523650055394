//! Telling nginx's processes by their command lines.
//!
//! A master writes `nginx: master process ARGUMENTS` over its command line, its children `nginx: worker process` and the like
//! (`ngx_setproctitle`); forks write their own name in front. A server that was told not to have a master leaves it alone.

/// What a process is, by its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Title {
    /// A master, with the arguments it was started with.
    Master(Arguments),
    /// A worker, also while it is shutting down.
    Worker,
    /// Another child: cache manager, cache loader, privileged agent.
    Child,
    /// Called like an nginx, and may be one that does everything in one process, or is only asked something.
    Perhaps(Arguments),
    /// Not nginx.
    Other,
}

/// What matters of an nginx's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// `-c`: configuration file.
    pub(super) configuration: Option<String>,
    /// `-p`: prefix.
    pub(super) prefix: Option<String>,
    /// `-g`: directives.
    pub(super) directives: Option<String>,
    /// `-e`: error log until the configuration names one (1.19.5).
    pub(super) error_log: Option<String>,
    /// `-t`, `-T`, `-v`, `-V`, `-h`, `-s`: it answers and ends.
    pub(super) only_asked: bool,
}

/// Names of the programs. `comm` has at most 15 bytes.
const PROGRAMS: &[&str] = &["nginx", "nginx-debug", "openresty", "angie", "angie-debug", "freenginx", "tengine"];

/// Classifies a process by `/proc/PID/cmdline`.
pub(super) fn classify(command_line: &[u8]) -> Title {
    let text = String::from_utf8_lossy(command_line);
    let text = text.trim_end_matches(['\0', ' ']);
    if let Some((program, title)) = text.split_once(": ")
        && !program.contains(['\0', ' ', '/'])
    {
        if let Some(arguments) = title.strip_prefix("master process") {
            // The title has blanks where the arguments had their ends.
            return Title::Master(arguments_of(arguments.split([' ', '\0']).filter(|word| !word.is_empty()).skip(1)));
        }
        if title.starts_with("worker process") {
            return Title::Worker;
        }
        let children = ["cache manager process", "cache loader process", "privileged agent process"];
        if children.iter().any(|child| title.starts_with(child)) {
            return Title::Child;
        }
    }
    let mut words = text.split('\0');
    let program = words.next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    if PROGRAMS.contains(&program) { Title::Perhaps(arguments_of(words)) } else { Title::Other }
}

fn arguments_of<'a>(words: impl Iterator<Item = &'a str>) -> Arguments {
    let mut arguments = Arguments::default();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else { continue };
        // nginx takes letters together, and the rest of the word or the next one as a value (`ngx_get_options`).
        for (at, letter) in letters.char_indices() {
            let slot = match letter {
                'c' => &mut arguments.configuration,
                'p' => &mut arguments.prefix,
                'g' => &mut arguments.directives,
                'e' => &mut arguments.error_log,
                't' | 'T' | 'v' | 'V' | 'h' | '?' | 's' => {
                    arguments.only_asked = true;
                    continue;
                }
                _ => continue,
            };
            let rest = &letters[at + letter.len_utf8()..];
            let mut value = if rest.is_empty() { words.next().unwrap_or_default() } else { rest }.to_owned();
            if letter == 'g' {
                // Directives have blanks; in a title they look like further words.
                while let Some(next) = words.next_if(|next| !is_option(next)) {
                    value.push(' ');
                    value.push_str(next);
                }
            }
            *slot = Some(value);
            break;
        }
    }
    arguments
}

fn is_option(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(['c', 'p', 'g', 'e', 'q']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "what the fields hold")]
    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn titles() {
        assert_eq!(classify(b"nginx: worker process\0\0\0"), Title::Worker);
        assert_eq!(classify(b"angie: worker process #1"), Title::Worker);
        assert_eq!(classify(b"nginx: worker process is shutting down"), Title::Worker);
        assert_eq!(classify(b"nginx: cache manager process"), Title::Child);
        assert_eq!(classify(b"php-fpm: master process (/etc/php-fpm.conf)"), Title::Master(Arguments::default()));
        assert_eq!(classify(b"bash\0-c\0nginx: worker process"), Title::Other);
        assert_eq!(classify(b""), Title::Other);
        let Title::Master(arguments) = classify(
            b"nginx: master process /usr/sbin/nginx -c /etc/n.conf -g daemon on; master_process on; -p/srv/ -q\0",
        ) else {
            panic!()
        };
        let expected = Arguments {
            configuration: text("/etc/n.conf"),
            prefix: text("/srv/"),
            directives: text("daemon on; master_process on;"),
            ..Arguments::default()
        };
        assert_eq!(arguments, expected);
    }

    #[test]
    fn one_process_and_questions() {
        let Title::Perhaps(arguments) = classify(b"/usr/sbin/nginx\0-g\0daemon off; master_process off;\0") else {
            panic!()
        };
        assert_eq!(arguments.directives, text("daemon off; master_process off;"));
        assert!(!arguments.only_asked);
        let Title::Perhaps(arguments) = classify(b"nginx\0-tc\0/etc/n.conf\0") else { panic!() };
        assert!(arguments.only_asked);
        assert_eq!(arguments.configuration, text("/etc/n.conf"));
        assert_eq!(classify(b"/usr/bin/vim\0nginx.conf\0"), Title::Other);
    }
}
