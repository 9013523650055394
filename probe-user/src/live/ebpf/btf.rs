//! A reader for the kernel's type information.
//!
//! `aya::Btf` keeps structure members to itself, and Rust has no CO-RE, so offsets are looked up here. The format:
//! <https://docs.kernel.org/bpf/btf.html>. Little-endian hosts only, as the programs are.

use std::{io, path::Path};

use memchr::memmem;

/// Where the running kernel shows its types.
pub const RUNNING_KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// Why a question to the type information has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("cannot read {RUNNING_KERNEL}: {0}")]
    Read(#[source] io::Error),
    /// It is not BTF, or is cut.
    #[error("the kernel's type information is malformed at byte {0}")]
    Malformed(usize),
    /// No such structure or enum.
    #[error("this kernel has no type {0}")]
    NoType(String),
    /// No such member.
    #[error("this kernel's {structure} has no member {member}")]
    NoMember {
        /// The structure asked.
        structure: String,
        /// The member sought.
        member: String,
    },
    /// A bitfield, which has no offset in bytes.
    #[error("{structure}.{member} is a bitfield in this kernel")]
    Bitfield {
        /// The structure asked.
        structure: String,
        /// The member sought.
        member: String,
    },
}

/// Kinds of types, as the format numbers them.
mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const POINTER: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const PROTOTYPE: u8 = 13;
    pub(super) const VARIABLE: u8 = 14;
    pub(super) const SECTION: u8 = 15;
    pub(super) const DECLARATION_TAG: u8 = 17;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM_64: u8 = 19;
}

/// Typedefs of typedefs of modifiers end somewhere; a loop would be a broken file.
const MAX_DEPTH: usize = 32;

/// Bytes of the header's fields that are used, and of a type's fixed part.
const HEADER: usize = 24;
const FIXED: usize = 12;

/// A parsed type: where it is, and the fixed part of it.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    info: u32,
    /// Size in bytes, or the type it refers to.
    size_or_type: u32,
    /// Where what follows the fixed part begins.
    rest: usize,
}

impl Type {
    const fn kind(&self) -> u8 {
        (self.info >> 24 & 0x1f) as u8
    }

    const fn count(&self) -> usize {
        (self.info & 0xffff) as usize
    }

    const fn has_bitfields(&self) -> bool {
        self.info >> 31 != 0
    }
}

/// A member found in a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the structure's beginning.
    pub offset: u32,
    /// Bytes; 0 where the type has no size of its own.
    pub size: u32,
    kind: u32,
}

/// All types of a kernel.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    types: Vec<Type>,
    strings: std::ops::Range<usize>,
}

impl Btf {
    /// Reads the running kernel's.
    pub fn running_kernel() -> Result<Self, BtfError> {
        Self::parse(std::fs::read(Path::new(RUNNING_KERNEL)).map_err(BtfError::Read)?)
    }

    /// Parses the bytes of a `.BTF` section.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        if data.get(..2) != Some(&0xeb9f_u16.to_le_bytes()) {
            return Err(BtfError::Malformed(0));
        }
        let header = size(word(&data, 4)?);
        let types = range(&data, header, word(&data, 8)?, word(&data, 12)?)?;
        let strings = range(&data, header, word(&data, 16)?, word(&data, 20)?)?;
        if header < HEADER {
            return Err(BtfError::Malformed(4));
        }
        // Number 0 is void.
        let mut all = vec![Type { name: 0, info: 0, size_or_type: 0, rest: 0 }];
        let mut at = types.start;
        while at < types.end {
            let one = Type {
                name: word(&data, at)?,
                info: word(&data, at + 4)?,
                size_or_type: word(&data, at + 8)?,
                rest: at + FIXED,
            };
            let rest = match one.kind() {
                kind::INT | kind::VARIABLE | kind::DECLARATION_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::SECTION | kind::ENUM_64 => 12 * one.count(),
                kind::ENUM | kind::PROTOTYPE => 8 * one.count(),
                _ => 0,
            };
            all.push(one);
            at += FIXED + rest;
        }
        if at != types.end {
            return Err(BtfError::Malformed(at));
        }
        Ok(Self { data, types: all, strings })
    }

    /// How many types there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there are none (but void).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.types.len() <= 1
    }

    /// Where `path` (`structure.member.member…`) lies. Members of anonymous members count as the structure's own.
    pub fn member(&self, path: &str) -> Result<Member, BtfError> {
        let (structure, members) = path.split_once('.').ok_or_else(|| BtfError::NoType(path.to_owned()))?;
        let mut here = self.structure(structure)?;
        let mut offset = 0;
        let mut last = None;
        for name in members.split('.') {
            let found = self
                .find(here, name, 0)
                .ok_or_else(|| BtfError::NoMember { structure: structure.to_owned(), member: members.to_owned() })?;
            let (bits, kind) = found
                .ok_or_else(|| BtfError::Bitfield { structure: structure.to_owned(), member: members.to_owned() })?;
            offset += bits / 8;
            let resolved = self.resolve(kind);
            last = Some(Member { offset, size: self.size_of(resolved), kind: resolved });
            here = resolved;
        }
        last.ok_or_else(|| BtfError::NoType(path.to_owned()))
    }

    /// Names and values of an enum, in its order.
    pub fn enumeration(&self, name: &str) -> Result<Vec<(String, i64)>, BtfError> {
        let found = self
            .named(name)
            .find(|(_, one)| matches!(one.kind(), kind::ENUM | kind::ENUM_64))
            .ok_or_else(|| BtfError::NoType(name.to_owned()))?
            .1;
        let stride = if found.kind() == kind::ENUM_64 { 12 } else { 8 };
        (0..found.count())
            .map(|index| {
                let at = found.rest + stride * index;
                let low = word(&self.data, at + 4)?;
                let value = if stride == 12 {
                    (u64::from(word(&self.data, at + 8)?) << 32 | u64::from(low)).cast_signed()
                } else {
                    i64::from(low.cast_signed())
                };
                Ok((self.string(word(&self.data, at)?)?.to_owned(), value))
            })
            .collect()
    }

    /// How many arguments a tracepoint has; `None` if the kernel has no such tracepoint.
    #[must_use]
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        // The first parameter is for the kernel's own use.
        self.prototype(name)?.count().checked_sub(1)
    }

    /// Whether the tracepoint's argument (from 0) is a pointer.
    #[must_use]
    pub fn tracepoint_argument_is_pointer(&self, name: &str, argument: usize) -> Option<bool> {
        let prototype = self.prototype(name)?;
        let index = argument + 1;
        if index >= prototype.count() {
            return None;
        }
        let parameter = word(&self.data, prototype.rest + 8 * index + 4).ok()?;
        Some(self.types.get(size(self.resolve(parameter)))?.kind() == kind::POINTER)
    }

    fn prototype(&self, tracepoint: &str) -> Option<&Type> {
        let name = format!("btf_trace_{tracepoint}");
        let (_, typedef) = self.named(&name).find(|(_, one)| one.kind() == kind::TYPEDEF)?;
        let pointer = self.types.get(size(self.resolve(typedef.size_or_type)))?;
        let prototype = self.types.get(size(self.resolve(pointer.size_or_type)))?;
        (pointer.kind() == kind::POINTER && prototype.kind() == kind::PROTOTYPE).then_some(prototype)
    }

    /// Types of this name. The kernel's strings are unique, so the name is searched once and compared as a number.
    fn named(&self, name: &str) -> impl Iterator<Item = (u32, &Type)> {
        let strings = self.data.get(self.strings.clone()).unwrap_or_default();
        let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
        let offset = memmem::find(strings, &wanted).and_then(|at| u32::try_from(at + 1).ok());
        (0..).zip(&self.types).filter(move |(_, one)| offset == Some(one.name) && one.name != 0)
    }

    /// The structure or union of this name; of several the first that is not empty.
    fn structure(&self, name: &str) -> Result<u32, BtfError> {
        self.named(name)
            .find(|(_, one)| matches!(one.kind(), kind::STRUCT | kind::UNION) && one.count() != 0)
            .map(|(number, _)| number)
            .ok_or_else(|| BtfError::NoType(name.to_owned()))
    }

    /// Offset in bits and type of a member; `Some(None)` if it is a bitfield.
    fn find(&self, structure: u32, name: &str, depth: usize) -> Option<Option<(u32, u32)>> {
        let outer = self.types.get(size(structure))?;
        if depth > MAX_DEPTH || !matches!(outer.kind(), kind::STRUCT | kind::UNION) {
            return None;
        }
        for index in 0..outer.count() {
            let at = outer.rest + 12 * index;
            let (label, kind, place) =
                (word(&self.data, at).ok()?, word(&self.data, at + 4).ok()?, word(&self.data, at + 8).ok()?);
            let (width, bits) = if outer.has_bitfields() { (place >> 24, place & 0xff_ffff) } else { (0, place) };
            if label == 0 {
                if let Some(inner) = self.find(self.resolve(kind), name, depth + 1) {
                    return Some(inner.map(|(inside, kind)| (bits + inside, kind)));
                }
            } else if self.string(label).ok()? == name {
                return Some((width == 0 && bits % 8 == 0).then_some((bits, kind)));
            }
        }
        None
    }

    /// Follows typedefs and modifiers.
    fn resolve(&self, mut number: u32) -> u32 {
        for _ in 0..MAX_DEPTH {
            match self.types.get(size(number)) {
                Some(one)
                    if matches!(
                        one.kind(),
                        kind::TYPEDEF | kind::CONST | kind::VOLATILE | kind::RESTRICT | kind::TYPE_TAG
                    ) =>
                {
                    number = one.size_or_type;
                }
                _ => break,
            }
        }
        number
    }

    fn size_of(&self, number: u32) -> u32 {
        self.types.get(size(number)).map_or(0, |one| match one.kind() {
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM_64 => one.size_or_type,
            kind::POINTER => 8,
            _ => 0,
        })
    }

    fn string(&self, offset: u32) -> Result<&str, BtfError> {
        let at = self.strings.start + size(offset);
        let bytes = self.data.get(at..self.strings.end).ok_or(BtfError::Malformed(at))?;
        let end = memchr::memchr(0, bytes).ok_or(BtfError::Malformed(at))?;
        std::str::from_utf8(&bytes[..end]).map_err(|_| BtfError::Malformed(at))
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    data.get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u32::from_le_bytes(*bytes))
        .ok_or(BtfError::Malformed(at))
}

fn range(data: &[u8], header: usize, offset: u32, length: u32) -> Result<std::ops::Range<usize>, BtfError> {
    let start = header.saturating_add(size(offset));
    let end = start.saturating_add(size(length));
    if end > data.len() { Err(BtfError::Malformed(start)) } else { Ok(start..end) }
}

/// Lossless on every host this runs on.
const fn size(number: u32) -> usize {
    number as usize
}
