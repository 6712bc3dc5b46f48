//! The codecs of a KV group, and how they are written.

use super::formats::{Codec, NAMED_FORMATS, NamedFormat};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

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

    /// Bytes of one page of one head: the key tile, then the value tile, with so many
    /// channels a row each. A tile without channels takes no bytes.
    pub fn page_bytes(self, [key_dim, value_dim]: [usize; 2]) -> usize {
        self.key.tile().tile_bytes(key_dim) + self.value.tile().tile_bytes(value_dim)
    }

    /// The row of its codecs, if they have one.
    fn row(self) -> Option<&'static NamedFormat> {
        NAMED_FORMATS.iter().find(|row| (row.key, row.value) == (self.key, self.value))
    }

    /// What kernels are made for, if they are for this.
    pub fn kernels(self) -> Option<&'static NamedFormat> {
        // Pages of one 16-bit type that are written in the other would have to be sealed.
        self.row().filter(|row| row.key.is_16_bit() != self.seals())
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
        match self.row() {
            Some(named) => f.write_str(named.name),
            None if self.key == self.value => self.key.fmt(f),
            None => write!(f, "{}/{}", self.key, self.value),
        }
    }
}

impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if let Some((hot, sealed)) = s.split_once('+') {
            return sealed.parse::<KvFormat>()?.with_hot(hot.parse()?);
        }
        if let Some(named) = NAMED_FORMATS.iter().find(|format| format.name == s) {
            return Ok(KvFormat::new(named.key, named.value));
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
    use crate::codec::TILE_TOKENS;

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
            error.contains("kivi3") && error.contains("kivi2, kf4, kf3, kf3.2, kf2, KEYS/VALUES"),
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

    #[test]
    fn kernels_are_for_what_the_table_says() {
        let stem = |text: &str| text.parse::<KvFormat>().unwrap().kernels().map(|row| row.stem);
        for (text, want) in [
            ("f16", Some("half")),
            ("bf16", Some("half")),
            ("bf16+f16", None),
            ("f16/bf16", None),
            ("f16/kivi2", None),
            ("kivi4/kivi2", Some("kivi42")),
            ("bf16+kf3/kf2", Some("kf32")),
            ("kf4/kf2", None),
        ] {
            assert_eq!(stem(text), want, "{text}");
        }
    }

    #[test]
    fn a_page_is_a_key_and_a_value_tile() {
        for d in [64, 128, 256] {
            let page = KvFormat::uniform(Codec::Kivi2).page_bytes([d, d]);
            assert_eq!(page * 8, 3 * 2 * TILE_TOKENS * d);
        }
    }
}
