//! What is to be measured, and how much may be spent.

use crate::codec::{Codec, KvFormat, TILE_TOKENS};
use crate::error::{Error, Result};
use crate::model::KvOptions;

/// Formats that the errors of all heads are told for, by growing size.
pub const FORMATS: [KvFormat; 4] = [
    KvFormat::uniform(Codec::Kf2),
    KvFormat::new(Codec::Kf3, Codec::Kf2),
    KvFormat::uniform(Codec::Kf3),
    KvFormat::uniform(Codec::Kf4),
];

/// Codecs that the keys and, apart from them, the values of a head may get, by growing size.
pub const CODECS: [Codec; 3] = [Codec::Kf2, Codec::Kf3, Codec::Kf4];

/// Queries of a window that attend once more.
pub(super) const QUERIES: usize = 128;

/// What is to be measured, and how much may be spent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CalibrateOptions {
    /// Mean stored bits an element of sealed pages, at most; from 2.5 to 4.5.
    pub target_bits: f64,
    /// The format of all heads, of [`CODECS`]; then `target_bits` does not count.
    pub format: Option<KvFormat>,
    /// Tokens a window.
    pub context: usize,
    /// Windows of the text; `None`: all that it fills.
    pub windows: Option<usize>,
    /// S.
    pub sinks: usize,
    /// R.
    pub hot_window: usize,
}

impl CalibrateOptions {
    /// Four windows of 2,048 tokens, S = 4, R = 128.
    pub fn new(target_bits: f64) -> Self {
        let KvOptions { sinks, hot_window, .. } = KvOptions::new(FORMATS[0]);
        Self { target_bits, format: None, context: 2048, windows: Some(4), sinks, hot_window }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let ours = |f: &KvFormat| [f.key, f.value].iter().all(|codec| CODECS.contains(codec));
        if let Some(other) = self.format.filter(|format| !ours(format)) {
            return Err(Error::config("kv", format!("{other} is not of kf4, kf3 and kf2")));
        }
        let [least, .., most] = CODECS.map(Codec::bits);
        if self.format.is_none() && !(least..=most).contains(&self.target_bits) {
            let what = format!("{:?} is not between {least} and {most}", self.target_bits);
            return Err(Error::config("target_bits", what));
        }
        let first = first_query(self.sinks, self.hot_window);
        if self.context < first.saturating_add(QUERIES) {
            let what = format!("{} leaves too little behind {first}", self.context);
            return Err(Error::config("context", what));
        }
        Ok(())
    }
}

/// The first query that sees a sealed page.
pub(super) fn first_query(sinks: usize, hot_window: usize) -> usize {
    sinks.saturating_add(hot_window).saturating_add(TILE_TOKENS)
}
