//! Rest: while nothing happens anywhere, nobody gets up every few milliseconds to see that nothing happened.
//!
//! While it lasts a source says no further how far it has been read, and the stream stands where it is. What arrives first at any source,
//! be it a record, a packet or a line, ends the rest for all: each of them looks at once what it has, says so, and is back at its short naps
//! long before a failure of just now is judged. So nobody is judged later, or on less, than without the rest.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tokio::sync::Notify;

/// How long a source naps while all rest and nobody wakes it: bells do, and what it listens to; this is for what does neither (a log that
/// another host writes to).
pub const LONG_NAP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Shared {
    on: AtomicBool,
    bells: Mutex<Vec<Weak<EventFd>>>,
    ended: Notify,
}

/// Whether all rest. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Rest(Arc<Shared>);

impl Rest {
    /// Nothing has come for a while, and nothing is left to be thought.
    pub fn begin(&self) {
        self.0.on.store(true, Ordering::Release);
    }

    /// Whether it lasts.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Acquire)
    }

    /// Something came.
    pub fn end(&self) {
        // Asked for with each delivery: it must cost nothing where nobody rests.
        if !self.is_on() || !self.0.on.swap(false, Ordering::AcqRel) {
            return;
        }
        for bell in self.0.bells.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            ring(&bell);
        }
        self.0.ended.notify_one();
    }

    /// Waits for its end. For one that waits.
    pub async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// For a source that rests with the others.
    #[must_use]
    pub fn bell(&self) -> Bell {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_flags(flags).ok().map(Arc::new);
        if let Some(bell) = &bell {
            let mut all = self.0.bells.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|bell| bell.strong_count() > 0);
            all.push(Arc::downgrade(bell));
        }
        Bell { bell, rest: self.clone() }
    }
}

/// Wakes one source. Clones are the same bell.
#[derive(Clone, Debug)]
pub struct Bell {
    /// Without one (no descriptor was left) the source never naps for long.
    bell: Option<Arc<EventFd>>,
    rest: Rest,
}

impl Default for Bell {
    /// Of a source that is alone.
    fn default() -> Self {
        Rest::default().bell()
    }
}

impl Bell {
    /// Wakes it now, or ends its next nap before it begins.
    pub fn ring(&self) {
        if let Some(bell) = &self.bell {
            ring(bell);
        }
    }

    /// Naps until there is something to read, the bell rings, or `time` has passed; while all rest, `resting`.
    pub fn nap(&self, listens_to: Option<BorrowedFd<'_>>, time: Duration, resting: Duration) -> io::Result<()> {
        let bell = self.bell.as_deref();
        let time = if bell.is_some() && self.rest.is_on() { resting } else { time };
        let wakers = bell.map(EventFd::as_fd).into_iter().chain(listens_to);
        let mut wakers: Vec<PollFd<'_>> = wakers.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut wakers, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
            // An interruption is a short nap.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Rung before or after: whoever rang wants the look that comes now. One that was not rung has nothing to read.
        if let Some(bell) = bell {
            let _ = bell.read();
        }
        Ok(())
    }

    /// Something happened that those who rest have to look after, though nothing was delivered.
    pub fn wake_all(&self) {
        self.rest.end();
    }
}

/// A counter that is full rings as well.
fn ring(bell: &EventFd) {
    let _ = bell.write(1);
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    fn nap(bell: &Bell, time: Duration, resting: Duration) -> Duration {
        let began = Instant::now();
        bell.nap(None, time, resting).unwrap();
        began.elapsed()
    }

    #[test]
    fn a_nap_is_long_only_while_all_rest() {
        let rest = Rest::default();
        let bell = rest.bell();
        assert!(nap(&bell, SHORT, LONG_NAP) < LONG_NAP);
        rest.begin();
        assert!(nap(&bell, SHORT, SHORT) < LONG_NAP);
        assert!(nap(&bell, SHORT, LONG_NAP) >= LONG_NAP);
    }

    #[test]
    fn the_first_thing_that_comes_wakes_everybody() {
        let rest = Rest::default();
        let bells = [rest.bell(), rest.bell()];
        drop(rest.bell());
        rest.begin();
        let naps = bells.map(|bell| thread::spawn(move || (nap(&bell, SHORT, LONG_NAP), bell)));
        thread::sleep(SHORT * 10);
        assert!(rest.is_on());
        rest.end();
        assert!(!rest.is_on());
        for nap in naps {
            assert!(nap.join().unwrap().0 < LONG_NAP);
        }
    }

    #[test]
    fn a_bell_that_rang_before_the_nap_ends_it_once() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        assert!(nap(&bell, LONG_NAP, LONG_NAP) < LONG_NAP);
        assert!(nap(&bell, SHORT, SHORT) >= SHORT);
    }
}
