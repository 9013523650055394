//! What a probe sees of a world: sensors that are off, that see badly, that lose things; and what it learns by asking.

use probe502::{
    correlate::Question,
    merge::Arrival,
    model::{
        coverage::{Coverage, Sensor, Sight},
        event::{Body, Source},
        host::{HostFact, Listener},
        nginx::NginxEvent,
        process::{Acceptor, Pid},
        time::{At, Moment},
    },
};

use super::{
    dice::Dice,
    stage::{BEGIN, MS, SECOND},
    story::Story,
    tape::{NGINX_NETNS, OTHER_NETNS, Record},
};

/// Losses are counted and told this often.
const TOLD_EVERY: u64 = 100 * MS;

/// How much of a world is seen.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Sensors that see nothing, and are known to.
    pub off: Vec<Sensor>,
    /// Sensors that miss half of everything, and are known to miss something.
    pub degraded: Vec<Sensor>,
    /// Kernel records lost and counted, in thousandths.
    pub lost_records: u16,
    /// Packets lost and counted, in thousandths.
    pub lost_packets: u16,
    /// The probe starts late, after so many thousandths of the world's time.
    pub late: Option<u16>,
    /// Between these thousandths of the world's time the sensors that are off or see badly see everything.
    pub deeper: Option<(u16, u16)>,
    /// Somebody else's connections are not there at all.
    pub alone: bool,
    /// Which records are missed and lost.
    pub seed: u64,
}

impl View {
    /// Everything is seen.
    #[must_use]
    pub fn whole() -> Self {
        Self::default()
    }

    /// Without this sensor.
    #[must_use]
    pub fn without(&self, sensor: Sensor) -> Self {
        let mut view = self.clone();
        view.degraded.retain(|known| *known != sensor);
        if !view.off.contains(&sensor) {
            view.off.push(sensor);
        }
        view
    }

    /// How well this sensor sees.
    #[must_use]
    pub fn sight(&self, sensor: Sensor) -> Sight {
        if self.off.contains(&sensor) {
            Sight::Off
        } else if self.degraded.contains(&sensor) {
            Sight::Degraded
        } else {
            Sight::On
        }
    }

    /// When the probe starts.
    #[must_use]
    pub fn start(&self, story: &Story) -> u64 {
        self.late.map_or(BEGIN, |late| thousandth(story, late))
    }

    /// How well this sensor sees then.
    fn sight_at(&self, story: &Story, sensor: Sensor, ns: u64) -> Sight {
        let deeper = |(from, to)| (thousandth(story, from)..thousandth(story, to)).contains(&ns);
        let changes = sensor != Sensor::UpstreamSide && self.deeper.is_some_and(deeper);
        if changes { Sight::On } else { self.sight(sensor) }
    }

    /// What arrives of a world, each source's in its order.
    #[must_use]
    pub fn see(&self, story: &Story) -> Vec<Arrival> {
        let start = self.start(story);
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut losses: Vec<(u64, Option<Sensor>, u64)> = Vec::new();
        let mut status_seen = true;
        for (index, record) in story.records.iter().enumerate() {
            let mut dice = Dice::new(self.seed ^ (u64::try_from(index).unwrap_or(0) << 20));
            if self.alone && record.foreign {
                continue;
            }
            let arrival = self.perceive(story, record, start, &mut dice);
            // A hook that does not see a status does not see the attempts that are told with it either.
            match &record.arrival.body {
                Body::Nginx(NginxEvent::Status(_)) => status_seen = arrival.is_some(),
                Body::Nginx(NginxEvent::Attempt(_)) if !status_seen => continue,
                _ => {}
            }
            let Some(arrival) = arrival else { continue };
            let (per_mille, sensor) = match arrival.source {
                Source::Kernel => (self.lost_records, None),
                Source::Packet => (self.lost_packets, Some(Sensor::Packets)),
                Source::Probe | Source::ErrorLog | Source::AccessLog => (0, None),
            };
            if dice.chance(u64::from(per_mille)) {
                count(&mut losses, arrival.at.latest.0, sensor);
            } else {
                arrivals.push(arrival);
            }
        }
        arrivals.extend(self.own_words(story, start));
        arrivals.extend(losses.into_iter().map(|(window, sensor, count)| {
            let at = At::between(Moment(window), Moment(window + TOLD_EVERY - 1));
            let body = Body::Coverage(Coverage::Lost { sensor, count, why: "the ring was full".to_owned() });
            Arrival { at, source: Source::Probe, body }
        }));
        arrivals.sort_by_key(|arrival| arrival.at.latest);
        arrivals
    }

    fn perceive(&self, story: &Story, record: &Record, start: u64, dice: &mut Dice) -> Option<Arrival> {
        let mut arrival = record.arrival.clone();
        if let Body::Host(fact) = &mut arrival.body
            && let HostFact::Nginx(instance) = &mut **fact
        {
            // That there is an nginx is always known; its configuration may not be readable.
            arrival.at = At::exactly(Moment(start + MS));
            if record.sensor.is_some_and(|sensor| self.sight(sensor) == Sight::Off) {
                instance.configuration = None;
            }
            return Some(arrival);
        }
        let seen = match record.sensor.map(|sensor| self.sight_at(story, sensor, arrival.at.latest.0)) {
            None | Some(Sight::On) => true,
            Some(Sight::Degraded) => matches!(arrival.body, Body::Nginx(NginxEvent::Attempt(_))) || dice.chance(500),
            Some(Sight::Off) => false,
        };
        (seen && arrival.at.latest.0 > start + 2 * MS).then_some(arrival)
    }

    /// What the probe says of itself, and what it finds when it starts.
    fn own_words(&self, story: &Story, start: u64) -> Vec<Arrival> {
        let told = |ns: u64, body: Body| Arrival { at: At::exactly(Moment(ns)), source: Source::Probe, body };
        let changes = self.deeper.iter().flat_map(|(from, to)| [thousandth(story, *from), thousandth(story, *to)]);
        let mut arrivals = Vec::new();
        for ns in [start].into_iter().chain(changes.filter(|change| *change > start)) {
            arrivals.extend(Sensor::ALL.iter().map(|sensor| {
                let sight = self.sight_at(story, *sensor, ns);
                let why = (sight != Sight::On).then(|| format!("{sensor} is {sight:?} in this view"));
                told(ns, Body::Coverage(Coverage::Sensor { sensor: *sensor, sight, why }))
            }));
        }
        if self.sight(Sensor::Host) != Sight::Off {
            let open = story.connections.iter().filter(|life| life.from < start && life.to > start);
            arrivals.extend(open.map(|life| {
                let fact = HostFact::OpenConnection { worker: life.worker, local: life.local, upstream: life.upstream };
                told(start + 2 * MS, Body::from(fact))
            }));
        }
        arrivals
    }

    /// What looking at the host finds at this moment, if anybody can look.
    #[must_use]
    pub fn answer(&self, story: &Story, question: &Question, ns: u64) -> Option<Arrival> {
        match self.sight(Sensor::Host) {
            Sight::Off => return None,
            Sight::Degraded if Dice::new(self.seed ^ ns).chance(500) => return None,
            Sight::Degraded | Sight::On => {}
        }
        let fact = match *question {
            Question::Acceptors { ref upstream, netns, .. } => {
                let server = story.servers.iter().find(|server| upstream.ip() == Some(server.address))?;
                let (pid, parent, command) = (server.master, Pid(1), server.command.clone());
                let short = server.out_of_files.iter().any(|(from, to)| (*from..=*to).contains(&ns));
                let files = Some((if short { 1_024 } else { 30 }, Some(1_024)));
                let one = Acceptor { pid, parent, command, halt: None, files };
                let here = server.place.is_here() && !server.is_down(ns);
                let processes = if here { vec![one] } else { Vec::new() };
                HostFact::Acceptors { upstream: upstream.clone(), netns, processes, all: true }
            }
            Question::Listeners { upstream, netns } => {
                let server = story.servers.iter().find(|server| server.address == upstream)?;
                let local = server.place.is_here();
                let full = server.full.iter().any(|(from, to)| (*from..=*to).contains(&ns));
                let listener = Listener {
                    address: upstream,
                    netns: Some(if upstream.ip().is_loopback() { NGINX_NETNS } else { OTHER_NETNS }),
                    pid: Some(server.master),
                    command: Some(server.command.clone()),
                    accept_queue: Some(if full { (129, 128) } else { (0, 128) }),
                };
                let listeners = if local && !server.is_down(ns) { vec![listener] } else { Vec::new() };
                HostFact::Listeners { upstream, netns, local, listeners, nearby: Vec::new() }
            }
            Question::OpenFiles(pid) => {
                let server = story.servers.iter().find(|server| server.master == pid);
                let short = server.is_none_or(|s| s.out_of_files.iter().any(|(from, to)| (*from..=*to).contains(&ns)));
                let command = server.map_or("nginx", |server| &server.command).to_owned();
                HostFact::OpenFiles { pid, command, open: if short { 1_024 } else { 30 }, limit: Some(1_024) }
            }
            Question::ProcessState(pid) => HostFact::ProcessState {
                pid,
                command: name_of(story, pid),
                state: 'S',
                wait_channel: Some("hrtimer_nanosleep".to_owned()),
                call: None,
                halt: None,
            },
            Question::LocalPorts { upstream, netns } => {
                let server = story.servers.iter().find(|server| server.address == upstream)?;
                let gone = server.out_of_ports.iter().any(|(from, to)| (*from..=*to).contains(&ns));
                let in_use = if gone { 28_232 } else { 40 };
                HostFact::LocalPorts { upstream, netns, range: (32_768, 60_999), in_use, waiting: in_use / 2 }
            }
            // The worlds have neither routes nor files; an answer that does not come must not mislead.
            Question::OtherListeners(_)
            | Question::Route { .. }
            | Question::SystemFiles
            | Question::Name { .. }
            | Question::Translation { .. }
            | Question::UnixSocket { .. } => return None,
        };
        Some(Arrival { at: At::exactly(Moment(ns)), source: Source::Probe, body: Body::from(fact) })
    }
}

/// So many thousandths of the world's time after its beginning.
fn thousandth(story: &Story, count: u16) -> u64 {
    BEGIN + (story.end - BEGIN) / 1_000 * u64::from(count)
}

fn name_of(story: &Story, pid: Pid) -> String {
    let of = |master: u32| (master..master + 100).contains(&pid.0);
    story.servers.iter().find(|server| of(server.master.0)).map_or_else(String::new, |server| server.command.clone())
}

fn count(losses: &mut Vec<(u64, Option<Sensor>, u64)>, ns: u64, sensor: Option<Sensor>) {
    let window = ns / TOLD_EVERY * TOLD_EVERY;
    match losses.iter_mut().find(|(known, of, _)| *known == window && *of == sensor) {
        Some((.., count)) => *count += 1,
        None => losses.push((window, sensor, 1)),
    }
}

/// The silence after which a schedule jumps to the next arrival.
pub const JUMP: u64 = SECOND;
