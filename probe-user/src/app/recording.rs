//! Starts the recorder of `probe502 record`.

use std::{fs, sync::Arc};

use super::{
    folder::Owner,
    output::{self, SharedTally},
};
use crate::{
    bundle::{
        manifest::Manifest,
        tape::{Bounds, Interfaces},
    },
    cli::{plan::Depth, record::Record},
    decode::kernel::Names,
    live::{
        clock,
        ebpf::{Kernel, State},
        nginx,
        recorder::{FileLimits, Recorder},
    },
    model::time::WallClock,
    pipeline::Limits,
    report::json,
};

/// Bytes of a window at most, where the file has no smaller limit.
const WINDOW_BYTES: usize = 64 << 20;

/// What the kernel calls its numbers.
pub(super) fn names(kernel: &Kernel) -> Names {
    Names {
        drop_reasons: kernel.drop_reasons().clone(),
        reset_reasons: kernel.reset_reasons().clone(),
        hz: Kernel::hz(),
    }
}

/// Creates the file and starts the recorder.
pub(super) fn start(
    plan: &Record,
    clock: WallClock,
    kernel: Option<&Kernel>,
    interfaces: &Interfaces,
    tally: &SharedTally,
    owner: Option<Owner>,
) -> Result<Recorder, anyhow::Error> {
    let quarter = plan.max_size.and_then(|size| usize::try_from(size / 4).ok());
    let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let bounds = Bounds {
        before_ns: nanoseconds(plan.before),
        after_ns: nanoseconds(plan.after),
        memory: plan.memory,
        window: quarter.map_or(WINDOW_BYTES, |quarter| quarter.min(WINDOW_BYTES)),
    };
    let limits = FileLimits { size: plan.max_size, incidents: plan.max_incidents, rotate: plan.rotate, owner };
    let tally = Arc::clone(tally);
    let trouble = Box::new(move |text| output::with(&tally, |tally| tally.trouble.push(text)));
    let manifest = manifest(plan, bounds, clock, kernel);
    Recorder::start(plan.file.clone(), &manifest, bounds, limits, Arc::clone(interfaces), trouble)
}

fn manifest(plan: &Record, bounds: Bounds, clock: WallClock, kernel: Option<&Kernel>) -> Manifest {
    let names = kernel.map(names).unwrap_or_default();
    let attachments = kernel.map(Kernel::attachments).unwrap_or_default();
    Manifest {
        explained: Some(Limits::live().explained),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default(),
        started: json::rfc3339(clock, clock::now()).unwrap_or_default(),
        clock_offset_ns: clock.offset_ns,
        nginx: nginx::masters().into_iter().map(|master| (master.pid, None)).collect(),
        statuses: plan.watch.statuses.clone(),
        depth: match plan.watch.depth {
            _ if plan.watch.depth_auto => "auto",
            Depth::Light => "light",
            Depth::Standard => "standard",
            Depth::Deep => "deep",
        }
        .to_owned(),
        sensors: attachments
            .iter()
            .map(|attachment| {
                let state = match attachment.state {
                    State::On => "on",
                    State::Degraded => "degraded",
                    State::Off => "off",
                };
                let why = (!attachment.why.is_empty()).then(|| attachment.why.clone());
                (attachment.name.to_owned(), state.to_owned(), why)
            })
            .collect(),
        redaction: plan.watch.redaction.name().to_owned(),
        drop_reasons: names.drop_reasons,
        reset_reasons: names.reset_reasons,
        hz: names.hz,
        before_ns: bounds.before_ns,
        after_ns: bounds.after_ns,
        memory: u64::try_from(bounds.memory).unwrap_or(u64::MAX),
    }
}
