//! `cargo xtask vm-test`: the program as it was built for this host, on Debian's other kernels, in emulated machines.

mod cpio;
mod image;
mod kernel;
mod machine;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use self::{
    kernel::{Kernel, Store},
    report::Told,
};
use crate::{program, setup, workspace::Workspace};

/// What is to be run.
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// These kernels (`5.10,6.1`); default: a few
    #[arg(long, value_delimiter = ',', conflicts_with = "all")]
    kernel: Vec<String>,
    /// Every kernel there is; writes the README's table
    #[arg(long)]
    all: bool,
}

impl Plan {
    fn kernels(&self) -> Result<Vec<Kernel>> {
        if self.kernel.is_empty() {
            return Ok(kernel::ALL.into_iter().filter(|kernel| self.all || kernel.usual).collect());
        }
        kernel::named(&self.kernel)
    }
}

/// Runs the kernels one after another; whether all of them did what they should.
pub(crate) fn run(workspace: &Workspace, plan: &Plan) -> Result<bool> {
    let kernels = plan.kernels()?;
    setup::for_machines(workspace)?;
    let built = program::for_machines(workspace)?;
    let home = workspace.target_dir()?.join("vm");
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    let archive = home.join("archive.cpio");
    let content = image::make(&built, &home.join("programs"))?;
    fs::write(&archive, content).with_context(|| format!("writing {}", archive.display()))?;
    let place = Place { store: Store::new(home.clone()), archive, home };
    let mut all = Vec::new();
    let mut good = true;
    for kernel in kernels {
        let (told, complaints) = place.try_out(kernel)?;
        good &= complaints.is_empty();
        all.push(told);
    }
    let table = report::render(&all);
    if plan.all && good {
        let readme = workspace.root().join("README.md");
        let text = fs::read_to_string(&readme).with_context(|| format!("reading {}", readme.display()))?;
        let text = report::replace(&text, &table)?;
        fs::write(&readme, text).with_context(|| format!("writing {}", readme.display()))?;
    } else {
        println!("{table}");
    }
    Ok(good)
}

/// What some kernels are booted with once more each: `kernel_lockdown(7)`.
const LOCKDOWN: &[&str] = &["lockdown=integrity", "lockdown=confidentiality"];

/// Where everything lies that a machine needs.
struct Place {
    store: Store,
    archive: PathBuf,
    home: PathBuf,
}

impl Place {
    /// One kernel, twice if the emulated machine breaks down. Says how it went.
    fn try_out(&self, kernel: Kernel) -> Result<(Told, Vec<String>)> {
        let image = self.store.image(kernel)?;
        let log = self.home.join(format!("{}.log", kernel.name));
        let started = Instant::now();
        let (mut told, mut again) = self.boot(&image, "", &log)?;
        for parameter in if kernel.locked_down { LOCKDOWN } else { &[] } {
            let log = self.home.join(format!("{}.{parameter}.log", kernel.name));
            let (more, retried) = self.boot(&image, parameter, &log)?;
            told.settings.extend(more.settings);
            told.oopses.extend(more.oopses);
            told.ended &= more.ended;
            again |= retried;
        }
        let again = if again { ", one boot was repeated" } else { "" };
        let complaints = told.complaints();
        let word = if complaints.is_empty() { "ok" } else { "failed" };
        let seconds = started.elapsed().as_secs_f64();
        println!("vm-test: {} ({}): {word}{again} ({seconds:.1} s, {})", kernel.name, told.release, log.display());
        for complaint in &complaints {
            println!("vm-test: {}: {complaint}", kernel.name);
        }
        Ok((told, complaints))
    }

    /// Boots a kernel; whether it had to be done twice: an emulator's crash says nothing about the program, two in a row do.
    fn boot(&self, image: &Path, parameters: &str, log: &Path) -> Result<(Told, bool)> {
        let told = Told::read(&machine::run(image, &self.archive, parameters, log)?);
        // (A kernel that complains while the program runs is no accident of the emulator.)
        if told.ended || !told.settings.is_empty() && !told.oopses.is_empty() {
            return Ok((told, false));
        }
        Ok((Told::read(&machine::run(image, &self.archive, parameters, log)?), true))
    }
}
