//! `kvfold completions`: what a shell needs to complete the words of a command.

use crate::terminal;
use anyhow::Result;
use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// Print a script that completes commands and options in your shell.
///
/// For bash: kvfold completions bash > ~/.local/share/bash-completion/completions/kvfold
///
/// For zsh, into a folder of $fpath: kvfold completions zsh > ~/.zfunc/_kvfold
///
/// For fish: kvfold completions fish > ~/.config/fish/completions/kvfold.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Runs the subcommand for the command line that `all` describes.
pub fn run(args: &CompletionsArgs, mut all: Command) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut all, "kvfold", &mut script);
    terminal::print(&String::from_utf8_lossy(&script))
}
