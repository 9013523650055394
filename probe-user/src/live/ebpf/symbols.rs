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

    /// Where nginx looks, for an answer of an upstream that is none of 2xx, whether to ask the next server: the loop over its table of the
    /// statuses that `proxy_next_upstream` knows, in a function without a name. `None` where that cannot be told for sure.
    #[must_use]
    pub fn next_server(&self) -> Option<u64> {
        let file = object::File::parse(&*self.data).ok()?;
        let mut tables = file.sections().filter_map(|section| {
            let at = next_errors(section.data().ok()?)?;
            Some(section.address() + at)
        });
        let (table, None) = (tables.next()?, tables.next()) else { return None };
        let text = file.section_by_name(".text")?;
        let (start, _) = text.file_range()?;
        let at = loop_over(text.data().ok()?, text.address(), table)?;
        Some(start + at)
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

/// Where these bytes hold `ngx_http_upstream_next_errors`: pairs of a status and a bit, since 1.13.
/// <https://github.com/nginx/nginx/blob/release-1.22.1/src/http/ngx_http_upstream.c>
fn next_errors(data: &[u8]) -> Option<u64> {
    const STATUSES: [u64; 8] = [500, 502, 503, 504, 403, 404, 429, 0];
    let word = |at: usize| Some(u64::from_ne_bytes(*data.get(at..)?.first_chunk()?));
    let is_table =
        |at: &usize| (0..).step_by(16).zip(STATUSES).all(|(offset, status)| word(at + offset) == Some(status));
    let first = 500_u64.to_ne_bytes();
    let mut found = memchr::memmem::find_iter(data, &first).filter(is_table);
    let (table, None) = (found.next()?, found.next()) else { return None };
    u64::try_from(table).ok()
}

/// Where the one loop over this table is in the code: behind the instruction that takes its address, at the first jump.
#[cfg(target_arch = "x86_64")]
fn loop_over(code: &[u8], address: u64, table: u64) -> Option<u64> {
    /// Code of one loop lies together.
    const TOGETHER: usize = 64;
    // lea and mov of a 64-bit register, relative to the next instruction, which is four bytes on.
    let refers = |end: usize| {
        let &[rex, opcode, operands, first, second, third, fourth] = code.get(end.checked_sub(7)?..)?.first_chunk()?;
        let distance = i32::from_le_bytes([first, second, third, fourth]);
        let target = address.wrapping_add(u64::try_from(end).ok()?).wrapping_add_signed(i64::from(distance));
        let fits = rex & 0b1111_1011 == 0x48 && matches!(opcode, 0x8d | 0x8b) && operands & 0b1100_0111 == 5;
        (fits && target == table).then_some((end, opcode))
    };
    let references: Vec<(usize, u8)> = (7..code.len()).filter_map(refers).collect();
    let (first, last) = (references.first()?.0, references.last()?.0);
    let &(after, _) = references.iter().rfind(|(_, opcode)| *opcode == 0x8d)?;
    if last - first > TOGETHER {
        return None;
    }
    let at = match code.get(after..)? {
        // test of a register with itself, then jcc: the kernel emulates that.
        [0x48 | 0x4d, 0x85, operands, 0x70..=0x7f, ..] if operands >> 6 == 3 => after + 3,
        [0x48 | 0x4d, 0x85, operands, 0x0f, 0x80..=0x8f, ..] if operands >> 6 == 3 => after + 3,
        // Dearer, and for answers of 300 and more only.
        _ => after,
    };
    u64::try_from(at).ok()
}

#[cfg(not(target_arch = "x86_64"))]
fn loop_over(_code: &[u8], _address: u64, _table: u64) -> Option<u64> {
    None
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

    /// A table as a compiler lays it out, with other data around it.
    fn data() -> Vec<u8> {
        let words = [7, 500, 2, 502, 4, 503, 8, 504, 16, 403, 32, 404, 64, 429, 128, 0, 0, 500];
        words.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_table_of_statuses_is_found_where_there_is_one() {
        let one = data();
        assert_eq!(next_errors(&one), Some(8));
        assert_eq!(next_errors(&one[..one.len() - 24]), None, "cut off before its end");
        assert_eq!(next_errors(&[one.as_slice(), one.as_slice()].concat()), None, "which of the two is not known");
        assert_eq!(next_errors(&[]), None);
    }

    /// As in Debian 12's nginx: mov table(%rip),%rax; mov 0x158(%rbx),%rsi; lea table(%rip),%rdx; test %rax,%rax; je.
    fn code(first: i32, second: i32) -> Vec<u8> {
        let mut code = vec![0x90; 16];
        code.extend([0x48, 0x8b, 0x05]);
        code.extend(first.to_le_bytes());
        code.extend([0x48, 0x8b, 0xb3, 0x58, 0x01, 0, 0, 0x48, 0x8d, 0x15]);
        code.extend(second.to_le_bytes());
        code.extend([0x48, 0x85, 0xc0, 0x74, 0x16, 0x90]);
        code
    }

    #[test]
    fn the_loop_is_where_the_table_is_named() {
        // The instructions that name it end at 23 and 37.
        let of = |first, second| loop_over(&code(first, second), 0x1000, 0x9000);
        assert_eq!(of(0x9000 - 0x1017, 0x9000 - 0x1025), Some(40), "at the jump behind the test");
        assert_eq!(of(0, 0x9000 - 0x1025), Some(40), "the first may name something else");
        assert_eq!(of(0x9000 - 0x1017, 0), None, "a value that is loaded is no loop");
        let mut far = code(0, 0x9000 - 0x1025);
        far.resize(200, 0x90);
        far.extend(code(0, 0x9000 - 0x1025 - 200));
        assert_eq!(loop_over(&far, 0x1000, 0x9000), None, "two loops");
        let mut other = code(0, 0x9000 - 0x1025);
        other[37] = 0x49;
        assert_eq!(loop_over(&other, 0x1000, 0x9000), Some(37), "dearer, and right");
        assert_eq!(loop_over(&[], 0x1000, 0x9000), None);
    }
}
