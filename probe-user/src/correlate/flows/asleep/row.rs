//! A row of numbers in few bytes: of each only how it differs from the last one in its column, and of the bytes that makes only those that
//! are not zero.
//!
//! What a connection at rest is remembered by repeats itself: the same socket five times, between the same addresses, within a millisecond.

use std::net::SocketAddr;

/// Columns that mean the same wherever they stand.
pub(super) mod shared {
    pub(in super::super) const ID: usize = 0;
    pub(in super::super) const TIME: usize = 1;
    pub(in super::super) const PID: usize = 2;
    /// Two of them: the sequence numbers of each side.
    pub(in super::super) const SEQUENCE: usize = 3;
    pub(in super::super) const SIDE: usize = 5;
    pub(in super::super) const NETNS: usize = 6;
    /// Those of what is there once.
    pub(in super::super) const ONCE: usize = 7;
    /// From here on each side has its own columns.
    pub(in super::super) const SIDED: usize = 48;
}

/// Columns that a side can have.
pub(super) const WIDTH: usize = 112;

/// What the numbers of a row are compared with; a reader's is at every moment as the writer's was.
#[derive(Debug)]
pub(super) struct Last {
    /// nginx's end and the upstream's: addresses are told by these.
    pub(super) ends: (SocketAddr, SocketAddr),
    side: usize,
    /// The other side was seen too.
    both: bool,
    numbers: [u64; shared::SIDED + 2 * WIDTH],
    text: String,
}

impl Last {
    fn new(ends: (SocketAddr, SocketAddr)) -> Self {
        Self { ends, side: 0, both: false, numbers: [0; shared::SIDED + 2 * WIDTH], text: String::new() }
    }

    /// From here on it is about nginx's side (0) or the upstream's (1).
    pub(super) fn turn_to(&mut self, side: usize) {
        self.side = side.min(1);
        if self.side == 1 && !self.both {
            self.both = true;
            // Both ends of a connection look much alike.
            self.numbers.copy_within(shared::SIDED..shared::SIDED + WIDTH, shared::SIDED + WIDTH);
        }
    }

    /// Which side it is about.
    pub(super) const fn side(&self) -> usize {
        self.side
    }

    fn number(&mut self, column: usize) -> Option<&mut u64> {
        let sided = if column < shared::SIDED { 0 } else { self.side * WIDTH };
        self.numbers.get_mut(column + sided)
    }
}

/// Writes a row.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) last: Last,
    bytes: Vec<u8>,
}

impl Writer {
    /// A row about a connection between these.
    pub(super) fn new(ends: (SocketAddr, SocketAddr)) -> Self {
        Self { last: Last::new(ends), bytes: Vec::with_capacity(512) }
    }

    /// Appends a number of this column.
    pub(super) fn number(&mut self, column: usize, value: u64) -> Option<()> {
        let last = self.last.number(column)?;
        let differs = value.wrapping_sub(*last).cast_signed();
        *last = value;
        // The sign goes last, so that few bytes are enough for a small number of either sign; seven bits each, the lowest first.
        let mut rest = ((differs << 1) ^ (differs >> 63)).cast_unsigned();
        loop {
            let [low, ..] = rest.to_le_bytes();
            rest >>= 7;
            if rest == 0 {
                self.bytes.push(low);
                break;
            }
            self.bytes.push(low | 0x80);
        }
        Some(())
    }

    /// Appends a text.
    pub(super) fn text(&mut self, column: usize, text: &str) -> Option<()> {
        let same = text == self.last.text;
        self.number(column, if same { 0 } else { u64::try_from(text.len()).ok()?.checked_add(1)? })?;
        if !same {
            self.bytes.extend(text.as_bytes());
            text.clone_into(&mut self.last.text);
        }
        Some(())
    }

    /// The row: for every eight bytes one that says which of them are not zero, and those.
    pub(super) fn finish(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.bytes.len() + self.bytes.len().div_ceil(8));
        for eight in self.bytes.chunks(8) {
            let mask = eight.iter().enumerate().fold(0, |mask, (bit, byte)| mask | (u8::from(*byte != 0) << bit));
            row.push(mask);
            row.extend(eight.iter().filter(|byte| **byte != 0));
        }
        row
    }
}

/// Reads a row.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) last: Last,
    rest: &'a [u8],
    /// Which of the next bytes are not zero, and how many it speaks of.
    mask: u8,
    left: u8,
}

impl<'a> Reader<'a> {
    /// A row, whose ends are not read yet.
    pub(super) fn new(row: &'a [u8], ends: (SocketAddr, SocketAddr)) -> Self {
        Self { last: Last::new(ends), rest: row, mask: 0, left: 0 }
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        if self.left == 0 {
            self.mask = self.next()?;
            self.left = 8;
        }
        let is_zero = self.mask & 1 == 0;
        self.mask >>= 1;
        self.left -= 1;
        if is_zero { Some(0) } else { self.next() }
    }

    /// The next number, which is of this column.
    pub(super) fn number(&mut self, column: usize) -> Option<u64> {
        let (mut rest, mut shift) = (0u64, 0);
        loop {
            let byte = self.byte()?;
            rest |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                break;
            }
            shift += 7;
        }
        let differs = (rest >> 1) ^ (rest & 1).wrapping_neg();
        let last = self.last.number(column)?;
        *last = last.wrapping_add(differs);
        Some(*last)
    }

    /// The next text.
    pub(super) fn text(&mut self, column: usize) -> Option<String> {
        if let Some(length) = self.number(column)?.checked_sub(1) {
            let bytes: Option<Vec<u8>> = (0..length).map(|_| self.byte()).collect();
            self.last.text = String::from_utf8(bytes?).ok()?;
        }
        Some(self.last.text.clone())
    }
}
