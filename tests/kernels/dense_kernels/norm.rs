//! RMS norms.

use super::world::{Half, Random, World, check_halves, worlds};
use half::{bf16, f16};
use kvfold::backend::cuda::dense::{HeadNorm, RmsNorm, head_norm, rms_norm};

/// f32 arithmetic before the rounding to 16 bits: a sum of a few thousand squares in
/// parts of at most 64, a division, a root, two products.
const ARITHMETIC: f64 = 1e-5;

fn normed(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * f64::from(*w)).collect()
}

fn rows_of<T: Half>(world: &World, rows: usize, cols: usize, with_delta: bool, seed: u64) {
    let mut random = Random::new(seed);
    let (x, weight) = (random.floats(rows * cols, 3.0), random.floats(cols, 1.0));
    let delta = random.halves::<T>(rows * cols, 2.0);
    let eps = 1e-5;
    let (mut on_device, mut out) = (world.upload(&x), world.nan::<T>(rows * cols));
    let (weights, deltas) = (world.upload(&weight), world.upload(&delta));
    let call = RmsNorm { rows, weight: &weights, eps };
    let deltas = with_delta.then_some(&deltas);
    rms_norm(call, &mut on_device, deltas, &mut out, &world.stream).unwrap();

    let sums: Vec<f32> = match with_delta {
        true => x.iter().zip(&delta).map(|(x, d)| x + d.widen() as f32).collect(),
        false => x,
    };
    assert_eq!(world.read(&on_device), sums);
    let sums: Vec<f64> = sums.into_iter().map(f64::from).collect();
    let want: Vec<f64> = sums.chunks(cols).flat_map(|row| normed(row, &weight, eps)).collect();
    check_halves(&format!("{rows} × {cols}"), &world.read(&out), &want, ARITHMETIC, 0.0);
}

#[test]
fn rows_with_and_without_something_to_add() {
    for world in worlds() {
        for (i, cols) in [8, 64, 576, 2056, 16_384].into_iter().enumerate() {
            for with_delta in [false, true] {
                let rows = [1, 5, 3, 2, 1][i];
                rows_of::<f16>(&world, rows, cols, with_delta, i as u64);
                rows_of::<bf16>(&world, rows, cols, with_delta, i as u64);
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_batch() {
    for world in worlds() {
        let (rows, cols) = (7, 1000);
        let mut random = Random::new(5);
        let x = random.floats(rows * cols, 1.0);
        let weight = world.upload(&random.floats(cols, 1.0));
        let run = |x: &[f32]| {
            let mut out = world.nan::<bf16>(x.len());
            let call = RmsNorm { rows: x.len() / cols, weight: &weight, eps: 1e-6 };
            rms_norm(call, &mut world.upload(x), None, &mut out, &world.stream).unwrap();
            world.read(&out)
        };
        let all = run(&x);
        for row in 0..rows {
            let part = row * cols..(row + 1) * cols;
            assert_eq!(run(&x[part.clone()]), all[part]);
        }
    }
}

#[test]
fn zeros_and_large_rows_stay_finite() {
    for world in worlds() {
        let x = [vec![0.0; 64], vec![1e15; 64], vec![-1e-15; 64]].concat();
        let weight = world.upload(&[2.0f32; 64]);
        let mut out = world.nan::<bf16>(x.len());
        let call = RmsNorm { rows: 3, weight: &weight, eps: 1e-6 };
        rms_norm(call, &mut world.upload(&x), None, &mut out, &world.stream).unwrap();
        let out = world.read(&out);
        assert!(out[..64].iter().all(|x| x.to_f32() == 0.0));
        assert!(out[64..128].iter().all(|x| x.to_f32() == 2.0));
        let tiny = normed(&[-1e-15; 64], &[2.0; 64], 1e-6);
        check_halves("a tiny row", &out[128..], &tiny, ARITHMETIC, 0.0);
    }
}

fn heads_of<T: Half>(world: &World, rows: usize, heads: usize, head_dim: usize, seed: u64) {
    let mut random = Random::new(seed);
    let first_col = 2 * head_dim;
    let stride = first_col + heads * head_dim + 8;
    let (x, weight) = (random.halves::<T>(rows * stride, 4.0), random.floats(head_dim, 1.0));
    let weights = world.upload(&weight);
    let mut on_device = world.upload(&x);
    let call = HeadNorm { rows, stride, first_col, heads, weight: &weights, eps: 1e-6 };
    head_norm(call, &mut on_device, &world.stream).unwrap();
    for (old, new) in x.chunks(stride).zip(world.read(&on_device).chunks(stride)) {
        let part = first_col..first_col + heads * head_dim;
        let old_head = |h: usize| {
            let at = first_col + h * head_dim;
            old[at..at + head_dim].iter().map(|x| x.widen()).collect::<Vec<_>>()
        };
        let want: Vec<f64> = (0..heads).flat_map(|h| normed(&old_head(h), &weight, 1e-6)).collect();
        check_halves(&format!("heads of {head_dim}"), &new[part.clone()], &want, ARITHMETIC, 0.0);
        assert_eq!(old[..part.start], new[..part.start]);
        assert_eq!(old[part.end..], new[part.end..]);
    }
}

#[test]
fn heads_in_the_middle_of_rows() {
    for world in worlds() {
        for (i, (rows, heads, head_dim)) in
            [(1, 1, 8), (3, 5, 64), (5, 3, 128), (2, 2, 256), (2, 1, 264), (1, 3, 512)]
                .into_iter()
                .enumerate()
        {
            heads_of::<f16>(&world, rows, heads, head_dim, i as u64);
            heads_of::<bf16>(&world, rows, heads, head_dim, i as u64);
        }
    }
}
