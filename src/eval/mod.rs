//! Measuring what a KV format costs in quality (floor 7).
//!
//! A [`TaskSpec`] says what to measure; it becomes a [`Task`], whose prompts are made
//! once, and runs in one [`Setting`] after another; [`paired()`] compares two outcomes.
//!
//! | module | task |
//! |---|---|
//! | [`perplexity`] | by llama.cpp's convention, so the two can be compared on the same text |
//! | [`niah`] | find numbers hidden in a long text: one, one of many, several |
//! | [`stars`] | Counting-Stars: collect all the numbers that a text is strewn with |
//! | [`vt`] | RULER's variable tracking |
//! | [`words`] | RULER's common and frequent words |
//! | [`qa`] | questions about long documents from a file, scored as LongBench does |
//!
//! All drive a [`Runner`](crate::engine::Runner) through the path that `run` uses:
//! there is no second implementation of a lossy cache that could flatter it.

pub mod ablate;
mod ask;
pub mod calibrate;
mod format;
mod grade;
mod haystack;
mod load;
pub mod longbench;
mod longbench_sets;
pub mod niah;
mod options;
mod output;
pub mod paired;
pub mod perplexity;
pub mod prose;
pub mod prose_zh;
pub mod qa;
mod qa_file;
mod question;
pub mod report;
mod setting;
mod spec;
pub mod stars;
mod table;
pub mod task;
pub mod vt;
pub mod words;

pub use ask::Questions;
pub use format::Format;
pub use grade::{Grade, contained};
pub use haystack::Language;
pub use load::{Load, LoadWatch};
pub use niah::{NeedleKind, NeedleSpec};
pub use output::{Output, write_whole};
pub use paired::{Paired, change_percent, paired};
pub use perplexity::{Perplexity, PerplexitySpec, Windows};
pub use qa::QaSpec;
pub use question::Question;
pub use setting::Setting;
pub use spec::{LoadedTask, TaskSpec};
pub use stars::{StarsKind, StarsSpec};
pub use table::table;
pub use task::{KvMemory, Metric, Outcome, Speed, Task, Trial, measure};
pub use vt::VtSpec;
pub use words::WordsSpec;
