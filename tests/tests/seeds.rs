//! What fuzzing begins with, and whatever it found, through the functions that it calls.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use probe_tests::fuzz::TARGETS;

#[test]
fn every_seed_holds() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for target in TARGETS {
        let folder = folder.join(target.name);
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut seeds: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        seeds.sort();
        ensure!(!seeds.is_empty(), "{} has no seeds", target.name);
        for seed in seeds {
            let bytes = fs::read(&seed)?;
            // A panic names no file.
            println!("{}", seed.display());
            let started = Instant::now();
            (target.run)(&bytes);
            ensure!(started.elapsed() < Duration::from_secs(20), "{} takes {:?}", seed.display(), started.elapsed());
        }
    }
    Ok(())
}

#[test]
fn every_target_is_fuzzed() -> Result<()> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml"))?;
    for target in TARGETS {
        ensure!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} is in no program", target.name);
    }
    ensure!(manifest.matches("[[bin]]").count() == TARGETS.len(), "a program without a target");
    Ok(())
}
