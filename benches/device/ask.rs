//! `--shape`: what a kernel author asks to be measured, in words of the command line.

use anyhow::{Context, Result, bail, ensure};
use kvfold::cache::RowKind;
use kvfold::codec::KvFormat;

pub const HELP: &str = "\
Times attention kernels of any shape on the first CUDA device, as CSV:

  device --bench --shape heads=32,kv_heads=8,d=128 [OPTION VALUE]...

  --lengths 4096,32k   tokens cached, the queries among them           [4096]
  --batch 1,16         sequences of that length                        [1]
  --formats f16,kf2    formats of KV pages, as kvfold names them       [f16]
  --q-len 1,4          queries a sequence; all: as many as tokens      [1]
  --kind KIND          generated: decode kernels; prompt: prefill.     [prompt from 17 on]
  --layers 32          layers whose pages share a block, as a model's do [1]
  --csv FILE           where rows go, each as it is measured; -: the standard output [-]
  --emulated           no GPU: runs small shapes on the emulated device, checks that all
                       rows are written, and times nothing. --test does the same

All lists are combined. Generated rows give four rows of CSV: step (a call of a captured
step of 32 calls and one plan), plan, decode and merge (each kernel alone, likewise
captured); a prompt gives one. Times are the medians of 7 samples in microseconds; spread is the slowest
less the fastest over the median; of_read compares with a read-only reduction that the same
run measures. Where a layer's pages would stay in the L2 cache, more layers take turns.
";

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub lengths: Vec<usize>,
    pub batches: Vec<usize>,
    pub formats: Vec<KvFormat>,
    /// None: all tokens.
    pub q_lens: Vec<Option<usize>>,
    /// None: by the number of queries.
    pub kind: Option<RowKind>,
    pub layers: usize,
    /// None: standard output.
    pub csv: Option<String>,
    pub emulated: bool,
}

impl Ask {
    /// From the words behind the program's name.
    ///
    /// # Errors
    /// One line that names the option, what is wrong with it, and how to mend it.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut ask = Self {
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            lengths: vec![4096],
            batches: vec![1],
            formats: list("--formats", "f16", format)?,
            q_lens: vec![Some(1)],
            kind: None,
            layers: 1,
            csv: None,
            emulated: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words.next().with_context(|| format!("{word} lacks its value; --help says which"))
            };
            match word.as_str() {
                "--bench" => {}
                "--emulated" | "--test" => ask.emulated = true,
                "--shape" => ask.shape(&value()?)?,
                "--lengths" => ask.lengths = list(&word, &value()?, number)?,
                "--batch" => ask.batches = list(&word, &value()?, number)?,
                "--formats" => ask.formats = list(&word, &value()?, format)?,
                "--q-len" => ask.q_lens = list(&word, &value()?, queries)?,
                "--kind" => {
                    ask.kind = Some(match value()?.as_str() {
                        "generated" => RowKind::Generated,
                        "prompt" => RowKind::Prompt,
                        other => bail!("--kind {other}: it is generated or prompt"),
                    })
                }
                "--layers" => ask.layers = number(&value()?).context("--layers")?,
                "--csv" => ask.csv = Some(value()?).filter(|file| file != "-"),
                _ => bail!("{word} is no option beside --shape; --help lists them"),
            }
        }
        let longest = |q_len: &Option<usize>| q_len.unwrap_or(1);
        let (q_len, length) = (ask.q_lens.iter().map(longest).max(), ask.lengths.iter().min());
        if let (Some(q_len), Some(length)) = (q_len, length) {
            ensure!(
                q_len <= *length,
                "--q-len {q_len}: a length of {length} has fewer tokens, and queries are among \
                 them; raise --lengths or lower --q-len"
            );
        }
        Ok(ask)
    }

    fn shape(&mut self, value: &str) -> Result<()> {
        for part in value.split(',') {
            let (name, value) = part.split_once('=').with_context(|| {
                format!("--shape {part}: write it as heads=32,kv_heads=8,d=128")
            })?;
            let field = match name {
                "heads" => &mut self.heads,
                "kv_heads" => &mut self.kv_heads,
                "d" => &mut self.head_dim,
                _ => bail!("--shape {name}: there are heads, kv_heads and d"),
            };
            *field = number(value).with_context(|| format!("--shape {name}"))?;
        }
        for (name, field) in
            [("heads", self.heads), ("kv_heads", self.kv_heads), ("d", self.head_dim)]
        {
            ensure!(field > 0, "--shape lacks {name}: write it as heads=32,kv_heads=8,d=128");
        }
        ensure!(
            self.heads.is_multiple_of(self.kv_heads),
            "--shape: {} heads are no multiple of {} kv_heads",
            self.heads,
            self.kv_heads
        );
        Ok(())
    }
}

fn list<T>(option: &str, value: &str, item: fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let item = |word| item(word).with_context(|| option.to_owned());
    value.split(',').map(item).collect()
}

/// A number from 1 to 2^24, or so many times 1024: `4k`.
fn number(word: &str) -> Result<usize> {
    let (digits, unit) = match word.strip_suffix('k') {
        Some(digits) => (digits, 1 << 10),
        None => (word, 1),
    };
    let number = digits.parse().ok().and_then(|n: usize| n.checked_mul(unit));
    match number {
        Some(n @ 1..=0x100_0000) => Ok(n),
        _ => bail!("\"{word}\" is no number from 1 to 16384k, such as 4096 or 4k"),
    }
}

fn queries(word: &str) -> Result<Option<usize>> {
    if word == "all" { Ok(None) } else { number(word).map(Some) }
}

fn format(word: &str) -> Result<KvFormat> {
    Ok(word.parse()?)
}

/// What the parser says, of good words and of bad ones.
pub fn check() -> Result<()> {
    let parse = |line: &str| Ask::parse(line.split(' ').map(str::to_owned));
    let good = "--bench --shape heads=32,kv_heads=8,d=128 --lengths 4096,32k --batch 1,16 \
                --formats f16,kivi4/kivi2 --q-len 1,all --kind prompt --layers 32 --csv -";
    let ask = parse(good)?;
    ensure!((ask.heads, ask.kv_heads, ask.head_dim, ask.layers) == (32, 8, 128, 32), "{ask:?}");
    ensure!(ask.lengths == [4096, 32768] && ask.batches == [1, 16], "{ask:?}");
    ensure!(ask.formats[1].to_string() == "kivi4/kivi2" && ask.formats.len() == 2, "{ask:?}");
    ensure!(ask.q_lens == [Some(1), None] && ask.kind == Some(RowKind::Prompt), "{ask:?}");
    ensure!(ask.csv.is_none() && !ask.emulated, "{ask:?}");
    ensure!(parse("--shape heads=1,kv_heads=1,d=64 --csv x --test")?.csv.as_deref() == Some("x"));
    let shape = "--shape heads=4,kv_heads=2,d=64";
    for (bad, said) in [
        ("--shape heads=32", "lacks kv_heads"),
        ("--shape heads=32,kv_heads=5,d=64", "32 heads are no multiple of 5"),
        ("--shape heads=32,d", "heads=32,kv_heads=8,d=128"),
        ("--shape heads=32,kv_heads=8,dim=128", "there are heads, kv_heads and d"),
        (&format!("{shape} --lengths 4096,x"), "--lengths: \"x\" is no number"),
        (&format!("{shape} --lengths 0"), "--lengths: \"0\" is no number"),
        (&format!("{shape} --batch"), "--batch lacks its value"),
        (&format!("{shape} --formats q8"), "q8"),
        (&format!("{shape} --kind draft"), "generated or prompt"),
        (&format!("{shape} --q-len 5000"), "raise --lengths or lower --q-len"),
        (&format!("{shape} --fast"), "--fast is no option"),
    ] {
        let error = match parse(bad) {
            Err(error) => format!("{error:#}"),
            Ok(ask) => bail!("{bad} is taken: {ask:?}"),
        };
        ensure!(error.contains(said) && error.lines().count() == 1, "{bad}: {error}");
    }
    Ok(())
}
