//! The pool when everything goes well, and when nothing does.

use super::crew::Crew;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Half of the time nothing, else a yield or a sleep of up to a millisecond.
pub(super) fn adversity() {
    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }
    static SEEDS: AtomicUsize = AtomicUsize::new(1);
    let mut x = STATE.get();
    if x == 0 {
        x = (SEEDS.fetch_add(1, Ordering::Relaxed) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    // xorshift64
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.set(x);
    match x >> 58 {
        0..32 => {}
        32..60 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(x >> 20 & 1023)),
    }
}

/// Threads that are more than the cores, so that some are always late.
fn adverse() -> &'static Crew {
    static CREW: OnceLock<&Crew> = OnceLock::new();
    CREW.get_or_init(|| {
        let crew = Box::leak(Box::new(Crew::idle(7)));
        crew.adverse = true;
        crew.start()
    })
}

fn kind() -> &'static Crew {
    static CREW: OnceLock<&Crew> = OnceLock::new();
    CREW.get_or_init(|| Crew::new(3))
}

/// Runs a job whose closure, counters and all, dies with this frame, and is overwritten by
/// the next: a worker that came too late would count in the wrong place.
fn count(crew: &Crew, items: usize, shares: usize, chunk: usize) {
    let counters: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
    let job = |range: std::ops::Range<usize>| {
        assert!(!range.is_empty() && range.len() <= chunk.max(items));
        for i in range {
            counters[i].fetch_add(i + 1, Ordering::Relaxed);
        }
    };
    crew.run(items, shares, chunk, &job);
    let counted = counters.into_iter().map(AtomicUsize::into_inner).collect::<Vec<_>>();
    assert!(counted.iter().enumerate().all(|(i, &n)| n == i + 1), "{items}/{shares}/{chunk}");
}

fn count_all(crew: &Crew, turns: usize) {
    for turn in 0..turns {
        for (items, chunk) in [(0, 1), (1, 1), (2, 1), (7, 2), (64, 5), (1000, 17), (10_000, 300)] {
            let shares = if turn % 2 == 0 { 1 } else { crew.threads() };
            count(crew, items, shares, chunk);
        }
    }
}

#[test]
fn every_item_is_done_once() {
    count_all(kind(), 2000);
}

#[test]
fn workers_that_sleep_and_yield_everywhere_do_no_harm() {
    count_all(adverse(), 60);
}

#[test]
fn callers_do_not_disturb_each_other() {
    for crew in [kind(), adverse()] {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| count_all(crew, 30));
            }
        });
    }
}

#[test]
fn an_item_may_share_work_itself() {
    let sum = AtomicUsize::new(0);
    kind().run(10, 3, 1, &|outer| {
        for i in outer {
            kind().run(10, 1, 2, &|inner| {
                for j in inner {
                    sum.fetch_add(10 * i + j, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), (0..100).sum::<usize>());
}

#[test]
fn a_panic_reaches_the_caller_and_nobody_else() {
    for crew in [kind(), adverse()] {
        for bad in 0..100 {
            let begun = AtomicUsize::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                crew.run(100, crew.threads(), 1, &|range| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    if range.contains(&bad) {
                        std::panic::resume_unwind(Box::new(bad));
                    }
                });
            }));
            assert_eq!(outcome.unwrap_err().downcast_ref::<usize>(), Some(&bad));
            assert!(begun.into_inner() <= 100);
            count(crew, 100, 1, 3);
        }
    }
}

/// The caller does the work of workers that never come.
#[test]
fn nobody_waits_for_a_worker_without_a_core() {
    let crew = Box::leak(Box::new(Crew::idle(4)));
    count_all(crew, 10);
}

/// What a caller waits for is done when it returns, however late the worker is.
#[test]
fn a_slow_item_is_waited_for() {
    let here = std::thread::current().id();
    let slow = AtomicUsize::new(0);
    for _ in 0..20 {
        kind().run(8, 1, 1, &|_| {
            let other = std::thread::current().id() != here;
            std::thread::sleep(Duration::from_millis(if other { 3 } else { 1 }));
            slow.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(slow.swap(0, Ordering::Relaxed), 8);
    }
}
