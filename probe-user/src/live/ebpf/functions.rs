//! nginx's own functions: attached to each program that some nginx runs, as far as the depth and its configuration ask for them.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use aya::programs::{
    RawTracePoint, UProbe,
    uprobe::{UProbeLinkId, UProbeScope},
};

use super::{
    attach::{Alternative, Attachment, Depth, FUNCTIONS, Hook, State, Way},
    load::{Kernel, describe, program},
    symbols::{Binary, SymbolError, executable},
};

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

/// Which answers of an nginx have to be looked at for its failures to be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Those of requests of which something bad was heard: every failure says something of itself before.
    Troubled,
    /// All of them; why.
    Every(String),
}

/// One executable whose functions are attached.
#[derive(Default)]
pub(super) struct AttachedBinary {
    /// The masters that run it, and which answers of each have to be looked at.
    masters: BTreeMap<u32, Answers>,
    /// By program.
    links: Vec<(&'static str, UProbeLinkId)>,
    attachments: Vec<Attachment>,
    /// Programs that this binary has no place for, or the kernel.
    impossible: Vec<&'static str>,
}

impl AttachedBinary {
    /// A breakpoint in a program is there for all who run it.
    fn every_answer(&self) -> Option<&str> {
        self.masters.values().find_map(|answers| match answers {
            Answers::Troubled => None,
            Answers::Every(why) => Some(why.as_str()),
        })
    }

    /// Whether this program is what its hook needs, as far as that depends on who runs the binary and what else is attached to it: what is
    /// not told of a failure before its answer is sent, nobody waits for.
    fn fits(&self, alternative: &Alternative) -> bool {
        let tells = |hook: &Hook| {
            let now = self.attachments.iter().find(|attachment| attachment.name == hook.name);
            now.is_some_and(|attachment| attachment.state == State::On)
        };
        let of_trouble = |hook: &&Hook| hook.depth == Depth::Light;
        !self.impossible.contains(&alternative.program)
            && (!matches!(alternative.way, Way::Answers(_))
                || (self.every_answer().is_none() && FUNCTIONS.iter().filter(of_trouble).all(tells)))
    }

    /// The best program for a hook.
    fn best(&self, hook: &'static Hook) -> Option<&'static Alternative> {
        hook.alternatives.iter().find(|alternative| self.fits(alternative))
    }
}

impl Kernel {
    /// Which answers have to be looked at, where an nginx may fail without a word before for that reason.
    #[must_use]
    pub fn answers_of(&self, unannounced: Option<&str>) -> Answers {
        // An answer of 4xx with a text of its own is nothing bad for nginx, and is announced by nothing.
        let unusual = self.settings().statuses.iter().find(|status| (1..500).contains(*status));
        match (unusual, unannounced) {
            (Some(status), _) => Answers::Every(format!("--status {status}")),
            (None, Some(why)) => Answers::Every(why.to_owned()),
            (None, None) => Answers::Troubled,
        }
    }

    /// Attaches to the functions of the program that this process runs, once per program and for every process that runs it: a worker
    /// that has just been forked is heard from its first request on. Whose calls are told is decided by [`Kernel::watch_process`].
    ///
    /// To be called again when an nginx wants other answers looked at.
    ///
    /// # Errors
    /// The process is gone, or its program cannot be read.
    pub fn attach_nginx(&mut self, master: u32, answers: Answers) -> Result<Vec<Attachment>, NginxError> {
        let path = executable(master);
        let metadata = fs::metadata(&path).map_err(|source| NginxError::Process { pid: master, source })?;
        let key = (metadata.dev(), metadata.ino());
        let mut known = self.binaries.remove(&key).unwrap_or_default();
        known.masters.insert(master, answers);
        let done = if known.attachments.is_empty() {
            Binary::of_process(master).map(|binary| {
                for hook in FUNCTIONS {
                    let attachment = self.attach_function(hook, &binary, &path, &mut known);
                    known.attachments.push(attachment);
                }
            })
        } else {
            self.renew(&mut known);
            Ok(())
        };
        let attachments = known.attachments.clone();
        if done.is_ok() {
            self.binaries.insert(key, known);
            self.rest_of_sent();
        }
        done?;
        Ok(attachments)
    }

    /// How the functions of the program of this nginx are attached.
    #[must_use]
    pub fn functions_of(&self, master: u32) -> Option<&[Attachment]> {
        Some(&self.binary_of(master)?.attachments)
    }

    /// Why every answer of this nginx is looked at; `None` if they are not.
    #[must_use]
    pub fn every_answer_of(&self, master: u32) -> Option<&str> {
        self.binary_of(master)?.every_answer()
    }

    fn binary_of(&self, master: u32) -> Option<&AttachedBinary> {
        self.binaries.values().find(|binary| binary.masters.contains_key(&master))
    }

    /// Attaches the functions that the depth wants by now, and lets go of those that it does not want any more.
    pub(super) fn renew_functions(&mut self) {
        let mut binaries = std::mem::take(&mut self.binaries);
        for known in binaries.values_mut() {
            self.renew(known);
        }
        self.binaries = binaries;
        self.rest_of_sent();
    }

    fn renew(&mut self, known: &mut AttachedBinary) {
        let links = std::mem::take(&mut known.links);
        let fits = |name: &str| {
            let best = |hook: &'static Hook| known.best(hook).is_some_and(|best| best.program == name);
            FUNCTIONS.iter().any(|hook| best(hook) && self.unwanted(hook).is_none())
        };
        let (kept, gone) = links.into_iter().partition(|(name, _)| fits(name));
        known.links = kept;
        let mut changed: Vec<Attachment> =
            FUNCTIONS.iter().filter_map(|hook| Some(hook.off(self.unwanted(hook)?.to_owned()))).collect();
        let is_linked = |hook: &&Hook| {
            hook.alternatives.iter().any(|one| known.links.iter().any(|(program, _)| *program == one.program))
        };
        let missing: Vec<&'static Hook> =
            FUNCTIONS.iter().filter(|hook| self.unwanted(hook).is_none() && !is_linked(hook)).collect();
        // One that is ending has no program to look at.
        let living = |master: &u32| Binary::of_process(*master).ok().map(|binary| (binary, executable(*master)));
        if !missing.is_empty()
            && let Some((binary, path)) = known.masters.keys().find_map(living)
        {
            changed.extend(missing.into_iter().map(|hook| self.attach_function(hook, &binary, &path, known)));
        }
        // After the new ones: an answer that both hear is told once.
        self.detach(gone);
        for now in changed {
            if let Some(attachment) = known.attachments.iter_mut().find(|known| known.name == now.name) {
                *attachment = now;
            }
        }
    }

    fn attach_function(
        &mut self,
        hook: &'static Hook,
        binary: &Binary,
        path: &Path,
        known: &mut AttachedBinary,
    ) -> Attachment {
        if let Some(why) = self.unwanted(hook) {
            return hook.off(why.to_owned());
        }
        let mut last = String::new();
        while let Some(alternative) = known.best(hook) {
            match self.try_function(alternative, binary, path) {
                Ok(link) => {
                    known.links.push((alternative.program, link));
                    return hook.on(alternative.program);
                }
                Err(why) => {
                    tracing::debug!("{} of {}: {why}", alternative.program, path.display());
                    known.impossible.push(alternative.program);
                    last = why;
                }
            }
        }
        hook.off(last)
    }

    fn try_function(
        &mut self,
        alternative: &Alternative,
        binary: &Binary,
        path: &Path,
    ) -> Result<UProbeLinkId, String> {
        if let Some(why) = self.refused.get(alternative.program) {
            return Err(why.clone());
        }
        let place = if let Way::Answers(sent) = alternative.way {
            let place =
                binary.next_server().ok_or("where nginx looks at what servers answer is not found in its code")?;
            self.hear_of_sent(sent)?;
            place
        } else {
            let none = "this nginx does not export it (stripped of its dynamic symbols?)";
            binary.function(alternative.program).ok_or(none)?
        };
        let program: &mut UProbe = program(&mut self.ebpf, alternative.program)?;
        program.attach(place, path, UProbeScope::AllProcesses).map_err(|error| describe(&error))
    }

    fn hear_of_sent(&mut self, name: &str) -> Result<(), String> {
        if self.sent.is_none() {
            let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
            self.sent = Some(program.attach(name).map_err(|error| describe(&error))?);
        }
        Ok(())
    }

    /// Nobody is to pay for what no nginx needs any more.
    fn rest_of_sent(&mut self) {
        let ways = FUNCTIONS.iter().flat_map(|hook| hook.alternatives);
        for alternative in ways {
            let Way::Answers(sent) = alternative.way else { continue };
            let mut links = self.binaries.values().flat_map(|binary| &binary.links);
            if links.any(|(name, _)| *name == alternative.program) {
                continue;
            }
            if let Some(link) = self.sent.take()
                && let Ok(program) = program::<RawTracePoint>(&mut self.ebpf, sent)
            {
                // One that is gone is what was wanted.
                drop(program.detach(link));
            }
        }
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
        self.rest_of_sent();
    }

    fn detach(&mut self, links: Vec<(&'static str, UProbeLinkId)>) {
        for (name, link) in links {
            // A link that is already gone is what was wanted.
            if let Ok(program) = program::<UProbe>(&mut self.ebpf, name) {
                drop(program.detach(link));
            }
        }
    }
}
