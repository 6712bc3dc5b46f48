//! The best formats under a budget of bits.

/// For each stream, the option to take: of `bits` (growing), with `errors[stream]`, so
/// that the mean of bits is at most `target` and the sum of errors small. Streams count
/// with `sizes`, the numbers that they hold, in the mean of bits.
///
/// Starts with the fewest bits everywhere and takes, again and again, the step along a
/// stream's convex hull that saves most error a bit and still fits: within one step of
/// the optimum (Shoham & Gersho 1988).
pub(super) fn allocate<const N: usize>(
    bits: &[f64; N],
    errors: &[[f64; N]],
    sizes: &[f64],
    target: f64,
) -> Vec<usize> {
    let mut chosen = vec![0; errors.len()];
    let mut left = (target - bits[0]) * sizes.iter().sum::<f64>();
    let mut steps: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (stream, errors) in errors.iter().enumerate() {
        let mut at = 0;
        while let Some((slope, next)) = steepest(bits, errors, at) {
            steps.push((slope / sizes[stream], stream, at, next));
            at = next;
        }
    }
    // Slopes of one stream shrink, so a stable order keeps its steps in order.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, stream, from, to) in steps {
        let cost = (bits[to] - bits[from]) * sizes[stream];
        // Rounding must not cost the last step.
        if chosen[stream] == from && cost <= left + 1e-9 {
            chosen[stream] = to;
            left -= cost;
        }
    }
    chosen
}

/// The next corner of the convex hull behind option `at`, with the error that it saves a
/// bit; none if nothing is saved.
fn steepest<const N: usize>(bits: &[f64; N], errors: &[f64; N], at: usize) -> Option<(f64, usize)> {
    let slope = |to: usize| (errors[at] - errors[to]) / (bits[to] - bits[at]);
    let best = (at + 1..N).map(|to| (slope(to), to)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(slope, _)| *slope > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: [f64; 4] = [2.5, 3.0, 3.5, 4.5];

    fn total(errors: &[[f64; 4]], chosen: &[usize]) -> (f64, f64) {
        let sum = |of: &dyn Fn(usize, usize) -> f64| -> f64 {
            chosen.iter().enumerate().map(|(stream, &option)| of(stream, option)).sum()
        };
        (sum(&|s, o| errors[s][o]), sum(&|_, o| BITS[o]))
    }

    /// Against all ways to choose, for a few streams.
    #[test]
    fn little_is_lost_against_the_best_choice() {
        let errors: Vec<[f64; 4]> = (0..5u32)
            .map(|i| {
                let size = f64::from(i * 7 % 5 + 1);
                [size, size * 0.4, size * 0.3, size * 0.05]
            })
            .collect();
        for target in [2.5, 2.8, 3.1, 3.6, 4.5] {
            let (error, bits) = total(&errors, &allocate(&BITS, &errors, &[1.0; 5], target));
            assert!(bits <= target * 5.0 + 1e-6, "{bits} {target}");
            let all = (0..4usize.pow(5)).map(|code| -> Vec<usize> {
                (0..5).map(|stream| code / 4usize.pow(stream) % 4).collect()
            });
            let fit = all.map(|c| total(&errors, &c)).filter(|t| t.1 <= target * 5.0 + 1e-6);
            let best = fit.map(|t| t.0).fold(f64::INFINITY, f64::min);
            // A step saves at most what the largest stream loses.
            assert!(error <= best + 0.6, "{target}: {error} {best}");
        }
        assert_eq!(allocate(&BITS, &errors, &[1.0; 5], 2.5), [0; 5]);
        assert_eq!(allocate(&BITS, &errors, &[1.0; 5], 4.5), [3; 5]);
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let errors = [[1.0, 0.9, 0.8, 0.7], [9.0, 4.0, 3.0, 0.1], [0.0; 4]];
        assert_eq!(allocate(&BITS, &errors, &[1.0; 3], 2.5 + 0.5 / 3.0), [0, 1, 0]);
        // What saves nothing is not bought.
        assert_eq!(allocate(&BITS, &errors, &[1.0; 3], 4.5), [3, 3, 0]);
        // Bits are cheap where few numbers are held: 2.0 more for 2 of 10 are 0.4 of the mean.
        let errors = [[1.0, 0.9, 0.8, 0.0]; 2];
        assert_eq!(allocate(&BITS, &errors, &[8.0, 2.0], 2.9), [0, 3]);
    }
}
