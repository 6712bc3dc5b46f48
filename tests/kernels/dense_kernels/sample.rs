//! Argmax and sampling: the host's twin, token for token, and float64.

use super::world::{Random, World, worlds};
use kvfold::backend::cuda::dense::{Logits, argmax, draw_to, sample};
use kvfold::backend::cuda::params::NONE;
use kvfold::backend::draw::{self, Draw, FULL_WEIGHT};

/// Rows one after the other, `stride` apart with NaN between.
fn padded(rows: &[Vec<f32>], stride: usize) -> Vec<f32> {
    let row = |row: &Vec<f32>| {
        let mut row = row.clone();
        row.resize(stride, f32::NAN);
        row
    };
    rows.iter().flat_map(row).collect()
}

fn greedy(world: &World, rows: &[Vec<f32>], stride: usize) -> Vec<u32> {
    let values = world.upload(&padded(rows, stride));
    let mut ids = world.nan(rows.len());
    let logits = Logits { values: &values, rows: rows.len(), vocab: rows[0].len(), stride };
    argmax(logits, &mut ids, &world.stream).unwrap();
    world.read(&ids)
}

fn drawn(world: &World, rows: &[Vec<f32>], draws: &[Draw], stride: usize) -> Vec<u32> {
    let values = world.upload(&padded(rows, stride));
    // Slots in reverse, after one that nobody draws to.
    let n = rows.len() as u32;
    let slots = (1..=n).rev();
    let draws: Vec<_> = slots.zip(draws).map(|(slot, d)| draw_to(slot, d).unwrap()).collect();
    let mut ids = world.nan(rows.len() + 1);
    let logits = Logits { values: &values, rows: rows.len(), vocab: rows[0].len(), stride };
    // SAFETY: each slot is an element.
    unsafe { sample(logits, &world.upload(&draws), &mut ids, &world.stream).unwrap() };
    let mut ids = world.read(&ids);
    assert_eq!(ids.remove(0), NONE, "what was there before");
    ids.reverse();
    ids
}

/// Logits of several kinds: normal, peaked, flat, of few values (many are equal), with
/// forbidden tokens and NaN, of both zeros.
fn logits(random: &mut Random, kind: usize, vocab: usize) -> Vec<f32> {
    let mut row: Vec<f32> = match kind % 6 {
        0 => random.floats(vocab, 3.0),
        1 => (0..vocab).map(|_| random.float().powi(3) * 20.0).collect(),
        2 => random.floats(vocab, 1e-3).iter().map(|x| x - 8.0).collect(),
        3 => (0..vocab).map(|_| random.pick(&[-2.0, 0.5, 1.0])).collect(),
        4 => (0..vocab).map(|_| random.pick(&[f32::NEG_INFINITY, -1.0, 2.5, f32::NAN])).collect(),
        _ => (0..vocab).map(|_| random.pick(&[0.0, -0.0, -1e-40, 1e-40, -3.0])).collect(),
    };
    // One that is above −∞.
    row[random.below(vocab)] = 2.75;
    row
}

fn a_draw(random: &mut Random, vocab: usize) -> Draw {
    Draw {
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 1.5, 40.0, 1e-30]),
        top_k: random.pick(&[0, 0, 1, 2, 40, vocab / 2, vocab - 1, vocab, usize::MAX]),
        top_p: random.pick(&[1.0, 1.0, 0.05, 0.5, 0.9, 0.999, 1e-20]),
        min_p: random.pick(&[0.0, 0.0, 0.02, 0.3, 1.0]),
        uniform: random.pick(&[0, 1, u32::MAX, 0x8000_0000, 0x1234_5678, 0xfedc_ba98])
            ^ (random.next() as u32 & 0xffff),
    }
}

#[test]
fn the_largest_logit_and_the_lowest_of_equal_ones() {
    let (minus, nan) = (f32::NEG_INFINITY, f32::NAN);
    for world in worlds() {
        let rows = [
            vec![0.0, 3.0, -1.0, 3.0, nan],
            vec![-0.0, 0.0, -0.0, 0.0, -1.0],
            vec![minus, -7.0, nan, minus, -7.0],
            vec![minus, f32::INFINITY, f32::MAX, f32::INFINITY, nan],
            vec![minus, nan, minus, nan, minus],
        ];
        for stride in [5, 8] {
            assert_eq!(greedy(&world, &rows, stride), [1, 0, 1, 1, NONE]);
        }
        let mut random = Random::new(1);
        for (vocab, stride) in [(1, 1), (3, 4), (4096, 4096), (4999, 4999), (10_001, 10_004)] {
            let rows: Vec<_> = (0..6).map(|kind| logits(&mut random, kind, vocab)).collect();
            let want: Vec<_> = rows.iter().map(|r| draw::argmax(r).unwrap()).collect();
            assert_eq!(greedy(&world, &rows, stride), want);
        }
    }
}

#[test]
fn devices_draw_what_the_host_draws() {
    for world in worlds() {
        let mut random = Random::new(2);
        for (vocab, stride) in
            [(1, 1), (2, 5), (31, 32), (129, 129), (1000, 1004), (4999, 4999), (9000, 9000)]
        {
            let rows: Vec<_> = (0..24).map(|kind| logits(&mut random, kind, vocab)).collect();
            let draws: Vec<_> = rows.iter().map(|_| a_draw(&mut random, vocab)).collect();
            let got = drawn(&world, &rows, &draws, stride);
            for ((row, draw), got) in rows.iter().zip(&draws).zip(got) {
                let want = draw.token(row).unwrap();
                assert_eq!(Some(got), want, "{draw:?} of {vocab} logits");
            }
        }
    }
}

#[test]
fn a_row_without_a_token_has_none() {
    for world in worlds() {
        let rows = [vec![f32::NEG_INFINITY; 9], vec![f32::NAN; 9], vec![1.0; 9]];
        let all = Draw { temperature: 1.0, top_p: 0.9, top_k: 3, ..Draw::GREEDY };
        assert_eq!(drawn(&world, &rows, &[all; 3], 9), [NONE, NONE, 0]);
    }
}

/// All random numbers of a coarse grid: each kept token is drawn as often as it weighs.
#[test]
fn draws_follow_the_weights() {
    let world = World::emulated(4);
    let row: Vec<f32> = [0.05f64, 0.4, 0.15, 0.3, 0.1].map(|p| p.ln() as f32).to_vec();
    let n = 200u32;
    let draw = Draw { temperature: 1.0, top_k: 4, ..Draw::GREEDY };
    let draws: Vec<_> = (0..n).map(|i| Draw { uniform: u32::MAX / n * i, ..draw }).collect();
    let got = drawn(&world, &vec![row; n as usize], &draws, 8);
    let count = |id| got.iter().filter(|g| **g == id).count();
    for (id, p) in [(0, 0.0), (1, 0.4), (2, 0.15), (3, 0.3), (4, 0.1)] {
        let want = p / 0.95 * f64::from(n);
        assert!((count(id) as f64 - want).abs() <= 1.0, "token {id}: {} of {want}", count(id));
    }
}

/// Probabilities as `transformers` has them, in f64: temperature, top-k, top-p, min-p.
fn reference(logits: &[f32], draw: &Draw) -> Vec<(u32, f64)> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - top) / f64::from(draw.temperature)).exp();
    let mut all: Vec<_> = (0u32..).zip(logits).map(|(id, &x)| (id, x, weight(x))).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if draw.temperature == 0.0 {
        return vec![(all[0].0, 1.0)];
    }
    if draw.top_k > 0 {
        all.truncate(draw.top_k);
    }
    if draw.top_p < 1.0 {
        let enough = f64::from(draw.top_p) * all.iter().map(|t| t.2).sum::<f64>();
        let mut held = 0.0;
        let crossing = all.iter().position(|t| {
            held += t.2;
            held >= enough
        });
        all.truncate(crossing.map_or(all.len(), |last| last + 1));
    }
    all.retain(|t| t.2 > 0.0 && t.2 >= f64::from(draw.min_p));
    let total: f64 = all.iter().map(|t| t.2).sum();
    let mut kept: Vec<_> = all.into_iter().map(|t| (t.0, t.2 / total)).collect();
    kept.sort_by_key(|t| t.0);
    kept
}

/// What f64 keeps: the same tokens, but where a probability is so near a limit
/// that f32 exponents and integer weights may fall on its other side.
#[test]
fn the_host_keeps_what_float64_keeps() {
    let mut random = Random::new(3);
    let (mut equal, mut all) = (0, 0);
    for case in 0..600 {
        let vocab = random.pick(&[1, 2, 7, 100, 1500]);
        let mut row = logits(&mut random, case, vocab);
        // It has no order for NaN.
        row.iter_mut().filter(|l| l.is_nan()).for_each(|l| *l = f32::NEG_INFINITY);
        let draw = a_draw(&mut random, vocab);
        let theirs = reference(&row, &draw);
        let ours = draw.kept(&row).unwrap();
        let total: f64 = ours.iter().map(|k| k.1 as f64).sum();
        all += 1;
        if ours.iter().map(|k| k.0).eq(theirs.iter().map(|t| t.0)) {
            equal += 1;
            for (ours, theirs) in ours.iter().zip(&theirs) {
                // Half a unit a token, and an exponent of at most 41 in f32.
                let bound = theirs.1 * 2e-5 + vocab as f64 / FULL_WEIGHT as f64;
                let error = (ours.1 as f64 / total - theirs.1).abs();
                assert!(error <= bound, "{draw:?}: {ours:?} of {total}, {theirs:?}");
            }
            continue;
        }
        // Tokens that only one of them keeps weigh next to nothing, or lie at the limit
        // of min-p or top-p.
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |id: u32| {
            let x = f64::from(row[id as usize] - top) / f64::from(draw.temperature);
            x.exp()
        };
        let only: Vec<u32> = (0..vocab as u32)
            .filter(|id| ours.iter().any(|k| k.0 == *id) != theirs.iter().any(|t| t.0 == *id))
            .collect();
        let held: f64 = theirs.iter().map(|t| weight(t.0)).sum();
        let differ: f64 = only.iter().map(|id| weight(*id)).sum();
        let tiny = only.iter().all(|id| weight(*id) * FULL_WEIGHT as f64 <= 1.0);
        let at_min_p =
            only.iter().all(|id| (weight(*id) / f64::from(draw.min_p) - 1.0).abs() < 2e-5);
        assert!(tiny || at_min_p || differ <= 2e-5 * held, "{draw:?}: {only:?} of {vocab}");
    }
    assert!(equal * 10 > all * 8, "{equal} of {all}");
}
