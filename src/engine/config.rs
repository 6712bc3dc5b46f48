//! How an engine stores and computes.

use crate::codec::{Codec, KvFormat};
use crate::error::{Error, Result};
use crate::model::{Calibration, Fingerprint, KvOptions};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// The KV format that depends on the model: README, "KV formats" says why.
pub const AUTO: &str = "auto";

/// What [`AUTO`] is for a model without a calibration.
const UNCALIBRATED: KvFormat = KvFormat::new(Codec::Kivi4, Codec::Kivi2);

/// The longest 16-bit window: longer than any context.
const MOST_WINDOW: usize = 1 << 30;

/// Options of an [`Engine`](super::Engine).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EngineConfig {
    /// KV format: `auto`, a name of [`NAMED_FORMATS`](crate::codec::formats::NAMED_FORMATS),
    /// `keys/values`, or the path of a [`Calibration`]. `auto` is the calibration that
    /// kvfold comes with, on the CPU and if it has one of the model, else `kivi4/kivi2`.
    pub kv: String,
    /// S: tokens at the start that stay in 16 bits, at most 64.
    pub sinks: usize,
    /// R: tokens that every query sees in 16 bits, a multiple of 64 and at most 2^30.
    pub hot_window: usize,
    /// Tokens of a prompt that are computed at once.
    pub prefill_chunk: usize,
    /// Bytes that the KV cache may hold; `None`: as many as the model's whole
    /// context needs in this format, but on a GPU at most nine tenths of what is free.
    pub kv_budget: Option<u64>,
    /// Requests that run side by side, if the budget holds them.
    pub max_batch: usize,
    /// What a step may take in which somebody generates, in milliseconds: prompts beside it
    /// get as many rows as that leaves. 0: prompts come in whole chunks.
    pub step_ms: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let KvOptions { sinks, hot_window, .. } = KvOptions::new(UNCALIBRATED);
        Self {
            kv: AUTO.into(),
            sinks,
            hot_window,
            prefill_chunk: 512,
            kv_budget: None,
            max_batch: 64,
            step_ms: 100,
        }
    }
}

impl EngineConfig {
    /// Sets the KV format.
    pub fn with_kv(mut self, kv: impl Into<String>) -> Self {
        self.kv = kv.into();
        self
    }

    /// Sets S.
    pub fn with_sinks(mut self, sinks: usize) -> Self {
        self.sinks = sinks;
        self
    }

    /// Sets R.
    pub fn with_hot_window(mut self, tokens: usize) -> Self {
        self.hot_window = tokens;
        self
    }

    /// Sets the chunk of a prompt.
    pub fn with_prefill_chunk(mut self, tokens: usize) -> Self {
        self.prefill_chunk = tokens;
        self
    }

    /// Sets the KV budget.
    pub fn with_kv_budget(mut self, bytes: Option<u64>) -> Self {
        self.kv_budget = bytes;
        self
    }

    /// Sets how many requests run side by side.
    pub fn with_max_batch(mut self, requests: usize) -> Self {
        self.max_batch = requests;
        self
    }

    /// Sets what a step may take, in milliseconds, while somebody generates.
    pub fn with_step_ms(mut self, milliseconds: u64) -> Self {
        self.step_ms = milliseconds;
        self
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.kv_options()?;
        if self.sinks > 64 {
            return Err(Error::config("sinks", format!("{} is more than 64", self.sinks)));
        }
        if !self.hot_window.is_multiple_of(64) {
            let what = format!("{} is not a multiple of 64", self.hot_window);
            return Err(Error::config("hot_window", what));
        }
        if self.hot_window > MOST_WINDOW {
            let what = format!("{} is more than {MOST_WINDOW}", self.hot_window);
            return Err(Error::config("hot_window", what));
        }
        if !(1..=1 << 16).contains(&self.prefill_chunk) {
            let what = format!("{} is not between 1 and 65536", self.prefill_chunk);
            return Err(Error::config("prefill_chunk", what));
        }
        if self.max_batch == 0 {
            return Err(Error::config("max_batch", "must be at least 1"));
        }
        Ok(())
    }

    /// The KV part for a model; `mixed`: on a device that takes a format of each head.
    ///
    /// # Errors
    /// As [`kv_options`](Self::kv_options) and [`Calibration::shipped`].
    pub fn kv_options_of(&self, of: &Fingerprint, mixed: bool) -> Result<KvOptions> {
        let options = self.kv_options()?;
        let calibration = match self.kv == AUTO && mixed {
            true => Calibration::shipped(of)?.map(Arc::new),
            false => None,
        };
        match calibration.and_then(|all| Some((*all.layers.first()?.first()?, all))) {
            Some((format, all)) => Ok(KvOptions { format, calibration: Some(all), ..options }),
            None => Ok(options),
        }
    }

    /// The KV part, parsed; a calibration is read. [`AUTO`] counts as it does for a model
    /// without a calibration.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown format, [`Error::BadFile`] for a file that is no
    /// calibration.
    pub fn kv_options(&self) -> Result<KvOptions> {
        let path = Path::new(&self.kv);
        let (format, calibration) = match self.kv.parse::<KvFormat>() {
            _ if self.kv == AUTO => (UNCALIBRATED, None),
            Ok(format) => (format, None),
            Err(unknown) if path.is_file() => {
                let read = Calibration::read(path)?;
                let first = read.layers.iter().flatten().next().copied();
                (first.ok_or(unknown)?, Some(Arc::new(read)))
            }
            Err(_) if path.extension().is_some_and(|e| e == "json") => {
                let what =
                    format!("there is no file {}; make one with `kvfold calibrate`", self.kv);
                return Err(Error::config("kv", what));
            }
            Err(unknown) => return Err(unknown),
        };
        let (sinks, hot_window) = (self.sinks, self.hot_window);
        Ok(KvOptions { format, calibration, sinks, hot_window })
    }
}
