//! `kvfold calibrate`: a KV format for each head and what its keys are encoded with.

use crate::model_args::ModelArgs;
use crate::terminal::print_beside;
use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvfold::codec::KvFormat;
use kvfold::eval::calibrate::{CODECS, CalibrateOptions, calibrate};
use kvfold::eval::{Output, table};
use kvfold::printable::{Printable, printable};
use kvfold::rag::read_document;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Measure the KV heads of a model on a text: what their keys are best encoded with, and a format for each.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Stored bits an element that the cache may take in the mean, from 2.5 to 4.5
    #[arg(long, value_name = "BITS", required_unless_present = "kv")]
    target_bits: Option<f64>,

    /// One format for all heads instead, as a GPU wants: kf4, kf3, kf3.2 or kf2
    #[arg(long, value_name = "FORMAT", conflicts_with = "target_bits")]
    kv: Option<KvFormat>,

    /// The text (or - for stdin), of the kind that the model will read
    #[arg(long, value_name = "PATH")]
    text: PathBuf,

    /// Where to write the formats (or - for stdout); give this file to --kv
    #[arg(short, long, value_name = "FILE", default_value = "kv-formats.json")]
    output: PathBuf,

    /// Tokens a window
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    context: usize,

    /// Windows to measure
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    windows: usize,

    /// Tokens at the start that stay in 16 bits
    #[arg(long, default_value_t = 4, value_name = "TOKENS")]
    sinks: usize,

    /// Recent tokens that stay in 16 bits, a multiple of 64
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    hot_window: usize,
}

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &CalibrateArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    let bits = args.target_bits.or(args.kv.map(KvFormat::bits)).unwrap_or_default();
    let mut options = CalibrateOptions::new(bits);
    options.format = args.kv;
    options.context = args.context;
    options.windows = Some(args.windows);
    (options.sinks, options.hot_window) = (args.sinks, args.hot_window);
    options.validate()?;
    let output = Output::at(&args.output)?;
    let text = read_document(&args.text)?;
    let checkpoint = args.model.checkpoint(None, cancel)?;
    let steps = args.context.saturating_mul(args.windows).saturating_mul(2);
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("calibrating [{bar:30}] {pos}/{len} {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.tick();
    let weights = args.model.weights.into();
    let found = calibrate(
        &checkpoint,
        weights,
        text.text(),
        &args.text,
        &options,
        cancel,
        &mut |tokens| bar.set_position(tokens as u64),
    )?;
    bar.finish_and_clear();
    let taken = output.is_stdout();
    output.write(found.calibration.to_json())?;

    let row = |name: String, bits: f64, error: f64| {
        vec![name, format!("{bits:.2}"), format!("{error:.2e}")]
    };
    let uniform = found.uniform.iter();
    let mut rows: Vec<_> =
        uniform.map(|(format, error)| row(format.to_string(), format.bits(), *error)).collect();
    let name = printable(&args.output.display().to_string());
    rows.push(row(name, found.calibration.bits, found.error));
    let heads = || found.calibration.layers.iter().flatten();
    let chosen = CODECS.map(|codec| {
        let keys = heads().filter(|format| format.key == codec).count();
        let values = heads().filter(|format| format.value == codec).count();
        vec![codec.to_string(), keys.to_string(), values.to_string()]
    });
    let text = format!(
        "{}: relative squared error of attention, a head in the mean\n\n{}\n{}\n",
        Printable(checkpoint.name()),
        table(&["kv", "bits", "error"], &rows),
        table(&["codec", "keys of heads", "values of heads"], &chosen)
    );
    print_beside(&text, taken)
}
