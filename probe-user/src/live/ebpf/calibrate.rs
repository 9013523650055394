//! Checking a layout against the machine code of the nginx it is for.
//!
//! `ngx_http_send_header` says where the status is, in every build and fork: if `err_status` is set it becomes
//! `headers_out.status`, and the status line, which follows, is emptied:
//! *load \[r+A\]; store \[r+B\]; store 0 to \[r+B+8\]*.
//! <https://github.com/nginx/nginx/blob/release-1.22.1/src/http/ngx_http_core_module.c> (`ngx_http_send_header`)

use probe_abi::nginx::{ABSENT, Layout};

use super::symbols::Binary;

/// What the comparison gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// Code and table say the same.
    Agrees,
    /// The table did not know; the code did.
    Found,
    /// The code says otherwise: this is not the build it claims to be, so all that depends on the version was dropped.
    Contradicts,
    /// The code could not be understood; the table stands.
    Unreadable,
}

/// Bytes of the function looked at: the sequence stands near its beginning.
const LOOKED_AT: usize = 160;

/// Corrects the layout by the machine code.
pub fn calibrate(layout: &mut Layout, binary: &Binary) -> Calibration {
    let code = binary.code("ngx_http_send_header", LOOKED_AT).unwrap_or_default();
    correct(layout, statuses(code))
}

fn correct(layout: &mut Layout, found: Option<(u32, u32)>) -> Calibration {
    let Some((err_status, status)) = found else { return Calibration::Unreadable };
    let known = (layout.request_err_status, layout.request_status);
    (layout.request_err_status, layout.request_status) = (err_status, status);
    if known == (err_status, status) {
        return Calibration::Agrees;
    }
    if known == (ABSENT, ABSENT) {
        return Calibration::Found;
    }
    layout.request_line = ABSENT;
    layout.request_main = ABSENT;
    layout.connection_number = ABSENT;
    layout.connection_requests = ABSENT;
    Calibration::Contradicts
}

/// Offsets of `err_status` and `headers_out.status`, if the sequence is found, and found once.
#[cfg(target_arch = "x86_64")]
fn statuses(code: &[u8]) -> Option<(u32, u32)> {
    let mut found = None;
    for at in 0..code.len() {
        // movq $0, B+8(base), after mov value, B(base), after mov A(base), value.
        let Some((0xc7, 0, base, line)) = wide(code, at) else { continue };
        if code.get(at + 7..at + 11) != Some(&[0; 4]) {
            continue;
        }
        let before = |end: usize, opcode: u8, register: Option<u8>| {
            (0..end).rev().find_map(|place| {
                let (code, value, from, offset) = wide(code, place)?;
                let same = code == opcode && from == base && register.is_none_or(|register| register == value);
                same.then_some((place, value, offset))
            })
        };
        let Some((stored, value, status)) = before(at, 0x89, None) else { continue };
        let Some((_, _, err_status)) = before(stored, 0x8b, Some(value)) else { continue };
        if status.checked_add(8) == Some(line) && err_status > status {
            if found.is_some_and(|other| other != (err_status, status)) {
                return None;
            }
            found = Some((err_status, status));
        }
    }
    found
}

/// An instruction with a 64-bit operand and a 32-bit offset from a low register: opcode, register, base, offset.
#[cfg(target_arch = "x86_64")]
fn wide(code: &[u8], at: usize) -> Option<(u8, u8, u8, u32)> {
    const OFFSET_32: u8 = 0b10;
    const STACK: u8 = 4;
    let &[rex, opcode, operands, first, second, third, fourth] = code.get(at..)?.first_chunk()?;
    // Bit 2 of the prefix extends the register; bit 0 would extend the base.
    if rex & 0b1111_1011 != 0x48 || operands >> 6 != OFFSET_32 || operands & 7 == STACK {
        return None;
    }
    let register = (rex & 4) << 1 | operands >> 3 & 7;
    Some((opcode, register, operands & 7, u32::from_le_bytes([first, second, third, fourth])))
}

#[cfg(not(target_arch = "x86_64"))]
fn statuses(_code: &[u8]) -> Option<(u32, u32)> {
    None
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::{super::layout::Build, *};

    /// What a compiler makes of the sequence, with a comparison before it.
    const CODE: &[u8] = &[
        0x80, 0xbf, 0x1a, 0x05, 0, 0, 0, 0x78, 0x37, // cmpb, js
        0x48, 0x8b, 0x87, 0xe8, 0x04, 0, 0, // mov 0x4e8(%rdi),%rax
        0x48, 0x85, 0xc0, 0x74, 0x12, // test, je
        0x48, 0x89, 0x87, 0x88, 0x02, 0, 0, // mov %rax,0x288(%rdi)
        0x48, 0xc7, 0x87, 0x90, 0x02, 0, 0, 0, 0, 0, 0, // movq $0,0x290(%rdi)
    ];

    fn layout(version: &str, flags: &str) -> Layout {
        Build::parse(&format!("nginx version: nginx/{version}\nconfigure arguments: {flags}")).unwrap().layout
    }

    #[test]
    fn the_sequence_is_found() {
        assert_eq!(statuses(CODE), Some((1256, 648)));
        let mut other = CODE.to_vec();
        // The status line elsewhere: some other assignment.
        other[31] = 0x98;
        assert_eq!(statuses(&other), None);
        assert_eq!(statuses(&CODE[..30]), None);
        assert_eq!(statuses(&[]), None);
    }

    #[test]
    fn a_right_table_stays() {
        let mut here = layout("1.22.1", "--with-compat");
        let before = here;
        assert_eq!(correct(&mut here, statuses(CODE)), Calibration::Agrees);
        assert_eq!(here, before);
        assert_eq!(correct(&mut here, None), Calibration::Unreadable);
        assert_eq!(here, before);
    }

    #[test]
    fn what_the_table_does_not_know_is_found() {
        let mut here = layout("1.22.1", "");
        assert_eq!(correct(&mut here, statuses(CODE)), Calibration::Found);
        assert_eq!((here.request_err_status, here.request_status, here.request_line), (1256, 648, ABSENT));
    }

    #[test]
    fn a_wrong_table_is_not_believed_in_anything_else() {
        let mut here = layout("1.24.0", "--with-compat");
        assert_eq!(correct(&mut here, statuses(CODE)), Calibration::Contradicts);
        assert_eq!((here.request_err_status, here.request_status), (1256, 648));
        assert_eq!((here.request_line, here.request_main, here.connection_requests), (ABSENT, ABSENT, ABSENT));
        assert_eq!((here.request_connection, here.connection_fd), (8, 24));
    }
}
