//! The attention layer alone, over memory that the caller owns.
//!
//! A server that has a paged KV cache of its own needs four things: arenas of
//! pages, a table of block numbers for each sequence, queries, and a stream. This
//! example makes them by hand: two sequences of unequal length in shuffled blocks,
//! grouped-query heads, 16-bit pages. It attends on the first CUDA device, or, if
//! there is none, on the emulated one, and checks the result.
//!
//! ```sh
//! cargo run --release --example 02_attention_layer [--features cuda]
//! ```
//!
//! In a server, [`Device::borrow_cuda`] and [`Device::borrow_stream`] take its own
//! context and stream, and the addresses below are those of its own tensors.

use half::f16;
use kvfold::backend::cuda::attend::{Attention, AttentionCall, AttentionShape, Limits};
use kvfold::backend::cuda::params::{KvArena, KvRun, KvSeq, KvStream, NONE, RUN_HOT};
use kvfold::backend::driver::Device;
use kvfold::codec::{Codec, KvFormat};

const D: usize = 128;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const PAGE: usize = 64;
/// Tokens of each sequence.
const KEPT: [usize; 2] = [150, 41];
/// Blocks of each sequence, anywhere in the arena.
const TABLE: [&[u32]; 2] = [&[4, 0, 2], &[3]];
const BLOCKS: usize = 5;

fn main() -> anyhow::Result<()> {
    let device = device()?;
    let stream = device.stream()?;
    println!("on {}", device.info().name);

    // A block holds 64 tokens of every KV head of this one layer: for each head a
    // page, its keys [64][D] and then its values [64][D].
    let mut random = 1u32;
    let mut draw = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f16::from_f32((random >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    let page = 2 * PAGE * D;
    let pages: Vec<f16> = (0..BLOCKS * KV_HEADS * page).map(|_| draw()).collect();
    let q: Vec<f16> = (0..2 * HEADS * D).map(|_| draw()).collect();

    let memory = device.upload(&pages, &stream)?;
    let arenas = [KvArena {
        base: memory.address(),
        block_bytes: (KV_HEADS * page * 2) as u64,
        page_bytes: (page * 2) as u32,
        key_bytes: page as u32,
        page_tokens: PAGE as u32,
        ..KvArena::default()
    }];
    // One run a sequence: all its pages are alike.
    let runs = KEPT.map(|kept| KvRun {
        kind: RUN_HOT,
        n_tokens: kept as u32,
        live: NONE,
        rotation: NONE,
        ..KvRun::default()
    });
    let streams: [KvStream; 2] = std::array::from_fn(|s| KvStream {
        first_run: s as u32,
        n_runs: 1,
        first_entry: TABLE[..s].concat().len() as u32,
        kept: KEPT[s] as u32,
        ..KvStream::default()
    });
    // One query each: its last token, which was drawn, so decode takes it.
    let seqs: [KvSeq; 2] = std::array::from_fn(|s| KvSeq {
        first_row: s as u32,
        q_len: 1,
        first_stream: s as u32,
        flags: 0,
    });
    let (arenas, runs) = (device.upload(&arenas, &stream)?, device.upload(&runs, &stream)?);
    let (streams, seqs) = (device.upload(&streams, &stream)?, device.upload(&seqs, &stream)?);
    let table = device.upload(&TABLE.concat(), &stream)?;
    let queries = device.upload(&q, &stream)?;
    let out = device.alloc::<f16>(2 * HEADS * D)?;
    let lse = device.alloc::<f32>(2 * HEADS)?;

    let scale = (D as f32).powf(-0.5);
    let attention = Attention::new(
        &device,
        AttentionShape {
            head_dim: D,
            heads: HEADS,
            kv_heads: KV_HEADS,
            format: KvFormat::uniform(Codec::F16),
            sinks: 0,
            hot_window: 0,
            causal: true,
            window: None,
            scale,
        },
    )?;
    let mut workspace = attention.scratch(Limits { seqs: 2, generated_rows: 2, tokens: 4096 })?;
    let call = AttentionCall {
        q: queries.address(),
        q_stride: HEADS * D,
        out: out.address(),
        lse: lse.address(),
        seqs: seqs.address(),
        n_seqs: 2,
        max_generated: 1,
        streams: streams.address(),
        runs: runs.address(),
        table: table.address(),
        arenas: arenas.address(),
        ..AttentionCall::default()
    };
    // SAFETY: the arrays above are consistent and outlive the work, which `to_vec`
    // waits for.
    unsafe { attention.attend(&call, &mut workspace, &stream)? };
    let (out, lse) = (out.to_vec(&stream)?, lse.to_vec(&stream)?);

    let mut worst = 0f64;
    for s in 0..2 {
        for head in 0..HEADS {
            let row = |token: usize, side: usize| {
                let block = TABLE[s][token / PAGE] as usize;
                let page_at = (block * KV_HEADS + head / (HEADS / KV_HEADS)) * page;
                &pages[page_at + (side * PAGE + token % PAGE) * D..][..D]
            };
            let q = &q[(s * HEADS + head) * D..][..D];
            let dot =
                |k: &[f16]| q.iter().zip(k).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>();
            let weights: Vec<f64> =
                (0..KEPT[s]).map(|t| (dot(row(t, 0)) * f64::from(scale)).exp()).collect();
            let total: f64 = weights.iter().sum();
            for c in 0..D {
                let sum: f64 = (0..KEPT[s]).map(|t| weights[t] * row(t, 1)[c].to_f64()).sum();
                worst = worst.max((sum / total - out[(s * HEADS + head) * D + c].to_f64()).abs());
            }
            let error = (total.log2() - f64::from(lse[s * HEADS + head])).abs();
            anyhow::ensure!(error < 1e-3, "log-sum-exp of head {head} is off by {error}");
        }
    }
    println!("largest error against a double-precision loop: {worst:.1e}");
    anyhow::ensure!(worst < 1e-3, "that is too much");
    Ok(())
}

#[cfg(feature = "emulator")]
fn device() -> kvfold::Result<Device> {
    Device::cuda(0).or_else(|reason| {
        println!("no CUDA device: {reason}");
        Ok(Device::emulated(Default::default()))
    })
}

#[cfg(not(feature = "emulator"))]
fn device() -> kvfold::Result<Device> {
    Device::cuda(0)
}
