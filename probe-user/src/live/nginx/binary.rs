//! What an nginx was built as, read from its program file: it carries its answer to `-V` as text, so nothing has to be run.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use memchr::memmem;

/// The largest program file read: static builds with everything have less than 40 MB.
const LARGEST: u64 = 256 << 20;

/// The lines of `nginx -V` that matter: the version, and the arguments of `./configure`. `None` when the program is no nginx.
pub(super) fn build_of(pid: u32) -> io::Result<Option<String>> {
    build_at(Path::new(&format!("/proc/{pid}/exe")))
}

/// The same of a program file.
pub(super) fn build_at(program: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    File::open(program)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(read(&bytes))
}

/// Finds the texts of `ngx_show_version_info` (core/nginx.c): `nginx version: nginx/1.22.1`, `configure arguments: …`.
fn read(bytes: &[u8]) -> Option<String> {
    // Exported by every build that can load modules, and a word that nothing else has.
    memmem::find(bytes, b"ngx_")?;
    let line = |at: usize| {
        let rest = &bytes[at..];
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | 0)).unwrap_or(rest.len());
        String::from_utf8_lossy(&rest[..end]).into_owned()
    };
    let known = |text: &str| {
        let (program, version) = text.split_once('/')?;
        let name = program.to_ascii_lowercase();
        let names = ["nginx", "openresty", "angie", "freenginx", "tengine"];
        (names.contains(&name.as_str()) && version.starts_with(|c: char| c.is_ascii_digit())).then(|| text.to_owned())
    };
    let marker = b" version: ";
    let version = memmem::find_iter(bytes, marker).find_map(|at| known(&line(at + marker.len())))?;
    let configure = memmem::find(bytes, b"configure arguments:").map(&line);
    let mut text = format!("nginx version: {version}\n");
    text.push_str(&configure.unwrap_or_default());
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_texts() {
        let text = read(
            b"\0ngx_cycle\0nginx version: nginx/1.22.1 (x)\n\0built by\0configure arguments: --prefix=/opt/n\n\0more",
        );
        assert_eq!(text.as_deref(), Some("nginx version: nginx/1.22.1 (x)\nconfigure arguments: --prefix=/opt/n"));
        assert_eq!(read(b"no such thing"), None);
        assert_eq!(read(b"ngx_ and a version: of something"), None);
    }

    #[test]
    fn reads_what_the_installed_nginx_says() {
        let text = read(&std::fs::read("/usr/sbin/nginx").unwrap()).unwrap();
        let said = std::process::Command::new("/usr/sbin/nginx").arg("-V").output().unwrap();
        let said = String::from_utf8(said.stderr).unwrap();
        assert!(text.lines().count() == 2 && text.lines().all(|line| said.contains(line)), "{text}");
    }
}
