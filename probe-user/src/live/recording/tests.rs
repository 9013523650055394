use std::sync::Arc;

use super::*;
use crate::bundle::section::{Found, Sections};

/// A window of about a kilobyte that says its number, with a case.
fn window(recording: &mut Recording, number: u8) {
    // What does not compress.
    let mut chance = u32::from(number) + 1;
    let mut content = vec![number];
    content.extend((0..1_000).map(|_| {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        chance.to_be_bytes()[0]
    }));
    recording.take(&Piece::Window(Arc::new(section::section(Kind::Opening, b"{}"))));
    recording.take(&Piece::More(Arc::new(section::section(Kind::Events, &content))));
    recording.take(&Piece::Case);
    recording.settle();
}

/// The numbers of the windows in a file, and how many it says were taken out.
fn holds(path: &Path) -> (Vec<u8>, u64) {
    let mut sections = Sections::open(File::open(path).unwrap()).unwrap();
    let (mut numbers, mut evicted) = (Vec::new(), 0);
    loop {
        match sections.read().unwrap() {
            Found::Whole(Kind::Events, content) => numbers.push(content[0]),
            Found::Whole(Kind::Evicted, json) => {
                evicted = serde_json::from_slice::<Evicted>(&json).unwrap().windows;
            }
            Found::End { unusable, .. } => {
                assert_eq!(unusable, 0);
                return (numbers, evicted);
            }
            _ => {}
        }
    }
}

fn recording(folder: &Path, limits: FileLimits) -> Recording {
    Recording::create(folder.join("a.p502"), &Manifest::default(), limits).unwrap()
}

const UNLIMITED: FileLimits = FileLimits { size: None, incidents: None, rotate: 0, owner: None };

#[test]
fn a_file_never_holds_more_than_its_limits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.p502");
    for limits in [
        FileLimits { size: Some(5_000), ..UNLIMITED },
        FileLimits { incidents: Some(3), ..UNLIMITED },
        FileLimits { size: Some(5_000), incidents: Some(3), ..UNLIMITED },
    ] {
        let mut recording = recording(folder.path(), limits.clone());
        for number in 0..20 {
            window(&mut recording, number);
            let (numbers, evicted) = holds(&path);
            assert!(fs::metadata(&path).unwrap().len() <= 5_000 || limits.size.is_none());
            assert!(limits.incidents.is_none() || numbers.len() <= 3, "{numbers:?}");
            // The newest are there, one after another, and what is missing is told.
            assert_eq!(numbers.last(), Some(&number));
            assert_eq!(u64::from(numbers[0]), evicted, "{numbers:?}");
            assert_eq!(usize::from(number - numbers[0]) + 1, numbers.len());
        }
        assert!(recording.troubles().is_empty());
    }
}

#[test]
fn full_files_are_kept_as_many_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for limits in [
        FileLimits { incidents: Some(3), rotate: 2, ..UNLIMITED },
        FileLimits { size: Some(4_000), rotate: 2, ..UNLIMITED },
    ] {
        let mut recording = recording(folder.path(), limits.clone());
        for number in 0..11 {
            window(&mut recording, number);
        }
        let name = |ending: &str| folder.path().join(format!("a.p502{ending}"));
        let all: Vec<u8> = [".2", ".1", ""].iter().flat_map(|ending| holds(&name(ending)).0).collect();
        assert_eq!(all, (all[0]..11).collect::<Vec<u8>>(), "one after another, nothing twice");
        assert!(holds(&name(".1")).0.len() >= 2 && !name(".3").exists());
        for ending in ["", ".1", ".2"] {
            let (numbers, evicted) = holds(&name(ending));
            assert!(evicted == 0 && (limits.incidents.is_none() || numbers.len() <= 3), "{ending}: {numbers:?}");
            assert!(limits.size.is_none_or(|size| fs::metadata(name(ending)).unwrap().len() <= size + 1_100));
        }
    }
}
