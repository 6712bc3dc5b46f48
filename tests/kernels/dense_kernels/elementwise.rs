//! Gated activations and biases.

use super::world::{Half, Random, World, check_halves, worlds};
use half::{bf16, f16};
use kvfold::backend::cuda::dense::{add_bias, gelu_mul, silu_mul};

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The tanh form, as transformers' `gelu_pytorch_tanh`.
fn gelu(x: f64) -> f64 {
    let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    // tanh(z) near −1 loses what float64 has; 1 + tanh(z) = 2 / (1 + exp(−2z)) does not.
    x / (1.0 + (-2.0 * z).exp())
}

fn gated<T: Half>(world: &World, rows: usize, cols: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut x = random.halves::<T>(rows * 2 * cols, 4.0);
    // Gates that saturate, and the ends of the range.
    for (i, gate) in [0.0, -0.0, -12.0, 12.0, -60.0, 60.0, -60000.0, 60000.0].iter().enumerate() {
        x[i] = T::round(*gate);
    }
    let on_device = world.upload(&x);
    let mut y = world.nan::<T>(rows * cols);
    let want = |f: fn(f64) -> f64| -> Vec<f64> {
        let row = |row: &[T]| -> Vec<f64> {
            (0..cols).map(|i| f(row[i].widen()) * row[cols + i].widen()).collect()
        };
        x.chunks(2 * cols).flat_map(row).collect()
    };
    let check = |what: &str, got: &[T], want: &[f64]| {
        for (i, want) in want.iter().enumerate().filter(|(_, w)| w.abs() > 65504.0) {
            assert!(got[i].widen().abs() > 65000.0, "{what}: {:?}, not {want}", got[i]);
        }
        let within = |w: &&f64| w.abs() <= 65504.0;
        let got: Vec<T> = got.iter().zip(want).filter(|(_, w)| within(w)).map(|p| *p.0).collect();
        let want: Vec<f64> = want.iter().filter(within).copied().collect();
        // An exponent of up to 128, rounded to f32; beyond, gates of up to 64 let nothing of
        // up to 16 through.
        check_halves(what, &got, &want, 128.0 * 2f64.powi(-23), 2f64.powi(10 - 127));
    };
    silu_mul(&on_device, rows, cols, &mut y, &world.stream).unwrap();
    check("silu", &world.read(&y), &want(silu));
    gelu_mul(&on_device, rows, cols, &mut y, &world.stream).unwrap();
    check("gelu", &world.read(&y), &want(gelu));
}

#[test]
fn gates_times_what_they_let_through() {
    for world in worlds() {
        for (i, (rows, cols)) in [(1, 8), (3, 1536), (7, 24), (2, 2056)].into_iter().enumerate() {
            gated::<f16>(&world, rows, cols, i as u64);
            gated::<bf16>(&world, rows, cols, i as u64);
        }
    }
}

fn biased<T: Half>(world: &World, rows: usize, cols: usize) {
    let mut random = Random::new(cols as u64);
    // A row more than is asked for.
    let x = random.halves::<T>((rows + 1) * cols, 2.0);
    let bias = random.floats(cols, 1.0);
    let mut on_device = world.upload(&x);
    add_bias(&mut on_device, rows, &world.upload(&bias), &world.stream).unwrap();
    let got = world.read(&on_device);
    let want: Vec<f64> = x[..rows * cols]
        .iter()
        .enumerate()
        .map(|(i, x)| f64::from(x.widen() as f32 + bias[i % cols]))
        .collect();
    check_halves("bias", &got[..rows * cols], &want, 0.0, 0.0);
    assert_eq!(got[rows * cols..], x[rows * cols..]);
}

#[test]
fn every_row_gets_the_bias() {
    for world in worlds() {
        for (rows, cols) in [(1, 8), (5, 960), (17, 136)] {
            biased::<f16>(&world, rows, cols);
            biased::<bf16>(&world, rows, cols);
        }
    }
}
