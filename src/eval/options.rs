//! What the options of several tasks have in common, and their checks.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;

pub(super) fn not_empty(field: &'static str, empty: bool) -> Result<()> {
    match empty {
        true => Err(Error::config(field, "the list is empty; name at least one")),
        false => Ok(()),
    }
}

pub(super) fn at_least(field: &'static str, value: usize, least: usize) -> Result<()> {
    match value < least {
        true => Err(Error::config(field, format!("must be at least {least}"))),
        false => Ok(()),
    }
}

/// The most prompts of a kind: more would take years.
const MOST_SEEDS: usize = 100_000;
/// The most batches, so that the numbers of all prompts can be told apart.
const MOST_BATCHES: usize = 1 << 32;

/// Checks how many prompts are made, and of which batch.
pub(super) fn counted(seeds: usize, batch: usize) -> Result<()> {
    at_least("seeds", seeds, 1)?;
    at_most("seeds", seeds, MOST_SEEDS)?;
    at_most("batch", batch, MOST_BATCHES)
}

pub(super) fn at_most(field: &'static str, value: usize, most: usize) -> Result<()> {
    match value > most {
        true => Err(Error::config(field, format!("{value} is more than {most}"))),
        false => Ok(()),
    }
}

/// Checks prompts of `lengths` and answers of `answer` tokens against a model's context.
pub(super) fn within(context: usize, lengths: &[usize], answer: usize) -> Result<()> {
    let most = context.saturating_sub(answer);
    match lengths.iter().find(|&&length| length > most) {
        Some(length) => {
            let what = format!(
                "{length} tokens and an answer of {answer} exceed the model's context of \
                 {context}; ask for at most {most}"
            );
            Err(Error::config("lengths", what))
        }
        None => Ok(()),
    }
}

/// Every length with every one of `seeds` numbers; `batch` b has the numbers from
/// b·`seeds` on, so that batches share no prompt.
pub(super) fn grid(
    lengths: &[usize],
    seeds: usize,
    batch: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let first = batch.saturating_mul(seeds);
    let each = first..first.saturating_add(seeds);
    lengths.iter().flat_map(move |&length| each.clone().map(move |seed| (length, seed)))
}

/// A value by its name, as files of ablations spell it.
pub(super) fn named<T: DeserializeOwned>(field: &'static str, name: &str) -> Result<T> {
    serde_json::from_value(name.into()).map_err(|error| Error::config(field, error.to_string()))
}
