//! The program and what belongs to it: the command line, fetching, ablations, the scripts
//! for a machine with a GPU.

mod ablate;
mod calibrate;
mod cli;
mod command;
mod eval_cli;
#[cfg(unix)]
mod fetch;
mod gpu_report;
#[cfg(unix)]
mod gpu_run;
mod templates;
