//! What must not change a bit of a result: the batch, which blocks hold the pages, whether
//! a generated row is decoded alone or verified among others, and how a prompt is cut into
//! chunks.

use crate::common::plan::cache_of;
use crate::common::subject::{Kind, LayerStep};
use kvfold::backend::{Attend, Geometry, KvGroup, LayerIndex, attend_seqs};
use kvfold::cache::RowKind::{Generated, Prompt};
use kvfold::cache::{NewTokens, RowKind, SeqId};
use kvfold::codec::KvFormat;
use std::collections::HashMap;

const D: usize = 64;
const KV_HEADS: usize = 2;
const HEADS: usize = 6;
const COLS: usize = (HEADS + 2 * KV_HEADS) * D;

/// Output bits by (sequence, token).
type Rows = HashMap<(usize, usize), Vec<u32>>;

/// New tokens of a sequence, and what they are. Those that are nothing are appended, and
/// nothing attends. Sequence 10·h + s is a second s, whose first h pages are those of s.
type New = (usize, usize, Option<RowKind>);

const P: Option<RowKind> = Some(Prompt);
const G: Option<RowKind> = Some(Generated);

/// The row of a token: the same in every plan.
fn qkv(seq: usize, token: usize) -> impl Iterator<Item = f32> {
    let mut state =
        (seq as u32 % 10) << 20 ^ (token as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    (0..COLS).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Exact in every 16-bit type.
        ((state >> 24) as i32 - 128) as f32 / 64.0
    })
}

/// Runs a plan: for each step, new tokens of some sequences.
fn run(kind: Kind, format: &str, causal: bool, plan: &[Vec<New>]) -> Rows {
    let format: KvFormat = format.parse().unwrap();
    let group = KvGroup {
        layers: 1,
        kv_heads: KV_HEADS,
        geometry: Geometry::gqa(D),
        format,
        streams: None,
        sinks: 4,
        hot_window: 128,
        rope: None,
        window: None,
    };
    let mut cache = cache_of(&group);
    let mut subject = kind.subject();
    subject.configure(&group, cache.classes());
    let mut seqs: HashMap<usize, (SeqId, usize)> = HashMap::new();
    let mut rows = Rows::new();
    for step in plan {
        for &(s, ..) in step {
            if seqs.contains_key(&s) {
                continue;
            }
            let (id, pages) = (cache.create(), s / 10);
            let shared =
                if pages > 0 { 64 * pages + if format.seals() { 4 } else { 0 } } else { 0 };
            if shared > 0 {
                let run = cache.share(seqs[&(s % 10)].0, 0..shared).unwrap();
                cache.attach(id, &run, 0).unwrap();
            }
            seqs.insert(s, (id, shared));
        }
        let asked: Vec<_> = step.iter().map(|&(s, n, _)| (seqs[&s].0, n)).collect();
        let flat: Vec<f32> = (step.iter())
            .flat_map(|&(s, n, _)| (0..n).map(move |i| (s, i)))
            .flat_map(|(s, i)| qkv(s, seqs[&s].1 + i))
            .collect();
        let new = |(&(seq, n), new): (&(SeqId, usize), &New)| NewTokens {
            seq,
            n,
            kind: new.2.unwrap_or(Prompt),
        };
        let new: Vec<_> = asked.iter().zip(step).map(new).collect();
        let prepared = cache.prepare(&new).unwrap();
        subject.begin(&prepared);
        let at = LayerIndex { group: 0, layer: 0 };
        let call = Attend { at, heads: HEADS, scale: 0.125, causal, window: None };
        let layer = LayerStep {
            call: &call,
            step: &prepared,
            seqs: &attend_seqs(&prepared.seqs, 0).unwrap(),
            head_dim: D,
            qkv: &flat,
            cols: COLS,
        };
        let attends = step.iter().any(|new| new.2.is_some());
        if attends {
            assert!(step.iter().all(|new| new.2.is_some()));
            let done = subject.layer(&layer);
            let mut out = done.out.chunks_exact(HEADS * D);
            for &(s, n, _) in step {
                for i in 0..n {
                    let bits = out.next().unwrap().iter().map(|x| x.to_bits()).collect();
                    rows.insert((s, seqs[&s].1 + i), bits);
                }
            }
        } else {
            subject.write(&layer);
        }
        for &(s, n, _) in step {
            seqs.get_mut(&s).unwrap().1 += n;
        }
        let accepted: Vec<_> = asked.iter().map(|a| a.1).collect();
        cache.commit(prepared, &accepted).unwrap();
    }
    rows
}

/// Every row of a sequence is the same in both.
fn assert_same(what: &str, one: &Rows, other: &Rows, seq: usize) {
    let of = |rows: &Rows| rows.keys().filter(|key| key.0 == seq).count();
    assert!(of(one) > 0 && of(one) == of(other), "{what}: {} and {}", of(one), of(other));
    for (key, row) in one.iter().filter(|(key, _)| key.0 == seq) {
        assert!(row.iter().all(|x| f32::from_bits(*x).is_finite()), "{what}: {key:?}");
        assert!(row == &other[key], "{what}: {key:?} differs");
    }
}

/// New tokens of one sequence, as many at a time as `cuts` says.
fn chunks(seq: usize, kind: Option<RowKind>, cuts: &[usize]) -> Vec<Vec<New>> {
    cuts.iter().map(|&n| vec![(seq, n, kind)]).collect()
}

/// What the CPU and what devices are tried with.
fn formats(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Cpu(_) => &["f16", "bf16", "fp8", "kivi2", "kivi4/kivi2", "kf3.2", "kf2", "kf4"],
        _ => &["f16", "bf16", "fp8", "kivi2", "kivi4/kivi2", "kf3.2", "bf16+kf2", "kf2"],
    }
}

/// Alone, or among others whose pages lie between its own.
#[test]
fn the_batch_changes_no_bit() {
    for kind in Kind::all(3..4) {
        for (format, causal) in [
            ("f16", true),
            ("kivi2", true),
            ("kivi4/kivi2", true),
            ("kivi2", false),
            ("kf3.2", true),
            ("kf2", false),
        ] {
            let alone = chunks(1, P, &[70, 230]).into_iter().chain(chunks(1, G, &[1, 1]));
            let alone = run(kind, format, causal, &alone.collect::<Vec<_>>());
            let among = run(
                kind,
                format,
                causal,
                &[
                    vec![(0, 90, P), (1, 70, P), (2, 10, P)],
                    vec![(2, 40, P), (1, 230, P), (0, 100, P)],
                    vec![(0, 1, G), (1, 1, G), (2, 1, G)],
                    vec![(1, 1, G), (2, 30, P)],
                ],
            );
            assert_same(&format!("{kind:?} {format}"), &alone, &among, 1);
        }
    }
}

/// Both kinds in one call, any number of rows of each.
#[test]
fn rows_of_the_other_kind_change_no_bit() {
    for kind in Kind::all(3..4) {
        for format in ["f16", "kivi2", "kf3.2"] {
            let prompt = chunks(1, P, &[150]);
            let drafted = run(kind, format, true, &[prompt, chunks(1, G, &[5, 1])].concat());
            let chunked = run(kind, format, true, &chunks(2, P, &[130, 1, 20]));
            let among = run(
                kind,
                format,
                true,
                &[
                    vec![(2, 130, P), (0, 90, P), (1, 150, P)],
                    vec![(0, 1, G), (2, 1, P), (1, 5, G)],
                    vec![(1, 1, G), (2, 20, P), (0, 3, G)],
                ],
            );
            let what = format!("{kind:?} {format}");
            assert_same(&what, &drafted, &among, 1);
            assert_same(&what, &chunked, &among, 2);
        }
    }
}

/// A draft's tokens get the bits that they get one by one, and so do those that are computed
/// anew: across the boundaries of pages, of seals and of splits, two sequences of unequal
/// length in a call.
#[test]
fn verification_gives_the_bits_of_decoding() {
    for kind in Kind::all(5..6) {
        // Three rows before a page is full: the CPU's splits have 16 pages, a device's 8.
        let long = if matches!(kind, Kind::Cpu(_)) { 16 } else { 8 };
        let prefix = vec![(0, 4 + 5 * 64 - 3, None), (1, 4 + long * 64 - 3, None)];
        let plan = |cuts: &[usize]| {
            let step = |&n: &usize| vec![(0, n, G), (1, n, G)];
            std::iter::once(prefix.clone()).chain(cuts.iter().map(step)).collect::<Vec<_>>()
        };
        for format in formats(kind) {
            let one_by_one = run(kind, format, true, &plan(&[1; 25]));
            for cuts in [&[16, 7, 2][..], &[2, 16, 7], &[25]] {
                let together = run(kind, format, true, &plan(cuts));
                for seq in [0, 1] {
                    let what = format!("{kind:?} {format} {cuts:?}");
                    assert_same(&what, &one_by_one, &together, seq);
                }
            }
        }
    }
}

/// Without a causal mask too: what a row sees does not depend on the rows before it.
#[test]
fn rows_that_see_all_have_the_bits_of_the_last() {
    for kind in Kind::all(5..6) {
        for format in ["f16", "kivi2", "kf3.2"] {
            let prefix = vec![(0, 4 + 5 * 64 + 9, None)];
            let last = |n: usize| {
                let plan = [prefix.clone(), vec![(0, 6 - n, None)], vec![(0, n, G)]];
                let mut rows = run(kind, format, false, &plan);
                rows.retain(|key, _| key.1 == 4 + 5 * 64 + 14);
                rows
            };
            assert_same(&format!("{kind:?} {format}"), &last(1), &last(5), 0);
        }
    }
}

/// A device's splits become longer with the stream: rows on both sides of that have their own.
#[test]
fn verification_may_change_the_length_of_splits() {
    for kind in Kind::all(7..8) {
        let prefix = vec![(0, 256 * 64 - 2, None)];
        let run = |cuts: &[usize]| {
            let plan = [vec![prefix.clone()], chunks(0, G, cuts)].concat();
            run(kind, "f16", true, &plan)
        };
        assert_same(&format!("{kind:?}"), &run(&[1; 4]), &run(&[4]), 0);
    }
}

/// A prompt's rows have the same bits however it is cut.
#[test]
fn chunks_change_no_bit() {
    let tokens = 4 + 5 * 64 + 9;
    for kind in Kind::all(9..10) {
        // A device takes long for single tokens: the last page and its neighbours will do.
        let first = if matches!(kind, Kind::Cpu(_)) { 0 } else { tokens - 84 };
        for format in formats(kind) {
            let cut = |n: usize| {
                let mut cuts = vec![n; (tokens - first) / n];
                cuts.extend(Some((tokens - first) % n).filter(|rest| *rest > 0));
                let before = if first > 0 { chunks(0, None, &[first]) } else { Vec::new() };
                run(kind, format, true, &[before, chunks(0, P, &cuts)].concat())
            };
            let whole = cut(tokens - first);
            for n in [1, 7, 50] {
                assert_same(&format!("{kind:?} {format} {n}"), &whole, &cut(n), 0);
            }
        }
    }
}

/// What reads a shared prefix sealed anyway has the bits that it has without sharing, and with
/// 16-bit formats so has everything.
#[test]
fn a_shared_prefix_changes_no_bit() {
    for kind in Kind::all(11..12) {
        for format in ["f16", "kivi2", "kf3.2"] {
            // 330 tokens of a prompt, and five that are generated.
            let sinks = if format == "f16" { 0 } else { 4 };
            let own = [(0, 4 + 4 * 64, P), (0, 70, P), (0, 3, G), (0, 2, G)];
            let rest = 330 - (sinks + 2 * 64);
            let sharing = [(20, rest - 60, P), (20, 60, P), (20, 3, G), (20, 2, G)];
            let plan: Vec<_> = own.into_iter().chain(sharing).map(|new| vec![new]).collect();
            let mut rows = run(kind, format, true, &plan);
            let first = if sinks == 0 { 2 * 64 } else { sinks + 4 * 64 };
            rows.retain(|&(_, token), _| token >= first);
            let of = |s| -> Rows {
                let its = rows.iter().filter(|(key, _)| key.0 == s);
                its.map(|(&(_, token), row)| ((0, token), row.clone())).collect()
            };
            assert_same(&format!("{kind:?} {format}"), &of(0), &of(20), 0);
        }
    }
}
