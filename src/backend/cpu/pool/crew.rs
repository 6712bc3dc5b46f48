//! Threads that help whoever has work to share.
//!
//! ```text
//! caller   job ▶ left := items ▶ bell ▶ wakes sleepers ▶ takes and does items ▶ waits for `unfinished` = 0
//! worker   waits for the bell, spinning, then asleep ▶ takes and does items ▶ takes them off `unfinished`
//! ```
//!
//! Nothing waits for a worker that has not come: the caller can do all items alone, and
//! waits at the end only for those that others have taken. So a worker that has no core,
//! on a busy machine, costs what it does not do and no more.
//!
//! **Why a late worker is harmless.** It reads `job`, and calls the closure, only after a
//! successful exchange on a share's `left`, from a number above 0 to a smaller one. Whatever
//! it has slept through, the items that it took then are of the job that is current at that
//! moment, and that job's caller does not return until they are done. `left` is 0 in all
//! shares whenever `job` is written: the caller before has emptied them.

use super::pace::Pace;
use super::patience::Patience;
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// Apart from its neighbours in every cache: two lines are fetched together.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// What is to be done.
struct Job {
    /// Calls the closure for a range of items.
    call: unsafe fn(*const (), Range<usize>),
    closure: *const (),
    items: usize,
    /// Into how many shares the items are divided, evenly and in order.
    shares: usize,
}

/// A worker, as its callers see it.
struct Worker {
    asleep: Apart<AtomicBool>,
    thread: OnceLock<Thread>,
}

/// A caller's threads. It lives as long as the process.
pub(super) struct Crew {
    /// Items of each share that nobody has taken yet; a share a thread.
    left: Box<[Apart<AtomicUsize>]>,
    /// How many items to take at a time: advice, which may be read too early or late.
    chunk: AtomicUsize,
    job: UnsafeCell<Job>,
    /// Whether a caller is at work.
    taken: AtomicBool,
    /// Items that are not done.
    unfinished: Apart<AtomicUsize>,
    /// Counts jobs.
    bell: Apart<AtomicUsize>,
    workers: Box<[Worker]>,
    patience: Patience,
    pace: Pace,
    /// Whether workers sleep at once, until there is work again.
    resting: AtomicBool,
    /// Whether the caller sleeps until nothing is unfinished.
    waiting: AtomicBool,
    finished: (Mutex<()>, Condvar),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Sleeps and yields at every turn, for tests.
    #[cfg(test)]
    pub(super) adverse: bool,
}

// SAFETY: `job` is all that is not Sync. It is written by the one caller that has set
// `taken`, while no item is left or unfinished, and read only by who has taken an item since.
unsafe impl Sync for Crew {}
// SAFETY: as above; the pointer in `job` is used under the same rule.
unsafe impl Send for Crew {}

/// Calls `F`, which was made untyped.
///
/// # Safety
/// `closure` points to an `F` that may be called from this thread.
unsafe fn call<F: Fn(Range<usize>) + Sync>(closure: *const (), range: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { (*closure.cast::<F>())(range) }
}

impl Crew {
    /// A crew of `threads`, the calling one included; fewer if the system has no more.
    pub(super) fn new(threads: usize) -> &'static Self {
        let crew = Box::leak(Box::new(Self::idle(threads.max(1))));
        crew.start()
    }

    /// A crew whose workers do not run yet.
    pub(super) fn idle(threads: usize) -> Self {
        let worker = |_| Worker { asleep: Apart::default(), thread: OnceLock::new() };
        Self {
            left: (0..threads).map(|_| Apart::default()).collect(),
            chunk: AtomicUsize::new(1),
            job: UnsafeCell::new(Job {
                call: |_, _| {},
                closure: std::ptr::null(),
                items: 0,
                shares: 1,
            }),
            taken: AtomicBool::new(false),
            unfinished: Apart::default(),
            bell: Apart::default(),
            workers: (1..threads).map(worker).collect(),
            patience: Patience::new(threads),
            pace: Pace::new(threads - 1),
            resting: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            finished: Default::default(),
            panic: Mutex::default(),
            #[cfg(test)]
            adverse: false,
        }
    }

    /// Starts the workers. Where the system refuses one, the others do its share.
    pub(super) fn start(&'static self) -> &'static Self {
        for (i, worker) in self.workers.iter().enumerate() {
            let name = format!("kvfold-{}", i + 1);
            let thread = std::thread::Builder::new().name(name).spawn(move || self.work(i + 1));
            let Ok(thread) = thread else { break };
            // Set here alone.
            let _ = worker.thread.set(thread.thread().clone());
        }
        self
    }

    /// Threads, the calling one included.
    pub(super) fn threads(&self) -> usize {
        self.left.len()
    }

    /// Calls `f` with ranges that together are `0..items`: `chunk` long, or all at once if
    /// the crew is busy. Each thread begins with the share of its number, if there are
    /// several, and then helps.
    ///
    /// # Panics
    /// With the payload of `f`, if it panics on any thread.
    pub(super) fn run<F>(&self, items: usize, shares: usize, chunk: usize, f: &F)
    where
        F: Fn(Range<usize>) + Sync,
    {
        if items == 0 {
            return;
        }
        debug_assert!(chunk > 0 && (1..=self.threads()).contains(&shares));
        // A call from within an item, or from another thread meanwhile, does its work alone.
        if self.workers.is_empty() || self.taken.swap(true, Ordering::Acquire) {
            return f(0..items);
        }
        let begun = self.pace.begin();
        // SAFETY: `taken` makes this the only caller. Nothing is left or unfinished of the
        // job before, so nobody reads `job`, and nobody will before `left` is stored below.
        unsafe {
            *self.job.get() =
                Job { call: call::<F>, closure: (&raw const *f).cast(), items, shares };
        }
        self.resting.store(false, Ordering::Relaxed);
        self.chunk.store(chunk, Ordering::Relaxed);
        self.unfinished.0.store(items, Ordering::Relaxed);
        let mut watch = Watch { crew: self, own: 0, emptied: false };
        for (share, left) in self.left[..shares].iter().enumerate() {
            // Release: who takes an item sees all of the above.
            let range = share_of(items, shares, share);
            left.0.store(range.len(), Ordering::Release);
        }
        self.ring((items.div_ceil(chunk) - 1).min(self.pace.helpers()));
        for share in 0..shares {
            while let Some(range) = self.take(share) {
                watch.own += range.len();
                f(range);
            }
        }
        watch.emptied = true;
        drop(watch);
        if let Some(begun) = begun {
            self.pace.end((call::<F> as *const () as usize, items), begun);
        }
    }

    /// Sends spinning workers to sleep: somebody else needs the cores.
    pub(super) fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
    }

    /// Says that there is work, and wakes up to `helpers` of those who sleep.
    fn ring(&self, helpers: usize) {
        // SeqCst, here and in `listen`: either the worker sees the bell or we see it asleep.
        self.bell.0.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.iter().take(helpers) {
            if worker.asleep.0.load(Ordering::SeqCst) {
                worker.asleep.0.store(false, Ordering::Relaxed);
                if let Some(thread) = worker.thread.get() {
                    thread.unpark();
                }
            }
        }
    }

    /// Takes items of a share, if any are left.
    fn take(&self, share: usize) -> Option<Range<usize>> {
        let left = &self.left[share].0;
        let mut seen = left.load(Ordering::Relaxed);
        while seen > 0 {
            let n = self.chunk.load(Ordering::Relaxed).min(seen);
            self.adversity();
            // Acquire: what the caller wrote before it stored `left`, through the others'
            // exchanges in between.
            match left.compare_exchange_weak(seen, seen - n, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    // SAFETY: an item was taken, and is unfinished: `job` stays as it is.
                    let job = unsafe { &*self.job.get() };
                    let first = share_of(job.items, job.shares, share).end - seen;
                    return Some(first..first + n);
                }
                Err(now) => seen = now,
            }
        }
        None
    }

    /// A worker's life.
    fn work(&self, me: usize) {
        let mut heard = 0;
        let mut turn = self.patience.turn();
        loop {
            heard = self.listen(me, heard);
            self.adversity();
            self.help(me);
            if turn.end() {
                self.pace.missed();
            }
        }
    }

    /// Waits for the bell to ring anew, and says how often it has rung.
    fn listen(&self, me: usize, heard: usize) -> usize {
        let sent_away = || me > self.pace.helpers();
        let rung = || self.bell.0.load(Ordering::Acquire) != heard && !sent_away();
        let resting = || self.resting.load(Ordering::Relaxed) || sent_away();
        if self.patience.spin_for_work(|| rung() || resting()).missed {
            self.pace.missed();
        }
        if !rung() {
            let asleep = &self.workers[me - 1].asleep.0;
            // Anew each time: a ring from before may have taken us for awake since.
            let sleeps = || {
                asleep.store(true, Ordering::SeqCst);
                self.bell.0.load(Ordering::SeqCst) == heard || sent_away()
            };
            while sleeps() {
                std::thread::park();
            }
            asleep.store(false, Ordering::Relaxed);
        }
        self.bell.0.load(Ordering::Acquire)
    }

    /// Does items as long as there are any, those of its own share first.
    fn help(&self, me: usize) {
        let mut done = 0;
        for share in std::iter::once(me).chain(0..self.left.len()) {
            while let Some(range) = self.take(share) {
                done += range.len();
                self.adversity();
                // SAFETY: items were taken and are unfinished, so `job` stays as it is and its
                // closure is borrowed by a caller that waits.
                let outcome = catch_unwind(AssertUnwindSafe(|| unsafe {
                    let job = &*self.job.get();
                    (job.call)(job.closure, range);
                }));
                if let Err(payload) = outcome {
                    self.panic
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(payload);
                }
            }
        }
        self.adversity();
        if done > 0 {
            self.finish(done);
        }
    }

    /// Takes items off the unfinished ones, and tells the caller if they were the last.
    /// Nothing of the job may be touched after it.
    fn finish(&self, items: usize) {
        // Release: what the items wrote. SeqCst with `waiting`: either we see that the
        // caller sleeps, or it sees that nothing is unfinished.
        let before = self.unfinished.0.fetch_sub(items, Ordering::SeqCst);
        if before == items && self.waiting.load(Ordering::SeqCst) {
            // Once the lock is free, the caller sleeps or has seen it.
            drop(self.finished.0.lock().unwrap_or_else(PoisonError::into_inner));
            self.finished.1.notify_all();
        }
    }

    /// Returns when nothing is unfinished.
    fn wait(&self) {
        let done = || self.unfinished.0.load(Ordering::Acquire) == 0;
        let spun = self.patience.spin_for_end(done);
        if spun.missed {
            self.pace.missed();
        }
        if spun.done {
            return;
        }
        self.waiting.store(true, Ordering::SeqCst);
        let mut lock = self.finished.0.lock().unwrap_or_else(PoisonError::into_inner);
        while self.unfinished.0.load(Ordering::SeqCst) != 0 {
            lock = self.finished.1.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        drop(lock);
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// In tests of a crew that is to have a hard time: nothing, a yield or a short sleep.
    #[inline(always)]
    fn adversity(&self) {
        #[cfg(test)]
        if self.adverse {
            super::tests::adversity();
        }
    }
}

/// The items of a share.
fn share_of(items: usize, shares: usize, share: usize) -> Range<usize> {
    // items · share / shares, without a product that overflows.
    let at = |share| items / shares * share + items % shares * share / shares;
    at(share)..at(share + 1)
}

/// Ends a call of `run`, also when an item of the caller's panics.
struct Watch<'a> {
    crew: &'a Crew,
    /// Items that the caller took.
    own: usize,
    /// Whether nothing is left; else a panic has come first.
    emptied: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let crew = self.crew;
        let mut gone = self.own;
        if !self.emptied {
            gone += crew.left.iter().map(|left| left.0.swap(0, Ordering::Relaxed)).sum::<usize>();
        }
        if crew.unfinished.0.fetch_sub(gone, Ordering::AcqRel) != gone {
            crew.wait();
        }
        let panic = crew.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        crew.taken.store(false, Ordering::Release);
        if let Some(payload) = panic
            && !std::thread::panicking()
        {
            resume_unwind(payload);
        }
    }
}
