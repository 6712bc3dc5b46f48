//! What a kernel cannot do is an error that names it, before anything is launched.

use super::world::{World, cache_of, devices, group, rope};
use half::bf16;
use kvfold::Error;
use kvfold::backend::LayerIndex;
use kvfold::backend::cuda::append::{AppendCall, AppendPlan, append, inv_turns};
use kvfold::backend::cuda::arenas::Arenas;
use kvfold::backend::cuda::copy::Copier;
use kvfold::backend::cuda::gather::Gatherer;
use kvfold::backend::cuda::seal::{SealPlan, seal};
use kvfold::cache::{BlockRef, ClassId, ClassKind, CopyBlock, Gather, Seal};

const FIRST: LayerIndex = LayerIndex { group: 0, layer: 0 };

fn world() -> World {
    World::new(&devices(0)[0], vec![group("kivi2", 64, 1, 2)], 4, 0)
}

#[track_caller]
fn names<T>(result: Result<T, Error>, words: &[&str]) {
    let error = result.err().expect("an error").to_string();
    assert!(words.iter().all(|w| error.contains(w)), "{error}");
}

#[test]
fn head_dims_without_a_kernel() {
    for d in [48, 80, 288, 512] {
        let device = &devices(0)[0];
        let stream = device.stream().unwrap();
        let groups = [group("f16", d, 1, 1)];
        names(Arenas::new(device, &groups, &[], 0, &stream), &[&format!("head_dim {d}"), "32"]);
    }
    for (format, codec, d) in [("kf2", "kf2", 32), ("f16/kf3", "kf3", 96), ("kf4/fp8", "kf4", 192)]
    {
        let device = &devices(0)[0];
        let stream = device.stream().unwrap();
        let groups = [group(format, d, 1, 1)];
        let cache = cache_of(&groups);
        let words = [codec, &format!("head_dim of {d}")];
        names(Arenas::new(device, &groups, cache.classes(), 0, &stream), &words);
    }
}

#[test]
fn rows_that_do_not_fit() {
    let mut w = world();
    let seq = w.cache.create();
    let step = w.cache.prepare(&[(seq, 70)]).unwrap();
    let mut plan = AppendPlan::new(&w.device).unwrap();
    let cols = 6 * 64;
    let mut half = w.device.zeroed::<half::f16>(70 * cols, &w.stream).unwrap();
    let call = AppendCall { at: FIRST, heads: 2, stride: cols, inv_turns: None };
    let mut run = |w: &mut World, plan: &AppendPlan, call: &AppendCall<'_>| {
        append(&mut w.arenas, plan, call, &mut half, &w.stream)
    };
    names(run(&mut w, &plan, &call), &["plan"]);
    plan.set(&mut w.arenas, 0, &step.seqs, 0, &w.stream).unwrap();
    run(&mut w, &plan, &call).unwrap();
    names(run(&mut w, &plan, &AppendCall { heads: 3, ..call }), &["3 query heads", "2 KV heads"]);
    names(run(&mut w, &plan, &AppendCall { stride: cols + 4, ..call }), &["388", "multiple of 8"]);
    names(run(&mut w, &plan, &AppendCall { stride: cols + 8, ..call }), &["70 rows", "exceed"]);
    let at = LayerIndex { group: 0, layer: 1 };
    names(run(&mut w, &plan, &AppendCall { at, ..call }), &["layer 1"]);
    let turns = inv_turns(&rope(128), &w.stream).unwrap();
    let call = AppendCall { inv_turns: Some(&turns), ..call };
    names(run(&mut w, &plan, &call), &["inv_turns", "32"]);
    let mut other = w.device.zeroed::<bf16>(70 * cols, &w.stream).unwrap();
    let call = AppendCall { inv_turns: None, ..call };
    let result = append(&mut w.arenas, &plan, &call, &mut other, &w.stream);
    names(result, &["bf16", "f16"]);
    // Other arenas of the same shape.
    let mut second = world();
    names(append(&mut second.arenas, &plan, &call, &mut half, &w.stream), &["plan"]);

    for wrong in [
        |a: &mut kvfold::cache::Append| a.slot += 64,
        |a: &mut kvfold::cache::Append| a.token += 70,
        |a: &mut kvfold::cache::Append| a.block.index = 4,
        |a: &mut kvfold::cache::Append| a.block.class = ClassId(99),
        |a: &mut kvfold::cache::Append| a.stream = Some(2),
    ] {
        let mut seqs = step.seqs.clone();
        wrong(&mut seqs[0].appends[1]);
        plan.set(&mut w.arenas, 0, &seqs, 0, &w.stream).unwrap_err();
        names(append(&mut w.arenas, &plan, &call, &mut other, &w.stream), &["plan"]);
    }
    let mut seqs = step.seqs.clone();
    seqs[0].appends[1].block.class = w.class(ClassKind::Sealed);
    names(plan.set(&mut w.arenas, 0, &seqs, 0, &w.stream), &["does not hold rows"]);
    let mut seqs = step.seqs.clone();
    seqs[0].position = u32::MAX as usize;
    names(plan.set(&mut w.arenas, 0, &seqs, 0, &w.stream), &["position", "32 bits"]);
    w.cache.abort(step);
}

#[test]
fn blocks_that_do_not_fit() {
    let mut w = world();
    let seq = w.cache.create();
    let step = w.cache.prepare(&[(seq, 1)]).unwrap();
    let block = |kind, index| BlockRef { class: w.class(kind), index };
    let (hot, sealed) = (block(ClassKind::Hot, 0), block(ClassKind::Sealed, 0));
    let ragged = block(ClassKind::RaggedHot, 0);
    let mut plan = SealPlan::new(&w.device).unwrap();
    names(seal(&mut w.arenas, &plan, 0, 0..1, &w.stream), &["plan"]);
    let good = Seal { group: 0, stream: None, from: hot, to: sealed };
    for wrong in [
        Seal { from: sealed, to: hot, ..good },
        Seal { to: hot, ..good },
        Seal { from: ragged, ..good },
        Seal { to: BlockRef { index: 4, ..sealed }, ..good },
        Seal { stream: Some(2), ..good },
    ] {
        let mut seqs = step.seqs.clone();
        seqs[0].seals = vec![wrong];
        plan.set(&mut w.arenas, 0, &seqs, 0, &w.stream).unwrap_err();
        names(seal(&mut w.arenas, &plan, 0, 0..1, &w.stream), &["plan"]);
    }

    plan.set(&mut w.arenas, 0, &step.seqs, 0, &w.stream).unwrap();
    names(seal(&mut w.arenas, &plan, 0, 0..2, &w.stream), &["layer 1"]);
    names(seal(&mut w.arenas, &plan, 1, 0..1, &w.stream), &["plan"]);

    let mut gatherer = Gatherer::new(&w.device).unwrap();
    let other = BlockRef { index: 1, ..ragged };
    let good = Gather { group: 0, stream: 1, rows: vec![(hot, 3), (other, 63)], to: ragged };
    gatherer.gather(&mut w.arenas, std::slice::from_ref(&good), &w.stream).unwrap();
    for wrong in [
        Gather { stream: 2, ..good.clone() },
        Gather { to: hot, ..good.clone() },
        Gather { rows: vec![(hot, 64)], ..good.clone() },
        Gather { rows: vec![(ragged, 0)], ..good.clone() },
        Gather { rows: vec![(sealed, 0)], ..good.clone() },
        Gather { rows: vec![(hot, 0); 65], ..good.clone() },
        Gather { group: 1, ..good.clone() },
    ] {
        gatherer.gather(&mut w.arenas, &[wrong], &w.stream).unwrap_err();
    }

    let mut copier = Copier::new(&w.device).unwrap();
    for (from, to) in [(hot, hot), (hot, sealed), (hot, BlockRef { index: 4, ..hot })] {
        copier.copy(&mut w.arenas, &[CopyBlock { from, to }], &w.stream).unwrap_err();
    }
    w.cache.abort(step);
}
