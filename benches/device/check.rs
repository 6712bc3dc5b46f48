//! `--test`: the bench's own tables and memory, on the emulated device and, if there
//! is one, on a CUDA device. Whether kernels are right is for the tests to say
//! (`tests/kernels/attention_conformance.rs`); here it is whether cells ask for what they mean,
//! and whether the goals find their cells.

use crate::attention::{AttentionWork, Case, Part};
use crate::csv;
use crate::goals;
use crate::kv::{KvShape, Order, kind_of};
use crate::report::Report;
use crate::roofs::Roofs;
use crate::row::{Outcome, Row};
use crate::seal::{self, SealWork};
use crate::work::Work;
use crate::workloads::{FORMATS, families};
use anyhow::{Result, ensure};
use half::f16;
use kvfold::backend::driver::{Device, DeviceStream};
use kvfold::codec::{Codec, KvFormat, Side};

/// Every family in small.
pub fn all(device: &Device) -> Result<()> {
    let stream = device.stream()?;
    for format in FORMATS {
        attention(device, &stream, format, 64, 1, true)?;
        if format.seals() {
            seals(device, &stream, format)?;
        }
    }
    // Several queries that straddle a page boundary, so that a page is in both forms.
    for causal in [true, false] {
        attention(device, &stream, KvFormat::uniform(Codec::Kivi2), 64, 5, causal)?;
        attention(device, &stream, KvFormat::uniform(Codec::Kf2), 64, 5, causal)?;
    }
    attention(device, &stream, KvFormat::uniform(Codec::F16), 64, 70, false)?;
    attention(device, &stream, KvFormat::uniform(Codec::Kivi4), 128, 1, true)?;
    captured(device, &stream)?;
    csv::test(device)?;
    verdicts(device, &stream)
}

/// Shuffled pages give the same bits as contiguous ones; layers differ; and queries
/// of zeros, whose logits are all 0, count the tokens that they see.
fn attention(
    device: &Device,
    stream: &DeviceStream,
    format: KvFormat,
    head_dim: usize,
    q_len: usize,
    causal: bool,
) -> Result<()> {
    let kind = kind_of(q_len);
    let kv = KvShape { kv_heads: 2, head_dim, format, batch: 4, context: 710, q_len, kind };
    let run = |order, turn, seed| -> Result<_> {
        let case = Case { heads: 4, kv, order, causal };
        let mut work = AttentionWork::new(&case, 2, seed, device, stream)?;
        work.enqueue(turn, stream)?;
        Ok(work.results(stream)?)
    };
    let contiguous = run(Order::Contiguous, 0, 1)?;
    let finite = contiguous.0.iter().all(|x| f16::from_bits(*x).is_finite())
        && contiguous.1.iter().all(|x| x.is_finite());
    ensure!(finite, "{format}: an output is not finite");
    ensure!(run(Order::Shuffled, 0, 1)? == contiguous, "{format}: the order of pages matters");
    ensure!(run(Order::Contiguous, 1, 1)? != contiguous, "{format}: both layers are alike");
    let (_, counts) = run(Order::Shuffled, 1, 0)?;
    for (i, count) in counts.iter().enumerate() {
        let behind = if causal { q_len - 1 - i / 4 % q_len } else { 0 };
        let seen = kv.context - behind;
        let error = (count - (seen as f32).log2()).abs();
        ensure!(error < 1e-4, "{format}: a query sees 2^{count} tokens, not {seen}");
    }
    Ok(())
}

/// Sealed pages are the codec's encoding of the 16-bit ones.
fn seals(device: &Device, stream: &DeviceStream, format: KvFormat) -> Result<()> {
    let (kv_heads, head_dim) = (2, 64);
    let case = seal::Case { kv_heads, head_dim, format, blocks: 2 };
    let mut work = SealWork::new(&case, 1, device, stream)?;
    work.enqueue(0, stream)?;
    let (hot, sealed) = work.bytes(stream)?;
    let hot_bytes = case.hot().page_bytes() / 2;
    let pages = sealed.chunks(case.sealed().page_bytes());
    ensure!(hot.len() / hot_bytes == 8 && pages.len() == 4, "4 pages of 2 halves");
    for (hot, sealed) in hot.chunks(2 * hot_bytes).zip(pages) {
        let (keys, values) = sealed.split_at(format.key.tile().tile_bytes(head_dim));
        let halves = [(Side::Key, format.key, keys), (Side::Value, format.value, values)];
        for (hot, (side, codec, sealed)) in hot.chunks(hot_bytes).zip(halves) {
            let mut rows = vec![0f32; hot_bytes / 2];
            let mut want = vec![0; sealed.len()];
            Codec::F16.tile().decode(side, hot, head_dim, &mut rows);
            codec.tile().encode(side, &rows, head_dim, &mut want);
            ensure!(sealed == want, "{format}: a {side:?} half page is sealed wrongly");
        }
    }
    Ok(())
}

/// A captured step ends with the bits of its last call alone, by the plan of its first; and
/// parts are those of the whole: over a call's partial results, the merge writes its rows.
fn captured(device: &Device, stream: &DeviceStream) -> Result<()> {
    for format in [Codec::F16, Codec::Kf2].map(KvFormat::uniform) {
        let (kv_heads, head_dim, batch, context) = (1, 64, 2, 710);
        let kind = kind_of(1);
        let kv = KvShape { kv_heads, head_dim, format, batch, context, q_len: 1, kind };
        let case = Case { heads: 2, kv, order: Order::Shuffled, causal: true };
        let layers = 3;
        let mut step = case.captured(Part::Step, layers, device, stream)?;
        let last = step.runs() - 1;
        ensure!(last % layers != 0 && last >= layers, "{format}: {last} says nothing");
        let mut alone = AttentionWork::new(&case, layers, 1, device, stream)?;
        alone.enqueue(last % layers, stream)?;
        let want = alone.results(stream)?;
        step.enqueue(0, stream)?;
        ensure!(step.work().results(stream)? == want, "{format}: a captured step differs");

        for (part, writes) in [(Part::Plan, false), (Part::Merge, true), (Part::Attend, false)] {
            alone.out.fill(0xff, stream)?; // NaN
            alone.lse.fill(0xff, stream)?;
            alone.part = Some(part);
            alone.enqueue(last % layers, stream)?;
            let written = alone.results(stream)? == want;
            ensure!(written == writes, "{format}: {part:?} writes the rows: {written}");
        }
    }
    Ok(())
}

/// With made-up times that reach every goal, full and quick runs reach all of them;
/// with slow KIVI-2 cells, KIVI-2 and the shuffled pages do not.
fn verdicts(device: &Device, stream: &DeviceStream) -> Result<()> {
    let cublaslt = Ok(800e12);
    let roofs = Roofs { read: 3e12, mma: 600e12, mma_bf16: 600e12, cublaslt, call: 1e-5 };
    let families = families(device, stream);
    let run = |quick: bool, slow: f64| {
        let mut rows = Vec::new();
        for family in &families {
            for cell in family.cells.iter().filter(|cell| cell.quick || !quick) {
                let seconds = match family.name {
                    "decode"
                        if cell.name.contains("kivi2") && !cell.name.ends_with("contiguous") =>
                    {
                        let slow = if cell.name.ends_with("layers") { slow * slow } else { slow };
                        slow * cell.bytes as f64 / 2.95e12
                    }
                    "decode" => cell.bytes as f64 / 2.95e12,
                    _ => cell.flops.max(cell.bytes) as f64 / 500e12,
                };
                rows.push(Row::new(family.name, cell, Outcome::Measured(seconds)));
            }
        }
        let goals = goals::goals(&rows, &roofs);
        let report =
            Report { device: device.info(), roofs: &roofs, rows: &rows, goals: &goals, models: "" };
        let (table, summary) = (report.table(), report.summary());
        let names = rows.iter().filter(|row| table.contains(&row.name)).count();
        let all = names == rows.len()
            && report.json(quick)["cells"].as_array().is_some_and(|c| c.len() == names);
        (goals.iter().map(|goal| goal.reached()).collect::<Vec<_>>(), summary, all)
    };
    for quick in [false, true] {
        let (reached, summary, all) = run(quick, 1.0);
        ensure!(all, "a row is missing");
        ensure!(reached == [Some(true); 9], "quick {quick}: {summary}");
        let (reached, summary, _) = run(quick, 1.2);
        let expected = [true, false, true, true, true, true, true, false, false].map(Some);
        ensure!(reached == expected, "quick {quick}: {summary}");
    }
    Ok(())
}
