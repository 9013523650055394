//! The folder that incidents are left in (`--out`).
//!
//! Under sudo it may be somebody's who is not root, and who can put something else in its place at any moment: whatever is made in it is made,
//! given away and named relative to descriptors that were opened before, and no link is followed.

use std::{
    cell::Cell,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, fchown, fstat, mkdirat, openat, renameat, unlinkat},
    process::{Gid, Uid, geteuid},
};

use super::output::{INCIDENT, PACKETS};
use crate::report::json::{self, Incident};

/// So many incidents a second wait until the disk has them. In a storm that would take longer than the storm leaves; the rest are on their way
/// to the disk as any file is.
const AWAITED: u32 = 100;

/// The end of the name of an incident that is being written, after the writer's pid.
const PARTIAL: &str = ".partial";

/// User and group that files are given to.
pub type Owner = (u32, u32);

/// Whoever called sudo: what root writes for somebody is somebody's.
#[must_use]
pub fn owner_by_sudo() -> Option<Owner> {
    let variable = |name: &str| std::env::var(name).ok()?.parse().ok();
    Some((variable("SUDO_UID")?, variable("SUDO_GID")?))
}

/// Gives what was made just now to its owner. Where that is not allowed, it stays whose it is.
fn give(made: impl AsFd, owner: Option<Owner>) {
    if let Some((user, group)) = owner {
        let _ = fchown(made, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    }
}

/// The folder that incidents are left in.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    directory: OwnedFd,
    owner: Option<Owner>,
    /// Since when, and how many incidents were left since.
    lately: Cell<(Instant, u32)>,
}

/// An incident's folder that has no final name yet.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    directory: &'a OwnedFd,
    owner: Option<Owner>,
    /// Its files are waited for until the disk has them.
    awaited: bool,
}

impl Partial<'_> {
    /// Leaves a file in it.
    pub(super) fn create(&self, name: &str, bytes: &[u8]) -> Result<(), anyhow::Error> {
        let mut file = create(self.directory, name)?;
        file.write_all(bytes)?;
        give(&file, self.owner);
        if self.awaited {
            // Without this a full disk may be noticed only after the file has its final name.
            file.sync_all()?;
        }
        Ok(())
    }
}

impl Folder {
    /// Makes it if it is not there, and finds out now whether it can be written to.
    pub fn open(path: &Path, owner: Option<Owner>) -> Result<Self, anyhow::Error> {
        let opened = directory(path, owner).and_then(|directory| {
            let trial = format!(".probe502-{}", std::process::id());
            // By an earlier process of this number.
            let _ = unlinkat(&directory, &trial, AtFlags::empty());
            create(&directory, &trial)?;
            unlinkat(&directory, &trial, AtFlags::empty())?;
            Ok(directory)
        });
        let directory = opened
            .map_err(|error| anyhow::anyhow!("cannot write to {}: {error}; choose another --out", path.display()))?;
        clear_leftovers(path, &directory);
        Ok(Self { path: path.to_owned(), directory, owner, lately: Cell::new((Instant::now(), 0)) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves an incident whose packets are in a capture already: its evidence points there.
    pub fn leave_alone(&self, incident: &Incident) -> Result<(), anyhow::Error> {
        self.leave(&incident.id, |partial| partial.create(INCIDENT, format!("{}\n", json::line(incident)).as_bytes()))
    }

    /// Leaves an incident: under another name until everything is in it.
    pub(super) fn leave(
        &self,
        id: &str,
        fill: impl FnOnce(&Partial<'_>) -> Result<(), anyhow::Error>,
    ) -> Result<(), anyhow::Error> {
        let name = format!(".{id}-{}{PARTIAL}", std::process::id());
        let written = self.make(&name).and_then(|directory| {
            fill(&Partial { directory: &directory, owner: self.owner, awaited: self.is_awaited() })?;
            give(&directory, self.owner);
            renameat(&self.directory, &name, &self.directory, id)?;
            Ok(())
        });
        written.map_err(|error| {
            // What is left of it is of no use; a disk that is full may still let go.
            clear(&self.directory, &name);
            anyhow::anyhow!("cannot write {}: {error}", self.path.join(id).display())
        })
    }

    fn make(&self, name: &str) -> Result<OwnedFd, anyhow::Error> {
        mkdirat(&self.directory, name, Mode::RWXU)?;
        let directory = own_directory(&self.directory, name)?;
        Ok(directory)
    }

    /// Whether the next incident is waited for until the disk has it.
    fn is_awaited(&self) -> bool {
        let (since, count) = self.lately.get();
        let (since, count) =
            if since.elapsed() < Duration::from_secs(1) { (since, count) } else { (Instant::now(), 0) };
        self.lately.set((since, count.saturating_add(1)));
        count < AWAITED
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the folder of this path. If it is made here, it is given to its owner.
fn directory(path: &Path, owner: Option<Owner>) -> io::Result<OwnedFd> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        // `/`, `.`, `..`: it is there.
        return Ok(openat(CWD, path, DIRECTORY, Mode::empty())?);
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let parent = openat(CWD, parent, DIRECTORY, Mode::empty())?;
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => {
            let made = own_directory(&parent, name)?;
            give(&made, owner);
            Ok(made)
        }
        // The user may have named a link.
        Err(rustix::io::Errno::EXIST) => Ok(openat(&parent, name, DIRECTORY, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

/// Opens the directory that was made just now.
fn own_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let made = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    if fstat(&made)?.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("somebody has put another folder in its place"));
    }
    Ok(made)
}

/// Makes a file that was not there.
fn create(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Removes what we leave in a folder, and the folder. Nothing that cannot be removed is in anybody's way.
fn clear(directory: &OwnedFd, name: &str) {
    if let Ok(partial) = openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
        for file in [PACKETS, INCIDENT] {
            let _ = unlinkat(&partial, file, AtFlags::empty());
        }
        let _ = unlinkat(directory, name, AtFlags::REMOVEDIR);
    }
}

/// What writers that were killed have left half done: of our names, by processes that are no more. Whatever else is in there stays.
fn clear_leftovers(path: &Path, directory: &OwnedFd) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let trial = name.strip_prefix(".probe502-");
        let partial = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL)).and_then(|name| {
            let (_incident, pid) = name.rsplit_once('-')?;
            Some(pid)
        });
        let gone = |pid: &str| {
            pid.parse::<u32>()
                .is_ok_and(|pid| pid != std::process::id() && !Path::new(&format!("/proc/{pid}")).exists())
        };
        if partial.is_some_and(gone) {
            clear(directory, name);
        } else if trial.is_some_and(gone) {
            let _ = unlinkat(directory, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// Nobody; only root can give to somebody else.
    fn owner() -> Option<Owner> {
        geteuid().is_root().then_some((4_242, 4_243))
    }

    #[test]
    fn an_incident_is_whole_private_and_somebodys() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("deeper/incidents");
        let folder = Folder::open(&path, owner()).unwrap();
        folder.leave("one", |partial| partial.create(INCIDENT, b"{}")).unwrap();
        let user = owner().map_or(geteuid().as_raw(), |(user, _)| user);
        for (part, mode) in [("", 0o700), ("one", 0o700), ("one/incident.json", 0o600)] {
            let metadata = fs::metadata(path.join(part)).unwrap();
            assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (mode, user), "{part}");
        }
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing else is left");
        let again = folder.leave("one", |partial| partial.create(INCIDENT, b"{}"));
        assert!(again.unwrap_err().to_string().contains("cannot write"), "what is there is not replaced");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "and nothing half done is left");
    }

    /// Whoever owns the folder above moves ours away and puts a link in its place: what is written stays where it was to be.
    #[test]
    fn a_folder_that_is_exchanged_leads_nowhere_else() {
        let here = tempfile::tempdir().unwrap();
        let (path, aside, elsewhere) =
            (here.path().join("incidents"), here.path().join("aside"), here.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        let folder = Folder::open(&path, owner()).unwrap();
        fs::rename(&path, &aside).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let exchanged = folder.leave("one", |partial| {
            let partial_name = fs::read_dir(&aside)?.next().unwrap()?.file_name();
            fs::rename(aside.join(&partial_name), here.path().join("taken"))?;
            symlink(&elsewhere, aside.join(&partial_name))?;
            partial.create(INCIDENT, b"{}")
        });
        drop(exchanged);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing is written there");
        assert_eq!(fs::metadata(&elsewhere).unwrap().uid(), geteuid().as_raw(), "nothing there is given away");
        assert!(here.path().join("taken/incident.json").exists());
        folder.leave("two", |partial| partial.create(INCIDENT, b"{}")).unwrap();
        assert!(aside.join("two/incident.json").exists());
    }

    #[test]
    fn links_are_not_followed_where_something_is_made() {
        let here = tempfile::tempdir().unwrap();
        let victim = here.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = here.path().join("incidents");
        fs::create_dir(&path).unwrap();
        symlink(&victim, path.join(format!(".probe502-{}", std::process::id()))).unwrap();
        let folder = Folder::open(&path, owner()).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(
            fs::metadata(&path).unwrap().uid(),
            geteuid().as_raw(),
            "a folder that was there stays whose it was"
        );
        assert_eq!(folder.path(), path);
    }
}
