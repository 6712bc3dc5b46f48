//! Work shared over all cores.
//!
//! | file | what it knows |
//! |---|---|
//! | `crew.rs` | threads, and how they share one job |
//! | `patience.rs` | how long they spin before they sleep |
//! | `pace.rs` | how many of them help on a busy machine |

mod crew;
mod pace;
mod patience;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crew::Crew;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many threads [`set_threads`] takes.
pub const THREADS: RangeInclusive<usize> = 1..=1024;

/// What [`set_threads`] said; 0 before.
static ASKED: AtomicUsize = AtomicUsize::new(0);
static CREW: OnceLock<&Crew> = OnceLock::new();

fn crew() -> &'static Crew {
    CREW.get_or_init(|| {
        Crew::new(match ASKED.load(Ordering::Relaxed) {
            0 => cores(),
            asked => asked,
        })
    })
}

/// Cores that this process may use, each counted once, however many threads it runs.
fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    allowed.min(num_cpus::get_physical()).max(1)
}

/// Threads that the CPU backend uses, the calling one included.
pub fn threads() -> usize {
    crew().threads()
}

/// Sets the number of threads of the process, the calling ones not counted twice: before
/// any work was shared, or to what it is.
///
/// # Errors
/// [`Error::Config`] if the number is not in [`THREADS`], or another one is in use.
pub fn set_threads(threads: usize) -> Result<()> {
    if !THREADS.contains(&threads) {
        let (least, most) = (THREADS.start(), THREADS.end());
        return Err(Error::config("threads", format!("{threads} is not in {least}..={most}")));
    }
    ASKED.store(threads, Ordering::Relaxed);
    match CREW.get() {
        Some(crew) if crew.threads() != threads => {
            let what = format!("{} have begun to work, no more and no fewer", crew.threads());
            Err(Error::config("threads", what))
        }
        _ => Ok(()),
    }
}

/// Calls `f` with every index below `n`, on all threads.
pub(crate) fn parallel_for(n: usize, f: impl Fn(usize) + Sync) {
    if n <= 1 {
        return (0..n).for_each(f);
    }
    let crew = crew();
    crew.run(n, 1, n.div_ceil(crew.threads() * 8), &|range| range.for_each(&f));
}

/// As [`parallel_for`], for few items of uneven length: each thread takes one at
/// a time, in order.
pub(crate) fn parallel_items(n: usize, f: impl Fn(usize) + Sync) {
    if n <= 1 {
        return (0..n).for_each(f);
    }
    crew().run(n, 1, 1, &|range| range.for_each(&f));
}

/// As [`parallel_for`], for items that read memory at its speed: each thread has a
/// contiguous share, which hardware prefetchers follow, and helps the others when
/// that is done.
pub(crate) fn parallel_shares(n: usize, f: impl Fn(usize) + Sync) {
    let crew = crew();
    let threads = crew.threads();
    crew.run(n, threads, n.div_ceil(threads * 16).max(1), &|range| range.for_each(&f));
}

/// Sends the threads to sleep until there is work again, for a library that has threads
/// of its own.
pub(super) fn rest() {
    crew().rest();
}

/// A pointer into a buffer whose disjoint parts are written by different threads.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: only `slice` gives access, and its callers keep to disjoint ranges.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares a slice.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// The part `[start, start + len)`.
    ///
    /// # Safety
    /// The slice given to `new` is still borrowed by the caller's frame, and no
    /// other thread uses an overlapping part.
    ///
    /// # Panics
    /// If the part exceeds the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: in range, and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
