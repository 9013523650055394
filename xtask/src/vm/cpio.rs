//! Archives as the kernel unpacks them into its first root file system: cpio, format `newc`, not compressed.
//!
//! <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>

use std::{collections::BTreeSet, io::Write as _};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// An archive that is being written. Directories come by themselves, before what is in them.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// A directory and those above it; paths may begin with a slash.
    pub(crate) fn directory(&mut self, path: &str) {
        let mut whole = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !whole.is_empty() {
                whole.push('/');
            }
            whole.push_str(part);
            if self.directories.insert(whole.clone()) {
                self.entry(&whole, DIRECTORY, &[]);
            }
        }
    }

    /// A file with these permission bits.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.parent(path);
        self.entry(path, FILE | permissions, content);
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parent(path);
        self.entry(path, LINK, target.as_bytes());
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inodes = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.inodes += 1;
        let links = 1;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, time, size, device (major, minor), device it is (major, minor), length of the name with
        // its NUL, check
        let fields = [self.inodes, mode, 0, 0, links, 0, length(content), 0, 0, 0, 0, length(name.as_bytes()) + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to a vector cannot fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// The header with its name and the content are padded to four bytes each; every entry begins at such a place.
    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of every entry, as the kernel reads them.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut found) = (0, Vec::new());
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * index..at + 14 + 8 * index]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, named) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[at + 110..at + 110 + named - 1].to_vec()).unwrap();
            let start = (at + 110 + named).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, u32::try_from(mode).unwrap(), bytes[start..start + size].to_vec()));
            at = (start + size).next_multiple_of(4);
        }
    }

    #[test]
    fn parents_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/one", 0o755, b"1");
        archive.file("usr/bin/other", 0o644, b"22222");
        archive.link("bin", "usr/bin");
        archive.directory("/usr/bin");
        let found = entries(&archive.finish());
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/one", "usr/bin/other", "bin"]);
        assert_eq!(found[2], ("usr/bin/one".to_owned(), 0o100_755, b"1".to_vec()));
        assert_eq!(found[3].2, b"22222");
        assert_eq!(found[4], ("bin".to_owned(), 0o120_777, b"usr/bin".to_vec()));
    }
}
