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
mod habits;
mod options;
#[cfg(unix)]
mod outputs;
#[cfg(unix)]
mod piped;
mod prefill_events;
mod templates;
mod terminal;
#[path = "../tiny_model/mod.rs"]
mod tiny_model;
