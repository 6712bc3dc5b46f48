//! The `kvfold` command line: a file per subcommand.

mod ablate;
mod bench;
mod calibrate;
mod completions;
mod eval;
mod fetch;
mod fetch_progress;
mod habits;
mod idle_options;
mod info;
mod model_args;
mod models;
mod progress;
mod prompt;
mod report;
mod run;
mod run_args;
mod size;
mod stdin;
mod terminal;
mod wording;

use clap::{CommandFactory, Parser, Subcommand};
use kvfold::backend::cpu::set_threads;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Fold a long context into a small KV cache.
#[derive(Parser)]
#[command(name = "kvfold", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run_args::RunArgs>),
    Fetch(fetch::FetchArgs),
    Models(models::ModelsArgs),
    Info(info::InfoArgs),
    Eval(Box<eval::EvalArgs>),
    Calibrate(calibrate::CalibrateArgs),
    Ablate(ablate::AblateArgs),
    /// Measures the cells that `ablate` sends
    #[command(hide = true)]
    AblateWorker(ablate::WorkerArgs),
    Report(report::ReportArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return habits::misread(&error, &words),
    };
    let threads = match &cli.command {
        Command::Run(args) => args.model.threads,
        Command::Info(args) => args.model.threads,
        Command::Eval(args) => args.threads(),
        Command::Calibrate(args) => args.model.threads,
        Command::Bench(args) => args.model.threads,
        Command::AblateWorker(args) => args.threads,
        Command::Fetch(_)
        | Command::Models(_)
        | Command::Ablate(_)
        | Command::Report(_)
        | Command::Completions(_) => None,
    };
    if let Some(threads) = threads {
        set_threads(threads.into()).expect("a number in range, before any work");
        // candle's pool, behind the types that we have no product of, reads its size there.
        // SAFETY: nothing has started a thread yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", threads.to_string()) };
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("KVFOLD_LOG"))
        .with_writer(std::io::stderr)
        .init();

    let cancel = Arc::new(AtomicBool::new(false));
    let outcome = watch_interrupts(cancel.clone()).and_then(|()| match cli.command {
        Command::Run(args) => run::run(*args, &cancel),
        Command::Fetch(args) => fetch::run(&args, cancel.clone()),
        Command::Models(args) => models::run(&args),
        Command::Info(args) => info::run(&args, &cancel),
        Command::Eval(args) => eval::run(&args, &cancel),
        Command::Calibrate(args) => calibrate::run(&args, &cancel),
        Command::Ablate(args) => ablate::run(&args, &cancel),
        Command::AblateWorker(_) => ablate::work(),
        Command::Report(args) => report::run(&args),
        Command::Bench(args) => bench::run(&args, &cancel),
        Command::Completions(args) => completions::run(&args, Cli::command()),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if cancel.load(Ordering::Relaxed) => interrupted(),
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::say(format_args!("error: {}", joined(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C ends the process at once, except that the first one during a fetch
/// only asks it to stop: what was downloaded is then left fit to be resumed. So does the
/// first one during an ablation, which ends its workers and says how far it came.
fn watch_interrupts(cancel: Arc<AtomicBool>) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if cancel.swap(true, Ordering::Relaxed) || !(fetch::in_progress() || ablate::in_progress())
        {
            interrupted();
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// Says so and gives the exit code of an interrupted process.
fn interrupted() -> ExitCode {
    terminal::say("interrupted");
    ExitCode::from(130)
}

/// The error and its causes, each once: many messages already quote their cause. Where one
/// goes on with a backtrace, that is left out.
fn joined(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.split("\n   0: ").next().unwrap_or_default().trim_end();
        if line.is_empty() {
            line += text;
        } else if !line.contains(text) {
            line += ": ";
            line += text;
        }
    }
    line
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    (error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()))
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
