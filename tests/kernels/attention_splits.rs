//! Where a device begins to split a stream otherwise, nothing changes a bit: rows that are
//! verified on both sides of such a length have the bits of decoding them one by one.

use crate::common::plan::cache_of;
use crate::common::subject::{Kind, LayerStep, Subject};
use kvfold::backend::{Attend, Geometry, KvGroup, LayerIndex, attend_seqs};
use kvfold::cache::{KvCache, NewTokens, RowKind, SeqId};

const D: usize = 64;
/// Query heads a KV head.
const GROUP: usize = 3;
/// S, of formats that seal.
const SINKS: usize = 4;
/// Tokens that are generated, of which the first two end the last page.
const GENERATED: usize = 5;

/// Some sequences of unequal lengths, of one layer.
struct World {
    kv_heads: usize,
    cache: KvCache,
    subject: Box<dyn Subject>,
    /// What each sequence is before anything is generated.
    prefixes: Vec<(SeqId, usize)>,
}

impl World {
    /// Sequences that end two tokens before so many pages are full.
    fn new(kind: Kind, format: &str, kv_heads: usize, pages: &[usize]) -> Self {
        let group = KvGroup {
            layers: 1,
            kv_heads,
            geometry: Geometry::gqa(D),
            format: format.parse().unwrap(),
            streams: None,
            sinks: SINKS,
            hot_window: 128,
            rope: None,
            window: None,
        };
        let mut cache = cache_of(&group);
        let mut subject = kind.subject();
        subject.configure(&group, cache.classes());
        let before = if group.format.seals() { SINKS } else { 0 };
        let lengths = pages.iter().map(|pages| before + 64 * pages - 2);
        let prefixes: Vec<_> = lengths.map(|tokens| (cache.create(), tokens)).collect();
        let mut world = Self { kv_heads, cache, subject, prefixes };
        let new: Vec<_> = world.prefixes.iter().map(|&(seq, n)| (seq, 0, n)).collect();
        world.step(&new, None);
        world
    }

    fn columns(&self) -> usize {
        (GROUP + 2) * self.kv_heads * D
    }

    /// The row of a token of the i-th sequence: the same in every fork.
    fn row(&self, i: usize, token: usize) -> impl Iterator<Item = f32> + use<> {
        let mut state = (i as u32) << 20 ^ (token as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
        (0..self.columns()).map(move |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Exact in every 16-bit type.
            ((state >> 24) as i32 - 128) as f32 / 64.0
        })
    }

    /// One step: n tokens from a place on for each sequence. They attend within a window, or
    /// are appended only. The bits of outputs and log-sum-exps of each sequence.
    fn step(
        &mut self,
        new: &[(SeqId, usize, usize)],
        window: Option<Option<usize>>,
    ) -> Vec<Vec<u32>> {
        let kind = if window.is_some() { RowKind::Generated } else { RowKind::Prompt };
        let tokens: Vec<_> = new.iter().map(|&(seq, _, n)| NewTokens { seq, n, kind }).collect();
        let prepared = self.cache.prepare(&tokens).unwrap();
        self.subject.begin(&prepared);
        let rows = new.iter().enumerate();
        let rows = rows.flat_map(|(i, &(_, from, n))| (from..from + n).map(move |t| (i, t)));
        let qkv: Vec<f32> = rows.flat_map(|(i, t)| self.row(i, t)).collect();
        let heads = GROUP * self.kv_heads;
        let at = LayerIndex { group: 0, layer: 0 };
        let call = Attend { at, heads, scale: 0.125, causal: true, window: window.flatten() };
        let layer = LayerStep {
            call: &call,
            step: &prepared,
            seqs: &attend_seqs(&prepared.seqs, 0).unwrap(),
            head_dim: D,
            qkv: &qkv,
            cols: self.columns(),
        };
        let mut found = Vec::new();
        if window.is_some() {
            let done = self.subject.layer(&layer);
            let (mut out, mut lse) = (done.out.chunks(heads * D), done.lse.chunks(heads));
            for &(.., n) in new {
                let rows = (0..n).flat_map(|_| [out.next().unwrap(), lse.next().unwrap()].concat());
                found.push(rows.map(f32::to_bits).collect());
            }
        } else {
            self.subject.write(&layer);
        }
        let accepted: Vec<_> = new.iter().map(|new| new.2).collect();
        self.cache.commit(prepared, &accepted).unwrap();
        found
    }

    /// Bits of all generated rows, by sequence, if so many are verified at a time.
    fn generate(&mut self, cuts: &[usize], window: Option<usize>) -> Vec<Vec<u32>> {
        let forks: Vec<_> = self.prefixes.clone();
        let forks: Vec<_> =
            forks.iter().map(|&(seq, n)| (self.cache.fork(seq).unwrap(), n)).collect();
        let (mut bits, mut done) = (vec![Vec::new(); forks.len()], 0);
        for &n in cuts {
            let new: Vec<_> = forks.iter().map(|&(seq, at)| (seq, at + done, n)).collect();
            let found = self.step(&new, Some(window));
            bits.iter_mut().zip(found).for_each(|(bits, found)| bits.extend(found));
            done += n;
        }
        assert_eq!(done, GENERATED);
        forks.iter().for_each(|&(seq, _)| self.cache.free(seq).unwrap());
        bits
    }
}

/// With each window, 2 to 5 rows on both sides of the end of the sequences' last pages.
fn verified_as_decoded(mut world: World, what: &str, windows: &[Option<usize>], cuts: &[&[usize]]) {
    for &window in windows {
        let alone = world.generate(&[1; GENERATED], window);
        assert!(alone.iter().flatten().all(|x| f32::from_bits(*x).is_finite()), "{what}");
        for cuts in cuts {
            let together = world.generate(cuts, window);
            for i in 0..alone.len() {
                let same = alone[i] == together[i];
                assert!(same, "{what}, sequence {i}, {cuts:?}, window {window:?}");
            }
        }
    }
}

fn devices(seed: u64) -> impl Iterator<Item = Kind> {
    Kind::all(seed..seed + 1).into_iter().filter(|kind| !matches!(kind, Kind::Cpu(_)))
}

/// From 256 to 257 pages: at 16,388 tokens with sinks. The second token that is generated, the
/// last of a page, sees a split less than the first through each of the windows: through the
/// longer one of the longer sequence, through the other one of both, so that the parts of one
/// row are other ones of those of the call.
#[test]
fn across_16k_tokens() {
    for kind in devices(21) {
        for format in ["kivi2", "f16"] {
            let world = World::new(kind, format, 2, &[256, 72]);
            let cuts = [&[5][..], &[4, 1], &[1, 3, 1], &[1, 2, 2]];
            let windows = [None, Some(64 * 8 * 20), Some(64 * 8 * 8)];
            verified_as_decoded(world, &format!("{kind:?} {format}"), &windows, &cuts);
        }
    }
}

/// Light pages of many KV heads are split into longer parts much earlier: from 16 KV heads on
/// behind 64 and 128 pages.
#[test]
fn across_every_length_of_light_splits() {
    for kind in devices(23) {
        let world = World::new(kind, "kf2", 16, &[64, 128]);
        verified_as_decoded(world, &format!("{kind:?}"), &[None], &[&[5], &[1, 2, 2]]);
    }
}
