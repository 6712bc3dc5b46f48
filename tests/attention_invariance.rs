//! What must not change a bit of a result: the batch, which blocks hold the pages,
//! and, on devices, whether a query is decoded alone or verified among others.

mod common;

use common::plan::cache_of;
use common::subject::{Kind, LayerStep};
use kvfold::backend::{Attend, KvGroup, LayerIndex, attend_seqs};
use kvfold::cache::{NewTokens, RowKind, SeqId};
use kvfold::codec::KvFormat;
use std::collections::HashMap;

const D: usize = 64;
const KV_HEADS: usize = 2;
const HEADS: usize = 6;
const COLS: usize = (HEADS + 2 * KV_HEADS) * D;

/// Output bits by (sequence, token).
type Rows = HashMap<(usize, usize), Vec<u32>>;

/// The row of a token: the same in every plan.
fn qkv(seq: usize, token: usize) -> impl Iterator<Item = f32> {
    let mut state = (seq as u32) << 20 ^ (token as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    (0..COLS).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Exact in every 16-bit type.
        ((state >> 24) as i32 - 128) as f32 / 64.0
    })
}

/// Runs a plan: for each step, new tokens of some sequences.
fn run(kind: Kind, format: &str, causal: bool, plan: &[&[(usize, usize)]]) -> Rows {
    let format: KvFormat = format.parse().unwrap();
    let group = KvGroup {
        layers: 1,
        kv_heads: KV_HEADS,
        head_dim: D,
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
        let asked: Vec<_> = (step.iter())
            .map(|&(s, n)| (seqs.entry(s).or_insert_with(|| (cache.create(), 0)).0, n))
            .collect();
        let flat: Vec<f32> = (step.iter())
            .flat_map(|&(s, n)| (0..n).map(move |i| (s, i)))
            .flat_map(|(s, i)| qkv(s, seqs[&s].1 + i))
            .collect();
        let kind = |n| if n == 1 { RowKind::Generated } else { RowKind::Prompt };
        let new = |&(seq, n): &(SeqId, usize)| NewTokens { seq, n, kind: kind(n) };
        let prepared = cache.prepare(&asked.iter().map(new).collect::<Vec<_>>()).unwrap();
        subject.begin(&prepared);
        let at = LayerIndex { group: 0, layer: 0 };
        let call = Attend { at, heads: HEADS, scale: 0.125, causal, window: None };
        let done = subject.layer(&LayerStep {
            call: &call,
            step: &prepared,
            seqs: &attend_seqs(&prepared.seqs, 0).unwrap(),
            head_dim: D,
            qkv: &flat,
            cols: COLS,
        });
        let mut out = done.out.chunks_exact(HEADS * D);
        for &(s, n) in *step {
            for _ in 0..n {
                let token = &mut seqs.get_mut(&s).unwrap().1;
                let bits = out.next().unwrap().iter().map(|x| x.to_bits()).collect();
                rows.insert((s, *token), bits);
                *token += 1;
            }
        }
        let accepted: Vec<_> = asked.iter().map(|a| a.1).collect();
        cache.commit(prepared, &accepted).unwrap();
    }
    rows
}

fn assert_same(what: &str, one: &Rows, other: &Rows, seq: usize) {
    let mut compared = 0;
    for (key, row) in one.iter().filter(|(key, _)| key.0 == seq) {
        assert!(row == &other[key], "{what}: {key:?} differs");
        compared += 1;
    }
    assert!(compared > 0);
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
            let alone = run(kind, format, causal, &[&[(1, 70)], &[(1, 230)], &[(1, 1)], &[(1, 1)]]);
            let among = run(
                kind,
                format,
                causal,
                &[
                    &[(0, 90), (1, 70), (2, 10)],
                    &[(2, 40), (1, 230), (0, 100)],
                    &[(0, 1), (1, 1), (2, 1)],
                    &[(1, 1), (2, 30)],
                ],
            );
            assert_same(&format!("{kind:?} {format}"), &alone, &among, 1);
        }
    }
}

/// A draft's tokens get the bits that they get one by one, also across a page and
/// a seal boundary.
#[test]
fn verification_gives_the_bits_of_decoding() {
    for kind in Kind::all(5..6).into_iter().filter(|kind| !matches!(kind, Kind::Cpu(_))) {
        for format in ["bf16", "fp8", "kivi2", "kivi4/kivi2", "kf3.2", "bf16+kf2", "kf4"] {
            let prefix: &[(usize, usize)] = &[(0, 4 + 5 * 64 - 3)];
            let one_by_one = run(
                kind,
                format,
                true,
                &[
                    prefix,
                    &[(0, 1)],
                    &[(0, 1)],
                    &[(0, 1)],
                    &[(0, 1)],
                    &[(0, 1)],
                    &[(0, 1)],
                    &[(0, 1)],
                ],
            );
            let together = run(kind, format, true, &[prefix, &[(0, 7)]]);
            assert_same(&format!("{kind:?} {format}"), &one_by_one, &together, 0);
        }
    }
}
