//! Recordings judged again: what `record` printed, from what it kept.

mod player;

use std::{
    io::{self, BufReader, Read, Write as _},
    path::PathBuf,
    time::Instant,
};

pub use self::player::play;
use super::{
    AppError,
    folder::{self, Folder},
    output::{self, Form, Printer, SharedTally},
};
use crate::{
    bundle::{manifest::Manifest, packets::PacketStore, reader, tape::Interfaces},
    cli::plan::Analyze,
    model::case::Folded,
    pipeline::Judged,
    redact::Level,
    report::json,
};

/// Who is told what comes of a recording.
pub trait Audience {
    /// It is a recording, and this is what it says of itself. Interfaces become known as they are met.
    fn begins(&mut self, manifest: &Manifest, interfaces: &Interfaces) -> Result<(), AppError>;
    /// A case was judged. An error: nobody listens any more.
    fn case(&mut self, judged: &Judged, packets: &PacketStore) -> io::Result<()>;
    /// Failures were counted that are like a case. An error: nobody listens any more.
    fn folded(&mut self, folded: &Folded) -> io::Result<()>;
    /// Something else to be known.
    fn remark(&mut self, what: &str, count: u64, text: &str);
}

/// What to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// What was given and is of no use for a recording.
    pub unused: Vec<&'static str>,
    /// Where to leave incidents.
    pub out: Option<PathBuf>,
    /// An incident is a failure of the command.
    pub fail_on_incident: bool,
    /// JSON lines instead of text.
    pub json: bool,
    /// No remarks on stderr.
    pub quiet: bool,
    /// What is taken out of a recording that still has it.
    pub redaction: Level,
}

impl Replay {
    /// How recordings are analysed; captures are somebody else's.
    #[must_use]
    pub fn of(plan: &Analyze) -> Self {
        let beside = [
            ("--error-log", !plan.error_logs.is_empty()),
            ("--access-log", !plan.access_logs.is_empty()),
            ("--log-format", plan.log_format.is_some()),
            ("--conf", plan.configuration.is_some()),
            ("--upstream", !plan.upstreams.is_empty()),
            ("--connections", plan.connections),
            ("--exchanges", plan.exchanges),
        ];
        Self {
            unused: beside.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect(),
            out: plan.out.clone(),
            fail_on_incident: plan.fail_on_incident,
            json: plan.output.json,
            quiet: plan.output.quiet,
            redaction: plan.redaction,
        }
    }
}

/// Whether these first bytes of a file begin a recording.
#[must_use]
pub fn is_recording(begin: &[u8]) -> bool {
    reader::is_bundle(begin)
}

/// Judges them all, each with its name. `true`: as asked, an incident is to be told by the exit status.
pub fn run(plan: &Replay, inputs: Vec<(String, Box<dyn Read + Send>)>) -> Result<bool, AppError> {
    let began = Instant::now();
    let tally = SharedTally::default();
    let form = Form::choose(plan.json);
    if plan.redaction == Level::None {
        let text = "NOT REDACTED (--no-redact): what the recording still has of URIs, headers and bodies is printed and left as it is.";
        remark(plan, "not-redacted", 1, text);
    }
    if !plan.unused.is_empty() {
        let text = format!("{}: not used, a recording has it all in it", plan.unused.join(", "));
        remark(plan, "not-used", 1, &text);
    }
    for (name, input) in inputs {
        let mut told = Told { plan, form, tally: SharedTally::clone(&tally), printer: None };
        play(&name, BufReader::with_capacity(1 << 20, input), plan.redaction, &mut told)?;
    }
    let tally = output::with(&tally, |tally| tally.clone());
    for trouble in &tally.trouble {
        remark(plan, "not-written", 1, trouble);
    }
    if !form.json && tally.incidents + tally.near_misses == 0 {
        // Nothing was printed, and a person may wonder whether anything was read.
        remark(plan, "nothing", 0, "no incident and no near miss was found");
    }
    if form.json {
        let summary = json::Summary {
            incidents: tally.incidents,
            near_misses: tally.near_misses,
            folded: tally.folded,
            by_cause: tally.by_cause,
            duration_s: (began.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0,
            ..json::Summary::default()
        };
        // A reader that is gone has what it wanted.
        let _ = output::print(&json::line(&summary));
    }
    Ok(plan.fail_on_incident && tally.incidents > 0)
}

/// What `analyze` prints and leaves behind.
struct Told<'a> {
    plan: &'a Replay,
    form: Form,
    tally: SharedTally,
    printer: Option<Printer>,
}

impl Audience for Told<'_> {
    fn begins(&mut self, manifest: &Manifest, interfaces: &Interfaces) -> Result<(), AppError> {
        let folder = self
            .plan
            .out
            .as_ref()
            .map(|path| Folder::open(path, folder::owner_by_sudo()).map_err(AppError::usage))
            .transpose()?;
        // What was taken out when it was recorded is gone.
        let whole = self.plan.redaction == Level::None && Level::from_name(&manifest.redaction) == Level::None;
        let (interfaces, tally) = (Interfaces::clone(interfaces), SharedTally::clone(&self.tally));
        let printer = Printer::new(self.form, manifest.clock(), folder, interfaces, tally);
        self.printer = Some(printer.with_whole_uris(whole));
        Ok(())
    }

    fn case(&mut self, judged: &Judged, packets: &PacketStore) -> io::Result<()> {
        self.printer.as_mut().map_or(Ok(()), |printer| printer.print(judged, packets))
    }

    fn folded(&mut self, folded: &Folded) -> io::Result<()> {
        self.printer.as_mut().map_or(Ok(()), |printer| printer.print_folded(folded))
    }

    fn remark(&mut self, what: &str, count: u64, text: &str) {
        remark(self.plan, what, count, text);
    }
}

fn remark(plan: &Replay, what: &str, count: u64, text: &str) {
    if plan.json {
        let _ = output::print(&json::line(&json::Notice { what: what.to_owned(), count, text: text.to_owned() }));
    }
    if !plan.quiet {
        let _ = writeln!(io::stderr(), "probe502: {text}");
    }
}
