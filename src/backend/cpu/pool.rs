//! Work shared over all cores, on the pool that the dense layers use.
//!
//! candle's workers spin for a while after each matrix product; a second pool
//! would compete with them for the same cores.

use candle_core::utils::barrier_pool;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that share the work, the calling one included.
pub(crate) fn threads() -> usize {
    barrier_pool().n_workers() + 1
}

/// Sets the number of threads. It has no effect once work has been shared.
///
/// # Safety
/// No other thread is running: the number travels in the process environment,
/// from which candle reads it.
pub unsafe fn set_threads(threads: u16) {
    // SAFETY: the caller's promise.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", threads.to_string()) }
}

/// Calls `f` with every index below `n`, on all threads.
pub(crate) fn parallel_for(n: usize, f: impl Fn(usize) + Sync) {
    if n <= 1 {
        (0..n).for_each(f);
    } else {
        barrier_pool().execute_chunked(n, |range| range.for_each(&f));
    }
}

/// As [`parallel_for`], for few items of uneven length: each thread takes one at
/// a time, in order.
pub(crate) fn parallel_items(n: usize, f: impl Fn(usize) + Sync) {
    if n <= 1 {
        return (0..n).for_each(f);
    }
    let cursor = AtomicUsize::new(0);
    // One call a thread, since the pool's own chunks are too coarse.
    parallel_for(threads(), |_| {
        loop {
            let i = cursor.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                break;
            }
            f(i);
        }
    });
}

/// As [`parallel_for`], for items that read memory at its speed: each thread has a
/// contiguous share, which hardware prefetchers follow, and helps the others when
/// that is done.
pub(crate) fn parallel_shares(n: usize, f: impl Fn(usize) + Sync) {
    let threads = threads();
    let chunk = n.div_ceil(threads * 16).max(1);
    let start = |thread: usize| n * thread / threads;
    let cursors: Vec<_> = (0..threads).map(|t| AtomicUsize::new(start(t))).collect();
    barrier_pool().execute(|thread| {
        for t in (thread..threads).chain(0..thread) {
            let end = start(t + 1);
            loop {
                let first = cursors[t].fetch_add(chunk, Ordering::Relaxed);
                if first >= end {
                    break;
                }
                (first..end.min(first + chunk)).for_each(&f);
            }
        }
    });
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
