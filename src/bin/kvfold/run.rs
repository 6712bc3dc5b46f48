//! `kvfold run`: one question, optionally of documents, answered as a stream.

use crate::model_args::warn_of_outliers;
use crate::progress::Prefill;
use crate::run_args::RunArgs;
use crate::terminal::{Screen, note, say_lines};
use crate::{idle_options, prompt, size, wording};
use anyhow::{Result, bail};
use kvfold::engine::{Engine, Event, FinishReason, Request, Stats};
use kvfold::model::ChatTemplate;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(mut args: RunArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    // What can be wrong without the model is said before it is loaded.
    args.config().validate()?;
    args.sampling(false).validate()?;
    let sources = prompt::Sources::read(&mut args)?;
    let asks = !args.question.trim().is_empty();
    if !asks && !args.show_context {
        bail!("there is no question; say what to do, in quotation marks, or pipe it in");
    }
    let template = args.chat_template.as_ref().map(ChatTemplate::read).transpose()?;
    let mut model = args.model.load_for(args.context.context, &args.config(), cancel)?;
    if let Some(template) = template {
        model.template = Some(Arc::new(template.with_token_texts(model.token_texts.clone())));
    }
    warn_of_outliers(&model, [&args.config()])?;
    for what in idle_options::of(&args, model.template.is_some()) {
        note(what);
    }
    let prompt = prompt::build(&args, &sources, &model)?;
    for notice in &prompt.notices {
        note(notice);
    }
    if args.show_context {
        match prompt.context.trim_end() {
            "" => note("there is no context; --file and --docs make one"),
            context => say_lines(&format!("{context}\n\n")),
        }
        if !asks {
            return Ok(());
        }
    }

    let mut progress = Prefill::begin(prompt.ids.len(), args.quiet);
    let from_text = !prompt.context.is_empty();
    let mut stop = args.stop.clone();
    if from_text && !args.raw {
        stop.push(wording::NEXT_QUESTION.to_owned());
    }
    let request = Request::new(prompt.ids, prompt.max_tokens)
        .with_sampling(args.sampling(from_text))
        .with_stop(stop);
    let device = model.device();
    let kv = model.kv_name(&args.config())?;
    let limit = model.context();
    let engine = Engine::start(model, args.config())?;
    let events = engine.submit(request)?;
    let mut screen = Screen::stdout();
    for event in events {
        match event {
            Event::Prefill { done, total } if done < total => progress.step(done),
            Event::Token { text, .. } => {
                progress.end();
                screen.print(&text)?;
            }
            Event::Finished { reason, text, stats } => {
                progress.end();
                screen.print(&format!("{text}\n"))?;
                if !args.quiet {
                    say_lines(&summary(&stats, reason, &device, &kv));
                }
                if reason == FinishReason::Length && prompt.max_tokens < args.max_tokens {
                    note(format_args!(
                        "the answer was cut off: it and the prompt fill the model's context of {limit} tokens"
                    ));
                }
            }
            Event::Failed(error) => {
                progress.end();
                return Err(error.into());
            }
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
