//! Whole steps as the cache plans them: RoPE, append, seal.

use super::world::{World, devices, group, narrow, rope, widen};
use half::{bf16, f16};
use kvfold::backend::cuda::append::{AppendCall, AppendPlan, append, inv_turns};
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::seal::{SealPlan, seal};
use kvfold::backend::{KvGroup, LayerIndex, Rope};
use kvfold::cache::{SeqId, SeqStep};
use kvfold::codec::{Codec, Side};

/// What a layer's rows look like.
struct Rows {
    heads: usize,
    stride: usize,
    bits: Vec<u16>,
}

impl World {
    /// Runs a step on the device and on the host's copy.
    fn step(&mut self, new: &[(SeqId, usize)], queries: usize, rotate: bool, far: usize) {
        let mut step = self.cache.prepare(new).unwrap();
        assert!(step.copies.is_empty());
        step.seqs.iter_mut().for_each(|seq| seq.position += far);
        let mut places = AppendPlan::new(&self.device).unwrap();
        let mut seals = SealPlan::new(&self.device).unwrap();
        for (g, group) in self.groups.clone().iter().enumerate() {
            places.set(&mut self.arenas, g, &step.seqs, 0, &self.stream).unwrap();
            seals.set(&mut self.arenas, g, &step.seqs, 0, &self.stream).unwrap();
            for layer in 0..group.layers {
                let at = LayerIndex { group: g, layer };
                let before = self.rows(group, queries, new.iter().map(|n| n.1).sum());
                let after = match group.format.hot() {
                    Codec::Bf16 => self.append::<bf16>(&places, at, &before, rotate),
                    _ => self.append::<f16>(&places, at, &before, rotate),
                };
                check_rows(
                    group,
                    &step.seqs,
                    &before,
                    &after,
                    rotate.then(|| rope(group.head_dim())),
                );
                self.expect_rows(at, &step.seqs, &after);
                seal(&mut self.arenas, &seals, g, layer..layer + 1, &self.stream).unwrap();
                self.expect_seals(at, step.seqs.iter().flat_map(|s| &s.seals));
            }
        }
        self.check();
        let accepted: Vec<_> = new.iter().map(|n| n.1).collect();
        self.cache.commit(step, &accepted).unwrap();
    }

    fn rows(&mut self, group: &KvGroup, queries: usize, n: usize) -> Rows {
        let heads = queries * group.kv_heads;
        let stride = (heads + 2 * group.kv_heads) * group.head_dim() + 8;
        let hot = group.format.hot();
        let bits = (0..n * stride).map(|_| narrow(hot, self.random.float() * 3.0)).collect();
        Rows { heads, stride, bits }
    }

    fn append<T: Element>(
        &mut self,
        plan: &AppendPlan,
        at: LayerIndex,
        rows: &Rows,
        rotate: bool,
    ) -> Vec<u16> {
        let elements: &[T] = bytemuck::cast_slice(&rows.bits);
        let mut qkv = self.device.upload(elements, &self.stream).unwrap();
        let turns = inv_turns(&rope(self.groups[at.group].head_dim()), &self.stream).unwrap();
        let inv_turns = rotate.then_some(&turns);
        let call = AppendCall { at, heads: rows.heads, stride: rows.stride, inv_turns };
        append(&mut self.arenas, plan, &call, &mut qkv, &self.stream).unwrap();
        bytemuck::cast_slice(&qkv.to_vec(&self.stream).unwrap()).to_vec()
    }

    /// The keys and values of a layer in their pages.
    fn expect_rows(&mut self, at: LayerIndex, seqs: &[SeqStep], bits: &[u16]) {
        let group = self.groups[at.group].clone();
        let (n, d) = (group.kv_heads, group.head_dim());
        let rows = seqs.iter().map(|s| s.new_tokens).sum::<usize>();
        let stride = bits.len() / rows;
        let mut first = 0;
        for seq in seqs {
            for a in seq.appends.iter().filter(|a| a.group == at.group) {
                for head in (0..n).filter(|h| a.stream.is_none_or(|s| s == at.layer * n + h)) {
                    for i in 0..a.n {
                        // Keys and values are the last heads before the padding.
                        let row = &bits[(first + a.token + i) * stride..][..stride - 8];
                        let kv = &row[row.len() - 2 * n * d..];
                        for (side, from) in [(Side::Key, head), (Side::Value, n + head)] {
                            let to = self.row(a.block, at.layer * n + head, side, a.slot + i);
                            let from = bytemuck::cast_slice(&kv[from * d..][..d]);
                            self.bytes[usize::from(a.block.class.0)][to].copy_from_slice(from);
                        }
                    }
                }
            }
            first += seq.new_tokens;
        }
    }
}

/// `[q | k]` are rotated to within one rounding, everything else is as it was.
fn check_rows(group: &KvGroup, seqs: &[SeqStep], before: &Rows, after: &[u16], rope: Option<Rope>) {
    let positions = seqs.iter().flat_map(|s| s.position..s.position + s.new_tokens);
    let (d, hot) = (group.head_dim(), group.format.hot());
    let rotated = rope.as_ref().map_or(0, |_| (before.heads + group.kv_heads) * d);
    let old = before.bits.chunks_exact(before.stride);
    for ((old, new), position) in old.zip(after.chunks_exact(before.stride)).zip(positions) {
        assert_eq!(old[rotated..], new[rotated..]);
        let Some(rope) = &rope else { continue };
        for (old, new) in old[..rotated].chunks_exact(d).zip(new.chunks_exact(d)) {
            for (i, frequency) in rope.inv_freq.iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let [a, b] = [i, i + d / 2].map(|i| f64::from(widen(hot, old[i])));
                for (i, want) in [(i, a * cos - b * sin), (i + d / 2, b * cos + a * sin)] {
                    let got = f64::from(widen(hot, new[i]));
                    // f32 arithmetic, then one rounding to 16 bits.
                    let slack = (a.abs() + b.abs()) * 2f64.powi(-21);
                    let error = (got - want).abs();
                    let bound = half_unit(hot, want) + slack;
                    assert!(error <= bound, "position {position}, channel {i}: {got}, not {want}");
                }
            }
        }
    }
}

/// Half a unit in the last place of a 16-bit type.
fn half_unit(hot: Codec, x: f64) -> f64 {
    let (bits, smallest) = if hot == Codec::Bf16 { (7, -126) } else { (10, -14) };
    let exponent = if x == 0.0 { smallest } else { (x.abs().log2().floor() as i32).max(smallest) };
    2f64.powi(exponent - bits - 1)
}

#[test]
fn batches_of_unequal_lengths_land_in_their_pages() {
    let mut seed = 0;
    for (format, d, kv_heads, queries) in [
        ("f16", 64, 3, 1),
        ("kivi4/kivi2", 64, 2, 3),
        ("kivi2", 128, 2, 4),
        ("bf16/fp8", 128, 1, 2),
        ("bf16", 256, 2, 1),
        ("fp8", 256, 1, 8),
        ("f16/kivi2", 96, 1, 2),
    ] {
        for rotate in [false, true] {
            seed += 1;
            for device in devices(seed) {
                let groups = vec![group(format, d, 2, kv_heads)];
                let mut world = World::new(&device, groups, 16, seed);
                let seqs: Vec<_> = (0..3).map(|_| world.cache.create()).collect();
                // Sinks; ends on and around page boundaries; a long chunk that seals.
                let plans: [[usize; 3]; 5] =
                    [[1, 68, 3], [3, 63, 2], [64, 1, 128], [1, 70, 1], [1, 130, 190]];
                for (i, plan) in plans.into_iter().enumerate() {
                    let new: Vec<_> = seqs.iter().copied().zip(plan).collect();
                    world.step(&new, queries, rotate, i * 250_007);
                }
            }
        }
    }
}

#[test]
fn freed_blocks_are_used_in_any_order() {
    for seed in 0..4 {
        for device in devices(seed) {
            let mut world = World::new(&device, vec![group("kivi2", 64, 1, 2)], 24, seed);
            let mut seqs: Vec<_> = (0..4).map(|_| world.cache.create()).collect();
            for _ in 0..6 {
                let new: Vec<_> = seqs.iter().map(|s| (*s, 1 + world.random.below(90))).collect();
                world.step(&new, 2, true, 0);
                let leaves = world.random.below(seqs.len());
                world.cache.free(seqs.swap_remove(leaves)).unwrap();
                seqs.push(world.cache.create());
            }
        }
    }
}

#[test]
fn groups_differ_in_shape_and_codec() {
    for device in devices(5) {
        let groups = vec![group("kivi4", 64, 2, 1), group("bf16/kivi2", 128, 1, 2)];
        let mut world = World::new(&device, groups, 12, 5);
        let seq = world.cache.create();
        for n in [200, 1, 77] {
            world.step(&[(seq, n)], 2, true, 3);
        }
    }
}

/// After a compaction every stream has blocks, slots and seals of its own.
#[test]
fn ragged_streams_have_slots_of_their_own() {
    for (seed, format) in [(6, "kivi2"), (7, "kivi4/kivi2"), (8, "bf16/kivi4")] {
        for device in devices(seed) {
            let mut world = World::new(&device, vec![group(format, 64, 2, 2)], 8, seed);
            let seqs = [world.cache.create(), world.cache.create()];
            world.step(&[(seqs[0], 150), (seqs[1], 40)], 2, true, 0);
            let keep: Vec<Vec<u32>> =
                [7, 2, 3, 1].iter().map(|n| (0..150).step_by(*n).collect()).collect();
            world.compact(seqs[0], &keep);
            // A ragged and a uniform sequence in one step.
            for n in [1, 90, 170] {
                world.step(&[(seqs[0], n), (seqs[1], n + 1)], 2, true, 1 << 20);
            }
        }
    }
}
