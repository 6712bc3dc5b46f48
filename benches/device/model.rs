//! Whole models: prefill, and decoding captured and uncaptured.
//!
//! A cell has a prompt of random tokens, computed once; other sequences of a batch get
//! copies of its blocks, so that each has memory of its own. Then its sequences are
//! decoded, all as one batch, from forks, so that every run begins at the same place.
//! Times are those of the host's clock, host work and tokens' way to the host included.
//!
//! The floor of a step is what it must read, its weights once and its KV pages once,
//! over the rate of the read-only reduction: `of read` is the floor as a fraction of
//! the step. Names: `model/llama-8b/kivi2/b16/24k/captured`.

use crate::goals::{Bound, Goal};
use crate::kv::{KvShape, kind_of};
use crate::row::{Outcome, Row};
use crate::shape::{DEFAULT, LLAMA_8B, ModelShape, multiplied};
use crate::subject::{Subject, WARM_UP, weight_bytes};
use half::{bf16, f16};
use kvfold::backend::cuda::element::Element;
use kvfold::backend::driver::Device;
use kvfold::cache::SeqId;
use kvfold::codec::{Codec, KvFormat};
use kvfold::{Error, Result};
use std::fmt::Write;

const BATCHES: [usize; 2] = [1, 16];
const CONTEXTS: [usize; 3] = [1 << 10, 8 << 10, 24 << 10];
/// 16 bits are those of the model.
const FORMATS: [Option<Codec>; 3] = [None, Some(Codec::Kivi4), Some(Codec::Kivi2)];
/// As many as a page has tokens: one page of each sequence is sealed meanwhile.
pub const STEPS: usize = 64;
/// Captured runs, of which the median counts.
const RUNS: usize = 3;
/// What the driver and activations take besides.
const SPARE: u64 = 1 << 30;

/// A cell of decoding.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub codec: Option<Codec>,
    pub batch: usize,
    pub context: usize,
}

/// Seconds, and whether tokens were the same in all runs.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Of a prompt; with one sequence only.
    pub prefill: Option<f64>,
    pub captured: f64,
    pub uncaptured: f64,
    pub same: bool,
}

/// A case and what came of it.
pub struct Measured {
    name: String,
    batch: usize,
    context: usize,
    /// Bytes that a step must read.
    floor: u64,
    /// Operations of a prompt.
    prefill_flops: u64,
    times: std::result::Result<Times, String>,
}

impl Case {
    pub fn format(&self, own: Codec) -> Result<KvFormat> {
        match self.codec {
            None => Ok(KvFormat::uniform(own)),
            Some(codec) => KvFormat::uniform(codec).with_hot(own),
        }
    }

    fn name(&self, shape: &ModelShape) -> String {
        let codec = self.codec.map_or("16bit", Codec::name);
        format!("model/{}/{codec}/b{}/{}k", shape.name, self.batch, self.context >> 10)
    }

    fn is_quick(&self, shape: &ModelShape) -> bool {
        self.codec != Some(Codec::Kivi4)
            && match shape.name {
                "default" => self.batch == 1 && self.context == 1 << 10,
                _ => self.batch == 16 && self.context == 24 << 10,
            }
    }
}

/// Both models, or those cells whose names contain `filter`.
pub fn all(device: &Device, quick: bool, filter: Option<&str>) -> Result<Vec<Measured>> {
    let mut all = of::<f16>(&DEFAULT, device, quick, filter)?;
    all.extend(of::<bf16>(&LLAMA_8B, device, quick, filter)?);
    Ok(all)
}

fn of<T: Element>(
    shape: &ModelShape,
    device: &Device,
    quick: bool,
    filter: Option<&str>,
) -> Result<Vec<Measured>> {
    let mut cases = Vec::new();
    for context in CONTEXTS {
        for batch in BATCHES {
            cases.extend(FORMATS.map(|codec| Case { codec, batch, context }));
        }
    }
    cases.retain(|case| {
        let wanted = filter.is_none_or(|part| case.name(shape).contains(part));
        wanted && (case.is_quick(shape) || !quick)
    });
    let mut subject = None;
    let mut all = Vec::new();
    for case in cases {
        let measured = measure::<T>(shape, &case, device, &mut subject)?;
        println!("{}", measured.line());
        all.push(measured);
    }
    Ok(all)
}

/// Measures a case. The model is made when the first case needs it.
fn measure<T: Element>(
    shape: &ModelShape,
    case: &Case,
    device: &Device,
    subject: &mut Option<Subject<T>>,
) -> Result<Measured> {
    let config = shape.config()?;
    let tried = try_measure(shape, case, device, subject);
    let times = match tried {
        Err(
            why @ (Error::DeviceOutOfMemory { .. }
            | Error::KvBudget { .. }
            | Error::Unsupported { .. }
            | Error::NoCublasLt { .. }),
        ) => Err(why.to_string()),
        other => Ok(other?),
    };
    let middle = case.context + WARM_UP + STEPS / 2;
    let kv = KvShape {
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        format: case.format(T::CODEC)?,
        batch: case.batch,
        context: middle,
        q_len: 1,
        kind: kind_of(1),
    };
    let n = case.context as u64;
    let head = (config.vocab * config.hidden) as u64;
    let pairs = n * (n + 1) / 2;
    let attention = 4 * pairs * (config.q_width() * config.layers) as u64;
    Ok(Measured {
        name: case.name(shape),
        batch: case.batch,
        context: case.context,
        floor: multiplied(&config) * size_of::<T>() as u64 + kv.read_bytes() * config.layers as u64,
        prefill_flops: 2 * n * (multiplied(&config) - head) + attention,
        times,
    })
}

fn try_measure<T: Element>(
    shape: &ModelShape,
    case: &Case,
    device: &Device,
    subject: &mut Option<Subject<T>>,
) -> Result<Times> {
    let subject = match subject {
        Some(subject) => subject,
        None => {
            let (needed, free) = (weight_bytes::<T>(shape)? + SPARE, device.memory()?.free);
            if needed > free {
                return Err(Error::DeviceOutOfMemory { needed, free });
            }
            subject.insert(Subject::new(shape, device)?)
        }
    };
    let format = case.format(T::CODEC)?;
    let tokens = case.context + WARM_UP + STEPS;
    let budget = subject.kv_bytes(format, case.batch, tokens)?;
    if let Some(free) = subject.free_memory()?
        && budget + SPARE > free
    {
        return Err(Error::DeviceOutOfMemory { needed: budget + SPARE, free });
    }
    subject.configure(format, budget)?;
    let mut base = subject.prompt(case.context, case.batch)?;
    let mut prefill = None;
    if case.batch == 1 {
        subject.free(&base)?;
        let (seconds, seqs) = subject.time_prompt(case.context)?;
        (prefill, base) = (Some(seconds), seqs);
    }
    decode(subject, &base, prefill, STEPS)
}

/// Steps of the default model for one sequence of 1k tokens, captured: for a profiler.
pub fn step(device: &Device) -> Result<()> {
    const STEPS: usize = 256;
    let mut subject = Subject::<f16>::new(&DEFAULT, device)?;
    let format = KvFormat::uniform(Codec::Kivi2);
    let context = 1 << 10;
    let budget = subject.kv_bytes(format, 1, context + WARM_UP + STEPS)?;
    subject.configure(format, budget)?;
    let base = subject.prompt(context, 1)?;
    let seconds = subject.decode(&base, STEPS)?.seconds;
    println!("{STEPS} captured steps, {:.1} us each", 1e6 * seconds);
    Ok(())
}

/// Several captured runs and one uncaptured.
pub fn decode<T: Element>(
    subject: &mut Subject<T>,
    base: &[SeqId],
    prefill: Option<f64>,
    steps: usize,
) -> Result<Times> {
    subject.backend_mut().set_capturing(true)?;
    let runs = (0..RUNS).map(|_| subject.decode(base, steps)).collect::<Result<Vec<_>>>()?;
    subject.backend_mut().set_capturing(false)?;
    let uncaptured = subject.decode(base, steps)?;
    subject.backend_mut().set_capturing(true)?;
    let same = runs.iter().all(|run| run.tokens == uncaptured.tokens);
    let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    Ok(Times { prefill, captured: seconds[RUNS / 2], uncaptured: uncaptured.seconds, same })
}

impl Measured {
    /// Rows of the report: the prompt, captured and uncaptured steps.
    pub fn rows(&self) -> Vec<Row> {
        let row = |name: &str, bytes, flops, outcome| Row {
            name: format!("{}/{name}", self.name),
            bytes,
            flops,
            outcome,
        };
        let times = match &self.times {
            Ok(times) => times,
            Err(why) => return vec![row("captured", 0, 0, Outcome::Skipped(why.clone()))],
        };
        let step = |name, seconds| row(name, self.floor, 0, Outcome::Measured(seconds));
        let mut rows = vec![step("captured", times.captured), step("uncaptured", times.uncaptured)];
        let prefill = times.prefill.map(Outcome::Measured);
        rows.extend(prefill.map(|outcome| row("prefill", 0, self.prefill_flops, outcome)));
        rows
    }

    /// In words.
    fn line(&self) -> String {
        let times = match &self.times {
            Ok(times) => times,
            Err(why) => return format!("{}: skipped: {why}", self.name),
        };
        let mut text = format!(
            "{:<32} {:>9.3} ms captured {:>9.3} ms uncaptured {:>9.0} tokens/s",
            self.name,
            1e3 * times.captured,
            1e3 * times.uncaptured,
            self.batch as f64 / times.captured,
        );
        if let Some(seconds) = times.prefill {
            let _ = write!(text, ", prefill {:.0} tokens/s", self.context as f64 / seconds);
        }
        if !times.same {
            text += ", TOKENS DIFFER between runs";
        }
        text
    }
}

/// One line a case, and how much faster a step is than with 16-bit pages.
pub fn table(all: &[Measured]) -> String {
    let mut text = String::new();
    for measured in all {
        let _ = match over_16_bit(all, measured) {
            Some((ratio, _)) => writeln!(text, "{}, {ratio:.2} x 16-bit", measured.line()),
            None => writeln!(text, "{}", measured.line()),
        };
    }
    text
}

/// How much faster than the same step over 16-bit pages.
fn over_16_bit(all: &[Measured], measured: &Measured) -> Option<(f64, String)> {
    let Measured { name, times: Ok(times), .. } = measured else { return None };
    let codec = name.split('/').nth(2).filter(|&codec| codec != "16bit")?;
    let reference = name.replace(&format!("/{codec}/"), "/16bit/");
    let reference = all.iter().find(|other| other.name == reference)?;
    Some((reference.times.as_ref().ok()?.captured / times.captured, name.clone()))
}

/// Whether the case is one of the largest, for which goals count: the 8B model, 16
/// sequences of 24k tokens.
fn is_large(measured: &Measured) -> bool {
    measured.name.starts_with(&format!("model/{}/", LLAMA_8B.name))
        && (measured.batch, measured.context) == (16, 24 << 10)
}

/// What whole models must reach; `read` is the rate of the read-only reduction.
pub fn goals(all: &[Measured], read: f64) -> Vec<Goal> {
    let large = || all.iter().filter(|measured| is_large(measured));
    let kivi2 = large().filter(|measured| measured.name.contains("/kivi2/"));
    let of_floor = large().filter_map(|measured| {
        let seconds = measured.times.as_ref().ok()?.captured;
        Some((100.0 * measured.floor as f64 / read / seconds, measured.name.clone()))
    });
    let differ = all.iter().filter_map(|measured| {
        let same = measured.times.as_ref().ok()?.same;
        Some((if same { 0.0 } else { 1.0 }, measured.name.clone()))
    });
    vec![
        Goal::new(
            "8B model, 16 x 24k tokens: a KIVI-2 step >= 2.1 x a 16-bit one",
            Bound::AtLeast(2.1),
            " x",
            kivi2.filter_map(|measured| over_16_bit(all, measured)),
        ),
        Goal::new(
            "8B model, 16 x 24k tokens: the floor >= 80 % of a captured step",
            Bound::AtLeast(80.0),
            " %",
            of_floor,
        ),
        Goal::new(
            "greedy tokens the same in all runs, captured or not: runs that differ",
            Bound::AtMost(0.0),
            "",
            differ,
        ),
    ]
}

/// With made-up times the goals find their cells, are reached when they should be, and
/// rows say what was measured.
pub fn check_goals() -> anyhow::Result<()> {
    let made_up = |codec, slow: f64, same| {
        let case = Case { codec, batch: 16, context: 24 << 10 };
        let floor = if codec.is_none() { 60e9 } else { 24e9 };
        let step = slow * floor / 3e12;
        let times = Times { prefill: None, captured: step, uncaptured: 1.1 * step, same };
        Measured {
            name: case.name(&LLAMA_8B),
            batch: case.batch,
            context: case.context,
            floor: floor as u64,
            prefill_flops: 0,
            times: Ok(times),
        }
    };
    let verdicts = |slow, same| {
        let kivi2 = made_up(Some(Codec::Kivi2), slow, same);
        let all = [made_up(None, 1.05, true), kivi2];
        let reached = goals(&all, 3e12).iter().map(Goal::reached).collect::<Vec<_>>();
        (reached, table(&all), all.iter().flat_map(Measured::rows).count())
    };
    let (reached, table, rows) = verdicts(1.1, true);
    anyhow::ensure!(reached == [Some(true); 3] && rows == 4, "{table}");
    anyhow::ensure!(table.contains("2.39 x 16-bit") && !table.contains("DIFFER"), "{table}");
    let (reached, table, _) = verdicts(1.4, false);
    anyhow::ensure!(reached == [Some(false); 3] && table.contains("DIFFER"), "{table}");
    anyhow::ensure!(goals(&[], 3e12).iter().all(|goal| goal.reached().is_none()), "nothing ran");
    Ok(())
}
