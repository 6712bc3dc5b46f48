//! The repetition penalty: the host's twin, bit for bit.

use super::world::{Random, worlds};
use kvfold::backend::cuda::dense::{Logits, Penalties, penalise};
use kvfold::backend::draw::Penalty;

#[test]
fn devices_penalise_as_the_host_does() {
    for world in worlds() {
        let mut random = Random::new(3);
        for (vocab, stride) in [(1, 1), (7, 8), (129, 129), (1000, 1004)] {
            // Rows of a step, of which some were computed to their logits.
            let ids: Vec<u32> = (0..9).map(|_| random.below(vocab + 1) as u32).collect();
            let rows = [0u32, 3, 4, 8, 8];
            let penalties: Vec<Penalty> = (0..rows.len())
                .map(|i| {
                    let mut tokens: Vec<u32> = match i {
                        // As long as the window of all tokens can be.
                        0 => (0..vocab as u32).rev().collect(),
                        1 => Vec::new(),
                        _ => (0..40).map(|_| random.below(vocab + 2) as u32).collect(),
                    };
                    tokens.sort_unstable();
                    tokens.dedup();
                    Penalty { factor: [1.1, 1.3, 1.0, 0.5, 1e-30][i], tokens }
                })
                .collect();
            let mut want = random.floats(rows.len() * stride, 3.0);
            want[0] = f32::NEG_INFINITY;
            want[stride * 3] = 0.0;
            want[stride * 4] = f32::NAN;
            let got = world.upload(&want);
            for ((penalty, row), of) in penalties.iter().zip(want.chunks_mut(stride)).zip(rows) {
                penalty.apply(&mut row[..vocab], ids[of as usize]);
            }

            let mut starts = vec![0u32];
            for penalty in &penalties {
                starts.push(starts[starts.len() - 1] + penalty.tokens.len() as u32);
            }
            let tokens: Vec<u32> = penalties.iter().flat_map(|p| p.tokens.clone()).collect();
            let factors: Vec<f32> = penalties.iter().map(|p| p.factor).collect();
            let (starts, tokens) = (world.upload(&starts), world.upload(&tokens));
            let (factors, of, ids) =
                (world.upload(&factors), world.upload(&rows), world.upload(&ids));
            let logits = Logits { values: &got, rows: rows.len(), vocab, stride };
            let lists = Penalties {
                starts: &starts,
                tokens: &tokens,
                factors: &factors,
                rows: &of,
                ids: &ids,
            };
            // SAFETY: starts rise to the end of the tokens, rows are below 9.
            unsafe { penalise(logits, lists, &world.stream).unwrap() };
            let got = world.read(&got);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{vocab} logits");
        }
    }
}

#[test]
fn each_token_counts_once_and_none_becomes_infinite() {
    let penalty = Penalty { factor: 2.0, tokens: vec![0, 1, 2, 9] };
    let mut logits = [3.0, -3.0, 1.0, 1.0];
    penalty.apply(&mut logits, 2);
    assert_eq!(logits, [1.5, -6.0, 0.5, 1.0]);
    penalty.apply(&mut logits, 3);
    assert_eq!(logits, [0.75, -12.0, 0.25, 0.5]);
    let mut large = [f32::MAX, -f32::MAX, f32::INFINITY];
    Penalty { factor: 0.5, tokens: vec![0] }.apply(&mut large, 2);
    assert_eq!(large, [f32::MAX, -f32::MAX, f32::MAX]);
    let mut same = [1.0, 2.0];
    Penalty::NONE.apply(&mut same, 1);
    assert_eq!(same, [1.0, 2.0]);
}
