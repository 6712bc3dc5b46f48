//! Launches `kernels/bench/`: what a device can do at best, so that a kernel's speed
//! can be told as a fraction of what the same run measured on the same card.

use super::params::{BenchMmaParams, BenchReadParams};
use crate::backend::driver::{DeviceBuffer, DeviceStream, Launch};
use crate::error::{Error, Result};

const THREADS: u32 = 256;

/// Words that a block reads at a time: memory is read in multiples of it.
pub const SLAB_WORDS: usize = THREADS as usize * 8 * 4;

/// Words of both operands of [`multiply`].
pub const OPERAND_WORDS: usize = TILES * 32 * (4 + 2);
const TILES: usize = 4;

/// The 16-bit type of matrix operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Words that [`read`] writes.
pub fn read_sums(blocks: u32) -> usize {
    (blocks * THREADS / 32) as usize
}

/// Reads `from` once and writes exclusive ors, one a warp, whose exclusive or is that
/// of all its words.
///
/// # Errors
/// [`Error::Misuse`] if `from` is not a multiple of [`SLAB_WORDS`] long or `sums` is
/// shorter than [`read_sums`].
pub fn read(
    from: &DeviceBuffer<u32>,
    sums: &mut DeviceBuffer<u32>,
    blocks: u32,
    stream: &DeviceStream,
) -> Result<()> {
    if !from.len().is_multiple_of(SLAB_WORDS) || sums.len() < read_sums(blocks) {
        let what = format!("{} words to {} sums of {blocks} blocks", from.len(), sums.len());
        return Err(Error::misuse("read", what));
    }
    let n_slabs = (from.len() / SLAB_WORDS) as u64;
    let params = BenchReadParams { from: from.address(), sums: sums.address(), n_slabs };
    // SAFETY: the kernel reads the slabs of `from` and writes one word a warp of `sums`.
    unsafe { stream.launch("bench_read", Launch::new(blocks, THREADS), &params) }
}

/// Numbers that [`multiply`] writes.
pub fn multiply_sums(blocks: u32) -> usize {
    (blocks * THREADS) as usize
}

/// Floating-point operations of [`multiply`].
pub fn multiply_flops(rounds: u32, blocks: u32) -> u64 {
    let warps = u64::from(blocks * THREADS / 32);
    warps * u64::from(rounds) * (TILES * TILES * 2 * 16 * 8 * 16) as u64
}

/// Multiplies `rounds` times, by `mma.sync` m16n8k16 from registers, and adds up: the
/// accumulators of a thread give one sum. `operands` are the fragments of 4 tiles of
/// A and 4 tiles of B, [`OPERAND_WORDS`] long.
///
/// # Errors
/// [`Error::Misuse`] if a buffer is too short.
pub fn multiply(
    operand: Operand,
    operands: &DeviceBuffer<u32>,
    sums: &mut DeviceBuffer<f32>,
    rounds: u32,
    blocks: u32,
    stream: &DeviceStream,
) -> Result<()> {
    if operands.len() < OPERAND_WORDS || sums.len() < multiply_sums(blocks) {
        let what = format!("{} words to {} sums of {blocks} blocks", operands.len(), sums.len());
        return Err(Error::misuse("multiply", what));
    }
    let kernel = match operand {
        Operand::F16 => "bench_mma_f16",
        Operand::Bf16 => "bench_mma_bf16",
    };
    let (operands, sums) = (operands.address(), sums.address());
    let params = BenchMmaParams { operands, sums, rounds, reserved: 0 };
    // SAFETY: the kernel reads the operands and writes one number a thread of `sums`.
    unsafe { stream.launch(kernel, Launch::new(blocks, THREADS), &params) }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::backend::driver::Device;
    use crate::backend::driver::emulated::EmulatorOptions;
    use half::{bf16, f16};

    fn emulated() -> (Device, DeviceStream) {
        let device = Device::emulated(EmulatorOptions::default());
        let stream = device.stream().unwrap();
        (device, stream)
    }

    fn hash(x: usize) -> u32 {
        (x as u32 ^ 0x9e37).wrapping_mul(0x85eb_ca6b).rotate_left(13).wrapping_mul(0xc2b2_ae35)
    }

    #[test]
    fn every_word_is_read_once() {
        let (device, stream) = emulated();
        let words: Vec<u32> = (0..5 * SLAB_WORDS).map(hash).collect();
        let want = words.iter().fold(0, |sum, word| sum ^ word);
        let from = device.upload(&words, &stream).unwrap();
        // Fewer blocks than slabs, and more.
        for blocks in [2, 7] {
            let mut sums = device.alloc(read_sums(blocks)).unwrap();
            read(&from, &mut sums, blocks, &stream).unwrap();
            let sums = sums.to_vec(&stream).unwrap();
            assert_eq!(sums.into_iter().fold(0, |sum, word| sum ^ word), want);
        }
        let odd = device.zeroed(SLAB_WORDS + 4, &stream).unwrap();
        let mut sums = device.alloc(read_sums(1)).unwrap();
        assert!(read(&odd, &mut sums, 1, &stream).is_err());
    }

    #[test]
    fn products_are_those_of_the_fragments() {
        let (device, stream) = emulated();
        // Multiples of 1/8 up to 2: every sum is exact in f32.
        let number = |i: usize| (hash(i) % 33) as f32 / 8.0 - 2.0;
        // Row-major A tiles of 16 × 16 and B tiles of 16 × 8.
        let a = |tile: usize, row: usize, k: usize| number((tile * 16 + row) * 16 + k);
        let b = |tile: usize, k: usize, column: usize| number(5000 + (tile * 16 + k) * 8 + column);
        let (rounds, blocks) = (3, 2);
        for operand in [Operand::F16, Operand::Bf16] {
            let pack = |low: f32, high: f32| {
                let bits = |x: f32| match operand {
                    Operand::F16 => u32::from(f16::from_f32(x).to_bits()),
                    Operand::Bf16 => u32::from(bf16::from_f32(x).to_bits()),
                };
                bits(low) | bits(high) << 16
            };
            let mut words = Vec::new();
            for (tile, lane) in (0..TILES).flat_map(|tile| (0..32).map(move |lane| (tile, lane))) {
                let (g, t) = (lane / 4, 2 * (lane % 4));
                for (row, k) in [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)] {
                    words.push(pack(a(tile, row, k), a(tile, row, k + 1)));
                }
            }
            for (tile, lane) in (0..TILES).flat_map(|tile| (0..32).map(move |lane| (tile, lane))) {
                let (g, t) = (lane / 4, 2 * (lane % 4));
                for k in [t, t + 8] {
                    words.push(pack(b(tile, k, g), b(tile, k + 1, g)));
                }
            }
            let operands = device.upload(&words, &stream).unwrap();
            let mut sums = device.alloc(multiply_sums(blocks)).unwrap();
            multiply(operand, &operands, &mut sums, rounds, blocks, &stream).unwrap();
            for (thread, sum) in sums.to_vec(&stream).unwrap().into_iter().enumerate() {
                let (g, t) = (thread % 32 / 4, 2 * (thread % 4));
                let mut want = 0.0;
                for (m, n) in (0..TILES).flat_map(|m| (0..TILES).map(move |n| (m, n))) {
                    for (row, column) in [(g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)] {
                        want += (0..16).map(|k| a(m, row, k) * b(n, k, column)).sum::<f32>();
                    }
                }
                assert_eq!(sum, rounds as f32 * want, "{operand:?}, thread {thread}");
            }
        }
        assert_eq!(multiply_flops(rounds, blocks), 2 * 8 * 3 * 16 * 4096);
    }
}
