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
    size_or_reference: u32,
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
    /// Bytes; 0 where the type has no size of its own (an array).
    pub size: u32,
}

/// A member as its structure describes it.
enum Found {
    /// It begins this many bits into the structure.
    At { bits: u32, kind: u32 },
    /// It has no offset in bytes.
    Bitfield,
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
        let mut all = vec![Type { name: 0, info: 0, size_or_reference: 0, rest: 0 }];
        let mut at = types.start;
        while at < types.end {
            let one = Type {
                name: word(&data, at)?,
                info: word(&data, at + 4)?,
                size_or_reference: word(&data, at + 8)?,
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
            let missing = || BtfError::NoMember { structure: structure.to_owned(), member: members.to_owned() };
            let Found::At { bits, kind } = self.find(here, name, 0).ok_or_else(missing)? else {
                return Err(BtfError::Bitfield { structure: structure.to_owned(), member: members.to_owned() });
            };
            offset += bits / 8;
            let resolved = self.resolve(kind);
            last = Some(Member { offset, size: self.size_of(resolved) });
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
        let pointer = self.types.get(size(self.resolve(typedef.size_or_reference)))?;
        let prototype = self.types.get(size(self.resolve(pointer.size_or_reference)))?;
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

    /// A member, wherever in anonymous members it is.
    fn find(&self, structure: u32, name: &str, depth: usize) -> Option<Found> {
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
                match self.find(self.resolve(kind), name, depth + 1) {
                    Some(Found::At { bits: inside, kind }) => return Some(Found::At { bits: bits + inside, kind }),
                    Some(Found::Bitfield) => return Some(Found::Bitfield),
                    None => {}
                }
            } else if self.string(label).ok()? == name {
                let whole = width == 0 && bits % 8 == 0;
                return Some(if whole { Found::At { bits, kind } } else { Found::Bitfield });
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
                    number = one.size_or_reference;
                }
                _ => break,
            }
        }
        number
    }

    fn size_of(&self, number: u32) -> u32 {
        self.types.get(size(number)).map_or(0, |one| match one.kind() {
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM_64 => one.size_or_reference,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes type information as the kernel lays it out.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Builder {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn words(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }

        fn one(&mut self, name: &str, kind: u8, count: u32, flag: u32, size: u32) {
            let name = self.name(name);
            self.words(&[name, flag << 31 | u32::from(kind) << 24 | count, size]);
        }

        fn member(&mut self, name: &str, kind: u32, place: u32) {
            let name = self.name(name);
            self.words(&[name, kind, place]);
        }

        fn finish(self) -> Vec<u8> {
            let (types, strings) =
                (u32::try_from(self.types.len()).unwrap(), u32::try_from(self.strings.len()).unwrap());
            let mut data = 0xeb9f_u16.to_le_bytes().to_vec();
            data.extend([1, 0]);
            data.extend([24, 0, types, types, strings].iter().flat_map(|word: &u32| word.to_le_bytes()));
            data.extend(self.types);
            data.extend(self.strings);
            data
        }
    }

    fn example() -> Vec<u8> {
        let mut builder = Builder::default();
        builder.one("unsigned int", kind::INT, 0, 0, 4); // 1
        builder.words(&[32]);
        builder.one("u32", kind::TYPEDEF, 0, 0, 1); // 2
        builder.one("", kind::UNION, 2, 0, 4); // 3, anonymous
        builder.member("left", 2, 0);
        builder.member("right", 2, 0);
        builder.one("inner", kind::STRUCT, 2, 0, 12); // 4
        builder.member("first", 2, 0);
        builder.member("", 3, 64);
        builder.one("outer", kind::STRUCT, 3, 1, 20); // 5, with bitfields
        builder.member("bits", 1, 3 << 24);
        builder.member("nested", 4, 32);
        builder.member("last", 2, 128);
        builder.one("", kind::POINTER, 0, 0, 5); // 6
        builder.one("", kind::PROTOTYPE, 3, 0, 0); // 7
        builder.words(&[0, 6, 0, 6, 0, 2]);
        builder.one("", kind::POINTER, 0, 0, 7); // 8
        builder.one("btf_trace_example", kind::TYPEDEF, 0, 0, 8); // 9
        builder.one("reason", kind::ENUM, 2, 1, 4); // 10
        let (low, high) = (builder.name("LOW"), builder.name("HIGH"));
        builder.words(&[low, 2, high, u32::MAX]);
        builder.one("wide", kind::ENUM_64, 1, 0, 8); // 11
        let wide = builder.name("WIDE");
        builder.words(&[wide, 1, 1]);
        builder.finish()
    }

    #[test]
    fn members_of_anonymous_and_nested_structures_are_found() {
        let btf = Btf::parse(example()).unwrap();
        let offset = |path: &str| btf.member(path).map(|member| (member.offset, member.size)).unwrap();
        assert_eq!(offset("inner.first"), (0, 4));
        assert_eq!(offset("inner.right"), (8, 4));
        assert_eq!(offset("outer.nested"), (4, 12));
        assert_eq!(offset("outer.nested.left"), (12, 4));
        assert_eq!(offset("outer.last"), (16, 4));
    }

    #[test]
    fn what_is_not_there_is_said_by_name() {
        let btf = Btf::parse(example()).unwrap();
        let text = |path: &str| btf.member(path).unwrap_err().to_string();
        assert_eq!(text("outer.bits"), "outer.bits is a bitfield in this kernel");
        assert_eq!(text("outer.none"), "this kernel's outer has no member none");
        assert_eq!(text("none.first"), "this kernel has no type none");
        assert!(matches!(btf.member("outer"), Err(BtfError::NoType(_))));
    }

    #[test]
    fn enums_of_both_widths() {
        let btf = Btf::parse(example()).unwrap();
        assert_eq!(btf.enumeration("reason").unwrap(), [("LOW".to_owned(), 2), ("HIGH".to_owned(), -1)]);
        assert_eq!(btf.enumeration("wide").unwrap(), [("WIDE".to_owned(), 0x1_0000_0001)]);
        assert!(btf.enumeration("outer").is_err());
    }

    #[test]
    fn arguments_of_tracepoints() {
        let btf = Btf::parse(example()).unwrap();
        assert_eq!(btf.tracepoint_arguments("example"), Some(2));
        assert_eq!(btf.tracepoint_argument_is_pointer("example", 0), Some(true));
        assert_eq!(btf.tracepoint_argument_is_pointer("example", 1), Some(false));
        assert_eq!(btf.tracepoint_argument_is_pointer("example", 2), None);
        assert_eq!(btf.tracepoint_arguments("none"), None);
    }

    #[test]
    fn cut_and_foreign_bytes_are_refused() {
        let whole = example();
        for length in 0..whole.len() {
            assert!(Btf::parse(whole[..length].to_vec()).is_err(), "{length}");
        }
        assert!(matches!(Btf::parse(b"no BTF at all, just some text".to_vec()), Err(BtfError::Malformed(0))));
    }

    #[test]
    fn the_running_kernel() {
        let Ok(btf) = Btf::running_kernel() else { return assert!(!Path::new(RUNNING_KERNEL).exists()) };
        assert!(btf.len() > 10_000);
        assert_eq!(btf.member("task_struct.comm").unwrap().size, 0);
        assert_eq!(btf.tracepoint_arguments("inet_sock_set_state"), Some(3));
        let states = btf.enumeration("skb_drop_reason").unwrap();
        assert!(states.iter().any(|(name, _)| name == "SKB_DROP_REASON_NO_SOCKET"));
    }
}
