//! The ring of records, as an asynchronous source.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::{io::Interest, io::unix::AsyncFd, time};

/// How long records may wait. The kernel side wakes the reader only when much waits, because waking costs nginx more than the record does.
const PATIENCE: Duration = Duration::from_millis(20);

/// The ring.
pub struct Ring {
    ring: RingBuf<MapData>,
}

impl Ring {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Hands over the oldest record, if there is one. Its bytes begin with a [`probe_abi::Header`].
    pub fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.ring.next().map(|item| read(&item))
    }

    /// For who waits until the kernel side wakes it. The ring's own descriptor is ready whenever a single record lies there.
    pub fn wakes(&self) -> io::Result<Wakes> {
        // SAFETY: the ring owns this descriptor and outlives the borrow; the kernel forgets it when it is closed.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        let wakes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        wakes.add(ring, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        Ok(Wakes(wakes))
    }

    /// For a tokio runtime; must be called inside one.
    pub fn into_async(self) -> io::Result<AsyncRing> {
        // SAFETY: the ring owns the descriptor of its map and reports that same one for as long as it lives.
        let source = unsafe { AsyncFd::register_with_interest(Source(self.ring), Interest::READABLE) }?;
        let mut timer = time::interval(PATIENCE);
        timer.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        Ok(AsyncRing { source, timer })
    }
}

/// Ready when the kernel side has woken the reader of a ring.
pub struct Wakes(Epoll);

impl Wakes {
    /// Not ready any more, until the next time.
    pub fn take(&self) -> io::Result<()> {
        self.0.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)?;
        Ok(())
    }
}

impl AsFd for Wakes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

struct Source(RingBuf<MapData>);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The ring inside a tokio runtime.
pub struct AsyncRing {
    source: AsyncFd<Source>,
    timer: time::Interval,
}

impl AsyncRing {
    /// Waits until records may be there (20 ms, less where many are), then hands over at most `budget`
    /// of them and says how many. Fewer than `budget`: the ring is empty.
    ///
    /// Cancel-safe: nothing is taken from the ring before the last await.
    pub async fn read(&mut self, budget: usize, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        let Self { source, timer } = self;
        tokio::select! {
            biased;
            ready = source.readable_mut() => {
                let mut guard = ready?;
                let count = drain(&mut guard.get_inner_mut().0, budget, &mut each);
                if count < budget {
                    // Readiness is told once per arrival: forgotten only when the ring is empty.
                    guard.clear_ready();
                }
                Ok(count)
            }
            _ = timer.tick() => Ok(drain(&mut source.get_mut().0, budget, &mut each)),
        }
    }

    /// Hands over at most `budget` records that are there now; says how many.
    pub fn drain(&mut self, budget: usize, mut each: impl FnMut(&[u8])) -> usize {
        drain(&mut self.source.get_mut().0, budget, &mut each)
    }
}

fn drain(ring: &mut RingBuf<MapData>, budget: usize, each: &mut impl FnMut(&[u8])) -> usize {
    for count in 0..budget {
        let Some(item) = ring.next() else { return count };
        each(&item);
    }
    budget
}
