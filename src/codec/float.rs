//! Plain floating-point tiles: f16, bf16 and fp8 (e4m3), row-major
//! `[token][channel]`, the same for keys and values.

use super::tile::{Side, TILE_TOKENS, TileCodec};
use half::{bf16, f16};

/// IEEE half precision, little-endian.
pub struct F16;
/// bfloat16, little-endian.
pub struct Bf16;
/// e4m3 in its finite form (no infinities, ±448, one NaN), as OCP FP8 v1.0 and
/// NVIDIA's `__nv_fp8_e4m3` define it. No scale: values beyond ±448 saturate.
pub struct Fp8;

fn check(rows: usize, bytes: usize, head_dim: usize, size: usize) {
    assert_eq!(rows, TILE_TOKENS * head_dim, "rows of a tile");
    assert_eq!(bytes, TILE_TOKENS * head_dim * size, "bytes of a tile");
}

macro_rules! half_codec {
    ($codec:ty, $float:ty) => {
        impl TileCodec for $codec {
            fn tile_bytes(&self, head_dim: usize) -> usize {
                TILE_TOKENS * head_dim * 2
            }

            fn encode(&self, _: Side, rows: &[f32], head_dim: usize, out: &mut [u8]) {
                check(rows.len(), out.len(), head_dim, 2);
                for (x, o) in rows.iter().zip(out.chunks_exact_mut(2)) {
                    o.copy_from_slice(&<$float>::from_f32(*x).to_le_bytes());
                }
            }

            fn decode(&self, _: Side, bytes: &[u8], head_dim: usize, rows: &mut [f32]) {
                check(rows.len(), bytes.len(), head_dim, 2);
                for (x, b) in rows.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = <$float>::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    };
}

half_codec!(F16, f16);
half_codec!(Bf16, bf16);

impl TileCodec for Fp8 {
    fn tile_bytes(&self, head_dim: usize) -> usize {
        TILE_TOKENS * head_dim
    }

    fn encode(&self, _: Side, rows: &[f32], head_dim: usize, out: &mut [u8]) {
        check(rows.len(), out.len(), head_dim, 1);
        for (x, o) in rows.iter().zip(out) {
            *o = fp8_from_f32(*x);
        }
    }

    fn decode(&self, _: Side, bytes: &[u8], head_dim: usize, rows: &mut [f32]) {
        check(rows.len(), bytes.len(), head_dim, 1);
        for (x, b) in rows.iter_mut().zip(bytes) {
            *x = fp8_to_f32(*b);
        }
    }
}

/// Rounds to the nearest e4m3 number, ties to even, saturating at ±448.
pub fn fp8_from_f32(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let a = x.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    if a >= 448.0 {
        return sign | 0x7e;
    }
    // Adding a power of two whose last mantissa bit is worth the wanted unit
    // rounds to that unit, ties to even.
    let unit_exponent = (((a.to_bits() >> 23) as i32) - 127).max(-6) - 3;
    let magic = f32::from_bits(((unit_exponent + 23 + 127) as u32) << 23);
    let units = ((a + magic) - magic) / f32::from_bits(((unit_exponent + 127) as u32) << 23);
    // Subnormals have unit 2^-9; a unit count of 16 carries into the exponent.
    let code = units as u32 + (((unit_exponent + 9) as u32) << 3);
    sign | code as u8
}

/// The value of an e4m3 number.
pub fn fp8_to_f32(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((byte >> 3) & 15);
    let mantissa = f32::from(byte & 7);
    match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (8.0 + mantissa) * 2f32.powi(exponent - 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_is_the_nearest_number_with_ties_to_even() {
        let finite: Vec<(u8, f32)> = (0..=0x7eu8).map(|b| (b, fp8_to_f32(b))).collect();
        assert!(finite.windows(2).all(|w| w[0].1 < w[1].1));
        assert_eq!((finite[0x7e].1, finite[1].1), (448.0, 2f32.powi(-9)));
        for &(b, x) in &finite {
            assert_eq!(fp8_from_f32(x), b, "{x}");
            assert_eq!(fp8_from_f32(-x), b | 0x80, "{x}");
        }
        for pair in finite.windows(2) {
            let ((lo, a), (hi, b)) = (pair[0], pair[1]);
            let middle = (a + b) / 2.0;
            let even = if lo % 2 == 0 { lo } else { hi };
            assert_eq!(fp8_from_f32(middle), even, "{middle}");
            assert_eq!(fp8_from_f32(f32::from_bits(middle.to_bits() - 1)), lo);
            assert_eq!(fp8_from_f32(f32::from_bits(middle.to_bits() + 1)), hi);
        }
        assert_eq!(fp8_from_f32(1e9), 0x7e);
        assert_eq!(fp8_from_f32(f32::NEG_INFINITY), 0xfe);
        assert!(fp8_to_f32(fp8_from_f32(f32::NAN)).is_nan());
        assert_eq!(fp8_from_f32(1e-30), 0);
    }

    #[test]
    fn rows_survive_within_their_precision() {
        let d = 64;
        let rows: Vec<f32> =
            (0..TILE_TOKENS * d).map(|i| ((i * 37) % 101) as f32 * 0.13 - 6.0).collect();
        let cases: [(&dyn TileCodec, f32); 3] = [(&F16, 5e-4), (&Bf16, 4e-3), (&Fp8, 7e-2)];
        for (codec, relative) in cases {
            let mut bytes = vec![0; codec.tile_bytes(d)];
            let mut back = vec![0.0; rows.len()];
            codec.encode(Side::Key, &rows, d, &mut bytes);
            codec.decode(Side::Key, &bytes, d, &mut back);
            for (a, b) in rows.iter().zip(&back) {
                assert!((a - b).abs() <= relative * a.abs() + 1e-3, "{a} {b}");
            }
        }
    }
}
