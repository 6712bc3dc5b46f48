//! Second moments of the queries that meet sealed keys, rotated as those are.

use super::attention;
use super::options::{CalibrateOptions, first_query};
use crate::codec::feedback::Feedback;
use crate::codec::hadamard;
use crate::error::{Error, Result};
use crate::model::{Attended, Observer};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Adds up moments, layer by layer.
pub(super) struct Moments<'a> {
    options: &'a CalibrateOptions,
    kv_heads: usize,
    head_dim: usize,
    /// `[layer · kv_heads + head][i][j]`, `i ≤ j`.
    sums: Vec<Vec<f64>>,
    cancel: &'a AtomicBool,
}

impl<'a> Moments<'a> {
    pub(super) fn new(
        options: &'a CalibrateOptions,
        (layers, kv_heads, head_dim): (usize, usize, usize),
        cancel: &'a AtomicBool,
    ) -> Self {
        let sums = vec![vec![0.0; head_dim * head_dim]; layers * kv_heads];
        Self { options, kv_heads, head_dim, sums, cancel }
    }

    /// The feedback of each stream.
    pub(super) fn feedback(&self) -> Vec<Arc<Feedback>> {
        self.sums.iter().map(|sum| Arc::new(Feedback::new(sum, self.head_dim))).collect()
    }
}

impl Observer for Moments<'_> {
    fn attended(&mut self, seen: &mut dyn Attended) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let (d, n) = (self.head_dim, self.kv_heads);
        let first = first_query(self.options.sinks, self.options.hot_window);
        let (heads, layer) = (seen.call().heads, seen.layer());
        let (group, cols) = (heads / n, (heads + 2 * n) * d);
        let rows = attention::rows(seen, first..self.options.context, cols)?;
        self.sums[layer * n..][..n].par_iter_mut().enumerate().for_each(|(head, sum)| {
            let mut query = vec![0f32; d];
            for row in rows.chunks_exact(cols) {
                for of in row[head * group * d..][..group * d].chunks_exact(d) {
                    query.copy_from_slice(of);
                    hadamard::rotate(&mut query);
                    for (i, a) in query.iter().enumerate() {
                        let to = &mut sum[i * d + i..][..d - i];
                        let products = query[i..].iter().map(|b| f64::from(a * b));
                        to.iter_mut().zip(products).for_each(|(to, x)| *to += x);
                    }
                }
            }
        });
        Ok(())
    }
}
