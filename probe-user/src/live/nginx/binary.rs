//! What an nginx was built as, read from its program file: it carries the answer to `nginx -V` as text.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
};

use memchr::memmem;

use crate::live::host::process;

/// The largest program file read: static builds with everything have less than 40 MB.
const LARGEST: u64 = 256 << 20;

/// What an nginx was built as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// `1.22.1`.
    pub version: Option<String>,
    /// `nginx`, `openresty`, `Angie` …
    pub flavour: Option<String>,
    /// The arguments of `./configure`.
    pub configure: Option<String>,
}

impl Build {
    /// The value of a configure argument (`--conf-path`).
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        let configure = self.configure.as_deref()?;
        let (_, rest) = configure.split_once(&format!("{name}="))?;
        let value = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split('\'').next(),
            None => rest.split_ascii_whitespace().next(),
        };
        value.filter(|value| !value.is_empty())
    }

    /// Where nginx looks for everything, `/usr/local/nginx` unless told otherwise.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.option("--prefix").unwrap_or("/usr/local/nginx")
    }
}

/// Reads program files, each once.
#[derive(Debug, Default)]
pub(super) struct Builds {
    /// Device, inode, size and modification time → what it is; `None`: not an nginx.
    known: BTreeMap<(u64, u64, u64, i64), Option<Build>>,
}

impl Builds {
    /// The build of a process's program; `Ok(None)` when it is not an nginx.
    pub(super) fn of_process(&mut self, pid: u32) -> io::Result<Option<Build>> {
        let file = File::open(process::path(pid, "exe"))?;
        let metadata = file.metadata()?;
        let key = (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime());
        if let Some(build) = self.known.get(&key) {
            return Ok(build.clone());
        }
        let mut bytes = Vec::new();
        file.take(LARGEST).read_to_end(&mut bytes)?;
        let build = read(&bytes);
        self.known.insert(key, build.clone());
        Ok(build)
    }
}

/// Finds the texts of `ngx_show_version_info` (core/nginx.c): ` version: nginx/1.22.1`, `configure arguments: …`.
fn read(bytes: &[u8]) -> Option<Build> {
    // Exported by every build that can load modules, and a word that nothing else has.
    memmem::find(bytes, b"ngx_")?;
    let line = |at: usize| {
        let rest = &bytes[at..];
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | 0)).unwrap_or(rest.len());
        String::from_utf8_lossy(&rest[..end]).trim().to_owned()
    };
    let mut build = Build::default();
    for at in memmem::find_iter(bytes, b" version: ") {
        let text = line(at + b" version: ".len());
        let Some((flavour, version)) = text.split_once('/') else { continue };
        // `-V` may add the name of the build: `nginx/1.22.1 (Debian)`.
        let version = version.split(' ').next().unwrap_or(version);
        let known = ["nginx", "openresty", "angie", "freenginx", "tengine"];
        if known.contains(&flavour.to_ascii_lowercase().as_str()) && version.starts_with(|c: char| c.is_ascii_digit()) {
            build.flavour = Some(flavour.to_owned());
            build.version = Some(version.to_owned());
            break;
        }
    }
    let configure = b"configure arguments:";
    build.configure = memmem::find(bytes, configure).map(|at| line(at + configure.len()));
    (build.version.is_some() || build.configure.is_some()).then_some(build)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_texts() {
        let build = read(
            b"\0ngx_cycle\0nginx version: nginx/1.22.1 (Debian)\n\0built by\0configure arguments: --with-cc-opt='-g -O2' --prefix=/opt/n --conf-path=/etc/n.conf\n\0",
        )
        .unwrap();
        assert_eq!(build.version.as_deref(), Some("1.22.1"));
        assert_eq!(build.prefix(), "/opt/n");
        assert_eq!(build.option("--conf-path"), Some("/etc/n.conf"));
        assert_eq!(build.option("--with-cc-opt"), Some("-g -O2"));
        assert_eq!(build.option("--error-log-path"), None);
        assert_eq!(read(b"no such thing"), None);
        assert_eq!(read(b"ngx_ and a version: of something"), None);
        assert_eq!(Build::default().prefix(), "/usr/local/nginx");
    }

    #[test]
    fn reads_the_installed_nginx() {
        let build = read(&std::fs::read("/usr/sbin/nginx").unwrap()).unwrap();
        assert_eq!(build.flavour.as_deref(), Some("nginx"));
        assert!(build.version.is_some_and(|version| version.starts_with("1.")));
        assert_eq!(build.configure.unwrap().split(' ').next(), Some("--with-cc-opt='-g"));
    }
}
