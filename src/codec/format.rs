//! The table of codecs, and the formats of KV groups that are made of them.

use super::affine::{self, Affine};
use super::feedback::Feedback;
use super::float;
use super::tile::{Side, TILE_TOKENS, TileCodec};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The codecs that kvfold knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float, e4m3.
    Fp8,
    /// KIVI with 4 bits, groups of 32.
    Kivi4,
    /// KIVI with 2 bits, groups of 32.
    Kivi2,
    /// kvfold's own with 4 bits, groups of 64.
    Kf4,
    /// kvfold's own with 3 bits, groups of 64.
    Kf3,
    /// kvfold's own with 2 bits, groups of 64.
    Kf2,
}

impl Codec {
    /// Every codec, for tests, benches and help texts.
    pub const ALL: [Codec; 8] = [
        Codec::F16,
        Codec::Bf16,
        Codec::Fp8,
        Codec::Kivi4,
        Codec::Kivi2,
        Codec::Kf4,
        Codec::Kf3,
        Codec::Kf2,
    ];

    /// The implementation that defines this codec's bytes.
    pub fn tile(self) -> &'static dyn TileCodec {
        match self {
            Codec::F16 => &float::F16,
            Codec::Bf16 => &float::Bf16,
            Codec::Fp8 => &float::Fp8,
            Codec::Kivi4 => &affine::KIVI4,
            Codec::Kivi2 => &affine::KIVI2,
            Codec::Kf4 => &affine::KF4,
            Codec::Kf3 => &affine::KF3,
            Codec::Kf2 => &affine::KF2,
        }
    }

    /// The parameters of the codecs that store codes with scales and zeros.
    pub fn affine(self) -> Option<&'static Affine> {
        match self {
            Codec::F16 | Codec::Bf16 | Codec::Fp8 => None,
            Codec::Kivi4 => Some(&affine::KIVI4),
            Codec::Kivi2 => Some(&affine::KIVI2),
            Codec::Kf4 => Some(&affine::KF4),
            Codec::Kf3 => Some(&affine::KF3),
            Codec::Kf2 => Some(&affine::KF2),
        }
    }

    /// Encodes a tile as [`TileCodec::encode`] does, keys of a kf codec with feedback.
    ///
    /// # Panics
    /// As [`TileCodec::encode`]; also if `feedback` is of another `head_dim`.
    pub fn encode(
        self,
        feedback: Option<&Feedback>,
        side: Side,
        rows: &[f32],
        head_dim: usize,
        out: &mut [u8],
    ) {
        match self.affine() {
            Some(affine) => affine.encode_with(feedback, side, rows, head_dim, out),
            None => self.tile().encode(side, rows, head_dim, out),
        }
    }

    /// Whether heads of `head_dim` channels can be stored.
    pub fn fits(self, head_dim: usize) -> bool {
        self.affine().is_none_or(|affine| affine.fits(head_dim))
    }

    /// Whether rows are stored rotated ([`hadamard`](super::hadamard)).
    pub fn rotated(self) -> bool {
        self.affine().is_some_and(|affine| affine.rotated)
    }

    /// The name used on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Codec::F16 => "f16",
            Codec::Bf16 => "bf16",
            Codec::Fp8 => "fp8",
            Codec::Kivi4 => "kivi4",
            Codec::Kivi2 => "kivi2",
            Codec::Kf4 => "kf4",
            Codec::Kf3 => "kf3",
            Codec::Kf2 => "kf2",
        }
    }

    /// Whether this is one of the 16-bit forms, in which pages are written.
    pub fn is_16_bit(self) -> bool {
        matches!(self, Codec::F16 | Codec::Bf16)
    }

    /// Stored bits an element, scales and zeros included.
    pub fn bits(self) -> f64 {
        const D: usize = 128;
        (self.tile().tile_bytes(D) * 8) as f64 / (TILE_TOKENS * D) as f64
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Codec::ALL.into_iter().find(|c| c.name() == s).ok_or_else(|| {
            let known: Vec<_> = Codec::ALL.iter().map(|c| c.name()).collect();
            let known = known.join(", ");
            let what = format!("unknown format \"{s}\"; known: {known}, {KF3_2}, KEYS/VALUES");
            Error::config("kv", what)
        })
    }
}

/// The name of 3-bit keys with 2-bit values.
const KF3_2: &str = "kf3.2";

/// The codecs of one KV group: keys and values are chosen separately.
///
/// Written `kivi2` (both sides) or `kivi4/kivi2` (keys/values; `kf3.2` for `kf3/kf2`), with the 16-bit
/// type of pages that are not sealed yet before it if that is not the default:
/// `bf16+kivi2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvFormat {
    /// The codec of sealed keys.
    pub key: Codec,
    /// The codec of sealed values.
    pub value: Codec,
    hot: Codec,
}

impl KvFormat {
    /// The same codec on both sides.
    pub const fn uniform(codec: Codec) -> Self {
        KvFormat::new(codec, codec)
    }

    /// Codecs of keys and values. Pages are written in bf16 first if either side is
    /// bf16, in f16 otherwise.
    pub const fn new(key: Codec, value: Codec) -> Self {
        let bf16 = matches!(key, Codec::Bf16) || matches!(value, Codec::Bf16);
        KvFormat { key, value, hot: if bf16 { Codec::Bf16 } else { Codec::F16 } }
    }

    /// The same with another 16-bit type of pages that are not sealed yet.
    ///
    /// # Errors
    /// [`Error::Config`] if `hot` has not 16 bits.
    pub fn with_hot(self, hot: Codec) -> Result<Self> {
        if !hot.is_16_bit() {
            return Err(Error::config(
                "kv",
                format!("pages are written in f16 or bf16, not {hot}"),
            ));
        }
        Ok(KvFormat { hot, ..self })
    }

    /// The 16-bit form in which pages of this format are written before they
    /// are sealed.
    pub fn hot(self) -> Codec {
        self.hot
    }

    /// Whether pages of this format are ever rewritten by a codec. Formats of
    /// which both sides are the hot form stay as they were written.
    pub fn seals(self) -> bool {
        self.key != self.hot() || self.value != self.hot()
    }

    /// Bytes of one page of one head: the key tile, then the value tile.
    pub fn page_bytes(self, head_dim: usize) -> usize {
        self.key.tile().tile_bytes(head_dim) + self.value.tile().tile_bytes(head_dim)
    }

    /// Mean stored bits an element of keys and values.
    pub fn bits(self) -> f64 {
        (self.key.bits() + self.value.bits()) / 2.0
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hot != KvFormat::new(self.key, self.value).hot {
            write!(f, "{}+", self.hot)?;
        }
        if self.key == self.value {
            self.key.fmt(f)
        } else if (self.key, self.value) == (Codec::Kf3, Codec::Kf2) {
            f.write_str(KF3_2)
        } else {
            write!(f, "{}/{}", self.key, self.value)
        }
    }
}

impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if let Some((hot, sealed)) = s.split_once('+') {
            return sealed.parse::<KvFormat>()?.with_hot(hot.parse()?);
        }
        if s == KF3_2 {
            return Ok(KvFormat::new(Codec::Kf3, Codec::Kf2));
        }
        match s.split_once('/') {
            Some((k, v)) => Ok(KvFormat::new(k.parse()?, v.parse()?)),
            None => Ok(KvFormat::uniform(s.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_bits_are_exact() {
        let bits: Vec<f64> = Codec::ALL.iter().map(|c| c.bits()).collect();
        assert_eq!(bits, [16.0, 16.0, 8.0, 5.0, 3.0, 4.5, 3.5, 2.5]);
        for d in [64, 128, 256] {
            let page = KvFormat::uniform(Codec::Kivi2).page_bytes(d);
            assert_eq!(page * 8, 3 * 2 * TILE_TOKENS * d);
        }
    }

    #[test]
    fn formats_parse_and_print() {
        for text in [
            "f16",
            "bf16",
            "fp8",
            "kivi4",
            "kivi2",
            "kivi4/kivi2",
            "f16/fp8",
            "bf16+kivi2",
            "kf4",
            "kf3",
            "kf3.2",
            "kf2",
            "bf16+kf3.2",
            "kf4/kf2",
        ] {
            let format: KvFormat = text.parse().unwrap();
            assert_eq!(format.to_string(), text);
        }
        assert_eq!("kf3/kf2".parse::<KvFormat>().unwrap().to_string(), "kf3.2");
        assert_eq!("kf3.2".parse::<KvFormat>().unwrap().bits(), 3.0);
        let error = "kivi3".parse::<KvFormat>().unwrap_err().to_string();
        assert!(
            error.contains("kivi3") && error.contains("kivi2, kf4, kf3, kf2, kf3.2"),
            "{error}"
        );
        assert_eq!("bf16+fp8".parse::<KvFormat>().unwrap().hot(), Codec::Bf16);
        assert_eq!("bf16+f16/bf16".parse::<KvFormat>().unwrap().to_string(), "f16/bf16");
        let error = "fp8+kivi2".parse::<KvFormat>().unwrap_err().to_string();
        assert!(error.contains("fp8"), "{error}");
    }

    #[test]
    fn only_16_bit_formats_stay_unsealed() {
        assert!(!KvFormat::uniform(Codec::F16).seals());
        assert!(!KvFormat::uniform(Codec::Bf16).seals());
        assert!("f16/kivi2".parse::<KvFormat>().unwrap().seals());
        assert_eq!("bf16/kivi2".parse::<KvFormat>().unwrap().hot(), Codec::Bf16);
    }
}
