//! Command lines that cannot be read, and what kvfold's own way is: habits from llama.cpp,
//! Ollama and others get a tip instead of a usage line.

use crate::terminal::{say, say_lines};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use kvfold::printable::is_printable;
use std::ffi::OsString;
use std::process::ExitCode;

/// Options of other programs, and what to do instead.
const OPTIONS: &[(&[&str], &str)] = &[
    (
        &["-p", "--prompt"],
        "the question stands by itself: kvfold run \"Why?\" (--raw to continue a text as it is)",
    ),
    (
        &["-f", "-bf", "--prompt-file"],
        "kvfold run --file PATH \"Why?\" asks about a file, kvfold run < PATH asks what is in it",
    ),
    (
        &["--ctx", "--num-ctx", "--num_ctx", "--max-model-len"],
        "--context TOKENS, or -c; the cache grows with its text, --kv-budget SIZE limits it",
    ),
    (&["-tb", "--threads-batch"], "--threads N counts for prompt and answer"),
    (
        &["-ngl", "--n-gpu-layers", "--gpu-layers", "--gpu", "--main-gpu"],
        "all layers run on one device: --device cuda, cuda:N or cpu",
    ),
    (&["-fa", "--flash-attn"], "attention is always computed without its matrix; leave it out"),
    (
        &["-ctk", "-ctv", "--cache-type-k", "--cache-type-v", "--kv-cache-dtype"],
        "--kv FORMAT, or --kv KEYS/VALUES, such as --kv kivi4/kivi2; `kvfold info` lists them",
    ),
    (&["-b", "-ub", "--batch-size", "--ubatch-size"], "--prefill-chunk TOKENS"),
    (&["-s"], "--seed NUMBER, with --temperature above 0"),
    (&["-sys", "--system-prompt", "-sysf"], "--system TEXT"),
    (&["-r", "--reverse-prompt"], "--stop TEXT"),
    (
        &["--n-predict", "--predict", "--num-predict", "--max-new-tokens", "--max_tokens"],
        "-n TOKENS, or --max-tokens",
    ),
    (&["--repeat-penalty"], "--repetition-penalty FACTOR"),
    (&["--hf-repo", "--model-url"], "--model OWNER/NAME, or OWNER/NAME:FILE"),
    (&["-cnv", "-i", "--interactive", "-no-cnv"], "each run answers one question"),
    (&["--mlock", "--no-mmap", "--numa"], "weights are packed into memory; leave it out"),
    (&["-v", "--verbose"], "KVFOLD_LOG=kvfold=debug in the environment"),
];

/// Commands of other programs.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["serve", "server", "api"], "kvfold has no server yet: `kvfold run` answers one question"),
    (
        &["chat", "generate", "complete", "completion", "ask", "prompt", "query", "cli"],
        "`kvfold run \"Why?\"` answers one question",
    ),
    (&["pull", "download", "get", "install"], "`kvfold fetch NAME`, or OWNER/NAME of the hub"),
    (&["list", "ls", "ps"], "`kvfold models`"),
    (&["show", "inspect"], "`kvfold info --model MODEL`"),
    (&["rm", "remove", "delete"], "delete the file; `kvfold models` says where it is"),
    (&["perplexity", "ppl", "niah", "qa"], "`kvfold eval TASK`"),
    (&["benchmark"], "`kvfold bench`"),
    (&["quantize", "convert"], "kvfold reads GGUF files and Hugging Face folders as they are"),
    (&["version"], "`kvfold --version`"),
];

/// Says what cannot be read of a command line, or shows the help that was asked for.
pub fn misread(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let words: Vec<String> =
        words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(tip) = error.use_stderr().then(|| tip(error, &words)).flatten() {
        say(format_args!("error: {tip}"));
    } else if words.iter().any(|word| !word.chars().all(is_printable)) {
        // clap quotes what was given, colours and all.
        say_lines(&error.render().to_string());
    } else if let (Err(failed), false) = (error.print(), error.use_stderr()) {
        // A help that nobody reads to its end is no error, a full disk is one.
        if failed.kind() != std::io::ErrorKind::BrokenPipe {
            say(format_args!("error: standard output: {failed}"));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// What kvfold's way is, if the error is one of the known habits.
fn tip(error: &clap::Error, words: &[String]) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let first = words.first()?;
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            // A slip of a known command is clap's to mend.
            let name = text(ContextKind::InvalidSubcommand)?;
            match way(COMMANDS, name) {
                Some(way) if name == first => Some(format!("there is no `kvfold {name}`; {way}")),
                _ if name == first && is_question(name) => {
                    Some(format!("a question needs a command: kvfold run \"{name}\""))
                }
                _ => None,
            }
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let given = text(ContextKind::InvalidArg)?;
            let short = given.split([' ', '=']).next().unwrap_or(given);
            let value = text(ContextKind::InvalidValue).filter(|value| !value.is_empty());
            let is_meant = |word: &str| match value {
                // clap reads -ngl as -n gl.
                Some(value) => word.get(2..) == Some(value) && !word.starts_with("--"),
                None => word.starts_with(short),
            };
            let habit = words.iter().map(|word| word.split('=').next().unwrap_or(word));
            let habit = habit.filter(|word| is_meant(word));
            if let Some((word, way)) = habit.filter_map(|w| Some((w, way(OPTIONS, w)?))).next() {
                return Some(format!("kvfold has no {word}: {way}"));
            }
            if error.kind() != ErrorKind::UnknownArgument {
                return None;
            }
            match first.as_str() {
                "run" if !given.starts_with('-') => Some(format!(
                    "\"{given}\" is a word too many; put the question in quotation marks"
                )),
                word if word.starts_with('-') => Some(format!(
                    "{word} needs a command before it: kvfold run {word} …; kvfold --help lists commands"
                )),
                _ => None,
            }
        }
        _ => None,
    }
}

fn way(habits: &[(&[&str], &'static str)], word: &str) -> Option<&'static str> {
    habits.iter().find(|(words, _)| words.contains(&word)).map(|(_, way)| *way)
}

/// Whether a word that is no command looks like a question.
fn is_question(text: &str) -> bool {
    text.contains(char::is_whitespace) || text.ends_with('?')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn no_tip_is_about_what_kvfold_has() {
        let mut cli = Cli::command();
        cli.build();
        let run = cli.find_subcommand("run").unwrap();
        for word in OPTIONS.iter().flat_map(|(words, _)| *words) {
            let line = ["kvfold", "run", word, "1"];
            assert!(Cli::try_parse_from(line).is_err(), "{word} is an option of run");
            let own = run.get_arguments().filter_map(|arg| arg.get_long());
            assert!(!own.into_iter().any(|long| format!("--{long}") == **word), "{word}");
        }
        for word in COMMANDS.iter().flat_map(|(words, _)| *words) {
            assert!(cli.find_subcommand(word).is_none(), "{word} is a command");
        }
    }
}
