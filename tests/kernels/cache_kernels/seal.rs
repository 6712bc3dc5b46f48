//! Seals of hand-made pages with extreme numbers.

use super::world::{World, devices, group, narrow, widen};
use crate::common::random::Random;
use kvfold::backend::cuda::seal::{SealPlan, seal};
use kvfold::backend::{KvGroup, LayerIndex, StreamFormat};
use kvfold::cache::{BlockRef, ClassKind, Seal, SeqStep};
use kvfold::codec::feedback::Feedback;
use kvfold::codec::{Codec, Side, TILE_TOKENS};
use std::sync::Arc;

impl World {
    /// The bytes that a layer's seals must give, from what the hot pages must hold.
    pub fn expect_seals<'a>(&mut self, at: LayerIndex, seals: impl Iterator<Item = &'a Seal>) {
        let group = self.groups[at.group].clone();
        let streams = at.layer * group.kv_heads..(at.layer + 1) * group.kv_heads;
        for seal in seals.filter(|s| s.group == at.group) {
            for stream in streams.clone().filter(|s| seal.stream.is_none_or(|of| of == *s)) {
                for side in [Side::Key, Side::Value] {
                    let (hot, from) = self.half(seal.from, stream, side);
                    let (codec, to) = self.half(seal.to, stream, side);
                    let mut rows = vec![0f32; TILE_TOKENS * group.head_dim()];
                    let from = &self.bytes[usize::from(seal.from.class.0)][from];
                    hot.tile().decode(side, from, group.head_dim(), &mut rows);
                    let to = &mut self.bytes[usize::from(seal.to.class.0)][to];
                    let (_, feedback) = group.sealing_of(stream);
                    codec.encode(feedback, side, &rows, group.head_dim(), to);
                }
            }
        }
    }

    /// Fills all hot pages of group 0.
    fn fill_hot(&mut self) {
        let group = self.groups[0].clone();
        for kind in [ClassKind::Hot, ClassKind::RaggedHot] {
            let class = usize::from(self.class(kind).0);
            let tile = TILE_TOKENS * group.head_dim();
            for i in 0..self.bytes[class].len() / (2 * tile) {
                let mut rows = numbers(i, group.format.hot(), group.head_dim(), &mut self.random);
                // The rotated codecs say what becomes of what is not a finite number.
                if i % 3 == 1 && [group.format.key, group.format.value].iter().all(|c| c.rotated())
                {
                    for _ in 0..3 {
                        let at = self.random.below(rows.len());
                        rows[at] = self.random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
                    }
                }
                let bits: Vec<u16> = rows.iter().map(|x| narrow(group.format.hot(), *x)).collect();
                self.bytes[class][i * 2 * tile..][..2 * tile]
                    .copy_from_slice(bytemuck::cast_slice(&bits));
            }
        }
        self.upload();
    }
}

/// A tile of 16-bit numbers, `[token][channel]`: the i-th of several kinds.
fn numbers(kind: usize, hot: Codec, d: usize, random: &mut Random) -> Vec<f32> {
    let limit = if hot == Codec::Bf16 { 3.0e38 } else { 65_504.0 };
    let tiny = if hot == Codec::Bf16 { 1e-38 } else { 2f32.powi(-24) };
    let mut one = |token: usize, channel: usize| match kind % 10 {
        0 | 1 => random.float() * (1.0 + (channel % 7) as f32 * 4.0),
        // Constant groups: along tokens, along channels, with a −0 among zeros.
        2 => channel as f32 - 7.5,
        3 => token as f32 * 0.1 - 3.0,
        4 => [0.0, -0.0][random.below(2)],
        // Subnormal ranges: scales that are subnormal or round to 0.
        5 => tiny * random.below(1 + channel % 20) as f32 - tiny * 5.0,
        6 => random.pick(&[limit, -limit, 0.0, 1.0, 65_504.0, -65_504.0]),
        // Small integers and halves: exact ties of the rounding.
        7 => random.below(31) as f32 * 0.5 - 3.0,
        // Around the limits and the smallest steps of fp8.
        8 => random.pick(&[447.0, 448.0, -464.0, 465.0, 0.0009765625, -0.0029296875, 17.0, 19.0]),
        // One outlier makes all others equal.
        _ => [random.float() * 1e-3, 60_000.0][usize::from((token + channel) % 29 == 3)],
    };
    (0..TILE_TOKENS * d).map(|i| one(i / d, i % d)).map(|x| widen(hot, narrow(hot, x))).collect()
}

const FORMATS: [&str; 23] = [
    "kivi2",
    "kivi4",
    "fp8",
    "kivi4/kivi2",
    "kivi2/kivi4",
    "f16/kivi2",
    "kivi4/f16",
    "fp8/kivi2",
    "kivi4/fp8",
    "bf16/kivi2",
    "bf16/kivi4",
    "kivi2/bf16",
    "kivi4/bf16",
    "bf16/fp8",
    "fp8/bf16",
    "bf16/f16",
    "kf4",
    "kf3",
    "kf3.2",
    "kf2/kf3",
    "bf16+kf4",
    "bf16+kf3",
    "bf16+kf2",
];

/// All codecs, both sides: uniform pages, ragged ones, and one stream of a uniform page.
fn seal_everything(format: &str, d: usize, seed: u64) {
    seal_group(group(format, d, 3, 2), seed);
}

fn seal_group(group: KvGroup, seed: u64) {
    for device in devices(seed) {
        let (layers, kv_heads) = (group.layers, group.kv_heads);
        let mut world = World::new(&device, vec![group.clone()], 3, seed);
        world.fill_hot();
        let streams = layers * kv_heads;
        let block = |world: &World, kind, index| BlockRef { class: world.class(kind), index };
        let mut seals = Vec::new();
        let (from, to) = (world.random.permutation(3), world.random.permutation(3));
        for (from, to) in from.into_iter().zip(to).take(2) {
            let from = block(&world, ClassKind::Hot, from);
            seals.push(Seal {
                group: 0,
                stream: None,
                from,
                to: block(&world, ClassKind::Sealed, to),
            });
        }
        let from = world.random.permutation(3 * streams);
        let to = world.random.permutation(3 * streams);
        for (i, (from, to)) in from.into_iter().zip(to).take(3 * streams - 2).enumerate() {
            let from = match i {
                0 => block(&world, ClassKind::Hot, 1),
                _ => block(&world, ClassKind::RaggedHot, from),
            };
            let stream = Some(world.random.below(streams));
            let to = block(&world, ClassKind::RaggedSealed, to);
            seals.push(Seal { group: 0, stream, from, to });
        }
        let seq = world.cache.create();
        let step = world.cache.prepare(&[(seq, 1)]).unwrap();
        let seqs = [SeqStep { seals, ..step.seqs[0].clone() }];

        let mut plan = SealPlan::new(&device).unwrap();
        // Some have places left, as captured steps do.
        let places = [0, 3 * streams + 5][seed as usize % 2];
        plan.set(&mut world.arenas, 0, &seqs, places, &world.stream).unwrap();
        // One layer, then the two others at once.
        for layers in [2..3, 0..2] {
            seal(&mut world.arenas, &plan, 0, layers.clone(), &world.stream).unwrap();
            for layer in layers {
                world.expect_seals(LayerIndex { group: 0, layer }, seqs[0].seals.iter());
            }
            world.check();
        }
        world.cache.abort(step);
    }
}

#[test]
fn every_format_is_bit_for_bit_the_scalar_codec() {
    for (i, format) in FORMATS.into_iter().enumerate() {
        for d in [64, 128] {
            seal_everything(format, d, 100 + i as u64);
        }
    }
}

/// Each stream with feedback of its own, but for one that has none.
#[test]
fn keys_with_feedback_are_bit_for_bit_the_scalar_codec() {
    for (seed, (format, d)) in
        [("kf2", 64), ("bf16+kf3.2", 128), ("kf4", 64), ("kf2", 256)].into_iter().enumerate()
    {
        let mut group = group(format, d, 3, 2);
        let stream = |i: usize| {
            let direction = |c: usize| ((c * (i + 2)) % 7) as f64 - 2.0;
            let moment: Vec<_> =
                (0..d * d).map(|at| direction(at / d) * direction(at % d)).collect();
            let feedback = (i != 1).then(|| Arc::new(Feedback::new(&moment, d)));
            StreamFormat { format: group.format, feedback }
        };
        group.streams = Some((0..6).map(stream).collect());
        seal_group(group, 40 + seed as u64);
    }
}

/// As captured steps mostly are: places, and nothing to seal.
#[test]
fn a_step_without_pages_to_seal_changes_nothing() {
    for device in devices(0) {
        let mut world = World::new(&device, vec![group("kf2", 64, 3, 2)], 3, 0);
        let mut plan = SealPlan::new(&device).unwrap();
        plan.set(&mut world.arenas, 0, &[], 64, &world.stream).unwrap();
        seal(&mut world.arenas, &plan, 0, 0..3, &world.stream).unwrap();
        world.check();
    }
}

#[test]
fn other_head_dims_and_seeds() {
    for (seed, d) in [(1, 256), (2, 32), (3, 96), (4, 160), (5, 256), (6, 224)] {
        for format in ["kivi4/kivi2", "kivi2/kivi4", "fp8", "bf16/kivi2", "kivi4/bf16"] {
            seal_everything(format, d, seed);
        }
    }
    for (seed, format) in (20..).zip(["kf4/kf2", "kf3.2", "bf16+kf2/kf3", "kf2/kivi4", "fp8/kf4"]) {
        seal_everything(format, 256, seed);
    }
}
