//! `probe502 analyze`: the same verdicts from what was captured earlier.

mod input;
mod output;
mod progress;
mod reader;

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use self::{
    input::Input,
    output::Output,
    progress::Bar,
    reader::{Delivery, Reading},
};
use super::{
    AppError,
    replay::{self, Replay},
};
use crate::{
    bundle::MAGIC,
    cli::plan::Analyze,
    offline::{
        FileNumber,
        analysis::{Analysis, Finding, Options},
        decode::Counts,
        segment::Batch,
    },
    report::json,
};

/// Analyses what was named. Whether something was found that makes the exit status 1.
pub fn run(plan: &Analyze) -> Result<ExitCode, AppError> {
    let recordings = plan.inputs.iter().filter(|path| is_recording(path)).count();
    if recordings > 0 {
        if recordings < plan.inputs.len() {
            return Err(AppError::usage(anyhow::anyhow!(
                "cannot analyze recordings and captures together: a recording holds its own packets; name them in two commands"
            )));
        }
        let found = replay::run(&Replay {
            inputs: plan.inputs.clone(),
            out: plan.out.clone(),
            fail_on_incident: plan.fail_on_incident,
            json: plan.output.json,
            quiet: plan.output.quiet,
        })?;
        return Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let inputs: Vec<Input> =
        plan.inputs.iter().map(|path| input::open(path)).collect::<Result<_, _>>().map_err(AppError::usage)?;
    let mut session = Session::new(plan);
    session.captures(inputs)?;
    session.end();
    Ok(ExitCode::SUCCESS)
}

/// Whether a file begins as recordings do. What cannot be read is reported by whoever reads it.
fn is_recording(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC
}

/// An analysis that is going on.
struct Session<'a> {
    plan: &'a Analyze,
    output: Output,
    analysis: Analysis,
    bar: Bar,
    counts: Counts,
}

impl<'a> Session<'a> {
    fn new(plan: &'a Analyze) -> Self {
        let options =
            Options { connections: plan.connections, exchanges: plan.exchanges, several: plan.inputs.len() > 1 };
        Self {
            plan,
            output: Output::new(plan.output.json),
            analysis: Analysis::new(options),
            bar: Bar::new(!plan.output.quiet),
            counts: Counts::default(),
        }
    }

    fn captures(&mut self, inputs: Vec<Input>) -> Result<(), AppError> {
        let mut sources = Vec::new();
        for input in inputs {
            let reading = Reading::start(input)
                .map_err(|error| AppError::host(anyhow::anyhow!("cannot start a thread that reads: {error}")))?;
            self.bar.follow(&reading.progress);
            sources.push(Source { reading, batch: None, at: 0 });
        }
        if let [source] = sources.as_mut_slice() {
            while let Some(batch) = self.next_batch(source) {
                self.analysis.take(0, &batch);
                source.reading.give_back(batch);
                self.tell();
                if self.output.is_gone() {
                    return Ok(());
                }
            }
        } else {
            self.together(&mut sources);
        }
        self.analysis.finish();
        self.tell();
        Ok(())
    }

    /// Several captures, packet by packet in the order of their times.
    fn together(&mut self, sources: &mut [Source]) {
        for source in sources.iter_mut() {
            source.batch = self.next_batch(source);
        }
        loop {
            let next = sources.iter().enumerate().filter_map(|(number, source)| Some((source.time()?, number))).min();
            let Some((_, number)) = next else { return };
            let Some(source) = sources.get_mut(number) else { return };
            if let Some(batch) = &source.batch
                && let Some(item) = batch.items.get(source.at)
            {
                self.analysis.item(FileNumber::try_from(number).unwrap_or(FileNumber::MAX), item, batch);
                source.at += 1;
            }
            while source.batch.as_ref().is_some_and(|batch| source.at >= batch.items.len()) {
                if let Some(used) = source.batch.take() {
                    source.reading.give_back(used);
                }
                source.at = 0;
                source.batch = self.next_batch(source);
                self.tell();
                if self.output.is_gone() {
                    return;
                }
            }
        }
    }

    /// The next batch of a capture with something in it; at its end its gaps are told.
    fn next_batch(&mut self, source: &Source) -> Option<Batch> {
        loop {
            match source.reading.next()? {
                Delivery::Batch(batch) if batch.items.is_empty() => source.reading.give_back(batch),
                Delivery::Batch(batch) => return Some(batch),
                Delivery::End(counts, why) => {
                    self.gaps(&source.reading.name, &counts, why);
                    return None;
                }
            }
        }
    }

    fn gaps(&mut self, name: &str, counts: &Counts, why: Option<String>) {
        if let Some(why) = why {
            let text = format!("{name}: {why}; the {} packets before that were used", counts.packets);
            self.notice("truncated", 1, &text);
        }
        if counts.foreign > 0 {
            let text = format!(
                "{name}: {} packets have link type {}, which cannot be read",
                counts.foreign, counts.foreign_link
            );
            self.notice("unreadable-packets", counts.foreign, &text);
        }
        if counts.cut > 0 {
            let text = format!("{name}: {} packets were cut before the end of their TCP header", counts.cut);
            self.notice("unreadable-packets", counts.cut, &text);
        }
        if counts.fragments_lost > 0 {
            let text = format!("{name}: {} packets came in fragments of which some are missing", counts.fragments_lost);
            self.notice("unreadable-packets", counts.fragments_lost, &text);
        }
        if counts.lost > 0 {
            self.notice("lost", counts.lost, &format!("{name}: the capture itself lost {} packets", counts.lost));
        }
        self.counts.packets += counts.packets;
        self.counts.lost += counts.lost;
        let (first, last) = (&mut self.counts.first_ns, &mut self.counts.last_ns);
        *first = first.into_iter().map(|ns| *ns).chain(counts.first_ns).min();
        *last = last.into_iter().map(|ns| *ns).chain(counts.last_ns).max();
    }

    fn notice(&mut self, what: &str, count: u64, text: &str) {
        if self.plan.output.json {
            let notice = json::Notice { what: what.to_owned(), count, text: text.to_owned() };
            self.output.line(&json::line(&notice));
        }
        if !self.plan.output.quiet {
            self.bar.hide();
            // Nothing is left to do when stderr is closed.
            let _ = writeln!(io::stderr(), "probe502: {text}");
        }
    }

    /// Prints what was found.
    fn tell(&mut self) {
        while let Some(finding) = self.analysis.poll() {
            match finding {
                Finding::Connection(ended) => self.output.connection(&ended),
                Finding::Exchange(exchange) => self.output.exchange(&exchange),
            }
        }
        self.bar.show();
    }

    fn end(&mut self) {
        self.bar.hide();
        let doubles = self.analysis.doubles();
        if doubles > 0 {
            self.notice("doubles", doubles, &format!("{doubles} packets were captured more than once and count once"));
        }
        let span_ns =
            self.counts.last_ns.zip(self.counts.first_ns).map_or(0, |(last, first)| last.saturating_sub(first));
        if self.plan.output.json {
            let summary = json::Summary {
                packets_dropped: self.counts.lost,
                duration_s: seconds(span_ns),
                ..json::Summary::default()
            };
            self.output.line(&json::line(&summary));
        }
        self.output.flush();
    }
}

/// Seconds, to the millisecond.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a capture are far below 2^52")]
fn seconds(ns: u64) -> f64 {
    (ns / 1_000_000) as f64 / 1_000.0
}

/// A capture among several.
struct Source {
    reading: Reading,
    batch: Option<Batch>,
    at: usize,
}

impl Source {
    fn time(&self) -> Option<u64> {
        Some(self.batch.as_ref()?.items.get(self.at)?.unix_ns())
    }
}
