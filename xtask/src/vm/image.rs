//! What a virtual machine finds when it starts: busybox, nginx, the program under test as it was built for this host, and the
//! lab's program that tries it out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use crate::{command, workspace::find_program};

/// The first process.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root PROBE502_BIN=/bin/probe502 PROBE502_EMULATED=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2> /dev/null
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t tracefs tracefs /sys/kernel/tracing 2> /dev/null
mkdir -p /dev/shm /dev/pts
ip link set lo up
/bin/guest < /dev/null
echo "@@ {\"is\":\"exit\",\"status\":$?}"
poweroff -f
"#;

/// Programs of the host that the lab starts.
const PROGRAMS: [&str; 3] = ["nginx", "ip", "setpriv"];

/// Makes the archive. `built` is where cargo left the programs, `scratch` where copies without debug information may lie.
pub(crate) fn make(built: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let mut image = Image::default();
    let archive = &mut image.archive;
    for directory in ["dev", "proc", "sys", "tmp", "run", "root", "etc", "var/log/nginx", "var/lib/nginx"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    image.busybox()?;
    for name in PROGRAMS {
        let path = find_program(name).with_context(|| format!("{name} is not installed"))?;
        image.program(&path, &format!("usr/bin/{name}"))?;
    }
    fs::create_dir_all(scratch).with_context(|| format!("making {}", scratch.display()))?;
    for name in ["probe502", "guest"] {
        let small = scratch.join(name);
        command::run(Command::new("strip").args(["--strip-debug", "-o"]).arg(&small).arg(built.join(name)))?;
        image.program(&small, &format!("bin/{name}"))?;
    }
    image.archive.link("bin/upstream", "guest");
    Ok(image.archive.finish())
}

#[derive(Default)]
struct Image {
    archive: Archive,
    libraries: Vec<PathBuf>,
}

impl Image {
    fn busybox(&mut self) -> Result<()> {
        let path = find_program("busybox").context("busybox is not installed")?;
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        self.archive.file("bin/busybox", 0o755, &content);
        // What has a program of its own here is not busybox's.
        let ours = |name: &&str| *name != "busybox" && !PROGRAMS.contains(name);
        for name in command::read(Command::new(&path).arg("--list"))?.lines().filter(ours) {
            self.archive.link(&format!("bin/{name}"), "busybox");
        }
        Ok(())
    }

    /// A program with the libraries it is linked with.
    fn program(&mut self, path: &Path, place: &str) -> Result<()> {
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        self.archive.file(place, 0o755, &content);
        for library in libraries(&command::read(Command::new("ldd").arg(path))?)? {
            if !self.libraries.contains(&library) {
                let content = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
                self.archive.file(&library.to_string_lossy(), 0o755, &content);
                self.libraries.push(library);
            }
        }
        Ok(())
    }
}

/// The files in what `ldd` prints. A library stands there under the name by which it is looked for, link or not.
fn libraries(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in ldd.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("a library is missing on this host: {line}");
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_the_files() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(text).unwrap(), expected);
        assert!(libraries("\tlibx.so => not found\n").is_err());
        assert_eq!(libraries("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
    }
}
