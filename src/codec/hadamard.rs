//! The orthonormal Walsh-Hadamard transform of a head's channels, which spreads what
//! stands out in one channel over all of them (Ashkboos et al. 2024, "QuaRot", §4).
//!
//! It is its own inverse, and `⟨Hq, Hk⟩ = ⟨q, k⟩`: queries are rotated instead of keys
//! being rotated back, and outputs are rotated back instead of values.

/// Whether rows of `head_dim` channels can be rotated: a power of two, at least 2.
pub const fn fits(head_dim: usize) -> bool {
    head_dim >= 2 && head_dim.is_power_of_two()
}

/// `1/√d`, the factor at the end.
pub fn norm(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// Transforms a row in place, in f32: butterflies of distance 1, 2, 4, …, then the
/// factor. Every backend adds in this order, so the results agree bit for bit.
///
/// # Panics
/// If the length is not a power of two.
pub fn rotate(row: &mut [f32]) {
    assert!(fits(row.len()), "{} channels", row.len());
    let mut distance = 1;
    while distance < row.len() {
        for pair in row.chunks_exact_mut(2 * distance) {
            let (low, high) = pair.split_at_mut(distance);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
    let norm = norm(row.len());
    row.iter_mut().for_each(|x| *x *= norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `H[i][j] = (−1)^popcount(i & j) / √d`.
    #[test]
    fn rows_are_multiplied_by_the_matrix() {
        for d in [2, 64, 128, 256] {
            let x: Vec<f32> = (0..d).map(|i| ((i * 37 + 11) % 101) as f32 / 7.0 - 6.0).collect();
            let mut y = x.clone();
            rotate(&mut y);
            for (i, y) in y.iter().enumerate() {
                let odd = |j: usize| (i & j).count_ones() % 2;
                let sign = |j: usize| if odd(j) == 1 { -1.0 } else { 1.0 };
                let want: f64 = x.iter().enumerate().map(|(j, &x)| sign(j) * f64::from(x)).sum();
                assert!((f64::from(*y) - want / (d as f64).sqrt()).abs() < 1e-4, "{d} {i}");
            }
        }
    }

    #[test]
    fn it_is_its_own_inverse() {
        let x: Vec<f32> = (0..128).map(|i| ((i * 29 + 3) % 83) as f32 - 41.0).collect();
        let mut y = x.clone();
        rotate(&mut y);
        rotate(&mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
