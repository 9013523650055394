//! Who is watched, and what was counted.

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use probe_abi::{
    Endpoint,
    losses::{counter, reason},
    names,
    nginx::Layout,
    process::Watched,
};

use super::load::{Kernel, LoadError, Pod};

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
    /// Packets dropped for reasons that mean nothing.
    pub drops_noise: u64,
    /// Failed `accept()` calls that only repeat the one before.
    pub accepts_repeated: u64,
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
