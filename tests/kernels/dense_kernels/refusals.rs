//! Shapes that do not fit are errors that name them, before anything is launched.

use super::world::World;
use half::f16;
use kvfold::Error;
use kvfold::backend::cuda::dense::{
    HeadNorm, Logits, RmsNorm, RopeCall, Rows, add_bias, argmax, draw_to, embed, head_norm,
    rms_norm, rope, sample, select_rows, silu_mul,
};
use kvfold::backend::draw::Draw;
use kvfold::backend::driver::DeviceBuffer;

#[track_caller]
fn names<T>(result: Result<T, Error>, words: &[&str]) {
    let error = result.err().expect("an error").to_string();
    assert!(words.iter().all(|w| error.contains(w)) && !error.contains('\n'), "{error}");
}

#[test]
fn norms() {
    let w = World::emulated(0);
    let s = &w.stream;
    let (mut x, mut out) = (w.nan::<f32>(64), w.nan::<f16>(64));
    let mut norm = |rows, cols, delta: Option<&DeviceBuffer<f16>>| {
        let weight = w.nan(cols);
        rms_norm(RmsNorm { rows, weight: &weight, eps: 0.0 }, &mut x, delta, &mut out, s)
    };
    norm(2, 32, None).unwrap();
    names(norm(2, 36, None), &["rms_norm: 36 columns", "multiple of 8"]);
    names(norm(0, 16_392, None), &["16392 columns", "16384"]);
    names(norm(3, 32, None), &["3 rows of 32 exceed 64 of x"]);
    let delta = w.nan(63);
    names(norm(2, 32, Some(&delta)), &["63 of delta"]);

    let head = |stride, first_col, heads, head_dim| {
        let weight = w.nan(head_dim);
        let call = HeadNorm { rows: 2, stride, first_col, heads, weight: &weight, eps: 0.0 };
        head_norm(call, &mut w.nan::<f16>(64), s)
    };
    head(32, 8, 3, 8).unwrap();
    names(head(32, 8, 4, 8), &["4 heads of 8 from column 8", "32"]);
    names(head(32, 4, 1, 8), &["column 4", "multiple of 8"]);
    names(head(32, 0, 1, 12), &["12 channels"]);
    names(head(40, 0, 1, 8), &["2 rows of 40"]);
    names(head(560, 0, 1, 520), &["520 channels", "512"]);
}

#[test]
fn rows_and_elements() {
    let w = World::emulated(0);
    let s = &w.stream;
    let (halves, mut floats, ids) = (w.nan::<f16>(64), w.nan::<f32>(64), w.upload(&[0u32; 4]));
    let mut embedded = |n, cols| {
        let mut taken = w.nan::<u32>(4);
        let rows = Rows { n, tokens: &ids, slots: &ids, ids: &mut taken };
        embed(&halves, 1.0, rows, cols, &mut floats, s)
    };
    embedded(4, 16).unwrap();
    names(embedded(4, 0), &["embed: 0 columns"]);
    names(embedded(4, 24), &["4 rows of 24"]);
    names(embedded(5, 8), &["5 rows of 1 exceed 4 of tokens"]);
    let from = w.nan::<f32>(64);
    names(select_rows(&from, &ids, 4, 6, &mut floats, s), &["select_rows: 6 columns"]);
    names(select_rows(&from, &ids, 4, 32, &mut floats, s), &["4 rows of 32"]);
    let mut y = w.nan::<f16>(32);
    silu_mul(&halves, 2, 16, &mut y, s).unwrap();
    names(silu_mul(&halves, 3, 16, &mut y, s), &["silu_mul: 3 rows of 32"]);
    names(silu_mul(&halves, 1, 12, &mut y, s), &["12 columns"]);
    names(add_bias(&mut y, 3, &w.nan(16), s), &["add_bias: 3 rows of 16"]);
    // SAFETY: the memory is the buffer's, which outlives it.
    let shifted = unsafe { DeviceBuffer::borrow(&w.device, halves.address_of(4), 32) };
    names(silu_mul(&shifted, 1, 16, &mut y, s), &["x does not start", "16 bytes"]);

    let positions = w.upload(&[0u32; 2]);
    let turn = |rows, stride, heads, half| {
        let inv_turns = w.upload(&vec![0f64; half]);
        let call = RopeCall { rows, stride, heads, positions: &positions, inv_turns: &inv_turns };
        rope(call, &mut w.nan::<f16>(128), s)
    };
    turn(2, 64, 2, 16).unwrap();
    names(turn(2, 64, 3, 16), &["rope: 3 heads of 32", "64"]);
    names(turn(2, 64, 1, 12), &["24 channels"]);
    names(turn(3, 32, 1, 16), &["3 rows of 1 exceed 2 of positions"]);
}

#[test]
fn samples() {
    let w = World::emulated(0);
    let s = &w.stream;
    let values = w.upload(&[0f32; 40]);
    let draw = draw_to(0, &Draw::GREEDY).unwrap();
    let (draws, mut ids) = (w.upload(&[draw; 3]), w.nan::<u32>(4));
    let logits = Logits { values: &values, rows: 4, vocab: 10, stride: 10 };
    argmax(logits, &mut ids, s).unwrap();
    // SAFETY: a refused call writes nothing.
    let sampled = unsafe { sample(logits, &draws, &mut ids, s) };
    names(sampled, &["sample: 4 rows of 1 exceed 3 of draws"]);
    names(argmax(Logits { stride: 9, ..logits }, &mut ids, s), &["argmax: rows of 9", "10"]);
    names(argmax(Logits { rows: 5, ..logits }, &mut ids, s), &["5 rows of 10"]);
    names(argmax(Logits { vocab: 0, ..logits }, &mut ids, s), &["0 logits"]);
    let vocab = (1 << 22) + 1;
    names(argmax(Logits { vocab, stride: vocab, ..logits }, &mut ids, s), &["4194304"]);
    names(draw_to(0, &Draw { top_p: 2.0, ..Draw::GREEDY }), &["top_p: 2"]);
}
