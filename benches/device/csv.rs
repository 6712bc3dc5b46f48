//! Rows of `--shape` as CSV, each written as soon as it is known.

use crate::ask::Ask;
use crate::attention::{AttentionWork, Case, Part};
use crate::kv::{KvShape, Order, kind_of};
use crate::roofs;
use crate::room;
use crate::work::{Sampled, Timer, Work};
use anyhow::{Context, Result, bail, ensure};
use half::f16;
use kvfold::backend::driver::{Device, DeviceStream};
use kvfold::cache::RowKind;
use std::fs::File;
use std::io::{Write, stdout};
use time::OffsetDateTime;

const COLUMNS: &str = "device,commit,date,kernel,heads,kv_heads,d,format,kind,batch,length,q_len,\
                       layers,bytes,flops,us,spread,gb_per_s,of_read,tflop_per_s,note";

/// Pages of one layer that the emulated device takes in some seconds.
const EMULATED_BYTES: u64 = 8 << 20;

/// Measures all that was asked for.
///
/// # Errors
/// What the device says, and a file that cannot be written. A cell that does not fit or has
/// no kernel is a row that says so.
pub fn measure(ask: &Ask, device: &Device) -> Result<()> {
    let mut timer = Timer::new(device)?;
    let read = roofs::read(&mut timer)?;
    eprintln!("{}: read-only reduction {:.2} TB/s", device.info().name, read / 1e12);
    run(ask, device, &mut |case, part, layers| {
        let mut work = case.captured(part, layers, device, &timer.stream)?;
        Ok(Some((timer.sample(&mut work)?, read)))
    })
}

/// Runs all that was asked for on the emulated device, untimed.
///
/// # Errors
/// An output that is not written, and shapes too large for it.
pub fn check(ask: &Ask, device: &Device) -> Result<()> {
    let stream = device.stream()?;
    for case in cases(ask) {
        let bytes = case.kv.layer_bytes() * ask.layers as u64;
        ensure!(
            bytes <= EMULATED_BYTES,
            "the emulated device is slow, and {} x {} tokens are {} MiB; lower --lengths, --batch or \
             --layers to {} MiB",
            case.kv.batch,
            case.kv.context,
            bytes >> 20,
            EMULATED_BYTES >> 20
        );
    }
    run(ask, device, &mut |case, part, layers| {
        written(case, part, layers, device, &stream)?;
        Ok(None)
    })
}

/// Whether a call, and a part of it behind it, leaves all outputs written.
fn written(
    case: &Case,
    part: Part,
    layers: usize,
    device: &Device,
    stream: &DeviceStream,
) -> Result<()> {
    let mut work = AttentionWork::new(case, layers, 1, device, stream)?;
    work.out.fill(0xff, stream)?; // NaN
    work.lse.fill(0xff, stream)?;
    work.enqueue(layers - 1, stream)?;
    work.part = Some(part);
    work.enqueue(layers - 1, stream)?;
    let (out, lse) = work.results(stream)?;
    let finite = out.iter().all(|x| f16::from_bits(*x).is_finite());
    ensure!(finite && lse.iter().all(|x| x.is_finite()), "{:?}: an output is not written", case.kv);
    Ok(())
}

/// The time of a part and the read-only reduction's rate, or nothing where nothing is timed.
type Measure<'a> = dyn FnMut(&Case, Part, usize) -> Result<Option<(Sampled, f64)>> + 'a;

fn run(ask: &Ask, device: &Device, measure: &mut Measure<'_>) -> Result<()> {
    let mut rows = Rows::new(ask, device)?;
    for case in cases(ask) {
        // An emulated device has no cache to outrun.
        let turns = if ask.emulated { 1 } else { case.layers(device) };
        let layers = ask.layers.max(turns);
        let parts: &[Part] = match case.kv.kind {
            RowKind::Generated => &[Part::Step, Part::Plan, Part::Attend, Part::Merge],
            RowKind::Prompt => &[Part::Step],
        };
        for &part in parts {
            let outcome = match room::lacking(case.memory(layers), device)? {
                Some(why) => Err(why),
                None => match measure(&case, part, layers) {
                    Ok(measured) => Ok(measured),
                    Err(error) => match error.downcast::<kvfold::Error>()? {
                        error @ kvfold::Error::Unsupported { .. } => Err(error.to_string()),
                        error => bail!(error),
                    },
                },
            };
            rows.write(&case, part, layers, outcome)?;
        }
    }
    Ok(())
}

fn cases(ask: &Ask) -> Vec<Case> {
    let mut cases = Vec::new();
    for &format in &ask.formats {
        for &context in &ask.lengths {
            for &batch in &ask.batches {
                for q_len in ask.q_lens.iter().map(|q_len| q_len.unwrap_or(context)) {
                    let kind = ask.kind.unwrap_or(kind_of(q_len));
                    let (kv_heads, head_dim) = (ask.kv_heads, ask.head_dim);
                    let kv = KvShape { kv_heads, head_dim, format, batch, context, q_len, kind };
                    cases.push(Case { heads: ask.heads, kv, order: Order::Shuffled, causal: true });
                }
            }
        }
    }
    cases
}

struct Rows {
    to: Box<dyn Write>,
    file: String,
    /// Device, commit and date of each row.
    about: String,
}

impl Rows {
    fn new(ask: &Ask, device: &Device) -> Result<Self> {
        let file = ask.csv.clone().unwrap_or_else(|| "-".into());
        let to: Box<dyn Write> = match &ask.csv {
            None => Box::new(stdout()),
            Some(file) => Box::new(
                File::create(file).with_context(|| format!("--csv {file}: cannot write it"))?,
            ),
        };
        let commit = std::env::var("KVFOLD_COMMIT").unwrap_or_else(|_| "unknown".into());
        let name = quoted(&device.info().name);
        let about = format!("{name},{},{}", quoted(&commit), OffsetDateTime::now_utc().date());
        let mut rows = Self { to, file, about };
        rows.line(COLUMNS)?;
        Ok(rows)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let written = writeln!(self.to, "{line}").and_then(|()| self.to.flush());
        written.with_context(|| format!("--csv {}: cannot write it", self.file))
    }

    fn write(
        &mut self,
        case: &Case,
        part: Part,
        layers: usize,
        outcome: Result<Option<(Sampled, f64)>, String>,
    ) -> Result<()> {
        let line = format!("{},{}", self.about, row(case, part, layers, outcome));
        self.line(&line)
    }
}

/// A row, but for what all have.
fn row(
    case: &Case,
    part: Part,
    layers: usize,
    outcome: Result<Option<(Sampled, f64)>, String>,
) -> String {
    let KvShape { kv_heads, head_dim, format, batch, context, q_len, kind } = case.kv;
    let generated = kind == RowKind::Generated;
    // A prompt's step is its one kernel.
    let kernel = if generated { part } else { Part::Attend }.name(generated);
    let kind = if generated { "generated" } else { "prompt" };
    let (bytes, flops) = (case.bytes_of(part), case.flops_of(part));
    let of = |n: u64, text: String| if n > 0 { text } else { String::new() };
    let rates = match outcome {
        Ok(Some((Sampled { median, spread }, read))) => {
            let rate = bytes as f64 / median;
            let (gb, share) = (format!("{:.1}", rate / 1e9), format!("{:.4}", rate / read));
            let tflops = format!("{:.2}", flops as f64 / median / 1e12);
            let (gb, share, tflops) = (of(bytes, gb), of(bytes, share), of(flops, tflops));
            format!("{:.3},{spread:.4},{gb},{share},{tflops},", 1e6 * median)
        }
        Ok(None) => ",,,,,not timed".into(),
        Err(why) => format!(",,,,,{}", quoted(&format!("skipped: {why}"))),
    };
    let (bytes, flops) = (of(bytes, bytes.to_string()), of(flops, flops.to_string()));
    format!(
        "{kernel},{},{kv_heads},{head_dim},{format},{kind},{batch},{context},{q_len},{layers},\
         {bytes},{flops},{rates}",
        case.heads
    )
}

/// As a field of CSV.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

/// Whether all combinations become rows, in order, and rows say what was measured.
pub fn test(device: &Device) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rows.csv");
    let words = "--shape heads=4,kv_heads=2,d=64 --lengths 100,200 --batch 1,2 --formats f16,kf2 \
                 --q-len 1,all --layers 2 --emulated --csv";
    let words = words.split_whitespace().map(str::to_owned);
    let ask = Ask::parse(words.chain([file.display().to_string()]))?;
    check(&ask, device)?;
    let text = std::fs::read_to_string(&file)?;
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.rsplit(',').collect()).collect();
    // Formats, lengths, batches; four kernels of generated rows and one of a prompt.
    ensure!(rows.len() == 1 + 2 * 2 * 2 * (4 + 1), "{text}");
    let kernels = ["step", "plan", "decode", "merge", "prefill"];
    for (row, kernel) in rows[1..].iter().zip(kernels.iter().cycle()) {
        // From the end, where nothing is quoted: the note, the kernel before it.
        ensure!(row[0] == "not timed" && row[17] == *kernel && row[8] == "2", "{row:?}");
    }
    let columns = COLUMNS.split(',').count();
    ensure!(columns == 21 && rows[0].len() == columns, "{columns} columns");

    let case = cases(&ask)[0];
    let sampled = Sampled { median: 1e-6, spread: 0.25 };
    let said = row(&case, Part::Step, 2, Ok(Some((sampled, 1e12))));
    // 100 rows of two heads in 16 bits, keys and values; queries and outputs of four.
    let bytes = 100 * 2 * 2 * 64 * 2 + 2 * 4 * 64 * 2;
    let flops = 4 * 100 * 64 * 4;
    let want = format!(
        "step,4,2,64,f16,generated,1,100,1,2,{bytes},{flops},1.000,0.2500,{:.1},{:.4},{:.2},",
        bytes as f64 / 1e3,
        bytes as f64 / 1e6,
        flops as f64 / 1e6
    );
    ensure!(said == want, "{said}, not {want}");
    let said = row(&case, Part::Plan, 2, Err("a, b".into()));
    ensure!(said.ends_with(",,,,,,,\"skipped: a, b\""), "{said}");
    Ok(())
}
