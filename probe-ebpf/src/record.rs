//! What every record begins with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first bytes of every record in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    pub time_ns: u64,
    /// Counts the records that this CPU tried to write, from 1; a gap is a loss.
    pub sequence: u64,
    /// What follows: [`Kind`] as a number.
    pub kind: u16,
    /// The CPU.
    pub cpu: u16,
    /// Process (thread group) in the initial pid namespace. In softirq it is whoever was interrupted.
    pub tgid: u32,
    /// Thread in the initial pid namespace.
    pub tid: u32,
    /// Zero.
    pub reserved: u32,
}

macro_rules! kinds {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)*) => {
        /// What a record is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Kind { $($(#[$meta])* $name = $value,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kind with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// [`crate::socket::StateChange`].
    StateChange = 1,
    /// [`crate::socket::SocketEvent`]: this host sent a RST.
    ResetSent = 2,
    /// [`crate::socket::SocketEvent`]: a socket of this host accepted a RST.
    ResetReceived = 3,
    /// [`crate::socket::SocketEvent`]: SYN or data sent again.
    Retransmit = 4,
    /// [`crate::socket::SocketEvent`]: an error became visible to the application.
    ErrorReport = 5,
    /// [`crate::socket::Drop`].
    Drop = 6,
    /// [`crate::socket::SocketEvent`]: a listener repeated its SYN-ACK.
    SynAckRetransmit = 7,
    /// [`crate::syscall::Connect`].
    Connect = 16,
    /// [`crate::syscall::Accept`].
    Accept = 17,
    /// [`crate::syscall::SocketCall`]: `socket()`.
    SocketCall = 18,
    /// [`crate::syscall::OpenCall`].
    OpenCall = 19,
    /// [`crate::process::Fork`].
    Fork = 32,
    /// [`crate::process::Exec`].
    Exec = 33,
    /// [`crate::process::Exit`].
    Exit = 34,
    /// [`crate::process::Signal`].
    Signal = 35,
    /// [`crate::process::OomVictim`].
    OomVictim = 36,
    /// [`crate::process::Held`].
    Held = 37,
    /// [`crate::nginx::Log`].
    NginxLog = 48,
    /// [`crate::nginx::Status`]: `ngx_http_special_response_handler`.
    NginxSpecialResponse = 49,
    /// [`crate::nginx::Status`]: `ngx_http_send_header`.
    NginxSendHeader = 50,
    /// [`crate::nginx::Attempt`].
    NginxAttempt = 51,
    /// [`crate::nginx::Connection`].
    NginxConnection = 52,
    /// [`crate::nginx::Status`]: the request was redirected inside nginx (`error_page`, `X-Accel-Redirect`).
    NginxRedirect = 53,
}

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;
    use crate::{globals, nginx, process, socket, syscall};

    #[test]
    fn every_kind_is_read_back_from_its_number() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(*kind as u16), Some(*kind));
        }
        assert_eq!(Kind::from_number(0), None);
        assert_eq!(Kind::from_number(u16::MAX), None);
    }

    #[test]
    fn records_fit_the_ring_and_its_alignment() {
        // The ring hands out multiples of eight bytes; a record that is none would carry bytes of an older one.
        let sizes = [
            size_of::<socket::StateChange>(),
            size_of::<socket::SocketEvent>(),
            size_of::<socket::Drop>(),
            size_of::<syscall::Connect>(),
            size_of::<syscall::Accept>(),
            size_of::<syscall::SocketCall>(),
            size_of::<syscall::OpenCall>(),
            size_of::<process::Fork>(),
            size_of::<process::Exec>(),
            size_of::<process::Exit>(),
            size_of::<process::Signal>(),
            size_of::<process::OomVictim>(),
            size_of::<process::Held>(),
            size_of::<nginx::Log>(),
            size_of::<nginx::Status>(),
            size_of::<nginx::Attempt>(),
            size_of::<nginx::Connection>(),
        ];
        for size in sizes {
            assert!(size % 8 == 0 && size <= 1_024, "{size} bytes");
        }
    }

    #[test]
    fn every_offset_has_a_place_in_the_kernel() {
        assert_eq!(globals::Offsets::MEMBERS.len() * 4, size_of::<globals::Offsets>());
        for (name, member) in globals::Offsets::MEMBERS {
            assert!(member.contains('.'), "{name} is {member}");
        }
    }
}
