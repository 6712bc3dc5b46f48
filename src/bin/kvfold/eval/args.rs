//! The options of `kvfold eval`, and the task that they describe.

use crate::model_args::ModelArgs;
use clap::{Args, Subcommand};
use kvfold::Result;
use kvfold::codec::formats::known;
use kvfold::engine::EngineConfig;
use kvfold::eval::{
    NeedleSpec, PerplexitySpec, QaSpec, Setting, StarsSpec, TaskSpec, VtSpec, WordsSpec,
};
use std::path::{Path, PathBuf};

/// Measure what a KV format costs in quality.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Perplexity of a text, by llama.cpp's convention: the second half of each window counts
    Perplexity(PerplexityArgs),
    /// Find 7-digit numbers hidden in a long text ("needle in a haystack")
    Niah(NiahArgs),
    /// Collect all the numbers that a text is strewn with (Counting-Stars)
    CountingStars(StarsArgs),
    /// Track a chain of variable assignments hidden in a text (RULER)
    Vt(VtArgs),
    /// Name the 10 most common words of a list (RULER)
    Cwe(WordsArgs),
    /// Name the 3 most frequent words of a coded text (RULER)
    Fwe(WordsArgs),
    /// Answer questions about long documents, scored as LongBench does
    Qa(QaArgs),
}

/// What all evaluations share.
#[derive(Debug, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// KV formats to compare
    #[arg(long, value_delimiter = ',', default_value = "f16,kivi4,kivi2", value_name = "LIST", help = format!("KV formats to compare: {} or a file of `calibrate`; the first is the reference", known()))]
    kv: Vec<String>,

    /// Numbers of tokens at the start that stay in 16 bits, each tried with every format
    #[arg(long, value_delimiter = ',', default_value = "4", value_name = "LIST")]
    sinks: Vec<usize>,

    /// Recent tokens that stay in 16 bits, a multiple of 64
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    pub hot_window: usize,

    /// Tokens that are computed at once
    #[arg(long, visible_alias = "prefill-chunk", default_value_t = 512, value_name = "TOKENS")]
    chunk: usize,

    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
struct PerplexityArgs {
    /// The text (or - for stdin)
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,

    /// Tokens a window
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    context: usize,

    /// Windows to score [default: all that the text fills]
    #[arg(long, value_name = "COUNT")]
    windows: Option<usize>,

    #[command(flatten)]
    common: CommonArgs,
}

/// What the tasks share whose prompts are made to a length.
#[derive(Debug, Args)]
struct MadeArgs {
    /// Tokens of the prompts
    #[arg(long, value_delimiter = ',', default_value = "1024,2048,4096", value_name = "LIST")]
    lengths: Vec<usize>,

    /// Prompts for each length (and depth)
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    seeds: usize,

    /// Which prompts: other batches have other ones
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    batch: usize,

    #[command(flatten)]
    asked: AskedArgs,
}

impl MadeArgs {
    fn words(&self) -> WordsSpec {
        let Self { lengths, seeds, batch, .. } = self;
        WordsSpec { lengths: lengths.clone(), seeds: *seeds, batch: *batch }
    }
}

#[derive(Debug, Args)]
struct AskedArgs {
    /// Also write the prompts (text, ids, expected answers) to this file (or - for stdout), one JSON object a line
    #[arg(long, value_name = "PATH")]
    prompts: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct HaystackArgs {
    /// Hide it in this text (or - for stdin) instead of generated prose
    #[arg(long, value_name = "PATH")]
    haystack: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct NiahArgs {
    /// single: one number; multi-key: one of 4 is asked for; multi-value: 4 of one key;
    /// multi-query: 4 of 4 keys
    #[arg(long, default_value = "single")]
    kind: String,

    /// Where the (first) number is hidden, in percent of the text
    #[arg(long, value_delimiter = ',', default_value = "10,50,90", value_name = "LIST")]
    depths: Vec<usize>,

    #[command(flatten)]
    made: MadeArgs,

    #[command(flatten)]
    hay: HaystackArgs,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct StarsArgs {
    /// acquisition: one number a star; reasoning: a wrong one and its correction
    #[arg(long, default_value = "acquisition")]
    kind: String,

    /// en or zh
    #[arg(long, default_value = "en")]
    language: String,

    /// Numbers in a text
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    stars: usize,

    /// Ask for JSON, as the published benchmark does; small models cannot answer so
    #[arg(long)]
    ask_json: bool,

    #[command(flatten)]
    made: MadeArgs,

    #[command(flatten)]
    hay: HaystackArgs,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct VtArgs {
    /// Assignments of a variable to another
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    hops: usize,

    /// Leave the worked example out
    #[arg(long)]
    zero_shot: bool,

    #[command(flatten)]
    made: MadeArgs,

    #[command(flatten)]
    hay: HaystackArgs,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct WordsArgs {
    #[command(flatten)]
    made: MadeArgs,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct QaArgs {
    /// The questions (or - for stdin), one JSON object a line: "context" or "document" (a path),
    /// "question", "answers" and perhaps "kind" (qa, qa_zh, summary, summary_zh,
    /// classification, retrieval, count, code); LongBench's own files will do
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,

    /// Tokens of a prompt, at most; longer documents lose their middle [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    length: Option<usize>,

    /// Questions from the beginning of the file [default: all]
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,

    #[command(flatten)]
    asked: AskedArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl EvalArgs {
    /// Threads asked for.
    pub fn threads(&self) -> Option<u16> {
        self.common().model.threads
    }

    /// What all evaluations share.
    pub fn common(&self) -> &CommonArgs {
        match &self.what {
            What::Perplexity(args) => &args.common,
            What::Niah(args) => &args.common,
            What::CountingStars(args) => &args.common,
            What::Vt(args) => &args.common,
            What::Cwe(args) | What::Fwe(args) => &args.common,
            What::Qa(args) => &args.common,
        }
    }

    /// Where the prompts go.
    pub fn prompts(&self) -> Option<&Path> {
        let asked = match &self.what {
            What::Perplexity(_) => return None,
            What::Niah(args) => &args.made.asked,
            What::CountingStars(args) => &args.made.asked,
            What::Vt(args) => &args.made.asked,
            What::Cwe(args) | What::Fwe(args) => &args.made.asked,
            What::Qa(args) => &args.asked,
        };
        asked.prompts.as_deref()
    }

    /// The task.
    pub fn spec(&self) -> Result<TaskSpec> {
        Ok(match &self.what {
            What::Perplexity(args) => {
                let mut spec = PerplexitySpec::new(&args.file);
                (spec.context, spec.windows) = (args.context, args.windows);
                TaskSpec::Perplexity(spec)
            }
            What::Niah(args) => TaskSpec::Niah(NeedleSpec {
                kind: args.kind.parse()?,
                lengths: args.made.lengths.clone(),
                depths: args.depths.clone(),
                seeds: args.made.seeds,
                batch: args.made.batch,
                haystack: args.hay.haystack.clone(),
            }),
            What::CountingStars(args) => TaskSpec::CountingStars(StarsSpec {
                language: args.language.parse()?,
                kind: args.kind.parse()?,
                stars: args.stars,
                json: args.ask_json,
                lengths: args.made.lengths.clone(),
                seeds: args.made.seeds,
                batch: args.made.batch,
                haystack: args.hay.haystack.clone(),
            }),
            What::Vt(args) => TaskSpec::Vt(VtSpec {
                hops: args.hops,
                zero_shot: args.zero_shot,
                lengths: args.made.lengths.clone(),
                seeds: args.made.seeds,
                batch: args.made.batch,
                haystack: args.hay.haystack.clone(),
            }),
            What::Cwe(args) => TaskSpec::Cwe(args.made.words()),
            What::Fwe(args) => TaskSpec::Fwe(args.made.words()),
            What::Qa(args) => {
                let mut spec = QaSpec::new(&args.file);
                (spec.length, spec.limit) = (args.length, args.limit);
                TaskSpec::Qa(spec)
            }
        })
    }
}

impl CommonArgs {
    /// The settings with their configurations, all checked.
    pub fn settings(&self) -> Result<Vec<(Setting, EngineConfig)>> {
        let base =
            EngineConfig::default().with_hot_window(self.hot_window).with_prefill_chunk(self.chunk);
        let mut settings = Vec::new();
        for setting in Setting::grid(&self.kv, &self.sinks)? {
            let config = setting.apply(base.clone());
            config.validate()?;
            settings.push((setting, config));
        }
        Ok(settings)
    }
}
