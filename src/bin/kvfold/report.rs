//! `kvfold report`: one HTML page from files of results.

use crate::terminal::print;
use anyhow::Result;
use clap::Args;
use kvfold::eval::Output;
use kvfold::eval::report::{Options, ResultRows, page};
use std::path::PathBuf;

/// Turn the results of `ablate` into one self-contained HTML page.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Files of results (JSON lines); of a cell that is there twice, the last line counts
    #[arg(required = true, value_name = "RESULTS")]
    results: Vec<PathBuf>,

    /// The page to write (or - for stdout)
    #[arg(short, long, default_value = "report.html", value_name = "PATH")]
    output: PathBuf,

    /// The page's heading [default: the spec's name]
    #[arg(long)]
    title: Option<String>,

    /// The KV format that others are compared with [default: the one with the most bits]
    #[arg(long, value_name = "FORMAT")]
    reference: Option<String>,

    /// Show this spec as it is written [default: the grid that the rows amount to]
    #[arg(long, value_name = "PATH")]
    spec: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &ReportArgs) -> Result<()> {
    let output = Output::at(&args.output)?;
    let rows = ResultRows::read(&args.results)?;
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| kvfold::Error::io(path, error))
    };
    let options = Options {
        title: args.title.clone(),
        reference: args.reference.clone(),
        spec: args.spec.as_ref().map(read).transpose()?,
    };
    let page = page(&rows, &options)?;
    match output.is_stdout() {
        true => Ok(output.write(page)?),
        false => {
            output.write(page)?;
            print(&format!("{}\n", args.output.display()))
        }
    }
}
