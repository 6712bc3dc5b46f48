//! RoPE in place.

use super::world::{Half, Random, World, worlds};
use half::{bf16, f16};
use kvfold::backend::Rope;
use kvfold::backend::cuda::append::inv_turns;
use kvfold::backend::cuda::dense::{RopeCall, rope};

fn rotated<T: Half>(world: &World, heads: usize, head_dim: usize, positions: &[u32]) {
    let half = head_dim / 2;
    let inv_freq: Vec<f64> =
        (0..half).map(|i| 500_000f64.powf(-(i as f64) / half as f64)).collect();
    let (rows, stride) = (positions.len(), heads * head_dim + 16);
    let x = Random::new(head_dim as u64).halves::<T>(rows * stride, 3.0);
    let mut on_device = world.upload(&x);
    let turns = inv_turns(&Rope { inv_freq: inv_freq.clone() }, &world.stream).unwrap();
    let on = world.upload(positions);
    let call = RopeCall { rows, stride, heads, positions: &on, inv_turns: &turns };
    rope(call, &mut on_device, &world.stream).unwrap();
    let got = world.read(&on_device);
    for ((old, new), position) in x.chunks(stride).zip(got.chunks(stride)).zip(positions) {
        for (old, new) in old[..heads * head_dim].chunks(head_dim).zip(new.chunks(head_dim)) {
            for i in 0..half {
                let (sin, cos) = (f64::from(*position) * inv_freq[i]).sin_cos();
                let (a, b) = (old[i].widen(), old[i + half].widen());
                for (got, want) in [(new[i], a * cos - b * sin), (new[i + half], b * cos + a * sin)]
                {
                    // f32 arithmetic, then one rounding to 16 bits.
                    let bound = T::half_unit(want) + (a.abs() + b.abs()) * 2f64.powi(-21);
                    let error = (got.widen() - want).abs();
                    assert!(error <= bound, "position {position}, {i}: {got:?}, not {want}");
                }
            }
        }
        assert_eq!(old[heads * head_dim..], new[heads * head_dim..]);
    }
}

#[test]
fn heads_turn_by_their_position() {
    for world in worlds() {
        rotated::<f16>(&world, 5, 64, &[0, 1, 8191, 1_000_003]);
        rotated::<bf16>(&world, 3, 128, &[17, 131_071]);
        rotated::<bf16>(&world, 1, 256, &[7]);
        rotated::<f16>(&world, 12, 16, &[3, 3, 2, 4_000_000_000]);
    }
}
