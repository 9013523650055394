//! How values become numbers in columns, and these become the same values again.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::Arc,
};

use super::row::{Reader, Writer, shared};
use crate::model::{
    event::EventId,
    flow::FlowId,
    net::Errno,
    packet::{PacketRef, TcpFlags},
    process::Pid,
    socket::SocketPointer,
    time::Moment,
};

/// One or several columns.
pub(super) trait Column {
    /// What stands in them.
    type Value;
    /// How many there are.
    const WIDTH: usize;
    /// Where they are, if they are the same everywhere.
    const SHARED: Option<usize> = None;

    /// Appends it; `None`: it is nothing that a connection has.
    fn write(value: &Self::Value, column: usize, row: &mut Writer) -> Option<()>;
    /// Reads it.
    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self::Value>;
}

/// Appends what stands in this column, or in the one it always stands in.
pub(super) fn write<C: Column>(value: &C::Value, column: usize, row: &mut Writer) -> Option<()> {
    C::write(value, C::SHARED.unwrap_or(column), row)
}

/// Reads it.
pub(super) fn read<C: Column>(column: usize, row: &mut Reader<'_>) -> Option<C::Value> {
    C::read(C::SHARED.unwrap_or(column), row)
}

/// Gives out columns one after the other.
pub(super) struct Next(pub(super) usize);

impl Next {
    pub(super) const fn take<C: Column>(&mut self) -> usize {
        let column = self.0;
        self.0 += width::<C>();
        column
    }
}

/// How many columns it needs where it stands.
pub(super) const fn width<C: Column>() -> usize {
    if C::SHARED.is_some() { 0 } else { C::WIDTH }
}

/// Of what may stand at the same place.
pub(super) const fn widest(mut widths: &[usize]) -> usize {
    let mut widest = 0;
    while let [width, rest @ ..] = widths {
        if *width > widest {
            widest = *width;
        }
        widths = rest;
    }
    widest
}

/// What stands in columns one after the other: of a type that is there, or of one that is made for it.
macro_rules! record {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$of_field:meta])* $field:ident: $column:ty),* $(,)? }) => {
        $(#[$meta])*
        struct $name { $($(#[$of_field])* $field: <$column as Column>::Value),* }

        record!($name { $($field: $column),* });
    };
    ($name:ident $(at $shared:expr =>)? { $($field:ident: $column:ty),* $(,)? }) => {
        impl Column for $name {
            type Value = Self;
            const WIDTH: usize = 0 $(+ width::<$column>())*;
            $(const SHARED: Option<usize> = Some($shared);)?

            fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
                let Self { $($field),* } = value;
                let mut next = Next(column);
                $(write::<$column>($field, next.take::<$column>(), row)?;)*
                Some(())
            }

            fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
                let mut next = Next(column);
                Some(Self { $($field: read::<$column>(next.take::<$column>(), row)?),* })
            }
        }
    };
}
pub(super) use record;

macro_rules! choice {
    ($name:ident { $($number:literal = $variant:ident { $($field:tt $bound:ident: $column:ty),* },)* }) => {
        impl Column for $name {
            type Value = Self;
            const WIDTH: usize = 1 + widest(&[$(0 $(+ width::<$column>())*),*]);

            fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
                let mut next = Next(column + 1);
                match value {
                    $(Self::$variant { $($field: $bound),* } => {
                        row.number(column, $number)?;
                        $(write::<$column>($bound, next.take::<$column>(), row)?;)*
                    })*
                }
                Some(())
            }

            fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
                let mut next = Next(column + 1);
                Some(match row.number(column)? {
                    $($number => Self::$variant { $($field: read::<$column>(next.take::<$column>(), row)?),* },)*
                    _ => return None,
                })
            }
        }
    };
}

pub(super) use choice;

/// A choice of which nothing more is to be said.
macro_rules! kinds {
    ($name:ident { $($number:literal = $variant:ident,)* }) => {
        impl Column for $name {
            type Value = Self;
            const WIDTH: usize = 1;

            fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
                row.number(column, match value { $(Self::$variant => $number,)* })
            }

            fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
                Some(match row.number(column)? {
                    $($number => Self::$variant,)*
                    _ => return None,
                })
            }
        }
    };
}
pub(super) use kinds;

macro_rules! numbers {
    ($($name:ident)*) => {
        $(impl Column for $name {
            type Value = Self;
            const WIDTH: usize = 1;

            fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
                row.number(column, u64::from(*value))
            }

            fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
                Self::try_from(row.number(column)?).ok()
            }
        })*
    };
}

/// Names for a number, by what the number is and whether it is the same wherever it stands.
macro_rules! names {
    ($($name:ident($number:ty) $(at $shared:expr)?,)*) => {
        $(impl Column for $name {
            type Value = Self;
            const WIDTH: usize = 1;
            $(const SHARED: Option<usize> = Some($shared);)?

            fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
                write::<$number>(&value.0, column, row)
            }

            fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
                read::<$number>(column, row).map(Self)
            }
        })*
    };
}

numbers! { u8 u16 u32 u64 }

names! {
    EventId(u64) at shared::ID,
    Moment(u64) at shared::TIME,
    Pid(u32) at shared::PID,
    FlowId(u64),
    Errno(u32),
    PacketRef(u64),
    SocketPointer(u64),
    TcpFlags(u8),
}

impl Column for bool {
    type Value = Self;
    const WIDTH: usize = 1;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        row.number(column, u64::from(*value))
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        Some(row.number(column)? != 0)
    }
}

impl Column for i32 {
    type Value = Self;
    const WIDTH: usize = 1;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        row.number(column, u64::from(value.cast_unsigned()))
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        u32::try_from(row.number(column)?).ok().map(u32::cast_signed)
    }
}

impl Column for String {
    type Value = Self;
    const WIDTH: usize = 1;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        row.text(column, value)
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        row.text(column)
    }
}

impl Column for Arc<str> {
    type Value = Self;
    const WIDTH: usize = 1;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        row.text(column, value)
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        row.text(column).map(Self::from)
    }
}

impl<C: Column> Column for Option<C> {
    type Value = Option<C::Value>;
    const WIDTH: usize = 1 + width::<C>();

    fn write(value: &Self::Value, column: usize, row: &mut Writer) -> Option<()> {
        row.number(column, u64::from(value.is_some()))?;
        value.as_ref().map_or(Some(()), |value| write::<C>(value, column + 1, row))
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self::Value> {
        if row.number(column)? == 0 { Some(None) } else { read::<C>(column + 1, row).map(Some) }
    }
}

impl<A: Column, B: Column> Column for (A, B) {
    type Value = (A::Value, B::Value);
    const WIDTH: usize = width::<A>() + width::<B>();

    fn write((a, b): &Self::Value, column: usize, row: &mut Writer) -> Option<()> {
        write::<A>(a, column, row)?;
        write::<B>(b, column + width::<A>(), row)
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self::Value> {
        Some((read::<A>(column, row)?, read::<B>(column + width::<A>(), row)?))
    }
}

/// What a system call returned.
type Returned = Result<i32, Errno>;

impl Column for Returned {
    type Value = Self;
    const WIDTH: usize = 2;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        row.number(column, u64::from(value.is_ok()))?;
        match value {
            Ok(value) => write::<i32>(value, column + 1, row),
            Err(errno) => write::<Errno>(errno, column + 1, row),
        }
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        let fine = row.number(column)? != 0;
        if fine { read::<i32>(column + 1, row).map(Ok) } else { read::<Errno>(column + 1, row).map(Err) }
    }
}

/// A sequence number of the side that this is about.
pub(super) struct Near;
/// … of the other.
pub(super) struct Far;

/// A network namespace.
pub(super) struct Netns;

impl Column for Netns {
    type Value = u32;
    const WIDTH: usize = 1;
    const SHARED: Option<usize> = Some(shared::NETNS);

    fn write(value: &u32, column: usize, row: &mut Writer) -> Option<()> {
        row.number(column, u64::from(*value))
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<u32> {
        u32::try_from(row.number(column)?).ok()
    }
}

macro_rules! sequences {
    ($($name:ident: $side:ident => $which:expr,)*) => {
        $(impl Column for $name {
            type Value = u32;
            const WIDTH: usize = 0;

            fn write(value: &u32, _: usize, row: &mut Writer) -> Option<()> {
                let $side = row.last.side();
                row.number(shared::SEQUENCE + $which, u64::from(*value))
            }

            fn read(_: usize, row: &mut Reader<'_>) -> Option<u32> {
                let $side = row.last.side();
                u32::try_from(row.number(shared::SEQUENCE + $which)?).ok()
            }
        })*
    };
}

sequences! {
    Near: side => side,
    Far: side => 1 - side,
}

impl Column for IpAddr {
    type Value = Self;
    const WIDTH: usize = 3;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        row.number(column, u64::from(value.is_ipv6()))?;
        match value {
            Self::V4(address) => row.number(column + 1, u64::from(address.to_bits())),
            Self::V6(address) => {
                let bits = address.to_bits();
                row.number(column + 1, u64::try_from(bits >> 64).ok()?)?;
                row.number(column + 2, u64::try_from(bits & u128::from(u64::MAX)).ok()?)
            }
        }
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        if row.number(column)? == 0 {
            let bits = u32::try_from(row.number(column + 1)?).ok()?;
            return Some(Self::V4(Ipv4Addr::from_bits(bits)));
        }
        let (high, low) = (row.number(column + 1)?, row.number(column + 2)?);
        Some(Self::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))))
    }
}

/// An address in full.
pub(super) struct InFull;

impl Column for InFull {
    type Value = SocketAddr;
    const WIDTH: usize = IpAddr::WIDTH + 3;

    fn write(value: &SocketAddr, column: usize, row: &mut Writer) -> Option<()> {
        IpAddr::write(&value.ip(), column, row)?;
        row.number(column + 3, u64::from(value.port()))?;
        if let SocketAddr::V6(value) = value {
            row.number(column + 4, u64::from(value.flowinfo()))?;
            row.number(column + 5, u64::from(value.scope_id()))?;
        }
        Some(())
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<SocketAddr> {
        let ip = IpAddr::read(column, row)?;
        let port = u16::try_from(row.number(column + 3)?).ok()?;
        Some(match ip {
            IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
            IpAddr::V6(ip) => {
                let flow = u32::try_from(row.number(column + 4)?).ok()?;
                SocketAddrV6::new(ip, port, flow, u32::try_from(row.number(column + 5)?).ok()?).into()
            }
        })
    }
}

impl Column for SocketAddr {
    type Value = Self;
    const WIDTH: usize = 1 + InFull::WIDTH;

    fn write(value: &Self, column: usize, row: &mut Writer) -> Option<()> {
        let (local, upstream) = row.last.ends;
        match value {
            value if *value == local => row.number(column, 0),
            value if *value == upstream => row.number(column, 1),
            value => {
                row.number(column, 2)?;
                write::<InFull>(value, column + 1, row)
            }
        }
    }

    fn read(column: usize, row: &mut Reader<'_>) -> Option<Self> {
        match row.number(column)? {
            0 => Some(row.last.ends.0),
            1 => Some(row.last.ends.1),
            _ => read::<InFull>(column + 1, row),
        }
    }
}
