//! The attention layer alone: what it refuses, and what it does with nothing.

use half::f16;
use kvfold::backend::cuda::attend::{Attention, AttentionCall, AttentionShape, Limits};
use kvfold::backend::cuda::params::{KvArena, KvRun, KvSeq, KvStream, NONE, RUN_HOT, SEQ_PROMPT};
use kvfold::backend::driver::Device;
use kvfold::codec::KvFormat;

fn shape() -> AttentionShape {
    AttentionShape {
        head_dim: 64,
        heads: 4,
        kv_heads: 2,
        format: "f16".parse().unwrap(),
        sinks: 0,
        hot_window: 128,
        causal: true,
        window: None,
        scale: 0.125,
    }
}

/// 16-bit pages of two streams of 64 channels, from an address on.
fn arena_at(base: u64) -> KvArena {
    KvArena {
        base,
        block_bytes: 2 * 2 * 64 * 64 * 2,
        page_bytes: 2 * 64 * 64 * 2,
        key_bytes: 64 * 64 * 2,
        page_tokens: 64,
        ..KvArena::default()
    }
}

#[test]
fn shapes_without_a_kernel_are_named() {
    type Spoil = fn(&mut AttentionShape);
    let cases: [(&str, Spoil); 12] = [
        ("head_dim 96", |s| s.head_dim = 96),
        ("17 query heads", |s| (s.heads, s.kv_heads) = (17, 1)),
        ("5 do not fit 2", |s| s.heads = 5),
        ("do not fit 0", |s| s.kv_heads = 0),
        ("kivi2/f16", |s| s.format = "kivi2/f16".parse::<KvFormat>().unwrap()),
        ("kf2/kf3", |s| s.format = "kf2/kf3".parse().unwrap()),
        ("kf2/kivi2", |s| s.format = "kf2/kivi2".parse().unwrap()),
        ("bf16+f16", |s| s.format = "bf16+f16".parse().unwrap()),
        ("65 sinks", |s| s.sinks = 65),
        ("hot window 100", |s| s.hot_window = 100),
        ("window Some(0)", |s| s.window = Some(0)),
        ("a window of 64", |s| (s.causal, s.window) = (false, Some(64))),
    ];
    let device = Device::emulated(Default::default());
    assert!(Attention::new(&device, shape()).is_ok());
    for (name, spoil) in cases {
        let mut shape = shape();
        spoil(&mut shape);
        let error = Attention::new(&device, shape).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn limits_are_checked_and_kept() {
    let device = Device::emulated(Default::default());
    let stream = device.stream().unwrap();
    let attention = Attention::new(&device, shape()).unwrap();
    let huge = Limits { seqs: 1 << 20, generated_rows: 1 << 24, tokens: 1 << 20 };
    assert!(attention.scratch(huge).err().unwrap().to_string().contains("32 bits"));

    // A stream of 1,100 tokens has three splits; a workspace for 64 holds one.
    let pages = vec![f16::ZERO; 18 * 2 * 64 * 64 * 2];
    let memory = device.upload(&pages, &stream).unwrap();
    let arena = arena_at(memory.address());
    let run =
        KvRun { kind: RUN_HOT, n_tokens: 1100, live: NONE, rotation: NONE, ..KvRun::default() };
    let kv_stream = KvStream { n_runs: 1, kept: 1100, ..KvStream::default() };
    let seq = KvSeq { q_len: 1, ..KvSeq::default() };
    let table: Vec<u32> = (0..18).collect();
    let arenas = device.upload(&[arena], &stream).unwrap();
    let runs = device.upload(&[run], &stream).unwrap();
    let streams = device.upload(&[kv_stream], &stream).unwrap();
    let seqs = device.upload(&[seq], &stream).unwrap();
    let table = device.upload(&table, &stream).unwrap();
    let q = device.upload(&[f16::ONE; 256], &stream).unwrap();
    let out = device.upload(&[f16::from_f32(7.0); 256], &stream).unwrap();
    let call = AttentionCall {
        q: q.address(),
        q_stride: 256,
        out: out.address(),
        seqs: seqs.address(),
        n_seqs: 1,
        max_generated: 1,
        streams: streams.address(),
        runs: runs.address(),
        table: table.address(),
        arenas: arenas.address(),
        ..AttentionCall::default()
    };
    for (tokens, overflows) in [(64, true), (1100, false)] {
        let limits = Limits { seqs: 1, generated_rows: 1, tokens };
        let mut workspace = attention.scratch(limits).unwrap();
        // SAFETY: the arrays are consistent and live.
        unsafe { attention.attend(&call, &mut workspace, &stream).unwrap() };
        assert_eq!(attention.overflowed(&workspace, &stream).unwrap(), overflows);
        // Either nothing is written, or the mean of zeros.
        let want = if overflows { 7.0 } else { 0.0 };
        assert!(out.to_vec(&stream).unwrap().iter().all(|x| x.to_f32() == want));
    }

    let mut workspace =
        attention.scratch(Limits { seqs: 1, generated_rows: 1, tokens: 64 }).unwrap();
    let refused = |call: AttentionCall, workspace: &mut _| {
        // SAFETY: a refused call reads nothing.
        unsafe { attention.attend(&call, workspace, &stream).err().unwrap().to_string() }
    };
    let error = refused(AttentionCall { n_seqs: 2, ..call }, &mut workspace);
    assert!(error.contains("n_seqs") && error.contains('1'), "{error}");
    let error = refused(AttentionCall { q_stride: 255, ..call }, &mut workspace);
    assert!(error.contains("q_stride"), "{error}");
    // SAFETY: no sequence, so nothing is read.
    unsafe {
        attention.attend(&AttentionCall::default(), &mut workspace, &stream).err().unwrap();
        let nothing = AttentionCall { n_seqs: 0, ..call };
        attention.attend(&nothing, &mut workspace, &stream).unwrap();
    }
}

/// The plan of many sequences is made by several blocks, each for itself: every sequence has
/// the bits that it has in a call of its own.
#[test]
fn many_sequences_are_planned_as_each_alone() {
    const PAGES: usize = 18;
    const SEQS: usize = 45; // 90 (sequence, KV head) pairs; a block plans 32
    let device = Device::emulated(Default::default());
    let stream = device.stream().unwrap();
    let attention = Attention::new(&device, shape()).unwrap();
    let mut state = 7u32;
    let mut random = |most: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % most
    };
    let mut numbers = |n: usize| -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(random(256) as f32 / 64.0 - 2.0)).collect()
    };
    let memory = device.upload(&numbers(PAGES * 2 * 64 * 64 * 2), &stream).unwrap();
    let arena = arena_at(memory.address());
    let (mut seqs, mut streams, mut runs, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for i in 0..SEQS {
        // Every fifth is a prompt, every seventh has nothing to do.
        let flags = if i % 5 == 3 { SEQ_PROMPT } else { 0 };
        let q_len = if i % 7 == 6 { 0 } else { 1 + i as u32 % 3 };
        let kept = 3 + (i as u32 * 331) % 1147;
        let run =
            KvRun { kind: RUN_HOT, n_tokens: kept, live: NONE, rotation: NONE, ..KvRun::default() };
        let first_entry = i as u32 % 7;
        runs.push(run);
        streams.push(KvStream {
            first_run: i as u32,
            n_runs: 1,
            first_entry,
            kept,
            ..KvStream::default()
        });
        seqs.push(KvSeq { first_row: rows, q_len, first_stream: i as u32, flags });
        rows += q_len;
    }
    let rows = rows as usize;
    let table: Vec<u32> = (0..PAGES as u32 + 7).map(|i| i * 7 % PAGES as u32).collect();
    let q = device.upload(&numbers(rows * 256), &stream).unwrap();
    let arenas = device.upload(&[arena], &stream).unwrap();
    let runs = device.upload(&runs, &stream).unwrap();
    let streams = device.upload(&streams, &stream).unwrap();
    let table = device.upload(&table, &stream).unwrap();
    let attend = |seqs: &[KvSeq]| {
        let mut out = device.alloc::<f16>(rows * 256).unwrap();
        out.fill(0, &stream).unwrap();
        let on_device = device.upload(seqs, &stream).unwrap();
        let most = |flags| seqs.iter().filter(|s| s.flags == flags).map(|s| s.q_len as usize).max();
        let call = AttentionCall {
            q: q.address(),
            q_stride: 256,
            out: out.address(),
            seqs: on_device.address(),
            n_seqs: seqs.len(),
            max_generated: most(0).unwrap_or(0),
            max_prompt: most(SEQ_PROMPT).unwrap_or(0),
            streams: streams.address(),
            runs: runs.address(),
            table: table.address(),
            arenas: arenas.address(),
            ..AttentionCall::default()
        };
        let limits = Limits { seqs: seqs.len(), generated_rows: rows, tokens: 1150 };
        let mut scratch = attention.scratch(limits).unwrap();
        // SAFETY: the arrays are consistent and live.
        unsafe { attention.attend(&call, &mut scratch, &stream).unwrap() };
        assert!(!attention.overflowed(&scratch, &stream).unwrap());
        out.to_vec(&stream).unwrap().into_iter().map(f16::to_bits).collect::<Vec<_>>()
    };
    let together = attend(&seqs);
    for (i, seq) in seqs.iter().enumerate() {
        let its = 256 * seq.first_row as usize..256 * (seq.first_row + seq.q_len) as usize;
        let alone = attend(std::slice::from_ref(seq));
        assert!(alone[its.clone()] == together[its], "sequence {i}: {seq:?}");
    }
    assert!(together.chunks(256).all(|row| row.iter().any(|x| *x != 0)), "all rows are written");
}
