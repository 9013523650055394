//! Loading the programs and attaching what this kernel allows.

use std::collections::BTreeMap;

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{MapError, MapType, RingBuf},
    programs::{
        BtfTracePoint, FExit, ProgramError, RawTracePoint, TracePoint, UProbe, raw_trace_point::RawTracePointLinkId,
    },
};
use probe_abi::{
    globals::{Settings, only_trouble},
    names,
    socket::NO_REASON,
};

use super::{
    attach::{Alternative, Attachment, Depth, FUNCTIONS, HOOKS, Hook, NO_TYPES, State, Way},
    btf::{Btf, BtfError},
    deepen::{Added, AddedLink},
    functions::AttachedBinary,
    offsets::Facts,
    returns::{everybody_is_heard, function_of, unreadable_arguments},
    ring::Ring,
    tier::Tier,
    tracefs::with_tracefs,
};

/// The kernel programs, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe"));

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How much to watch.
    pub depth: Depth,
    /// How much it may be later, by [`Kernel::set_depth`]; what is less than `depth` is that.
    pub reach: Depth,
    /// Behave as on a kernel without type information.
    pub hide_btf: bool,
    /// Size of the ring, bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Statuses reported; the first eight count.
    pub statuses: Vec<u16>,
    /// Attach the hooks of these names and no others.
    pub only: Option<Vec<String>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            depth: Depth::Standard,
            reach: Depth::Light,
            hide_btf: false,
            ring_bytes: 8 << 20,
            statuses: vec![500, 502, 503, 504],
            only: None,
        }
    }
}

/// Why nothing can be loaded at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// This program was built with `AYA_BUILD_SKIP`.
    #[error("this probe502 was built without its kernel programs (AYA_BUILD_SKIP); build it again without that")]
    NoObject,
    /// The kernel has no ring to tell things through.
    #[error(
        "this kernel is too old for the kernel programs: it has no BPF ring buffer (Linux 5.8 has); packets and logs still work"
    )]
    NoRing,
    /// The kernel refused.
    #[error("cannot load the kernel programs: {0}; they need root, or CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN")]
    Refused(#[source] Box<EbpfError>),
    /// A map is missing or of another type.
    #[error("the kernel programs have no usable map {0}")]
    Map(&'static str),
    /// A map cannot be used.
    #[error("cannot use map {name}: {source}")]
    MapAccess {
        /// The map.
        name: &'static str,
        /// Why.
        source: MapError,
    },
}

/// The running kernel programs. Dropping it detaches everything.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    pub(super) facts: Facts,
    pub(super) depth: Depth,
    pub(super) reach: Depth,
    only: Option<Vec<String>>,
    /// What is attached of the hooks that a depth adds.
    pub(super) added: Vec<Added>,
    pub(super) binaries: BTreeMap<(u64, u64), AttachedBinary>,
    pub(super) layouts: Vec<probe_abi::nginx::Layout>,
    pub(super) attachments: Vec<Attachment>,
    /// What hears of answers being sent, while some nginx's are heard that way.
    pub(super) sent: Option<RawTracePointLinkId>,
    /// Programs at functions of nginx that the kernel refused.
    pub(super) refused: BTreeMap<&'static str, String>,
    btf_problem: Option<String>,
}

impl Kernel {
    /// Loads the programs and attaches those that belong to the kernel; nginx's come with [`Kernel::attach_nginx`].
    pub fn load(options: &LoadOptions) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        let types = if options.hide_btf { Err(None) } else { Btf::running_kernel().map_err(Some) };
        let btf_problem = types.as_ref().err().map(|error: &Option<BtfError>| {
            error.as_ref().map_or_else(|| "hidden on request".to_owned(), ToString::to_string)
        });
        let types = types.ok();
        let mut facts = Facts::of(types.as_ref());
        drop(types);
        facts.settings.own_tgid = std::process::id();
        facts.settings.only_trouble = match (options.depth, options.reach) {
            (Depth::Light, Depth::Light) => only_trouble::ALWAYS,
            (Depth::Light, _) => only_trouble::SWITCHED,
            _ => only_trouble::NEVER,
        };
        for (slot, status) in facts.settings.statuses.iter_mut().zip(&options.statuses) {
            *slot = u32::from(*status);
        }
        let aya_btf = if btf_problem.is_none() { aya::Btf::from_sys_fs().ok() } else { None };
        let ebpf = load_object(&facts, options.ring_bytes, aya_btf.as_ref())?;
        let mut kernel = Self {
            ebpf,
            facts,
            depth: options.depth,
            reach: options.reach.max(options.depth),
            only: options.only.clone(),
            added: Vec::new(),
            binaries: BTreeMap::new(),
            layouts: Vec::new(),
            attachments: Vec::new(),
            sent: None,
            refused: BTreeMap::new(),
            btf_problem,
        };
        kernel.load_functions();
        kernel.attach_hooks(aya_btf.as_ref());
        kernel.load_what_may_come(aya_btf.as_ref());
        kernel.switch()?;
        Ok(kernel)
    }

    /// Why this hook is not to be attached; `None` if it is.
    pub(super) fn unwanted(&self, hook: &Hook) -> Option<&'static str> {
        self.left_out(hook, self.depth)
    }

    /// The same at another depth.
    pub(super) fn left_out(&self, hook: &Hook, depth: Depth) -> Option<&'static str> {
        if hook.depth > depth {
            Some("not part of this depth")
        } else if self.only.as_ref().is_some_and(|only| only.iter().all(|name| name != hook.name)) {
            Some("left out by --hooks")
        } else {
            None
        }
    }

    /// What is attached to the kernel, what is not, and what that costs.
    #[must_use]
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// The ring of records. Can be taken once.
    pub fn take_ring(&mut self) -> Result<Ring, LoadError> {
        let map = self.ebpf.take_map(names::map::EVENTS).ok_or(LoadError::Map(names::map::EVENTS))?;
        let ring =
            RingBuf::try_from(map).map_err(|source| LoadError::MapAccess { name: names::map::EVENTS, source })?;
        Ok(Ring::new(ring))
    }

    /// Why the kernel's type information is not used; `None` if it is.
    #[must_use]
    pub fn btf_problem(&self) -> Option<&str> {
        self.btf_problem.as_deref()
    }

    /// Members of the kernel's structures that this kernel does not have; what depends on them is left out.
    #[must_use]
    pub fn missing_members(&self) -> &[&'static str] {
        &self.facts.missing
    }

    /// The kernel's name of a drop reason.
    #[must_use]
    pub fn drop_reason_name(&self, reason: u32) -> String {
        reason_name(&self.facts.drop_reasons, reason)
    }

    /// The kernel's name of a reset reason.
    #[must_use]
    pub fn reset_reason_name(&self, reason: u32) -> String {
        reason_name(&self.facts.reset_reasons, reason)
    }

    /// Every drop reason the kernel names.
    #[must_use]
    pub const fn drop_reasons(&self) -> &BTreeMap<u32, String> {
        &self.facts.drop_reasons
    }

    /// Every reset reason the kernel names.
    #[must_use]
    pub const fn reset_reasons(&self) -> &BTreeMap<u32, String> {
        &self.facts.reset_reasons
    }

    /// How much this kernel can tell.
    #[must_use]
    pub fn tier(&self) -> Tier {
        Tier::of(&self.facts)
    }

    /// The switches the programs were loaded with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.facts.settings
    }

    /// Jiffies in a second: the coarse clock ticks with them.
    #[must_use]
    pub fn hz() -> u32 {
        use nix::{sys::time::TimeValLike as _, time::ClockId, time::clock_getres};

        const NANOSECONDS: i64 = 1_000_000_000;
        let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |tick| tick.num_nanoseconds());
        if tick <= 0 { 250 } else { u32::try_from((NANOSECONDS + tick / 2) / tick).unwrap_or(250) }
    }

    /// How many instructions the verifier walked for each loaded program, by name.
    #[must_use]
    pub fn verified_instructions(&self) -> BTreeMap<String, u32> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?)))
            .collect()
    }

    /// nginx's programs are loaded at once: a map cannot be used by a program loaded after it was given away.
    fn load_functions(&mut self) {
        let wanted: Vec<&Hook> = FUNCTIONS.iter().filter(|hook| self.left_out(hook, self.reach).is_none()).collect();
        for hook in wanted {
            for alternative in hook.alternatives {
                let unmet = alternative.needs.unmet(&self.facts).map_or(Ok(()), Err);
                let mut loaded = unmet
                    .and_then(|()| program::<UProbe>(&mut self.ebpf, alternative.program))
                    .and_then(|program| program.load().map_err(|error| describe(&error)));
                if let (Ok(()), Way::Answers(sent)) = (&loaded, alternative.way) {
                    loaded = program::<RawTracePoint>(&mut self.ebpf, sent)
                        .and_then(|program| program.load().map_err(|error| describe(&error)));
                }
                if let Err(why) = loaded {
                    self.refused.insert(alternative.program, why);
                }
            }
        }
    }

    fn attach_hooks(&mut self, btf: Option<&aya::Btf>) {
        let unwanted: Vec<Attachment> =
            HOOKS.iter().filter_map(|hook| Some(hook.off(self.unwanted(hook)?.to_owned()))).collect();
        let wanted: Vec<&Hook> = HOOKS.iter().filter(|hook| self.unwanted(hook).is_none()).collect();
        let done = self.attach_these(&wanted, btf);
        self.attachments.extend(done);
        self.attachments.extend(unwanted);
    }

    /// Attaches these hooks of the kernel; how that went, in no order.
    pub(super) fn attach_these(&mut self, wanted: &[&'static Hook], btf: Option<&aya::Btf>) -> Vec<Attachment> {
        let Self { ebpf, facts, added, .. } = self;
        // Those of which a classic tracepoint will be tried.
        let classic = |hook: &&'static Hook| {
            let mut usable = hook.alternatives.iter().filter(|alternative| alternative.needs.unmet(facts).is_none());
            let one = usable.find(|alternative| !matches!(alternative.way, Way::Return(_)));
            one.is_some_and(|alternative| matches!(alternative.way, Way::Classic(..)))
        };
        let (calls, others): (Vec<&'static Hook>, Vec<&'static Hook>) = wanted.iter().copied().partition(classic);
        let mut attachments: Vec<Attachment> =
            others.iter().map(|hook| attach(ebpf, added, facts, btf, hook, None)).collect();
        if !calls.is_empty() {
            let mut all = |no_tracefs: Option<&str>| -> Vec<Attachment> {
                calls.iter().map(|hook| attach(ebpf, added, facts, btf, hook, no_tracefs)).collect()
            };
            match with_tracefs(|| all(None)) {
                Ok(done) => attachments.extend(done),
                Err(why) => attachments.extend(all(Some(&why))),
            }
        }
        attachments
    }
}

fn load_object(facts: &Facts, ring_bytes: u32, btf: Option<&aya::Btf>) -> Result<Ebpf, LoadError> {
    EbpfLoader::new()
        .btf(btf)
        .override_global(names::global::OFFSETS, &Pod(facts.offsets), true)
        .override_global(names::global::SETTINGS, &Pod(facts.settings), true)
        .override_global(names::global::RECORDS, &Pod(facts.records), true)
        .map_max_entries(names::map::EVENTS, ring_bytes)
        .verifier_log_level(VerifierLogLevel::STATS | VerifierLogLevel::DEBUG)
        .load(OBJECT)
        .map_err(|error| refusal(error, aya::sys::is_map_supported(MapType::RingBuf).ok()))
}

/// Why it was refused. Whether the kernel has a ring is asked by making one, which also fails for want of rights: then (`None`)
/// nothing is said about it.
fn refusal(error: EbpfError, has_ring: Option<bool>) -> LoadError {
    if has_ring == Some(false) { LoadError::NoRing } else { LoadError::Refused(Box::new(error)) }
}

/// A value that may be copied to and from the kernel byte by byte.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Pod<T>(pub(super) T);

// SAFETY: zerocopy proves that every byte of `T` may be read and that any bytes are a valid `T`.
unsafe impl<T: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable + Copy + 'static> aya::Pod for Pod<T> {}

fn attach(
    ebpf: &mut Ebpf,
    added: &mut Vec<Added>,
    facts: &Facts,
    btf: Option<&aya::Btf>,
    hook: &Hook,
    no_tracefs: Option<&str>,
) -> Attachment {
    let mut why = Vec::new();
    for alternative in hook.alternatives {
        let done = match (alternative.needs.unmet(facts), alternative.way, no_tracefs) {
            (Some(unmet), _, _) => Err(unmet),
            (None, Way::Classic(..), Some(why)) => Err(why.to_owned()),
            (None, way, _) => start(ebpf, added, btf, hook, alternative).and_then(|()| match way {
                Way::Return("accept" | "accept4") => everybody_is_heard(ebpf, added, facts),
                _ => Ok(()),
            }),
        };
        match done {
            Ok(()) if alternative.lacks.is_empty() => {
                return hook.on(alternative.program);
            }
            Ok(()) => {
                return Attachment {
                    name: hook.name,
                    state: State::Degraded,
                    program: alternative.program,
                    why: format!("{} stands in: {}", alternative.program, why.join("; ")),
                    lost: alternative.lacks,
                };
            }
            Err(reason) if why.contains(&reason) => {}
            Err(reason) => why.push(reason),
        }
    }
    hook.off(why.join("; "))
}

fn start(
    ebpf: &mut Ebpf,
    added: &mut Vec<Added>,
    btf: Option<&aya::Btf>,
    hook: &Hook,
    alternative: &Alternative,
) -> Result<(), String> {
    let name = alternative.program;
    let link = match alternative.way {
        Way::Typed(tracepoint) => {
            let btf = btf.ok_or("the kernel's types are not known")?;
            let program: &mut BtfTracePoint = program(ebpf, name)?;
            program.load(tracepoint, btf).map_err(|error| describe(&error))?;
            return program.attach().map(drop).map_err(|error| describe(&error));
        }
        Way::Raw(tracepoint) => {
            let program: &mut RawTracePoint = program(ebpf, name)?;
            // One program may stand in for several hooks.
            if added.iter().any(|other| other.program == name) {
                return Ok(());
            }
            loaded(program.load())?;
            AddedLink::Raw(program.attach(tracepoint).map_err(|error| describe(&error))?)
        }
        Way::Classic(category, tracepoint) => {
            let program: &mut TracePoint = program(ebpf, name)?;
            loaded(program.load())?;
            AddedLink::Classic(program.attach(category, tracepoint).map_err(|error| describe(&error))?)
        }
        Way::Return(call) => {
            let program: &mut FExit = program(ebpf, name)?;
            if let Some(btf) = btf {
                let function = function_of(call);
                loaded(program.load(&function, btf)).map_err(|why| unreadable_arguments(&function, why))?;
            }
            AddedLink::Return(program.attach().map_err(|error| match error {
                ProgramError::NotLoaded => NO_TYPES.to_owned(),
                error => describe(&error),
            })?)
        }
        // Attached to each nginx, not here.
        Way::Function(_) | Way::Answers(_) => return Ok(()),
    };
    added.push(Added { depth: hook.depth, program: name, link });
    Ok(())
}

/// A program that was loaded before is as good as one that is loaded now.
pub(super) fn loaded(result: Result<(), ProgramError>) -> Result<(), String> {
    match result {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other.map_err(|error| describe(&error)),
    }
}

/// A program of the object, as the type it is.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| format!("the kernel object has no program {name}"))?
        .try_into()
        .map_err(|error: ProgramError| describe(&error))
}

/// One line; the verifier's log is thousands.
pub(super) fn describe(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let line = log.lines().rev().find(|line| !line.trim().is_empty() && !is_statistics(line));
            line.map_or_else(
                || format!("the kernel refused the program: {io_error}"),
                |line| {
                    lacking_helper(line.trim()).unwrap_or_else(|| {
                        format!("the kernel's verifier refused the program ({io_error}): {}", line.trim())
                    })
                },
            )
        }
        ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
        other => other.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

/// What it means when the kernel knows no such function for programs, in words; `None` if the line says something else.
fn lacking_helper(line: &str) -> Option<String> {
    let foreign = ["invalid func ", "unknown func ", "program of this type cannot use helper "];
    let function = foreign.iter().find_map(|words| line.strip_prefix(words))?;
    // Every kernel with a ring has these, but not when it is locked down.
    // https://elixir.bootlin.com/linux/v6.12/source/kernel/trace/bpf_trace.c (`security_locked_down`)
    if function.starts_with("bpf_probe_read") {
        return Some("this kernel lets no program read its memory (lockdown=confidentiality)".to_owned());
    }
    Some(format!("this kernel has no function {function} for programs"))
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "insns processed ", "verification time ", "stack depth "]
        .iter()
        .any(|prefix| line.starts_with(prefix))
}

fn reason_name(names: &BTreeMap<u32, String>, reason: u32) -> String {
    if reason == NO_REASON {
        return "not given".to_owned();
    }
    names.get(&reason).cloned().unwrap_or_else(|| format!("reason {reason:#x}"))
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
