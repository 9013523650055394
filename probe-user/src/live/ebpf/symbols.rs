//! Where nginx's functions are in its file.

use std::{fs, io, path::PathBuf};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// `endbr64`, with which functions begin that were built for indirect branch tracking. The kernel single-steps it,
/// fourteen times as dear as the instruction after it, where the arguments are still in their registers.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Why a function cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no program.
    #[error("{path} is not an ELF program: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: object::Error,
    },
}

/// A program file.
pub struct Binary {
    data: Vec<u8>,
}

impl Binary {
    /// The program that a process runs, whatever its mount namespace, and also when the file has been replaced.
    pub fn of_process(pid: u32) -> Result<Self, SymbolError> {
        let path = executable(pid);
        let data = fs::read(&path).map_err(|source| SymbolError::Read { path: path.clone(), source })?;
        if let Err(source) = object::File::parse(&*data) {
            return Err(SymbolError::Parse { path, source });
        }
        Ok(Self { data })
    }

    /// Where the function's first instruction worth a breakpoint is in the file; `None` if the file does not name it.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u64> {
        let file = object::File::parse(&*self.data).ok()?;
        let symbol = file
            .dynamic_symbols()
            .chain(file.symbols())
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok(name))?;
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        let (start, _) = section.file_range()?;
        let offset = symbol.address().checked_sub(section.address())?.checked_add(start)?;
        let at = usize::try_from(offset).ok()?;
        let skip = if self.data.get(at..at + ENDBR64.len()) == Some(&ENDBR64) { ENDBR64.len() as u64 } else { 0 };
        Some(offset + skip)
    }
}

/// The program file of a process, reachable from here.
#[must_use]
pub fn executable(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}
