//! `kvfold run`: one question, optionally of documents, answered as a stream.

use crate::run_args::RunArgs;
use crate::{prompt, size};
use anyhow::{Context, Result, bail};
use kvfold::engine::{Engine, Event, FinishReason, Request, Stats};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &RunArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    // What can be wrong without the model is said before it is loaded.
    args.config().validate()?;
    args.sampling().validate()?;
    if args.question.trim().is_empty() && !args.show_context {
        bail!("the question is empty; say what to do, in quotation marks");
    }
    let sources = prompt::Sources::read(args)?;
    let model = args.model.load_for(args.context.context, &args.config(), cancel)?;
    let prompt = prompt::build(args, &sources, &model)?;
    let mut log = std::io::stderr();
    for notice in &prompt.notices {
        writeln!(log, "note: {notice}")?;
    }
    if args.show_context {
        writeln!(log, "{}\n", prompt.context.trim_end())?;
        if args.question.trim().is_empty() {
            return Ok(());
        }
    }

    let request = Request::new(prompt.ids, args.max_tokens)
        .with_sampling(args.sampling())
        .with_stop(args.stop.clone());
    let device = model.device();
    let kv = model.kv_name(&args.config())?;
    let engine = Engine::start(model, args.config())?;
    let events = engine.submit(request)?;
    let mut out = std::io::stdout().lock();
    let mut print = |text: &str| {
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
    };
    for event in events {
        match event {
            Event::Token { text, .. } => print(&text)?,
            Event::Finished { reason, text, stats } => {
                print(&format!("{text}\n"))?;
                if !args.quiet {
                    log.write_all(summary(&stats, reason, &device, &kv).as_bytes())?;
                }
            }
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The short account after an answer.
fn summary(stats: &Stats, reason: FinishReason, device: &str, kv: &str) -> String {
    let ms = |d: Duration| format!("{:.0} ms", d.as_secs_f64() * 1e3);
    let ratio = stats.kv_bytes_16_bit as f64 / stats.kv_bytes.max(1) as f64;
    // Whole pages are held, so a short text takes more than its tokens need.
    let folded = match ratio < 1.0 {
        true => format!("{:.2}x larger (too short to fold)", 1.0 / ratio.max(1e-9)),
        false => format!("{ratio:.2}x smaller"),
    };
    let end = match reason {
        FinishReason::Length => ", cut off by --max-tokens",
        FinishReason::Stop => ", stopped by --stop",
        _ => "",
    };
    format!(
        "\ndevice      {device}\n\
         prompt      {} tokens, {:.0} tokens/s\n\
         answer      {} tokens, {:.1} tokens/s{end}\n\
         first token {}\n\
         KV cache    {} as {} (peak {}), {} at 16 bits: {folded}\n",
        stats.prompt_tokens,
        stats.prefill_rate(),
        stats.generated_tokens,
        stats.decode_rate(),
        ms(stats.time_to_first_token),
        size::show(stats.kv_bytes),
        kv,
        size::show(stats.kv_peak_bytes),
        size::show(stats.kv_bytes_16_bit),
    )
}
