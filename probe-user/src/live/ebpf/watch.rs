//! Who is watched, and what was counted.

use std::{collections::BTreeSet, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    maps::{Array, HashMap, MapData, MapError, PerCpuArray},
    programs::{UProbe, uprobe::UProbeLinkId, uprobe::UProbeScope},
};
use probe_abi::{
    Endpoint,
    losses::{counter, reason},
    names,
    nginx::Layout,
    process::Watched,
};

use super::{
    attach::{Attachment, FUNCTIONS, Hook},
    load::{Kernel, LoadError, Pod, describe, program},
    symbols::{Binary, SymbolError, executable},
};

/// Records that could not be made since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The ring was full.
    pub ring_full: u64,
    /// A map of watched things was full.
    pub map_full: u64,
    /// Memory that should be readable was not.
    pub read_failed: u64,
}

/// Things counted and not recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Responses nginx began, any status, those to subrequests too; only at `standard`.
    pub responses: u64,
    /// Packets dropped for reasons that mean nothing.
    pub drops_noise: u64,
    /// Failed `accept()` calls that only repeat the one before.
    pub accepts_repeated: u64,
}

/// Why an nginx's functions cannot be attached to.
#[derive(Debug, thiserror::Error)]
pub enum NginxError {
    /// It is gone, or not ours to look at.
    #[error("cannot look at the program of process {pid}: {source}")]
    Process {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// Its program cannot be used.
    #[error(transparent)]
    Binary(#[from] SymbolError),
}

/// One executable whose functions are attached.
#[derive(Default)]
pub(super) struct AttachedBinary {
    masters: BTreeSet<u32>,
    links: Vec<(&'static str, UProbeLinkId)>,
    attachments: Vec<Attachment>,
}

impl Kernel {
    /// Watches a process; its children are watched from then on by themselves.
    pub fn watch_process(&mut self, tgid: u32, process: Watched) -> Result<(), LoadError> {
        self.processes()?.insert(tgid, Pod(process), 0).map_err(access(names::map::PROCESSES))
    }

    /// Forgets a process. One that is not watched is fine.
    pub fn unwatch_process(&mut self, tgid: u32) -> Result<(), LoadError> {
        match self.processes()?.remove(&tgid) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(access(names::map::PROCESSES)(error)),
        }
    }

    /// Every watched process, also those the kernel side found. A snapshot of a changing map, in order of tgid.
    pub fn watched(&mut self) -> Result<Vec<(u32, Watched)>, LoadError> {
        let mut all: Vec<(u32, Watched)> =
            self.processes()?.iter().filter_map(|entry| entry.ok().map(|(tgid, process)| (tgid, process.0))).collect();
        all.sort_unstable_by_key(|&(tgid, _)| tgid);
        all.dedup_by_key(|&mut (tgid, _)| tgid);
        Ok(all)
    }

    /// Watches the connections to and from an address.
    pub fn watch_upstream(&mut self, endpoint: Endpoint) -> Result<(), LoadError> {
        let mut upstreams: HashMap<&mut MapData, Pod<Endpoint>, u32> = self.map(names::map::UPSTREAMS)?;
        upstreams.insert(Pod(endpoint), 1, 0).map_err(access(names::map::UPSTREAMS))?;
        let (word, bit) = (u32::from(endpoint.port() >> 6), 1_u64 << (endpoint.port() & 63));
        let mut ports: Array<&mut MapData, u64> = self.map(names::map::PORTS)?;
        // The kernel side sets bits of its own meanwhile; whoever loses sets it again.
        loop {
            let now = ports.get(&word, 0).map_err(access(names::map::PORTS))?;
            if now & bit != 0 {
                return Ok(());
            }
            ports.set(word, now | bit, 0).map_err(access(names::map::PORTS))?;
        }
    }

    /// Every watched upstream address, also those the kernel side found, in order.
    pub fn upstreams(&mut self) -> Result<Vec<Endpoint>, LoadError> {
        let upstreams: HashMap<&mut MapData, Pod<Endpoint>, u32> = self.map(names::map::UPSTREAMS)?;
        let mut all: Vec<Endpoint> = upstreams.keys().filter_map(|key| key.ok().map(|key| key.0)).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Tells the kernel side where an nginx keeps what; gives the index for [`Watched::layout`]. Equal ones share it.
    pub fn add_layout(&mut self, layout: &Layout) -> Result<u32, LoadError> {
        let position = self.layouts.iter().position(|known| known == layout).unwrap_or(self.layouts.len());
        let index = u32::try_from(position).unwrap_or(u32::MAX);
        if position == self.layouts.len() {
            let mut layouts: Array<&mut MapData, Pod<Layout>> = self.map(names::map::LAYOUTS)?;
            layouts.set(index, Pod(*layout), 0).map_err(access(names::map::LAYOUTS))?;
            self.layouts.push(*layout);
        }
        Ok(index)
    }

    /// Attaches to the functions of the program that this process runs, once per program and for every process that runs it: a worker
    /// that has just been forked is heard from its first request on. Whose calls are told is decided by [`Kernel::watch_process`].
    pub fn attach_nginx(&mut self, master: u32) -> Result<Vec<Attachment>, NginxError> {
        let path = executable(master);
        let metadata = fs::metadata(&path).map_err(|source| NginxError::Process { pid: master, source })?;
        let key = (metadata.dev(), metadata.ino());
        if let Some(known) = self.binaries.get_mut(&key) {
            known.masters.insert(master);
            return Ok(known.attachments.clone());
        }
        let binary = Binary::of_process(master)?;
        let mut known = AttachedBinary::default();
        known.masters.insert(master);
        for hook in FUNCTIONS {
            let attachment = self.attach_function(hook, &binary, &path, &mut known.links);
            known.attachments.push(attachment);
        }
        let attachments = known.attachments.clone();
        self.binaries.insert(key, known);
        Ok(attachments)
    }

    /// How the functions of the program of this nginx are attached.
    #[must_use]
    pub fn functions_of(&self, master: u32) -> Option<&[Attachment]> {
        let known = self.binaries.values().find(|binary| binary.masters.contains(&master))?;
        Some(&known.attachments)
    }

    /// Attaches the functions that the depth wants by now, and lets go of those that it does not want any more.
    pub(super) fn renew_functions(&mut self) {
        let mut binaries = std::mem::take(&mut self.binaries);
        for known in binaries.values_mut() {
            let unwanted = |name: &str| FUNCTIONS.iter().any(|hook| hook.name == name && self.unwanted(hook).is_some());
            let (gone, kept) = std::mem::take(&mut known.links).into_iter().partition(|(name, _)| unwanted(name));
            known.links = kept;
            self.detach(gone);
            let mut changed: Vec<Attachment> =
                FUNCTIONS.iter().filter_map(|hook| Some(hook.off(self.unwanted(hook)?.to_owned()))).collect();
            let is_linked = |hook: &&Hook| known.links.iter().any(|(name, _)| *name == hook.name);
            let missing: Vec<&Hook> =
                FUNCTIONS.iter().filter(|hook| self.unwanted(hook).is_none() && !is_linked(hook)).collect();
            // One that is ending has no program to look at.
            let living = |master: &u32| Binary::of_process(*master).ok().map(|binary| (binary, executable(*master)));
            if !missing.is_empty()
                && let Some((binary, path)) = known.masters.iter().find_map(living)
            {
                let attach = |hook: &Hook| self.attach_function(hook, &binary, &path, &mut known.links);
                changed.extend(missing.into_iter().map(attach));
            }
            for now in changed {
                if let Some(attachment) = known.attachments.iter_mut().find(|known| known.name == now.name) {
                    *attachment = now;
                }
            }
        }
        self.binaries = binaries;
    }

    fn attach_function(
        &mut self,
        hook: &Hook,
        binary: &Binary,
        path: &Path,
        links: &mut Vec<(&'static str, UProbeLinkId)>,
    ) -> Attachment {
        match self.try_function(hook, binary, path) {
            Ok(link) => {
                links.push((hook.name, link));
                hook.on(hook.name)
            }
            Err(why) => hook.off(why),
        }
    }

    fn try_function(&mut self, hook: &Hook, binary: &Binary, path: &Path) -> Result<UProbeLinkId, String> {
        if let Some(why) = self.unwanted(hook) {
            return Err(why.to_owned());
        }
        if let Some(why) = self.refused.get(hook.name) {
            return Err(why.clone());
        }
        let Some(place) = binary.function(hook.name) else {
            return Err("this nginx does not export it (stripped of its dynamic symbols?)".to_owned());
        };
        let program: &mut UProbe = program(&mut self.ebpf, hook.name)?;
        program.attach(place, path, UProbeScope::AllProcesses).map_err(|error| describe(&error))
    }

    /// Takes the hooks out of the program of an nginx that ended, unless another one runs it.
    pub fn detach_nginx(&mut self, master: u32) {
        let ended = |binary: &mut AttachedBinary| {
            binary.masters.remove(&master);
            binary.masters.is_empty()
        };
        let gone: Vec<(u64, u64)> =
            self.binaries.iter_mut().filter_map(|(key, binary)| ended(binary).then_some(*key)).collect();
        for key in gone {
            let Some(binary) = self.binaries.remove(&key) else { continue };
            self.detach(binary.links);
        }
    }

    fn detach(&mut self, links: Vec<(&'static str, UProbeLinkId)>) {
        for (name, link) in links {
            // A link that is already gone is what was wanted.
            if let Ok(program) = program::<UProbe>(&mut self.ebpf, name) {
                drop(program.detach(link));
            }
        }
    }

    /// What could not be recorded since the start.
    pub fn losses(&mut self) -> Result<Losses, LoadError> {
        Ok(Losses {
            ring_full: self.sum(names::map::LOSSES, reason::RING_FULL)?,
            map_full: self.sum(names::map::LOSSES, reason::MAP_FULL)?,
            read_failed: self.sum(names::map::LOSSES, reason::READ_FAILED)?,
        })
    }

    /// What was counted since the start.
    pub fn counters(&mut self) -> Result<Counters, LoadError> {
        Ok(Counters {
            responses: self.sum(names::map::COUNTERS, counter::RESPONSES)?,
            drops_noise: self.sum(names::map::COUNTERS, counter::DROPS_NOISE)?,
            accepts_repeated: self.sum(names::map::COUNTERS, counter::ACCEPTS_REPEATED)?,
        })
    }

    fn sum(&mut self, name: &'static str, slot: u32) -> Result<u64, LoadError> {
        let counts: PerCpuArray<&mut MapData, u64> = self.map(name)?;
        Ok(counts.get(&slot, 0).map_err(access(name))?.iter().sum())
    }

    fn processes(&mut self) -> Result<HashMap<&mut MapData, u32, Pod<Watched>>, LoadError> {
        self.map(names::map::PROCESSES)
    }

    fn map<'a, M>(&'a mut self, name: &'static str) -> Result<M, LoadError>
    where
        M: TryFrom<&'a mut aya::maps::Map, Error = MapError>,
    {
        self.ebpf.map_mut(name).ok_or(LoadError::Map(name))?.try_into().map_err(access(name))
    }
}

fn access(name: &'static str) -> impl Fn(MapError) -> LoadError {
    move |source| LoadError::MapAccess { name, source }
}
