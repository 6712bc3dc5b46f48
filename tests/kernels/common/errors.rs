//! How far outputs may lie from what the oracles say.

use super::bench::{Bench, Layer};
use super::rounded;
use kvfold::codec::Codec;

/// Of fewer rows than these, one weight at a tie that is rounded the other way moves the
/// error of all: by as much as it is itself, if it is most of a row.
const ROWS: usize = 32;

/// Squares of outputs' errors and sizes.
#[derive(Default)]
pub struct Errors {
    /// Against exact attention.
    exact: [f64; 2],
    /// Against attention that rounds where a device does, if this is one.
    rounded: [f64; 2],
    /// Rows of outputs, one a query and head.
    rows: usize,
}

impl Errors {
    /// Of some queries of a sequence, whose log-sum-exps are checked on the way.
    pub fn of_queries(
        bench: &Bench,
        layer: &Layer<'_>,
        seq: usize,
        queries: &[usize],
        what: &str,
    ) -> Self {
        let share = &layer.step.seqs[seq];
        let (d, heads) = (bench.group.head_dim(), bench.heads);
        let lse_error = bench.subject.tolerance().1;
        let mut errors = Self::default();
        let add = |[error, size]: &mut [f64; 2], got: f32, want: f64| {
            *error += (f64::from(got) - want).powi(2);
            *size += want * want;
        };
        for (i, head) in queries.iter().flat_map(|&i| (0..heads).map(move |head| (i, head))) {
            let (stream, query) = bench.query(layer, seq, i, head);
            errors.rows += 1;
            let (want, want_lse) = stream.attend(&query);
            let at = (share.first_row + i) * heads + head;
            let row = &layer.attended.out[at * d..][..d];
            for (got, want) in row.iter().zip(want) {
                assert!(got.is_finite(), "{what}: row {i} of {seq}, head {head}: {got}");
                add(&mut errors.exact, *got, want);
            }
            if let Some(element) = bench.subject.query_type() {
                let want = rounded::attend(stream, &query, element, share.kind);
                row.iter().zip(want).for_each(|(got, w)| add(&mut errors.rounded, *got, w));
            }
            let got = f64::from(layer.attended.lse[at]);
            assert!((got - want_lse).abs() < lse_error, "{what}: lse {got}, want {want_lse}");
        }
        errors
    }

    /// Of several sequences.
    pub fn of_all(all: &[Self]) -> Self {
        let total = |of: fn(&Self) -> [f64; 2]| {
            all.iter().map(of).fold([0.0; 2], |[a, b], [error, size]| [a + error, b + size])
        };
        let rows = all.iter().map(|errors| errors.rows).sum();
        Self { exact: total(|x| x.exact), rounded: total(|x| x.rounded), rows }
    }

    /// Checks that relative rms errors are `times` the tolerances at most.
    pub fn hold(&self, bench: &Bench, times: f64, what: &str) {
        let most = bench.subject.tolerance().0;
        let exact = self.exact();
        assert!(exact <= times * most, "{what}: relative rms {exact:e}");
        if let Some(element) = bench.subject.query_type() {
            let (most, drift) = (self.tolerance(element), self.rounded());
            let of = format!("{drift:e} of {} rows, at most {most:e}", self.rows);
            assert!(drift <= times * most, "{what}: relative rms {of}, if it rounds alike");
        }
    }

    fn tolerance(&self, element: Codec) -> f64 {
        let tie = if element == Codec::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
        if self.rows < ROWS { tie } else { rounded::tolerance(element) }
    }

    /// The relative rms error against exact attention.
    pub fn exact(&self) -> f64 {
        relative(self.exact)
    }

    /// The relative rms error against attention that rounds alike.
    pub fn rounded(&self) -> f64 {
        relative(self.rounded)
    }
}

fn relative([error, size]: [f64; 2]) -> f64 {
    if error > 0.0 { (error / size).sqrt() } else { 0.0 }
}
