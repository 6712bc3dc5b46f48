//! Embedding and selection of rows.

use crate::world::{Half, Random, World, worlds};
use half::{bf16, f16};
use kvfold::backend::cuda::dense::{embed, select_rows};

fn embedded<T: Half>(world: &World, vocab: usize, cols: usize, ids: &[u32]) {
    let table = Random::new(cols as u64).halves::<T>(vocab * cols, 1.0);
    let on_device = world.upload(&table);
    let mut x = world.nan::<f32>(ids.len() * cols);
    embed(&on_device, &world.upload(ids), ids.len(), cols, &mut x, &world.stream).unwrap();
    for (row, &id) in world.read(&x).chunks(cols).zip(ids) {
        match table.chunks(cols).nth(id as usize) {
            Some(want) => assert!(row.iter().zip(want).all(|(x, w)| f64::from(*x) == w.widen())),
            None => assert!(row.iter().all(|x| x.is_nan()), "token {id} of {vocab}"),
        }
    }
}

#[test]
fn tokens_become_rows_and_unknown_ones_nan() {
    for world in worlds() {
        for cols in [8, 576, 1032] {
            embedded::<f16>(&world, 11, cols, &[3, 0, 10, 3, 11, u32::MAX]);
            embedded::<bf16>(&world, 5, cols, &[4]);
        }
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
