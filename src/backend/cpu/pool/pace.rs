//! How many workers help on a machine that others use, too.
//!
//! A worker that loses its core in the middle of an item holds its caller up for
//! milliseconds, a hundred times what the item takes. So while threads are found to miss their
//! cores, the system is asked what others take, and no more threads work than what they leave
//! is enough for: trying more would cost more than it could bring. How many of these are worth
//! it depends on how the system shares cores, and on what it does not tell (a quota, another
//! virtual machine), so it is tried: the crew works with some number of helpers for a while,
//! then with another for a moment, and keeps the one that gets more done twice in a row.
//!
//! ```text
//! quiet ─ misses ─▶ stay at a level ─▶ probe the next one, up and down in turns ─┐
//!   ▲                    ▲ four times as long, if the probe was no better        │
//!   └─ none missed, ─────┴────────────────────────────────────────────────────────┘
//!      nothing taken
//! ```
//!
//! On a quiet machine nothing is measured.

use crate::ticks::Ticks;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many misses within a [`WINDOW`] are not the system's own work.
const MISSES: u32 = 5;
const WINDOW: Duration = Duration::from_millis(100);
/// A probe is so long: some of the turns that a system gives a process.
const PROBE: Duration = Duration::from_millis(40);
/// Between two probes lies so much at the most.
const STAY: Duration = Duration::from_millis(2000);
/// What part of the gain that more threads could bring a probe of them has to bring.
const MORE: f64 = 0.15;
/// What a probe of fewer has to get done: as much with fewer leaves cores to others.
const FEWER: f64 = 0.99;
/// Between two looks at what others take: some of the system's ticks, of 10 ms.
const LOOK: Duration = Duration::from_millis(200);
/// A thread is worth it with this part of a core; less than to begin with, so that a machine
/// between the two does not swing.
const ENOUGH: f64 = 0.5;
const ENOUGH_FOR_MORE: f64 = 0.75;
/// Without work for so long, there was none to do.
const GAP: Duration = Duration::from_millis(2);
/// Calls of a kind whose shortest says what one of them is worth, and how many must be known
/// before it counts.
const SAMPLES: u32 = 16;
const KNOWN: u32 = 4;
/// A phase has so many calls that count: long ones need more time.
const CALLS: u32 = 32;
/// So many probes in a row must be better: a turn of others more or less sways one.
const WINS: u32 = 2;
/// Kinds of calls that are told apart.
const KINDS: usize = 256;

/// A kind of job: its closure's type, and how many items.
pub(super) type Kind = (usize, usize);

/// How many workers help.
pub(super) struct Pace {
    helpers: AtomicUsize,
    /// Whether anything is measured.
    watching: AtomicBool,
    /// Since when misses are counted, and how many there were.
    misses: Mutex<(Instant, u32)>,
    trial: Mutex<Trial>,
}

/// What is being tried.
struct Trial {
    /// Numbers of helpers, from all to none.
    levels: Vec<usize>,
    /// The first of them that what others take leaves cores for.
    open: usize,
    /// What others had taken until then.
    seen: (Instant, Option<Ticks>),
    /// The best one so far.
    kept: usize,
    /// What it got done in the time of its calls.
    kept_rate: f64,
    /// The one that is tried now, if another.
    probed: Option<usize>,
    /// Whether the next probe is of fewer helpers.
    down: bool,
    /// Probes of that level that were better, in a row.
    wins: u32,
    stay: Duration,
    until: Instant,
    last: Instant,
    /// What the calls of this phase that count were worth, took, and how many they were.
    work: f64,
    time: f64,
    calls: u32,
    /// What a call of each kind is worth, and how many it was taken from.
    worth: HashMap<Kind, (f64, u32)>,
    /// Whether a thread missed its core since the last decision.
    missed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pace {
    /// With up to `workers` helpers.
    pub(super) fn new(workers: usize) -> Self {
        let now = Instant::now();
        let mut levels: Vec<_> = (0..=workers.min(2)).map(|fewer| workers - fewer).collect();
        levels.extend([workers * 3 / 4, workers / 2, workers / 4, 0]);
        levels.sort_by(|a, b| b.cmp(a));
        levels.dedup();
        let trial = Trial {
            levels,
            open: 0,
            seen: (now, None),
            kept: 0,
            kept_rate: 0.0,
            probed: None,
            down: true,
            wins: 0,
            stay: PROBE,
            until: now,
            last: now,
            work: 0.0,
            time: 0.0,
            calls: 0,
            worth: HashMap::new(),
            missed: false,
        };
        Self {
            helpers: AtomicUsize::new(workers),
            watching: AtomicBool::new(false),
            misses: Mutex::new((now, 0)),
            trial: Mutex::new(trial),
        }
    }

    /// Workers that may help now: those of the lowest numbers.
    pub(super) fn helpers(&self) -> usize {
        self.helpers.load(Ordering::Relaxed)
    }

    /// A thread that was spinning had no core for a while.
    pub(super) fn missed(&self) {
        let now = Instant::now();
        if self.watching.load(Ordering::Relaxed) {
            lock(&self.trial).missed = true;
            return;
        }
        let mut misses = lock(&self.misses);
        if now - misses.0 > WINDOW {
            *misses = (now, 0);
        }
        misses.1 += 1;
        if misses.1 >= MISSES {
            lock(&self.trial).begin(now, Ticks::now());
            self.watching.store(true, Ordering::Relaxed);
        }
    }

    /// A job begins; nothing on a quiet machine.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.watching.load(Ordering::Relaxed).then(|| {
            let now = Instant::now();
            lock(&self.trial).wait(now);
            now
        })
    }

    /// A job of a kind that began at `begun` is done.
    pub(super) fn end(&self, kind: Kind, begun: Instant) {
        let now = Instant::now();
        let mut trial = lock(&self.trial);
        if now - trial.seen.0 > LOOK {
            trial.look(now, Ticks::now());
        }
        let goes_on = trial.did(kind, begun, now);
        self.helpers.store(trial.helpers(), Ordering::Relaxed);
        self.watching.store(goes_on, Ordering::Relaxed);
    }
}

impl Trial {
    fn helpers(&self) -> usize {
        self.levels[self.probed.unwrap_or(self.kept)]
    }

    fn begin(&mut self, now: Instant, ticks: Option<Ticks>) {
        self.seen = (now, ticks);
        (self.probed, self.down, self.wins, self.stay) = (None, true, 0, PROBE);
        self.worth.clear();
        self.last = now;
        self.phase(now, PROBE);
    }

    /// Sees what others took since the last look, and moves to the level that it leaves open
    /// if that is another than before.
    fn look(&mut self, now: Instant, ticks: Option<Ticks>) {
        let (_, before) = std::mem::replace(&mut self.seen, (now, ticks));
        let free = before.zip(ticks).and_then(|(before, ticks)| {
            Some((1.0 - ticks.others_since(&before)?) * ticks.cores as f64)
        });
        let open = free.map_or(0, |free| self.open_with(free));
        if open != self.open {
            (self.open, self.kept, self.probed) = (open, open, None);
            (self.wins, self.stay) = (0, PROBE);
            self.phase(now, PROBE);
        }
    }

    /// The first level that `free` cores are enough for.
    fn open_with(&self, free: f64) -> usize {
        let is_open = |level: usize| {
            let enough = if level < self.open { ENOUGH_FOR_MORE } else { ENOUGH };
            free >= self.levels[level] as f64 + enough
        };
        let last = self.levels.len() - 1;
        (0..last).find(|&level| is_open(level)).unwrap_or(last)
    }

    fn phase(&mut self, now: Instant, length: Duration) {
        (self.until, self.missed) = (now + length, false);
        (self.work, self.time, self.calls) = (0.0, 0.0, 0);
    }

    /// Time without work does not count.
    fn wait(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.last);
        if gap > GAP {
            self.until += gap;
        }
    }

    /// Adds a job, decides when it is time, and says whether there is more to try.
    fn did(&mut self, kind: Kind, begun: Instant, now: Instant) -> bool {
        self.last = now;
        if self.worth.len() >= KINDS {
            self.worth.clear();
        }
        let took = (now - begun).as_secs_f64();
        let (worth, samples) = self.worth.entry(kind).or_insert((took, 0));
        if *samples < SAMPLES {
            (*worth, *samples) = (worth.min(took), *samples + 1);
        }
        if *samples > KNOWN {
            self.work += *worth;
            self.time += took;
            self.calls += 1;
        }
        now < self.until || self.calls < CALLS || self.decide(now)
    }

    fn decide(&mut self, now: Instant) -> bool {
        let rate = self.work / self.time.max(1e-9);
        match self.probed.take() {
            None if self.kept == 0 && !self.missed => return false,
            None => {
                self.kept_rate = rate;
                self.probed = self.neighbour();
                self.phase(now, PROBE);
            }
            Some(level) => {
                let threads = |level: usize| 1.0 + self.levels[level] as f64;
                let needed = match level > self.kept {
                    true => FEWER,
                    false => 1.0 + MORE * (threads(level) / threads(self.kept) - 1.0),
                };
                if rate > self.kept_rate * needed {
                    self.wins += 1;
                    self.stay = PROBE;
                    if self.wins == WINS {
                        (self.kept, self.wins) = (level, 0);
                    }
                } else {
                    (self.down, self.wins) = (!self.down, 0);
                    self.stay = (self.stay * 4).min(STAY);
                }
                self.phase(now, self.stay);
            }
        }
        true
    }

    /// The level that is tried next.
    fn neighbour(&mut self) -> Option<usize> {
        let last = self.levels.len() - 1;
        if self.kept == self.open || self.kept == last {
            self.down = self.kept == self.open;
        }
        let next = if self.down { self.kept + 1 } else { self.kept.checked_sub(1)? };
        (self.open..=last).contains(&next).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up machine: how fast a crew is with each number of helpers.
    fn settles(workers: usize, speed: impl Fn(usize) -> f64, seconds: f64) -> (usize, f64) {
        let pace = Pace::new(workers);
        let mut now = Instant::now();
        lock(&pace.trial).begin(now, None);
        let (start, mut done) = (now, 0.0);
        while (now - start).as_secs_f64() < seconds {
            let mut trial = lock(&pace.trial);
            for (kind, work) in [(1, 30e-6), (2, 90e-6)] {
                trial.wait(now);
                let begun = now;
                now += Duration::from_secs_f64(work / speed(trial.helpers()));
                trial.missed = true;
                assert!(trial.did((kind, 8), begun, now));
                done += work;
            }
        }
        let kept = lock(&pace.trial);
        (kept.levels[kept.kept], done / seconds)
    }

    #[test]
    fn the_fastest_level_is_found_and_little_is_lost_by_trying() {
        let (kept, rate) = settles(1, |helpers| [1.0, 0.5][helpers], 5.0);
        assert_eq!(kept, 0);
        assert!(rate > 0.95, "{rate}");
        let (kept, rate) = settles(1, |helpers| [0.5, 0.8][helpers], 5.0);
        assert_eq!(kept, 1);
        assert!(rate > 0.77, "{rate}");
        // One of 16 cores is somebody else's: the last helper holds all up.
        let (kept, _) = settles(15, |n| if n == 15 { 8.0 } else { 1.0 + n as f64 }, 5.0);
        assert_eq!(kept, 14);
        // Half of them are.
        let (kept, _) = settles(15, |n| if n > 7 { 4.0 } else { 1.0 + n as f64 }, 5.0);
        assert_eq!(kept, 7);
    }

    #[test]
    fn a_machine_that_gets_quiet_is_used_whole_again() {
        let pace = Pace::new(1);
        for _ in 0..MISSES {
            pace.missed();
        }
        assert!(pace.begin().is_some());
        let mut now = Instant::now();
        let mut run = |busy: bool, seconds: f64| {
            let end = now + Duration::from_secs_f64(seconds);
            while now < end {
                let mut trial = lock(&pace.trial);
                let speed = if busy || trial.helpers() == 0 { 1.0 } else { 2.0 };
                let speed = if busy && trial.helpers() == 1 { 0.5 } else { speed };
                trial.missed |= busy;
                let begun = now;
                now += Duration::from_secs_f64(50e-6 / speed);
                if !trial.did((1, 8), begun, now) {
                    return (trial.helpers(), false);
                }
            }
            (lock(&pace.trial).helpers(), true)
        };
        assert_eq!(run(true, 1.5), (0, true));
        assert_eq!(run(false, 5.0), (1, false));
    }

    #[test]
    fn no_more_work_than_others_leave_cores_for() {
        let pace = Pace::new(3);
        let now = Instant::now();
        let mut trial = lock(&pace.trial);
        // Ticks of four cores, of which others take some.
        let ticks = |all, busy| Some(Ticks { cores: 4, all, busy, own: 0 });
        let (mut all, mut busy) = (1000, 400);
        trial.begin(now, ticks(all, busy));
        for (others, helpers) in [
            (0.0, 3),
            (0.4, 3),
            (0.6, 2),
            (0.4, 2),
            (0.2, 3),
            (2.0, 1),
            (3.3, 0),
            (4.0, 0),
            (0.0, 3),
        ] {
            (all, busy) = (all + 400, busy + (100.0 * others) as u64);
            trial.look(now, ticks(all, busy));
            assert_eq!(trial.helpers(), helpers, "{others}");
            // Nor are more tried.
            trial.missed = true;
            for _ in 0..20 {
                trial.decide(now);
                assert!(trial.helpers() <= helpers, "{others}");
            }
        }
        // Where the system does not tell, all may help.
        trial.look(now, ticks(all + 400, busy + 400));
        assert_eq!(trial.helpers(), 0);
        trial.look(now, None);
        assert_eq!(trial.helpers(), 3);
    }

    #[test]
    fn a_few_misses_are_no_reason() {
        let pace = Pace::new(3);
        for _ in 1..MISSES {
            pace.missed();
        }
        assert!(pace.begin().is_none());
        assert_eq!(pace.helpers(), 3);
        assert_eq!(Pace::new(0).helpers(), 0);
    }
}
