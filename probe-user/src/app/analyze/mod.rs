//! `probe502 analyze`: the same verdicts from what was captured earlier.

mod clients;
mod input;
mod logs;
mod output;
mod progress;
mod reader;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
};

use self::{
    clients::Clients,
    input::{Input, Opened},
    logs::Log,
    output::Output,
    progress::Bar,
    reader::{Delivery, Reading},
};
use super::{
    AppError,
    folder::{Folder, owner_by_sudo},
    replay::{self, Replay},
};
use crate::{
    cli::plan::Analyze,
    model::{
        case::{Case, CaseKind},
        coverage::{Coverage, Sensor, Sight},
        event::{Body, Source},
        host::{Configuration, HostFact, NginxInstance},
        net::Address,
        packet::PacketRef,
        process::Pid,
        time::{At, Moment, WallClock},
        verdict::Verdict,
        wire::Wire,
    },
    offline::{
        self, FileNumber,
        analysis::{Analysis, Finding, Options},
        decode::Counts,
        segment::{Batch, End},
    },
    pipeline::{Arrival, Judged, Limits, Pipeline, Settings},
    redact::Level,
    report::{self, json, text},
};

/// Analyses what was named. Whether something was found that makes the exit status 1.
pub fn run(plan: &Analyze) -> Result<ExitCode, AppError> {
    let opened: Vec<Opened> =
        plan.inputs.iter().map(|path| Opened::open(path)).collect::<Result<_, _>>().map_err(AppError::usage)?;
    match opened.iter().filter(|input| input.is_recording()).count() {
        0 => {}
        count if count == opened.len() => {
            let inputs = opened.into_iter().map(|input| (input.name.clone(), input.whole())).collect();
            let found = replay::run(&Replay::of(plan), inputs)?;
            return Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        // They have no common time.
        _ => {
            return Err(AppError::usage(anyhow::anyhow!(
                "recordings and captures cannot be analysed together; name one kind at a time"
            )));
        }
    }
    let inputs: Vec<Input> =
        opened.into_iter().map(Opened::capture).collect::<Result<_, _>>().map_err(AppError::usage)?;
    let mut session = Session::new(plan).map_err(AppError::usage)?;
    if plan.redaction == Level::None {
        session.notice("not-redacted", 1, "NOT REDACTED (--no-redact): URIs are printed whole, as clients sent them.");
    }
    session.captures(inputs)?;
    session.end();
    let found = plan.fail_on_incident && session.tally.incidents > 0;
    Ok(if found { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Captures have wall-clock times; moments count from 1970 here.
const CLOCK: WallClock = WallClock { offset_ns: 0 };

/// What can be seen in captures, and in what was given beside them.
fn begin(pipeline: &mut Pipeline, plan: &Analyze, configuration: Option<Configuration>) {
    let at = At::exactly(Moment(0));
    let mut seen = vec![Sensor::Packets];
    seen.extend((!plan.error_logs.is_empty()).then_some(Sensor::ErrorLog));
    seen.extend((!plan.access_logs.is_empty()).then_some(Sensor::AccessLog));
    seen.extend(configuration.is_some().then_some(Sensor::Configuration));
    let sensors = seen
        .into_iter()
        .map(|sensor| Body::Coverage(Coverage::Sensor { sensor, sight: Sight::On, why: None }))
        .chain([Body::Wire(Wire::Begins)]);
    let instance = configuration.map(|configuration| {
        Body::from(HostFact::Nginx(NginxInstance {
            master: Pid(0),
            workers: Vec::new(),
            version: None,
            netns: None,
            configuration: Some(configuration.into()),
        }))
    });
    for body in sensors.chain(instance) {
        pipeline.push(Arrival { at, source: Source::Probe, body });
    }
}

/// An address that nginx listens on; a wildcard of either family stands for every address.
fn listening(address: SocketAddr) -> End {
    if address.ip().is_unspecified() { End::v4([0; 4], address.port()) } else { End::of(address) }
}

/// An analysis that is going on.
struct Session<'a> {
    plan: &'a Analyze,
    output: Output,
    analysis: Analysis,
    pipeline: Pipeline,
    tally: json::Summary,
    /// The captures' names, for evidence to point into.
    names: Vec<String>,
    /// nginx's logs.
    logs: Vec<Log>,
    bar: Bar,
    counts: Counts,
    /// Whose addresses are not told.
    clients: Clients,
    /// Where incidents are left.
    folder: Option<Folder>,
}

impl<'a> Session<'a> {
    fn new(plan: &'a Analyze) -> Result<Self, anyhow::Error> {
        let configuration = plan.configuration.as_ref().map(logs::configuration).transpose()?;
        let mut files = Vec::new();
        for path in &plan.error_logs {
            files.push(Log::error(path)?);
        }
        for path in &plan.access_logs {
            let format = logs::format(path, plan.log_format.as_deref(), configuration.as_ref());
            files.push(Log::access(path, &format)?);
        }
        let configured = configuration.iter().flat_map(|c| &c.upstreams).filter_map(Address::ip);
        let upstreams: Vec<End> = configured.chain(plan.upstreams.iter().copied()).map(End::of).collect();
        let nginx = configuration.iter().flat_map(|c| &c.listen).map(|address| listening(*address)).collect();
        let options = Options {
            connections: plan.connections,
            exchanges: plan.exchanges,
            several: plan.inputs.len() > 1,
            attempts: true,
            servers: plan.redaction == Level::All,
            statuses: plan.statuses.clone(),
            upstreams,
            nginx,
        };
        let settings = Settings { limits: Limits::default(), clock: CLOCK, statuses: plan.statuses.clone() };
        let mut pipeline = Pipeline::new(settings);
        begin(&mut pipeline, plan, configuration);
        Ok(Self {
            plan,
            output: Output::new(plan.output.json, plan.redaction == Level::None),
            clients: Clients::new(plan.redaction)?,
            folder: plan.out.as_deref().map(|path| Folder::open(path, owner_by_sudo())).transpose()?,
            analysis: Analysis::new(options),
            pipeline,
            tally: json::Summary::default(),
            names: Vec::new(),
            logs: files,
            bar: Bar::new(!plan.output.quiet),
            counts: Counts::default(),
        })
    }

    fn captures(&mut self, inputs: Vec<Input>) -> Result<(), AppError> {
        let mut sources = Vec::new();
        for input in inputs {
            let reading = Reading::start(input)
                .map_err(|error| AppError::host(anyhow::anyhow!("cannot start a thread that reads: {error}")))?;
            self.bar.follow(&reading.progress);
            self.names.push(reading.name.clone());
            sources.push(Capture { reading, batch: None, at: 0 });
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
    fn together(&mut self, sources: &mut [Capture]) {
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
    fn next_batch(&mut self, source: &Capture) -> Option<Batch> {
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
        self.counts.first_ns = self.counts.first_ns.into_iter().chain(counts.first_ns).min();
        self.counts.last_ns = self.counts.last_ns.into_iter().chain(counts.last_ns).max();
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
        while let Some(mut finding) = self.analysis.poll() {
            self.clients.replace(&mut finding, &self.analysis);
            match finding {
                Finding::Connection(ended) => self.output.connection(&ended),
                Finding::Exchange(exchange) => self.output.exchange(&exchange),
                Finding::Event(at, body) => {
                    self.pipeline.push(Arrival { at, source: Source::Packet, body: *body });
                }
            }
        }
        let now = Moment(self.analysis.now());
        self.read_logs(now, false);
        self.pipeline.advance(now);
        self.cases();
        self.bar.show();
    }

    /// Prints what was judged.
    fn cases(&mut self) {
        // There is no host to look at any more.
        while self.pipeline.poll_question().is_some() {}
        while let Some(Judged { case, verdict }) = self.pipeline.poll_case() {
            match case.kind {
                CaseKind::Incident => self.tally.incidents += 1,
                CaseKind::NearMiss => self.tally.near_misses += 1,
            }
            *self.tally.by_cause.entry(report::cause(&verdict)).or_default() += 1;
            self.bar.hide();
            let incident = (self.output.json || self.folder.is_some()).then(|| self.incident(&case, &verdict));
            if let (Some(folder), Some(incident)) = (&self.folder, &incident)
                && let Err(error) = folder.leave_alone(incident)
            {
                self.folder = None;
                let text = format!("{error}; incidents are still printed, no more files are written");
                self.notice("not-written", 1, &text);
            }
            match incident {
                Some(incident) if self.output.json => self.output.line(&json::line(&incident)),
                _ => self.output.line(&text::incident(&case, &verdict, CLOCK, self.output.style)),
            }
        }
    }

    fn incident(&self, case: &Case, verdict: &Verdict) -> json::Incident {
        let mut incident = json::incident(case, verdict, CLOCK);
        if self.output.style.whole_uris {
            incident.request.uri = case.request.uri.as_deref().map(report::redact::text);
        }
        for line in &mut incident.evidence {
            line.reference = line.reference.as_deref().and_then(|reference| self.refer(reference));
        }
        incident
    }

    /// Evidence points into the capture it was read from, by the packet's number.
    fn refer(&self, reference: &str) -> Option<String> {
        let (file, number) = offline::place(PacketRef(reference.split_once('#')?.1.parse().ok()?));
        Some(format!("{}#{number}", self.names.get(usize::from(file))?))
    }

    fn read_logs(&mut self, now: Moment, over: bool) {
        let first = Moment(self.analysis.began());
        let (pipeline, clients, analysis) = (&mut self.pipeline, &self.clients, &self.analysis);
        for log in &mut self.logs {
            let mut take = |mut arrival: Arrival| {
                clients.replace_in(&mut arrival.body, analysis);
                pipeline.push(arrival);
            };
            if over { log.rest(first, now, &mut take) } else { log.up_to(first, now, &mut take) }
        }
    }

    /// Nothing was printed, and a person may wonder whether anything was read.
    fn is_silent(&self) -> bool {
        let Analyze { connections, exchanges, output, .. } = self.plan;
        let found = self.tally.incidents + self.tally.near_misses;
        found == 0 && !output.json && !connections && !exchanges
    }

    fn end(&mut self) {
        self.read_logs(Moment(self.analysis.now()), true);
        self.pipeline.finish();
        self.cases();
        self.bar.hide();
        let said: Vec<(u64, String)> = self
            .logs
            .iter()
            .flat_map(|log| {
                let name = log.name();
                let unreadable = (log.unreadable > 0).then(|| {
                    (log.unreadable, format!("{name}: {} lines do not have the form of their log", log.unreadable))
                });
                let foreign = (log.used == 0 && log.broken.is_none())
                    .then(|| (0, format!("{name}: no line is of the capture's time{}", log.zone())));
                let broken =
                    log.broken.as_ref().map(|why| (1, format!("{name}: it could not be read to its end: {why}")));
                unreadable.into_iter().chain(foreign).chain(broken)
            })
            .collect();
        for (count, text) in said {
            self.notice("log", count, &text);
        }
        if self.is_silent() {
            let text = format!("no failure of a gateway is in the {} packets", self.counts.packets);
            self.notice("nothing", self.counts.packets, &text);
        }
        let doubles = self.analysis.doubles();
        if doubles > 0 {
            self.notice("doubles", doubles, &format!("{doubles} packets were captured more than once and count once"));
        }
        let span_ns =
            self.counts.last_ns.zip(self.counts.first_ns).map_or(0, |(last, first)| last.saturating_sub(first));
        if self.plan.output.json {
            let summary =
                json::Summary { packets_dropped: self.counts.lost, duration_s: seconds(span_ns), ..self.tally.clone() };
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
struct Capture {
    reading: Reading,
    batch: Option<Batch>,
    at: usize,
}

impl Capture {
    fn time(&self) -> Option<u64> {
        Some(self.batch.as_ref()?.items.get(self.at)?.unix_ns())
    }
}
