//! How long to spin before a thread goes to sleep.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Turns between looks at the clock.
const TURNS: u32 = 32;
/// A worker waits so long for work: the gap between two tokens is shorter.
const FOR_WORK: Duration = Duration::from_micros(300);
/// As above on a busy machine: the gap between two layers' products is shorter.
const FOR_WORK_BUSY: Duration = Duration::from_micros(20);
/// A caller waits so long for the end.
const FOR_END: Duration = Duration::from_micros(50);
/// A thread that missed so much between two looks at the clock had no core.
const MISSED: Duration = Duration::from_micros(500);
/// For how many waits a machine then counts as busy.
const BUSY: u32 = 256;
/// After so long on a core, a worker offers it to others when it has no items: better
/// then than in the middle of one, for which its caller would wait.
const TURN: Duration = Duration::from_millis(1);

/// How a wait ended.
pub(super) struct Spun {
    /// What was waited for is there.
    pub(super) done: bool,
    /// The thread had no core for a while.
    pub(super) missed: bool,
}

/// What is known of the machine.
pub(super) struct Patience {
    /// Whether every thread can have a core.
    spins: bool,
    /// Waits for which it counts as busy.
    busy: AtomicU32,
}

impl Patience {
    pub(super) fn new(threads: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { spins: threads <= cores, busy: AtomicU32::new(0) }
    }

    /// Spins until `done`, or until it has been long enough for a worker.
    pub(super) fn spin_for_work(&self, done: impl Fn() -> bool) -> Spun {
        let busy = self.busy.load(Ordering::Relaxed);
        if busy > 0 {
            // Lost counts do not matter.
            self.busy.store(busy - 1, Ordering::Relaxed);
        }
        self.spin(if busy > 0 { FOR_WORK_BUSY } else { FOR_WORK }, done)
    }

    /// As above for a caller.
    pub(super) fn spin_for_end(&self, done: impl Fn() -> bool) -> Spun {
        self.spin(FOR_END, done)
    }

    fn spin(&self, limit: Duration, done: impl Fn() -> bool) -> Spun {
        let mut missed = false;
        if !self.spins {
            return Spun { done: done(), missed };
        }
        let start = Instant::now();
        let mut last = start;
        loop {
            for _ in 0..TURNS {
                if done() {
                    missed |= self.misses(Instant::now() - last);
                    return Spun { done: true, missed };
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            missed |= self.misses(now - last);
            if now - start > limit {
                return Spun { done: done(), missed };
            }
            last = now;
        }
    }

    /// Whether so much time between two looks says that there was no core.
    fn misses(&self, gap: Duration) -> bool {
        if gap > MISSED {
            self.busy.store(BUSY, Ordering::Relaxed);
        }
        gap > MISSED
    }

    /// A worker's turn on its core, from now on.
    pub(super) fn turn(&self) -> CoreTurn {
        CoreTurn(Instant::now())
    }
}

/// Since when a worker has had a core.
pub(super) struct CoreTurn(Instant);

impl CoreTurn {
    /// Offers the core to others if it has been long enough, and says whether one took it.
    pub(super) fn end(&mut self) -> bool {
        let before = Instant::now();
        if before - self.0 <= TURN {
            return false;
        }
        std::thread::yield_now();
        self.0 = Instant::now();
        self.0 - before > MISSED
    }
}
