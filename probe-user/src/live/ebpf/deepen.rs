//! More and less to watch while the programs run.

use aya::{
    Ebpf,
    maps::Array,
    programs::{
        FExit, RawTracePoint, TracePoint, fexit::FExitLinkId, raw_trace_point::RawTracePointLinkId,
        trace_point::TracePointLinkId,
    },
};
use probe_abi::{globals::only_trouble, names};

use super::{
    attach::{Attachment, Depth, HOOKS, Hook, Way},
    load::{Kernel, LoadError, loaded, program},
    returns::function_of,
};

/// A hook of the kernel that is attached.
pub(super) struct Added {
    /// The depth it belongs to.
    pub(super) depth: Depth,
    /// Its program.
    pub(super) program: &'static str,
    /// Its link.
    pub(super) link: AddedLink,
}

/// By its kind.
pub(super) enum AddedLink {
    /// Of a raw tracepoint.
    Raw(RawTracePointLinkId),
    /// Of a classic one.
    Classic(TracePointLinkId),
    /// Of a function's return.
    Return(FExitLinkId),
}

impl Kernel {
    /// How much is watched.
    #[must_use]
    pub const fn depth(&self) -> Depth {
        self.depth
    }

    /// Watches more, or less, as far as [`super::LoadOptions::reach`] allows.
    pub fn set_depth(&mut self, depth: Depth) -> Result<(), LoadError> {
        if depth == self.depth {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.depth, depth);
        self.switch()?;
        let between: Vec<&'static Hook> =
            HOOKS.iter().filter(|hook| hook.depth > depth.min(before) && hook.depth <= depth.max(before)).collect();
        let changed = if depth > before { self.attach_deeper(&between) } else { self.detach_deeper(&between) };
        for now in changed {
            if let Some(attachment) = self.attachments.iter_mut().find(|attachment| attachment.name == now.name) {
                *attachment = now;
            }
        }
        self.renew_functions();
        Ok(())
    }

    /// What of connections is told at this depth, where it can change.
    pub(super) fn switch(&mut self) -> Result<(), LoadError> {
        if self.facts.settings.only_trouble != only_trouble::SWITCHED {
            return Ok(());
        }
        let now = u32::from(self.depth == Depth::Light);
        let name = names::map::ONLY_TROUBLE;
        let map = self.ebpf.map_mut(name).ok_or(LoadError::Map(name))?;
        Array::<_, u32>::try_from(map)
            .and_then(|mut switch| switch.set(0, now, 0))
            .map_err(|source| LoadError::MapAccess { name, source })
    }

    /// Loads what a greater depth would attach: a map cannot be used by a program loaded after it was given away. What the kernel refuses
    /// is told when it is to be attached.
    pub(super) fn load_what_may_come(&mut self, btf: Option<&aya::Btf>) {
        let later: Vec<&Hook> = HOOKS
            .iter()
            .filter(|hook| self.unwanted(hook).is_some() && self.left_out(hook, self.reach).is_none())
            .collect();
        for alternative in later.iter().flat_map(|hook| hook.alternatives) {
            let done = match alternative.way {
                Way::Raw(_) => program::<RawTracePoint>(&mut self.ebpf, alternative.program)
                    .and_then(|program| loaded(program.load())),
                Way::Classic(..) => program::<TracePoint>(&mut self.ebpf, alternative.program)
                    .and_then(|program| loaded(program.load())),
                Way::Return(call) => match btf {
                    Some(btf) => program::<FExit>(&mut self.ebpf, alternative.program)
                        .and_then(|program| loaded(program.load(&function_of(call), btf))),
                    None => Ok(()),
                },
                Way::Typed(_) | Way::Function(_) | Way::Answers(_) => Ok(()),
            };
            if let Err(why) = done {
                tracing::debug!("{} will not be there when it is wanted: {why}", alternative.program);
            }
        }
    }

    fn attach_deeper(&mut self, hooks: &[&'static Hook]) -> Vec<Attachment> {
        let wanted: Vec<&'static Hook> = hooks.iter().copied().filter(|hook| self.unwanted(hook).is_none()).collect();
        // What a depth adds are system calls, which need no types.
        self.attach_these(&wanted, None)
    }

    fn detach_deeper(&mut self, hooks: &[&'static Hook]) -> Vec<Attachment> {
        let depth = self.depth;
        let (kept, gone): (Vec<Added>, Vec<Added>) =
            std::mem::take(&mut self.added).into_iter().partition(|added| added.depth <= depth);
        self.added = kept;
        for added in gone {
            take_out(&mut self.ebpf, added);
        }
        hooks.iter().filter_map(|hook| Some(hook.off(self.unwanted(hook)?.to_owned()))).collect()
    }
}

/// Detaches a hook. A link that is already gone is what was wanted.
pub(super) fn take_out(ebpf: &mut Ebpf, added: Added) {
    let Added { program: name, link, .. } = added;
    match link {
        AddedLink::Raw(link) => drop(program::<RawTracePoint>(ebpf, name).map(|program| program.detach(link))),
        AddedLink::Return(link) => drop(program::<FExit>(ebpf, name).map(|program| program.detach(link))),
        AddedLink::Classic(link) => drop(program::<TracePoint>(ebpf, name).map(|program| program.detach(link))),
    }
}
