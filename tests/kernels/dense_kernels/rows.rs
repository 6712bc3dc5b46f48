//! Embedding and selection of rows.

use super::world::{Half, Random, World, worlds};
use half::{bf16, f16};
use kvfold::backend::cuda::dense::{Rows, embed, select_rows};
use kvfold::backend::cuda::params::{NONE, TOKEN_DRAWN};

/// Half of the tokens are given, half are in slots, in reverse.
fn embedded<T: Half>(world: &World, vocab: usize, cols: usize, want: &[u32], scale: f32) {
    let table = Random::new(cols as u64).halves::<T>(vocab * cols, 1.0);
    let on_device = world.upload(&table);
    let n = want.len();
    let slots: Vec<u32> = want.iter().rev().copied().collect();
    let token = |i: usize| match i % 2 {
        0 if want[i] & TOKEN_DRAWN == 0 => want[i],
        _ => TOKEN_DRAWN | (n - 1 - i) as u32,
    };
    let tokens: Vec<u32> = (0..n).map(token).collect();
    let (tokens, slots) = (world.upload(&tokens), world.upload(&slots));
    let (mut x, mut ids) = (world.nan::<f32>(n * cols), world.nan::<u32>(n));
    let rows = Rows { n, tokens: &tokens, slots: &slots, ids: &mut ids };
    embed(&on_device, scale, rows, cols, &mut x, &world.stream).unwrap();
    assert_eq!(world.read(&ids), want);
    for (row, &id) in world.read(&x).chunks(cols).zip(want) {
        match table.chunks(cols).nth(id as usize) {
            Some(want) => {
                let want = want.iter().map(|w| w.widen() as f32 * scale);
                assert!(row.iter().copied().eq(want));
            }
            None => assert!(row.iter().all(|x| x.is_nan()), "token {id} of {vocab}"),
        }
    }
}

#[test]
fn tokens_become_rows_and_unknown_ones_nan() {
    for world in worlds() {
        for cols in [8, 576, 1032] {
            embedded::<f16>(&world, 11, cols, &[3, 0, 10, 3, 11, u32::MAX], 1.0);
            embedded::<bf16>(&world, 5, cols, &[4, 2], 25.3);
        }
        // A slot that does not exist.
        let table = world.upload(&[f16::ONE; 16]);
        let (tokens, slots) = (world.upload(&[TOKEN_DRAWN | 1]), world.upload(&[0u32]));
        let (mut x, mut ids) = (world.nan::<f32>(8), world.nan::<u32>(1));
        let rows = Rows { n: 1, tokens: &tokens, slots: &slots, ids: &mut ids };
        embed(&table, 1.0, rows, 8, &mut x, &world.stream).unwrap();
        assert_eq!(world.read(&ids), [NONE]);
        assert!(world.read(&x).iter().all(|x| x.is_nan()));
    }
}

#[test]
fn rows_are_selected_in_the_order_asked_for() {
    for world in worlds() {
        for cols in [4, 576, 1028] {
            let from = Random::new(7).floats(6 * cols, 1.0);
            let numbers = [5, 0, 0, 3, 6, u32::MAX];
            // Only the first five are asked for.
            let mut to = world.upload(&vec![7.0f32; 6 * cols]);
            let (rows, list) = (world.upload(&from), world.upload(&numbers));
            select_rows(&rows, &list, 5, cols, &mut to, &world.stream).unwrap();
            let to = world.read(&to);
            for (i, row) in to.chunks(cols).enumerate() {
                match i {
                    0..4 => assert_eq!(row, from.chunks(cols).nth(numbers[i] as usize).unwrap()),
                    4 => assert!(row.iter().all(|x| x.is_nan())),
                    _ => assert!(row.iter().all(|x| *x == 7.0)),
                }
            }
        }
    }
}
