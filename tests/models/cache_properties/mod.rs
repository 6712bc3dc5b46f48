//! Random operations on the cache's books against a naive model.
//!
//! The model executes every operation that the cache returns on a map from
//! blocks to rows of token identities, and keeps for each stream the plain list
//! of its tokens. After every operation each idle sequence is read through its
//! views: every query must meet each of its live tokens exactly once, in the
//! form that rule 1 of ARCHITECTURE says, and never a freed block or an unwritten slot.

mod model;
mod operations;

use kvfold::Error;
use kvfold::cache::{
    CacheConfig, GroupSpec, GroupView, KvCache, RunKind, SealedBytes, SeqId, Step,
};
use proptest::prelude::*;

use self::model::{MGroup, MSeq, MStream, Seen, World};

#[derive(Clone, Debug)]
enum Op {
    Create,
    Prepare(Vec<(usize, usize)>),
    Commit(usize, Vec<u16>),
    Abort(usize),
    Fork(usize),
    Truncate(usize, usize),
    Compact(usize, usize, u64),
    Clear(usize, usize, u64),
    Share(usize, u64),
    Attach(usize, u64),
    Free(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let n = prop_oneof![2 => 1..6usize, 2 => 1..70usize, 3 => 60..400usize, 2 => (1..6usize).prop_map(|n| n * 64), 1 => Just(4)];
    let back = prop_oneof![3 => 0..8usize, 2 => 0..150usize, 1 => 0..2000usize];
    let at = any::<usize>;
    prop_oneof![
        1 => Just(Op::Create),
        8 => prop::collection::vec((at(), n), 1..4).prop_map(Op::Prepare),
        8 => (at(), prop::collection::vec(any::<u16>(), 1..4)).prop_map(|(f, a)| Op::Commit(f, a)),
        1 => at().prop_map(Op::Abort),
        2 => at().prop_map(Op::Fork),
        3 => (at(), back).prop_map(|(s, back)| Op::Truncate(s, back)),
        3 => (at(), at(), any::<u64>()).prop_map(|(s, g, pick)| Op::Compact(s, g, pick)),
        3 => (at(), at(), any::<u64>()).prop_map(|(s, g, pick)| Op::Clear(s, g, pick)),
        2 => (at(), any::<u64>()).prop_map(|(s, pick)| Op::Share(s, pick)),
        3 => (at(), any::<u64>()).prop_map(|(s, pick)| Op::Attach(s, pick)),
        1 => at().prop_map(Op::Free),
    ]
}

fn run(groups: Vec<GroupSpec>, budget: u64, ops: &[Op]) -> Seen {
    let mut world = World::new(groups, budget, ops.len() % 2 == 1);
    let mut seen = Seen::default();
    let first = world.cache.create();
    let empty = MSeq {
        len: 0,
        attached: 0,
        busy: false,
        groups: (world.rules.iter())
            .map(|rule| MGroup { compacted: None, streams: vec![MStream::default(); rule.streams] })
            .collect(),
    };
    world.seqs.insert(first, empty.clone());
    for op in ops {
        let ids: Vec<SeqId> = world.seqs.keys().copied().collect();
        let seq = |pick: &usize| ids.get(pick % ids.len().max(1)).copied();
        let groups = world.rules.len();
        match op {
            Op::Create => {
                let id = world.cache.create();
                world.seqs.insert(id, empty.clone());
            }
            Op::Prepare(requests) if !ids.is_empty() => {
                let requests: Vec<_> =
                    requests.iter().filter_map(|(pick, n)| Some((seq(pick)?, *n))).collect();
                world.prepare(&requests, &mut seen);
            }
            Op::Commit(flight, accept) if !world.flights.is_empty() => {
                world.land(flight % world.flights.len(), Some(accept));
            }
            Op::Abort(flight) if !world.flights.is_empty() => {
                world.land(flight % world.flights.len(), None);
            }
            Op::Fork(pick) => seq(pick).into_iter().for_each(|seq| world.fork(seq)),
            Op::Truncate(pick, back) => {
                if let Some(seq) = seq(pick) {
                    let len = world.seqs[&seq].len;
                    // A little back, or to nearly nothing.
                    let new_len = if *back < 1000 { len.saturating_sub(*back) } else { back % 80 };
                    let new_len = new_len.min(len);
                    world.truncate(seq, new_len, &mut seen);
                }
            }
            Op::Compact(pick, g, choice) => {
                seq(pick)
                    .into_iter()
                    .for_each(|seq| world.compact(seq, g % groups, *choice, &mut seen));
            }
            Op::Clear(pick, g, choice) => {
                seq(pick)
                    .into_iter()
                    .for_each(|seq| world.clear(seq, g % groups, *choice, &mut seen));
            }
            Op::Share(pick, choice) => {
                seq(pick).into_iter().for_each(|seq| world.share(seq, *choice, &mut seen));
            }
            Op::Attach(pick, choice) => {
                seq(pick).into_iter().for_each(|seq| world.attach(seq, *choice, &mut seen));
            }
            Op::Free(pick) => seq(pick).into_iter().for_each(|seq| world.end(seq)),
            Op::Prepare(_) | Op::Commit(..) | Op::Abort(_) => {}
        }
        world.check(&mut seen);
    }
    world.finish();
    seen
}

fn group(layers: usize, kv_heads: usize, sealed: Option<u64>, sinks: usize, r: usize) -> GroupSpec {
    GroupSpec {
        layers,
        kv_heads,
        hot_page_bytes: 256,
        // Pages of unequal streams.
        sealed: sealed.map(|page| SealedBytes {
            page,
            block: page * (layers * kv_heads) as u64 - 8 * (layers * kv_heads - 1) as u64,
        }),
        sinks,
        hot_window: r,
        window: None,
    }
}

fn sliding(window: usize, group: GroupSpec) -> GroupSpec {
    GroupSpec { window: Some(window), ..group }
}

fn all_groups() -> Vec<GroupSpec> {
    vec![
        sliding(200, group(2, 1, Some(48), 4, 128)),
        sliding(1, group(1, 1, None, 4, 128)),
        sliding(130, group(1, 2, Some(48), 64, 0)),
        group(2, 2, Some(48), 4, 128),
        group(1, 2, None, 4, 128),
        group(1, 1, Some(40), 0, 0),
        group(1, 3, Some(50), 64, 64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_agree_with_the_naive_model(
        groups in prop::sample::subsequence(all_groups(), 1..=4),
        budget in prop_oneof![2_000..60_000u64, Just(u64::MAX)],
        ops in prop::collection::vec(op(), 1..50),
    ) {
        run(groups, budget, &ops);
    }

    #[test]
    fn a_prefill_peaks_at_bytes_for(
        groups in prop::sample::subsequence(all_groups(), 1..=4),
        n in 1..1500usize,
        chunk in 1..600usize,
    ) {
        let config = |budget_bytes| CacheConfig { groups: groups.clone(), budget_bytes };
        let predicted = KvCache::new(config(u64::MAX)).unwrap().bytes_for(n, chunk);
        for (budget, fits) in [(predicted, true), (predicted - 1, false)] {
            let mut cache = KvCache::new(config(budget)).unwrap();
            let seq = cache.create();
            let prefill = (0..n).step_by(chunk).try_for_each(|from| {
                let take = chunk.min(n - from);
                let step = cache.prepare(&[(seq, take)])?;
                cache.commit(step, &[take])
            });
            prop_assert_eq!(prefill.is_ok(), fits);
            prop_assert!(!fits || cache.peak_bytes() == predicted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_of_any_cut_stay_within_bytes_within(
        groups in prop::sample::subsequence(all_groups(), 1..=4),
        n in 1..1500usize,
        chunk in 1..600usize,
        cuts in prop::collection::vec(1..600usize, 1..20),
    ) {
        let config = CacheConfig { groups: groups.clone(), budget_bytes: u64::MAX };
        let mut cache = KvCache::new(config).unwrap();
        let within = cache.bytes_within(n, chunk);
        prop_assert!(cache.bytes_for(n, chunk) <= within);
        let seq = cache.create();
        let mut cuts = cuts.iter().cycle();
        while cache.len(seq).unwrap() < n {
            let left = n - cache.len(seq).unwrap();
            // What is left over is often one whole chunk.
            let cut = if left > chunk && left < 2 * chunk { left - chunk } else { *cuts.next().unwrap() };
            let take = cut.min(chunk).min(left);
            let step = cache.prepare(&[(seq, take)]).unwrap();
            cache.commit(step, &[take]).unwrap();
        }
        prop_assert!(cache.peak_bytes() <= within, "{} of {within}", cache.peak_bytes());
    }
}

/// The same harness on a written story, so that seals, copies and gathers
/// certainly happen.
#[test]
fn a_story_meets_every_kind_of_operation() {
    let all = |n| [Op::Prepare(vec![(0, n)]), Op::Commit(0, vec![1])];
    let mut ops = Vec::new();
    ops.extend(all(100));
    ops.push(Op::Compact(0, 3, 7));
    ops.extend(all(500));
    ops.extend([Op::Fork(0), Op::Prepare(vec![(0, 3), (1, 200)]), Op::Commit(0, vec![1, 3])]);
    ops.extend([Op::Truncate(0, 2), Op::Clear(1, 0, 5), Op::Clear(1, 3, 6), Op::Truncate(0, 600)]);
    ops.extend(all(130));
    ops.extend([Op::Compact(0, 3, 8), Op::Compact(0, 5, 9), Op::Free(0)]);
    let seen = run(all_groups(), u64::MAX, &ops);
    assert!(seen.seals > 20 && seen.copies > 5 && seen.gathers > 3 && seen.refused > 0, "{seen:?}");
    assert!(seen.moves > 3, "{seen:?}");
}

/// Runs of a sequence that is gone are attached to others, until their memory is needed.
#[test]
fn shared_runs_outlive_their_sequence() {
    let all = |n| [Op::Prepare(vec![(0, n)]), Op::Commit(0, vec![1])];
    let shares = || (0..100).map(|pick| Op::Share(0, pick));
    let attaches = || (0..40).map(|pick| Op::Attach(0, pick));
    let mut ops = Vec::new();
    ops.extend(all(600));
    ops.extend(shares().chain([Op::Create, Op::Free(0)]).chain(attaches()));
    ops.extend(all(70));
    ops.extend(attaches());
    ops.extend(all(70));
    ops.extend([Op::Fork(0), Op::Compact(0, 0, 5), Op::Clear(1, 0, 8), Op::Free(0)]);
    ops.extend(all(300));
    let groups = vec![group(2, 2, Some(48), 4, 128), group(1, 1, Some(40), 4, 0)];
    let seen = run(groups, u64::MAX, &ops);
    assert!(seen.attached > 3 && seen.moves > 3, "{seen:?}");

    // With a window, which has left nothing behind yet: in front of all but the sinks.
    let mut ops = Vec::new();
    ops.extend(all(290));
    ops.extend(shares().chain([Op::Create, Op::Free(0)]).chain(attaches()));
    ops.extend(all(300));
    let windowed =
        || vec![group(1, 2, Some(48), 4, 128), sliding(300, group(1, 1, Some(48), 4, 64))];
    let seen = run(windowed(), u64::MAX, &ops);
    assert!(seen.attached > 0, "{seen:?}");

    let cache =
        |budget_bytes| KvCache::new(CacheConfig { groups: windowed(), budget_bytes }).unwrap();
    let mut cache = cache(cache(u64::MAX).bytes_for(1000, 1000));
    let seq = cache.create();
    let fill = |cache: &mut KvCache, seq, n| {
        let step = cache.prepare(&[(seq, n)]).unwrap();
        cache.commit(step, &[n]).unwrap();
    };
    fill(&mut cache, seq, 290);
    let run = cache.share(seq, 0..4 + 128).unwrap();
    let held = cache.held_bytes();
    cache.free(seq).unwrap();
    // Two sealed pages and the sinks of the first group; of the second too.
    assert_eq!((cache.held_bytes(), cache.idle_bytes() > 0), (0, true));
    assert!(cache.idle_bytes() < held);
    let again = cache.create();
    cache.attach(again, &run, 0).unwrap();
    assert_eq!((cache.idle_bytes(), cache.len(again).unwrap()), (0, 132));
    assert!(cache.truncate(again, 131).is_err());
    let message = cache.attach(again, &run, 132).unwrap_err().to_string();
    assert!(message.contains("begins a sequence"), "{message}");
    cache.free(again).unwrap();
    let other = cache.create();
    fill(&mut cache, other, 1000);
    assert_eq!(cache.idle_bytes(), 0);
    let fresh = cache.create();
    let message = cache.attach(fresh, &run, 0).unwrap_err().to_string();
    assert!(message.contains("needed for other tokens"), "{message}");
}

/// What was attached elsewhere keeps the position of its keys when it is shared again, and a
/// run whose sinks nobody sees any more still begins a sequence.
#[test]
fn runs_are_shared_again() {
    let cache_of =
        |group| KvCache::new(CacheConfig { groups: vec![group], budget_bytes: u64::MAX }).unwrap();
    let fill = |cache: &mut KvCache, seq, n| {
        let step = cache.prepare(&[(seq, n)]).unwrap();
        cache.commit(step, &[n]).unwrap();
    };
    let mut cache = cache_of(group(1, 1, None, 0, 128));
    let [first, second, third] = [(); 3].map(|()| cache.create());
    fill(&mut cache, first, 200);
    let run = cache.share(first, 64..192).unwrap();
    cache.attach(second, &run, 10).unwrap();
    let again = cache.share(second, 0..128).unwrap();
    assert_eq!((run.position(), again.position(), again.n_tokens()), (64, 64, 128));
    cache.attach(third, &again, 0).unwrap();
    let step = cache.prepare(&[(third, 1)]).unwrap();
    let GroupView::Uniform(view) = &step.seqs[0].views[0] else { panic!("ragged") };
    assert_eq!((view.runs[0].shift, view.runs[1].shift), (-64, 0));

    let mut cache = cache_of(sliding(100, group(1, 1, Some(48), 4, 0)));
    let [first, second] = [(); 2].map(|()| cache.create());
    fill(&mut cache, first, 4 + 256);
    fill(&mut cache, first, 1);
    let run = cache.share(first, 0..4 + 256).unwrap();
    cache.attach(second, &run, 0).unwrap();
    assert_eq!((cache.len(second).unwrap(), cache.kept(second, 0, None).unwrap()), (260, 260));
    cache.audit().unwrap();
    fill(&mut cache, second, 70);
    cache.audit().unwrap();
}

fn one_stream(budget_bytes: u64) -> (KvCache, SeqId) {
    let groups = vec![group(1, 1, Some(48), 4, 128)];
    let mut cache = KvCache::new(CacheConfig { groups, budget_bytes }).unwrap();
    let seq = cache.create();
    (cache, seq)
}

/// Kinds, starts and lengths of a uniform view's runs.
fn runs(step: &Step) -> Vec<(RunKind, u32, u32)> {
    match &step.seqs[0].views[0] {
        GroupView::Uniform(view) => {
            view.runs.iter().map(|run| (run.kind, run.start, run.n_tokens)).collect()
        }
        GroupView::Ragged(_) => panic!("ragged"),
    }
}

/// A verify batch across the boundary sees one page in both forms; what is
/// rejected decides which form stays.
#[test]
fn a_batch_across_a_boundary_reads_one_page_in_both_forms() {
    let (mut cache, seq) = one_stream(u64::MAX);
    // Four sinks, then kept indices 0..=190: the next two queries are 191 and 192.
    let step = cache.prepare(&[(seq, 195)]).unwrap();
    assert_eq!(runs(&step), [(RunKind::Sink, 0, 4), (RunKind::Hot, 0, 191)]);
    cache.commit(step, &[195]).unwrap();
    assert!(cache.release().frees.is_empty());
    for accepted in [0, 1, 2] {
        let mut cache = cache.clone();
        let step = cache.prepare(&[(seq, 2)]).unwrap();
        let both = [(RunKind::Sink, 0, 4), (RunKind::Sealed, 0, 64), (RunKind::Hot, 0, 193)];
        assert_eq!(runs(&step), both);
        let (hot, sealed) = (step.seqs[0].seals[0].from, step.seqs[0].seals[0].to);
        cache.commit(step, &[accepted]).unwrap();
        let freed = cache.release().frees;
        // Query 192 comes next once 191 is accepted, and reads page 0 sealed.
        assert_eq!(freed.contains(&hot), accepted > 0);
        assert_eq!(freed.contains(&sealed), accepted == 0);
        assert_eq!(cache.rewindable_to(seq, 0).unwrap(), if accepted > 0 { 196 } else { 0 });
    }
}

#[test]
fn a_rewind_below_sealed_tokens_says_what_to_do() {
    let (mut cache, seq) = one_stream(u64::MAX);
    let step = cache.prepare(&[(seq, 500)]).unwrap();
    cache.commit(step, &[500]).unwrap();
    // i = 495: five pages are sealed; 4 + 64 · (5 + 2) tokens is the floor.
    let error = cache.truncate(seq, 100).unwrap_err().to_string();
    assert!(error.contains("452") && error.contains("fork before, instead"), "{error}");
    assert!(cache.truncate(seq, 452).is_ok());
}

/// What lies a window behind is freed as soon as no query will see it.
#[test]
fn a_sliding_group_keeps_its_window() {
    let spec = GroupSpec { window: Some(100), ..group(1, 1, Some(48), 4, 64) };
    let config = CacheConfig { groups: vec![spec], budget_bytes: u64::MAX };
    let mut cache = KvCache::new(config).unwrap();
    let seq = cache.create();
    let mut most = 0;
    for n in (0..40).map(|i| 1 + i * 29 % 64) {
        let step = cache.prepare(&[(seq, n)]).unwrap();
        cache.commit(step, &[n]).unwrap();
        most = most.max(cache.held_bytes());
    }
    // 100 tokens touch three pages at most, of 256 bytes in 16 bits.
    assert!(cache.len(seq).unwrap() > 1000 && most <= 3 * 256, "{most}");
    // Rewound, the next query must still see a window of tokens.
    let len = cache.len(seq).unwrap();
    let floor = cache.rewindable_to(seq, 0).unwrap();
    assert!(floor <= len && floor + 64 > len, "{floor} of {len}");
}

/// A block that is handed out again before a step could free it is not freed by one; what
/// a step that was given up was to free, a later one frees.
#[test]
fn freed_blocks_travel_in_the_next_step() {
    let (mut cache, seq) = one_stream(u64::MAX);
    let other = cache.create();
    let step = cache.prepare(&[(seq, 100)]).unwrap();
    cache.commit(step, &[100]).unwrap();
    cache.free(seq).unwrap();
    // Three blocks are free; sinks and a page are taken again.
    let step = cache.prepare(&[(other, 10)]).unwrap();
    let [left] = step.frees[..] else { panic!("{:?}", step.frees) };
    cache.abort(step);
    let frees = cache.release().frees;
    assert!(frees.len() == 3 && frees.contains(&left), "{frees:?}");
    assert!(cache.release().frees.is_empty());
}

/// What a clear has freed cannot be filled further: its rows would be sealed
/// unwritten. Before and behind it a rewind is fine.
#[test]
fn a_rewind_into_a_freed_page_is_refused() {
    let (mut cache, seq) = one_stream(u64::MAX);
    let step = cache.prepare(&[(seq, 150)]).unwrap();
    cache.commit(step, &[150]).unwrap();
    // The four sinks and page 0: kept indices 4..68.
    cache.clear(seq, 0, None, &(0..68).collect::<Vec<_>>()).unwrap();
    assert_eq!(cache.release().frees.len(), 2);
    for (to, floor) in [(0, 0), (1, 4), (3, 4), (4, 4), (5, 68), (67, 68), (68, 68), (99, 99)] {
        assert_eq!(cache.rewindable_to(seq, to).unwrap(), floor);
        assert_eq!(cache.clone().truncate(seq, to).is_ok(), to == floor);
    }
}

#[test]
fn bad_requests_are_refused_and_named() {
    let (mut cache, seq) = one_stream(10_000);
    let refused = |error: Error, text: &str| {
        let message = error.to_string();
        assert!(message.contains(text), "{message}");
    };
    refused(cache.prepare(&[(seq, 0)]).unwrap_err(), "new tokens");
    refused(cache.prepare(&[(seq, usize::MAX)]).unwrap_err(), "new tokens");
    refused(cache.prepare(&[(seq, 1), (seq, 1)]).unwrap_err(), "twice");
    refused(cache.prepare(&[(SeqId(9), 1)]).unwrap_err(), "sequence 9 does not exist");
    refused(cache.prepare(&[(seq, 4000)]).unwrap_err(), "10000 bytes is too small");
    refused(cache.truncate(seq, 1).unwrap_err(), "more than 0");
    refused(cache.clear(seq, 0, None, &[0]).unwrap_err(), "not below the 0 tokens");
    refused(cache.clear(seq, 1, None, &[]).unwrap_err(), "KV group 1");
    refused(cache.clear(seq, 0, Some(1), &[]).unwrap_err(), "must be below 1");
    refused(cache.compact(seq, 0, &[]).unwrap_err(), "0 lists for 1 streams");

    let step = cache.prepare(&[(seq, 3)]).unwrap();
    refused(cache.free(seq).unwrap_err(), "step in flight");
    // A commit that does not fit aborts: the sequence is usable again.
    refused(cache.commit(step, &[4]).unwrap_err(), "accepted");
    assert_eq!((cache.held_bytes(), cache.len(seq).unwrap()), (0, 0));

    let step = cache.prepare(&[(seq, 100)]).unwrap();
    cache.commit(step, &[100]).unwrap();
    refused(cache.compact(seq, 0, &[vec![5, 5]]).unwrap_err(), "not increasing");
    refused(cache.compact(seq, 0, &[vec![100]]).unwrap_err(), "never kept");
    cache.clear(seq, 0, None, &[70]).unwrap();
    refused(cache.compact(seq, 0, &[vec![70]]).unwrap_err(), "cleared");
    let done = cache.compact(seq, 0, &[(10..20).collect()]).unwrap();
    assert_eq!((done.gathers.len(), done.gathers[0].rows.len()), (2, 4));
    // What the gathers read is free once they are done.
    assert_eq!((done.frees.len(), cache.release().frees.len()), (0, 3));
    refused(cache.truncate(seq, 99).unwrap_err(), "rewound to 100");
    refused(cache.clear(seq, 0, None, &[]).unwrap_err(), "ragged");
    refused(cache.share(seq, 4..68).unwrap_err(), "compacted");
    let other = cache.create();
    let step = cache.prepare(&[(other, 100)]).unwrap();
    cache.commit(step, &[100]).unwrap();
    refused(cache.share(other, 4..69).unwrap_err(), "not whole pages");
    refused(cache.share(other, 4..4).unwrap_err(), "no page");
    refused(cache.share(other, 4..132).unwrap_err(), "100 are kept");
    refused(cache.share(other, 0..68).unwrap_err(), "page 0 is not sealed yet");
}
