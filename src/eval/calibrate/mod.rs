//! Measuring the KV heads of a model: what their keys are encoded with, and a format for
//! each by the error of attention's output.
//!
//! The model runs over a text with a 16-bit cache, twice. First the moments of the queries
//! are taken, from which the [`Feedback`](crate::codec::feedback) of each head follows.
//! Then, in every layer, queries spread over the text attend once more, to keys or values
//! as each codec gives them back, and what that changes goes through the layer's output
//! projection:
//!
//! ```text
//! error(layer, head, side, codec) = mean over queries of ‖W_o (o' − o)‖² / ‖x‖²
//! ```
//!
//! x being the residual stream to which it is added. Errors of heads and sides are taken to
//! add up, so the best formats under a budget are found head by head (`allocate.rs`).

mod allocate;
mod attention;
mod moments;
mod options;

pub use options::{CODECS, CalibrateOptions, FORMATS};

use super::perplexity::Windows;
use crate::backend::WeightPolicy;
use crate::codec::feedback::Feedback;
use crate::codec::{Codec, KvFormat};
use crate::engine::{EngineConfig, LoadOptions, LoadedModel, Runner};
use crate::error::{Error, Result};
use crate::model::{Attended, Calibration, Checkpoint, Observer};
use attention::{Head, SIDES};
use moments::Moments;
use options::QUERIES;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Formats for a model, and the errors that led to them.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// The formats.
    pub calibration: Calibration,
    /// Their relative squared error, a head and layer in the mean.
    pub error: f64,
    /// Stored bits and the same error of each of [`FORMATS`], alone.
    pub uniform: Vec<(KvFormat, f64)>,
}

/// Measures a model on a text and chooses a format for each head. `progress` is told the
/// tokens that are done, each of two passes over the windows.
///
/// # Errors
/// [`CalibrateOptions::validate`]'s; [`Error::Unsupported`] for a head dim without kf
/// formats; [`Error::Document`] for a text that is too short; [`Error::Cancelled`].
pub fn calibrate(
    checkpoint: &Checkpoint,
    policy: WeightPolicy,
    text: &str,
    source: &Path,
    options: &CalibrateOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Calibrated> {
    options.validate()?;
    let config = checkpoint.config();
    if !Codec::Kf2.fits(config.head_dim) {
        return Err(Error::Unsupported {
            what: format!("calibration of heads of {} channels", config.head_dim),
            remedy: "kf formats take 64, 128 and 256; choose a kivi format with --kv".into(),
        });
    }
    let windows =
        Windows::new(&checkpoint.tokenizer()?, text, source, options.context, options.windows)?;
    let model = LoadedModel::load(checkpoint, None, &LoadOptions::default().with_weights(policy))?;
    let exact = EngineConfig::default().with_kv(Codec::F16.name()).with_kv_budget(Some(u64::MAX));
    let mut runner = Runner::new(model, exact)?;

    let mut pass = |number: usize, observer: &mut dyn Observer| -> Result<()> {
        for window in 0..windows.count() {
            let seq = runner.create();
            runner.watch(seq, &windows.window(window), observer)?;
            runner.free(seq)?;
            progress((number * windows.count() + window + 1) * windows.context());
        }
        Ok(())
    };
    let shape = (config.layers, config.kv_heads, config.head_dim);
    let mut moments = Moments::new(options, shape, cancel);
    pass(0, &mut moments)?;
    let streams = config.layers * config.kv_heads;
    let mut meter = Meter {
        options,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        hidden: config.hidden,
        feedback: moments.feedback(),
        errors: vec![[[0.0; CODECS.len()]; 2]; streams],
        cancel,
    };
    pass(1, &mut meter)?;

    // Tokens that a layer's streams keep of the whole context.
    let window = config.sliding_window.unwrap_or(config.context).min(config.context);
    let kept = |slides: &bool| if *slides { window as f64 } else { config.context as f64 };
    let kept: Vec<f64> = config.sliding_layers.iter().map(kept).collect();
    // Keys and values of a stream, one after the other.
    let errors = meter.errors.as_flattened();
    let chosen: Vec<KvFormat> = match options.format {
        Some(format) => vec![format; streams],
        None => {
            let sizes = (0..errors.len()).map(|i| kept[i / (SIDES * config.kv_heads)]);
            let (bits, sizes) = (CODECS.map(Codec::bits), sizes.collect::<Vec<_>>());
            let codecs = allocate::allocate(&bits, errors, &sizes, options.target_bits);
            let pairs = codecs.as_chunks::<2>().0.iter();
            pairs.map(|[key, value]| KvFormat::new(CODECS[*key], CODECS[*value])).collect()
        }
    };
    let of = |side: &[f64; CODECS.len()], codec: Codec| -> f64 {
        CODECS.iter().zip(side).filter(|(c, _)| **c == codec).map(|(_, error)| error).sum()
    };
    let mean = |format: &dyn Fn(usize) -> KvFormat| {
        let both = meter.errors.iter().enumerate().map(|(stream, [keys, values])| {
            of(keys, format(stream).key) + of(values, format(stream).value)
        });
        both.sum::<f64>() / (streams * windows.count()) as f64
    };
    let uniform = FORMATS.map(|format| (format, mean(&|_| format))).to_vec();
    let error = mean(&|stream| chosen[stream]);

    let layers = chosen.chunks_exact(config.kv_heads).map(<[_]>::to_vec).collect();
    let feedback = meter.feedback.chunks_exact(config.kv_heads).map(<[_]>::to_vec).collect();
    let (name, fingerprint) = (checkpoint.name(), checkpoint.fingerprint()?.text()?);
    let mut calibration = Calibration::new(name, &fingerprint, layers, feedback);
    if options.format.is_none() {
        let bits = |layer: &Vec<KvFormat>| layer.iter().map(|f| f.bits()).sum::<f64>();
        let held: f64 = calibration.layers.iter().zip(&kept).map(|(l, kept)| bits(l) * kept).sum();
        calibration.bits = held / (kept.iter().sum::<f64>() * config.kv_heads as f64);
        calibration.target_bits = options.target_bits;
    }
    calibration.text = source.file_name().map_or("-".into(), |n| n.to_string_lossy().into_owned());
    calibration.tokens = windows.count() * windows.context();
    Ok(Calibrated { calibration, error, uniform })
}

/// Adds up errors, layer by layer.
struct Meter<'a> {
    options: &'a CalibrateOptions,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    /// `[layer · kv_heads + head]`.
    feedback: Vec<Arc<Feedback>>,
    /// `[layer · kv_heads + head][side][codec]`, over all windows.
    errors: Vec<[[f64; CODECS.len()]; SIDES]>,
    cancel: &'a AtomicBool,
}

impl Observer for Meter<'_> {
    fn attended(&mut self, seen: &mut dyn Attended) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let (d, n) = (self.head_dim, self.kv_heads);
        let (layer, call) = (seen.layer(), *seen.call());
        let (heads, tokens) = (call.heads, self.options.context);
        let cols = (heads + 2 * n) * d;
        let qkv = attention::rows(seen, 0..tokens, cols)?;
        let queries = attention::queries(self.options, QUERIES);
        let mut sizes = vec![0f64; queries.len()];
        let mut x = vec![0f32; self.hidden];
        for (size, &query) in sizes.iter_mut().zip(&queries) {
            seen.residual(query, &mut x)?;
            *size = squares(&x);
        }

        for kv_head in 0..n {
            let feedback = &self.feedback[layer * n + kv_head];
            let head = Head { qkv: &qkv, cols, heads, kv_heads: n, d, kv_head, feedback };
            let rows = head.errors(&call, &queries, self.options, &CODECS);
            let of = self.errors[layer * n + kv_head].as_flattened_mut();
            // Row by row: those of the first side and codec, then of the next.
            seen.project(&rows, &mut |row, out| {
                let (variant, query) = (row / queries.len(), row % queries.len());
                of[variant] += squares(out) / sizes[query] / queries.len() as f64;
            })?;
        }
        Ok(())
    }
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum()
}
