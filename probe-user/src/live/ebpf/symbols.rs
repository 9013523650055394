//! Where nginx's functions are in its file.

use std::{fs, io, path::PathBuf};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

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

    /// The function's first bytes, at most `length` of them.
    #[must_use]
    pub fn code(&self, name: &str, length: usize) -> Option<&[u8]> {
        let at = usize::try_from(self.place(name)?).ok()?;
        let rest = self.data.get(at..)?;
        Some(rest.get(..length).unwrap_or(rest))
    }

    /// Where the function's first instruction worth a breakpoint is in the file; `None` if the file does not name it.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u64> {
        let offset = self.place(name)?;
        let code = usize::try_from(offset).ok().and_then(|at| self.data.get(at..)).unwrap_or_default();
        Some(offset + u64::from(breakpoint(code)))
    }

    /// Where the function begins in the file.
    fn place(&self, name: &str) -> Option<u64> {
        let file = object::File::parse(&*self.data).ok()?;
        let symbol = file
            .dynamic_symbols()
            .chain(file.symbols())
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok(name))?;
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        let (start, _) = section.file_range()?;
        symbol.address().checked_sub(section.address())?.checked_add(start)
    }
}

/// How many bytes into a function the breakpoint is cheapest, with every argument still in its register.
///
/// The kernel emulates pushes, jumps, calls and no-ops; any other instruction it copies aside and single-steps, a
/// second trap and fourteen times the price. So instructions that only look at memory or move the stack pointer are
/// passed over, if one that is emulated follows; control cannot get past them another way.
/// <https://elixir.bootlin.com/linux/v6.12/source/arch/x86/kernel/uprobes.c> (`branch_setup_xol_ops`, `push_setup_xol_ops`)
#[cfg(target_arch = "x86_64")]
fn breakpoint(code: &[u8]) -> u8 {
    const LOOKED_AT: usize = 4;
    let mut at = 0;
    // Built for indirect branch tracking; never worth a breakpoint.
    if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) {
        at = 4;
    }
    let start = at;
    for _ in 0..LOOKED_AT {
        let rest = code.get(usize::from(at)..).unwrap_or_default();
        let length = match rest {
            // push; nop; jcc, jmp and call, short and long.
            [0x50..=0x57 | 0x90 | 0x70..=0x7f | 0xeb | 0xe9 | 0xe8, ..]
            | [0x41, 0x50..=0x57, ..]
            | [0x0f, 0x80..=0x8f, ..] => return at,
            // cmpb and testb of a byte at 8 or 32 bits from %rdi with a constant; loads from there into %rax or %eax;
            // test %rax, %rax; sub of a constant from %rsp.
            [0x80, 0x7f, ..] | [0xf6, 0x47, ..] | [0x48, 0x8b, 0x47, ..] | [0x48, 0x83, 0xec, ..] => 4,
            [0x80, 0xbf, ..] | [0xf6, 0x87, ..] | [0x48, 0x8b, 0x87, ..] | [0x48, 0x81, 0xec, ..] => 7,
            [0x48, 0x85, 0xc0, ..] | [0x8b, 0x47, ..] => 3,
            [0x8b, 0x87, ..] => 6,
            _ => return start,
        };
        at += length;
    }
    start
}

#[cfg(not(target_arch = "x86_64"))]
fn breakpoint(_code: &[u8]) -> u8 {
    0
}

/// The program file of a process, reachable from here.
#[must_use]
pub fn executable(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_are_put_where_they_are_cheap() {
        // push %r14
        assert_eq!(breakpoint(&[0x41, 0x56, 0x41, 0x55]), 0);
        // endbr64; push %rbx
        assert_eq!(breakpoint(&[0xf3, 0x0f, 0x1e, 0xfa, 0x53]), 4);
        // cmpb $0x0,0x51a(%rdi); js: ngx_http_send_header of Debian 12.
        assert_eq!(breakpoint(&[0x80, 0xbf, 0x1a, 0x05, 0, 0, 0, 0x78, 0x37]), 7);
        // The same behind an endbr64.
        assert_eq!(breakpoint(&[0xf3, 0x0f, 0x1e, 0xfa, 0x80, 0xbf, 0x1a, 0x05, 0, 0, 0, 0x78, 0x37]), 11);
        // sub $8,%rsp; call
        assert_eq!(breakpoint(&[0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0]), 4);
        // mov %rsi,%rdi changes an argument, so the search ends where it began.
        assert_eq!(breakpoint(&[0x48, 0x83, 0xec, 0x08, 0x48, 0x89, 0xf7, 0x53]), 0);
        assert_eq!(breakpoint(&[]), 0);
    }
}
