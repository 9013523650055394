//! `probe502 report`.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    AppError,
    output::{self, INCIDENT, PACKETS},
    replay::{self, Audience},
};
use crate::{
    bundle::{manifest::Manifest, packets::PacketStore, tape::Interfaces},
    cli::plan::{Report, ReportFormat},
    model::{case::Folded, time::WallClock},
    pipeline::Judged,
    redact::Level,
    report::{
        collection::{Collection, Notice, Ready, Source},
        html, markdown, text,
    },
};

/// Stands for stdin, and for stdout.
const STANDARD: &str = "-";

/// Reads incidents and writes the report.
pub fn run(plan: &Report) -> Result<(), AppError> {
    let mut collection = Collection::default();
    let mut any = false;
    for input in &plan.inputs {
        any |= read(&mut collection, input, plan.redaction)?;
    }
    if !any {
        let names: Vec<String> = plan.inputs.iter().map(|input| input.display().to_string()).collect();
        let why = collection.troubles.first().map(|trouble| format!(": {trouble}")).unwrap_or_default();
        return Err(AppError::usage(anyhow::anyhow!(
            "nothing that probe502 wrote in {}{why}; give a recording (FILE.p502), a folder of `watch -o`, an incident.json, or the output of `watch --json`",
            names.join(", ")
        )));
    }
    let text = match plan.format {
        ReportFormat::Html => html::page(&collection, plan.title.as_deref()),
        ReportFormat::Markdown => markdown::page(&collection, plan.title.as_deref()),
    };
    match &plan.out {
        Some(path) => write(path, &text).map_err(AppError::usage)?,
        None => {
            // A reader that goes away early (head, less) has read enough.
            let _ = io::stdout().lock().write_all(text.as_bytes());
        }
    }
    if !plan.quiet {
        tell(plan, &collection);
    }
    Ok(())
}

/// Adds what one input holds; whether there was anything of ours in it.
fn read(collection: &mut Collection, input: &Path, redaction: Level) -> Result<bool, AppError> {
    if input == Path::new(STANDARD) {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("cannot read stdin").map_err(AppError::usage)?;
        return take(collection, "stdin", &bytes, redaction);
    }
    let failed = |path: &Path| format!("cannot read {}", path.display());
    let about = fs::metadata(input).with_context(|| failed(input)).map_err(AppError::usage)?;
    let files = if about.is_dir() { incident_files(input).map_err(AppError::usage)? } else { vec![input.to_owned()] };
    let mut any = false;
    for file in files {
        let bytes = fs::read(&file).with_context(|| failed(&file)).map_err(AppError::usage)?;
        let packets = file.with_file_name(PACKETS);
        let is_incident = file.file_name().is_some_and(|name| name == INCIDENT);
        collection.packets_at = (is_incident && packets.is_file()).then(|| packets.display().to_string());
        any |= take(collection, &file.display().to_string(), &bytes, redaction)?;
    }
    Ok(any)
}

/// A recording is judged again; anything else is read as what was printed.
fn take(collection: &mut Collection, name: &str, bytes: &[u8], redaction: Level) -> Result<bool, AppError> {
    if !replay::is_recording(bytes) {
        return Ok(collection.read(name, &String::from_utf8_lossy(bytes)));
    }
    let mut heard = Heard { name, collection, clock: WallClock { offset_ns: 0 }, whole_uris: false, redaction };
    replay::play(name, bytes, redaction, &mut heard)?;
    // An empty recording is one all the same: nothing happened, and that is what the page says.
    Ok(true)
}

/// A recording's cases become incidents of the report.
struct Heard<'a> {
    name: &'a str,
    collection: &'a mut Collection,
    clock: WallClock,
    whole_uris: bool,
    redaction: Level,
}

impl Audience for Heard<'_> {
    fn begins(&mut self, manifest: &Manifest, _: &Interfaces) -> Result<(), AppError> {
        self.clock = manifest.clock();
        // What was taken out when it was recorded is gone.
        self.whole_uris = self.redaction == Level::None && Level::from_name(&manifest.redaction) == Level::None;
        let source = |(name, state, why): &(String, String, Option<String>)| Source {
            name: name.clone(),
            state: state.clone(),
            why: why.clone(),
        };
        let sources = manifest.sensors.iter().map(source).collect();
        self.collection.ready.push(Ready { version: Some(manifest.tool.clone()), sources });
        Ok(())
    }

    fn case(&mut self, judged: &Judged, packets: &PacketStore) -> io::Result<()> {
        let frames = output::frames(&judged.case, packets);
        let mut incident = output::incident(judged, self.clock, self.whole_uris, &frames);
        let name = self.name;
        incident.packets_at = (!frames.is_empty())
            .then(|| format!("DIR/{}/{PACKETS}, which `probe502 analyze {name} -o DIR` leaves", incident.id));
        self.collection.add(incident);
        Ok(())
    }

    fn folded(&mut self, folded: &Folded) -> io::Result<()> {
        self.remark("folded", folded.count, &text::folded(folded));
        Ok(())
    }

    fn remark(&mut self, what: &str, count: u64, text: &str) {
        self.collection.notices.push(Notice { what: what.to_owned(), count, text: text.to_owned() });
    }
}

/// The incidents in a folder: its own, or those in its folders, in the order of their names. What begins with a dot is not yet whole.
fn incident_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let own = folder.join(INCIDENT);
    if own.is_file() {
        return Ok(vec![own]);
    }
    let failed = || format!("cannot list {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let file = entry.path().join(INCIDENT);
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Under another name until it is whole: a report that is there is never half of one.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}; choose another --out", path.display());
    if fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        // A pipe or a device is written to and stays what it is.
        return fs::write(path, text).with_context(failed);
    }
    let name = path.file_name().with_context(failed)?.to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::File::create_new(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&partial, path));
    if done.is_err() {
        // What is left of it is of no use.
        let _ = fs::remove_file(&partial);
    }
    done.with_context(failed)
}

fn tell(plan: &Report, collection: &Collection) {
    // The page says it too, but who has just made it should not have to look for it.
    for notice in collection.notices.iter().filter(|notice| notice.what == "cut" || notice.what == "not-understood") {
        let _ = writeln!(io::stderr(), "probe502: {}", notice.text);
    }
    let unread = collection.troubles.len() + collection.further_troubles;
    let unread = if unread > 0 {
        format!("; {unread} pieces of the input could not be read, the report says which")
    } else {
        String::new()
    };
    let place = plan.out.as_deref().map(|path| format!(" in {}", path.display())).unwrap_or_default();
    let _ =
        writeln!(io::stderr(), "probe502: {} incidents and near misses{place}{unread}", collection.incidents().len());
}
