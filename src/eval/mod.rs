//! Measuring what a KV format costs in quality (floor 7).
//!
//! A [`TaskSpec`] says what to measure; it becomes a [`Task`], whose prompts are made
//! once, and runs in one [`Setting`] after another; [`paired()`] compares two outcomes.
//!
//! | module | task |
//! |---|---|
//! | [`perplexity`] | by llama.cpp's convention, so the two can be compared on the same text |
//! | [`niah`] | find numbers hidden in a long text: one, one of many, several |
//! | [`stars`] | Counting-Stars: collect all the numbers that a text is strewn with |
//! | [`vt`] | RULER's variable tracking |
//! | [`words`] | RULER's common and frequent words |
//! | [`qa`] | questions about long documents from a file, scored as LongBench does |
//!
//! All drive a [`Runner`](crate::engine::Runner) through the path that `run` uses:
//! there is no second implementation of a lossy cache that could flatter it.

pub mod ablate;
mod ask;
pub mod calibrate;
mod format;
mod grade;
mod haystack;
pub mod longbench;
pub mod niah;
mod options;
mod output;
pub mod paired;
pub mod perplexity;
pub mod prose;
pub mod prose_zh;
pub mod qa;
pub mod report;
mod spec;
pub mod stars;
mod table;
pub mod task;
pub mod vt;
pub mod words;

pub use ask::{Question, Questions};
pub use format::Format;
pub use grade::{Grade, contained};
pub use haystack::Language;
pub use niah::{NeedleKind, NeedleSpec};
pub use output::write_whole;
pub use paired::{Paired, paired};
pub use perplexity::{Perplexity, PerplexitySpec, Windows};
pub use qa::QaSpec;
pub use spec::{Loaded, TaskSpec};
pub use stars::{StarsKind, StarsSpec};
pub use table::table;
pub use task::{Metric, Outcome, Speed, Task, Trial};
pub use vt::VtSpec;
pub use words::WordsSpec;

use crate::engine::EngineConfig;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// One way to store the cache that is to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The format of sealed pages.
    pub kv: Format,
    /// S; `None` for a format that never seals, where it makes no difference.
    pub sinks: Option<usize>,
}

impl Setting {
    /// Every format with every number of sinks, in the order given; formats that
    /// never seal appear once, and so does what is listed twice.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown format or an empty list.
    pub fn grid<S: AsRef<str>>(formats: &[S], sinks: &[usize]) -> Result<Vec<Self>> {
        for (field, empty) in [("kv", formats.is_empty()), ("sinks", sinks.is_empty())] {
            if empty {
                return Err(Error::config(field, "the list is empty; name at least one"));
            }
        }
        let mut grid = Vec::new();
        for format in formats {
            let kv = Format::find(format.as_ref())?;
            let each = sinks.iter().map(|&s| Self { kv: kv.clone(), sinks: kv.seals.then_some(s) });
            for setting in each {
                if !grid.contains(&setting) {
                    grid.push(setting);
                }
            }
        }
        Ok(grid)
    }

    /// `config` with this setting in it.
    pub fn apply(&self, config: EngineConfig) -> EngineConfig {
        let config = config.with_kv(&self.kv.name);
        match self.sinks {
            Some(sinks) => config.with_sinks(sinks),
            None => config,
        }
    }
}

/// Memory that the cache held when a sequence was complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes held, 16-bit window and sinks included.
    pub kv_bytes: u64,
    /// Bytes that the same tokens take in 16 bits.
    pub kv_bytes_16_bit: u64,
}

impl Memory {
    /// Bits a number of the cache, everything that is held counted: pages in use and
    /// half used, sinks and the 16-bit window.
    pub fn bits(&self) -> f64 {
        16.0 * self.kv_bytes as f64 / self.kv_bytes_16_bit as f64
    }

    /// How many times smaller than 16 bits.
    pub fn ratio(&self) -> f64 {
        self.kv_bytes_16_bit as f64 / self.kv_bytes as f64
    }
}

/// Relative change of `value` against `reference`, in percent; `None` if the
/// reference is 0.
pub fn change_percent(value: f64, reference: f64) -> Option<f64> {
    (reference != 0.0).then(|| (value / reference - 1.0) * 100.0)
}
