//! The attention layer alone: what it refuses, and what it does with nothing.

use half::f16;
use kvfold::backend::cuda::attend::{Attention, AttentionCall, AttentionShape, Limits};
use kvfold::backend::cuda::params::{KvArena, KvRun, KvSeq, KvStream, NONE, RUN_HOT};
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
    let arena = KvArena {
        base: memory.address(),
        block_bytes: 2 * 2 * 64 * 64 * 2,
        page_bytes: 2 * 64 * 64 * 2,
        key_bytes: 64 * 64 * 2,
        page_tokens: 64,
        ..KvArena::default()
    };
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
