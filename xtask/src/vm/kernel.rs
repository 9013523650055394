//! Debian's kernels: which there are, and how one gets here. Never installed: an image is taken out of its package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command;

/// A kernel as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As it is called here: `6.1`.
    pub(crate) name: &'static str,
    /// Where it lies on a mirror.
    suite: Suite,
    /// What its packages' names begin with, before the number that rises with every update.
    prefix: &'static str,
    /// Part of the set that runs when none is named.
    pub(crate) usual: bool,
    /// Tried out with lockdown too.
    pub(crate) locked_down: bool,
}

/// A part of Debian's archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    BullseyeSecurity,
    Bookworm,
    BookwormBackports,
    TrixieBackports,
}

impl Suite {
    const ALL: [Self; 4] = [Self::BullseyeSecurity, Self::Bookworm, Self::BookwormBackports, Self::TrixieBackports];

    const fn name(self) -> &'static str {
        match self {
            Self::BullseyeSecurity => "bullseye-security",
            Self::Bookworm => "bookworm",
            Self::BookwormBackports => "bookworm-backports",
            Self::TrixieBackports => "trixie-backports",
        }
    }

    /// The end of the archive's address.
    const fn archive(self) -> &'static str {
        if matches!(self, Self::BullseyeSecurity) { "debian-security" } else { "debian" }
    }
}

/// What the names of the wanted packages end with: the smallest of Debian's kernels, made for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";

/// From the oldest that is supported to the newest that Debian has, one for each that changed something here.
pub(crate) const ALL: [Kernel; 7] = [
    Kernel {
        name: "5.10",
        suite: Suite::BullseyeSecurity,
        prefix: "linux-image-5.10.0-",
        usual: false,
        locked_down: true,
    },
    Kernel { name: "6.1", suite: Suite::Bookworm, prefix: "linux-image-6.1.0-", usual: true, locked_down: false },
    Kernel {
        name: "6.12",
        suite: Suite::BookwormBackports,
        prefix: "linux-image-6.12.",
        usual: true,
        locked_down: false,
    },
    Kernel {
        name: "6.16",
        suite: Suite::TrixieBackports,
        prefix: "linux-image-6.16.",
        usual: false,
        locked_down: false,
    },
    Kernel {
        name: "6.18",
        suite: Suite::TrixieBackports,
        prefix: "linux-image-6.18.",
        usual: false,
        locked_down: false,
    },
    // From 6.19 on the package of that name is empty but for what it depends on.
    Kernel {
        name: "7.0",
        suite: Suite::TrixieBackports,
        prefix: "linux-binary-7.0.",
        usual: false,
        locked_down: false,
    },
    Kernel { name: "7.2", suite: Suite::TrixieBackports, prefix: "linux-binary-7.2.", usual: false, locked_down: true },
];

/// The kernels of these names, in the order of [`ALL`].
pub(crate) fn named(names: &[String]) -> Result<Vec<Kernel>> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|kernel| kernel.name != name.as_str())) {
        let known: Vec<&str> = ALL.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel {unknown} is known; there are {}", known.join(", "));
    }
    Ok(ALL.into_iter().filter(|kernel| names.iter().any(|name| name == kernel.name)).collect())
}

/// Where kernels are kept once they are here.
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in this directory.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The path of a kernel's image, fetched if it is not here yet.
    pub(crate) fn image(&self, kernel: Kernel) -> Result<PathBuf> {
        let home = self.root.join("kernels").join(kernel.name);
        let image = home.join("vmlinuz");
        if image.exists() {
            return Ok(image);
        }
        let apt = Apt::new(&self.root.join("apt"))?;
        let package = newest(&apt.names(kernel.prefix)?, kernel.prefix)
            .with_context(|| format!("Debian's {} has no package {}…{FLAVOUR}", kernel.suite.name(), kernel.prefix))?;
        println!("vm-test: fetching {package}");
        fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
        let archive = apt.download(&package, &home)?;
        unpack(&archive, &image)?;
        fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
        Ok(image)
    }
}

/// An apt of our own: the host's mirrors and keys, other suites, and nothing of the host's is touched.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(home: &Path) -> Result<Self> {
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(home.join(directory)).with_context(|| format!("making {}", home.display()))?;
        }
        let mirrors = command::read(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(SITE)",
            "Created-By: Packages",
        ]))
        .context("asking apt for the mirrors it uses")?;
        let list = home.join("debian.list");
        fs::write(&list, sources(&mirrors)).with_context(|| format!("writing {}", list.display()))?;
        let option = |name: &str, value: String| format!("-o{name}={value}");
        let options = vec![
            option("Dir::Etc::SourceList", list.display().to_string()),
            option("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            option("Dir::State::Lists", home.join("lists").display().to_string()),
            option("Dir::Cache", home.join("cache").display().to_string()),
            option("Acquire::Languages", "none".to_owned()),
        ];
        let apt = Self { options };
        // Old lists name packages that are gone.
        command::read(apt.command("apt-get").args(["-qq", "update"]))
            .context("reading the lists of Debian's packages")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = command::read(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Leaves the package in this directory and gives its path. apt has compared it with the signed list.
    fn download(&self, package: &str, home: &Path) -> Result<PathBuf> {
        command::read(self.command("apt-get").args(["-qq", "download", package]).current_dir(home))
            .with_context(|| format!("downloading {package}"))?;
        let mut files = fs::read_dir(home)?.filter_map(|entry| Some(entry.ok()?.path()));
        files
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get left no package {package} in {}", home.display()))
    }
}

/// `sources.list` with every suite that is wanted, on the host's own mirrors where it has some.
fn sources(mirrors: &str) -> String {
    let mirror = |archive: &str| {
        let here = mirrors.lines().map(|line| line.trim().trim_end_matches('/'));
        let known = here.into_iter().find(|site| site.ends_with(&format!("/{archive}")));
        known.map_or_else(|| format!("http://deb.debian.org/{archive}"), str::to_owned)
    };
    let line = |suite: Suite| {
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        format!("deb [signed-by={keys}] {} {} main\n", mirror(suite.archive()), suite.name())
    };
    Suite::ALL.into_iter().map(line).collect()
}

/// The newest package of this prefix: Debian's own for that suite, not one made for an older release.
fn newest(names: &[String], prefix: &str) -> Option<String> {
    let ours = names.iter().filter(|name| {
        name.starts_with(prefix) && name.ends_with(FLAVOUR) && !name.contains("deb11") && !name.contains("-rt-")
    });
    ours.max_by_key(|name| numbers(name.trim_end_matches(FLAVOUR))).cloned()
}

/// The numbers in a name, in order: `6.12.9` is older than `6.12.10`.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Takes the kernel's image out of its package.
fn unpack(package: &Path, image: &Path) -> Result<()> {
    let home = image.parent().context("an image has a directory")?;
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting dpkg-deb")?;
    let content = reader.stdout.take().context("dpkg-deb's output")?;
    // The one place up to 6.18, the other since.
    let mut tar = Command::new("tar");
    // Where to comes first: it holds for what follows.
    tar.arg("-C").arg(home).args(["-x", "--wildcards", "--transform=s|.*/||", "--no-anchored", "vmlinuz*"]);
    let unpacked = tar.stdin(content).status().context("starting tar")?;
    let read = reader.wait().context("waiting for dpkg-deb")?;
    ensure!(read.success() && unpacked.success(), "{} holds no kernel", package.display());
    let found = fs::read_dir(home)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("vmlinuz")));
    let found = found.with_context(|| format!("{} holds no kernel", package.display()))?;
    fs::rename(&found, image).with_context(|| format!("renaming {}", found.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_newest_by_number() {
        let names = ["6.12.9", "6.12.73", "6.12.90", "6.12.90+deb12.1"].map(|version| {
            let suffix = if version.contains('+') { "" } else { "+deb12" };
            format!("linux-image-{version}{suffix}-cloud-amd64")
        });
        let mut all = names.to_vec();
        all.push("linux-image-6.12.95+deb12-cloud-amd64-dbg".to_owned());
        all.push("linux-image-6.12.96+deb12-amd64".to_owned());
        assert_eq!(newest(&all, "linux-image-6.12."), Some("linux-image-6.12.90+deb12.1-cloud-amd64".to_owned()));
        let old = ["linux-image-6.1.0-0.deb11.52-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64"];
        let old = old.map(str::to_owned);
        assert_eq!(newest(&old, "linux-image-6.1.0-").as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest(&old, "linux-image-5.10.0-"), None);
    }

    #[test]
    fn the_hosts_mirrors_are_used() {
        let text = sources("http://mirror.example/debian/\nhttp://mirror.example/debian-security/\n");
        assert!(text.contains("http://mirror.example/debian bookworm-backports main"), "{text}");
        assert!(text.contains("http://mirror.example/debian-security bullseye-security main"), "{text}");
        assert!(sources("").contains("http://deb.debian.org/debian trixie-backports main"));
    }

    #[test]
    fn kernels_are_found_by_name_and_kept_in_order() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = named(&names(&["6.12", "5.10"])).unwrap();
        assert_eq!(found.iter().map(|kernel| kernel.name).collect::<Vec<_>>(), ["5.10", "6.12"]);
        let error = named(&names(&["6.3"])).unwrap_err().to_string();
        assert!(error.contains("6.3") && error.contains("6.18"), "{error}");
    }
}
