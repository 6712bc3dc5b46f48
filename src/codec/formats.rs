//! The one table of codecs, and of the formats that have names and kernels of their own.
//! Parsing, help texts, sizes and the names of kernels come from it.

use super::affine::{self, Affine};
use super::feedback::Feedback;
use super::float;
use super::tile::{Side, TILE_TOKENS, TileCodec};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The codecs that kvfold knows. Files and kernels know them by number.
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

    /// Its number.
    pub const fn number(self) -> u32 {
        self as u32
    }

    fn row(self) -> &'static CodecRow {
        &CODECS[self as usize]
    }

    /// The implementation that defines this codec's bytes.
    pub fn tile(self) -> &'static dyn TileCodec {
        self.row().tile
    }

    /// The parameters of the codecs that store codes with scales and zeros.
    pub fn affine(self) -> Option<&'static Affine> {
        self.row().affine
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
        self.row().name
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
            Error::config("kv", format!("unknown format \"{s}\"; known: {}", known()))
        })
    }
}

/// What there is to say of a codec.
struct CodecRow {
    name: &'static str,
    tile: &'static dyn TileCodec,
    affine: Option<&'static Affine>,
}

impl CodecRow {
    const fn float(name: &'static str, tile: &'static dyn TileCodec) -> Self {
        Self { name, tile, affine: None }
    }

    const fn affine(name: &'static str, affine: &'static Affine) -> Self {
        Self { name, tile: affine, affine: Some(affine) }
    }
}

/// By number.
static CODECS: [CodecRow; Codec::ALL.len()] = [
    CodecRow::float("f16", &float::F16),
    CodecRow::float("bf16", &float::Bf16),
    CodecRow::float("fp8", &float::Fp8),
    CodecRow::affine("kivi4", &affine::KIVI4),
    CodecRow::affine("kivi2", &affine::KIVI2),
    CodecRow::affine("kf4", &affine::KF4),
    CodecRow::affine("kf3", &affine::KF3),
    CodecRow::affine("kf2", &affine::KF2),
];

/// A pair of codecs that attention kernels are made for. The CPU takes all others too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedFormat {
    /// What it is called.
    pub name: &'static str,
    /// The codec of keys.
    pub key: Codec,
    /// The codec of values.
    pub value: Codec,
    /// What kernels and their files are called by, behind the family's name.
    pub stem: &'static str,
    /// What it is.
    pub what: &'static str,
}

impl NamedFormat {
    const fn new(
        name: &'static str,
        [key, value]: [Codec; 2],
        stem: &'static str,
        what: &'static str,
    ) -> Self {
        Self { name, key, value, stem, what }
    }

    /// What kernels that only read keys are called by.
    pub fn key_stem(&self) -> &'static str {
        if self.key.is_16_bit() { self.stem } else { self.key.name() }
    }
}

/// All of them.
pub const NAMED_FORMATS: [NamedFormat; 10] = {
    use Codec::{Bf16, F16, Fp8, Kf2, Kf3, Kf4, Kivi2, Kivi4};
    [
        NamedFormat::new("f16", [F16, F16], "half", "16 bits, as written"),
        NamedFormat::new("bf16", [Bf16, Bf16], "half", "16 bits, as written"),
        NamedFormat::new("fp8", [Fp8, Fp8], "fp8", "e4m3, saturating at ±448"),
        NamedFormat::new("kivi4", [Kivi4, Kivi4], "kivi4", "KIVI, 4 bits, groups of 32"),
        NamedFormat::new("kivi2", [Kivi2, Kivi2], "kivi2", "KIVI, 2 bits, groups of 32"),
        NamedFormat::new("kivi4/kivi2", [Kivi4, Kivi2], "kivi42", "KIVI, keys 4 and values 2 bits"),
        NamedFormat::new("kf4", [Kf4, Kf4], "kf4", "kvfold's own, 4 bits, groups of 64"),
        NamedFormat::new("kf3", [Kf3, Kf3], "kf3", "kvfold's own, 3 bits, groups of 64"),
        NamedFormat::new("kf3.2", [Kf3, Kf2], "kf32", "kvfold's own, keys 3 and values 2 bits"),
        NamedFormat::new("kf2", [Kf2, Kf2], "kf2", "kvfold's own, 2 bits, groups of 64"),
    ]
};

/// What `--kv` takes, in words: the names, and how other pairs are written.
pub fn known() -> String {
    let names = NAMED_FORMATS.iter().map(|format| format.name).filter(|name| !name.contains('/'));
    names.chain(["KEYS/VALUES"]).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codecs_are_numbered_in_order() {
        for (number, codec) in (0..).zip(Codec::ALL) {
            assert_eq!(codec.number(), number);
            assert_eq!(codec.name(), format!("{codec:?}").to_lowercase());
        }
    }

    #[test]
    fn stored_bits_are_exact() {
        let bits: Vec<f64> = Codec::ALL.iter().map(|c| c.bits()).collect();
        assert_eq!(bits, [16.0, 16.0, 8.0, 5.0, 3.0, 4.5, 3.5, 2.5]);
    }

    #[test]
    fn formats_differ() {
        let names: BTreeSet<_> = NAMED_FORMATS.iter().map(|f| f.name).collect();
        let pairs: BTreeSet<_> =
            NAMED_FORMATS.iter().map(|f| [f.key, f.value].map(Codec::number)).collect();
        let stems: BTreeSet<_> = NAMED_FORMATS.iter().map(|f| f.stem).collect();
        assert_eq!([names.len(), pairs.len(), stems.len() + 1], [NAMED_FORMATS.len(); 3]);
    }
}
