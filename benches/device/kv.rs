//! A KV cache made by hand: arenas full of pages, and the tables by which the
//! kernels find them, without the bookkeeping of `kvfold::cache`.

use crate::pattern::{PAGES, PageForm};
use crate::random::Random;
use kvfold::Result;
use kvfold::backend::cuda::arenas::Arenas;
use kvfold::backend::cuda::attend::AttentionCall;
use kvfold::backend::cuda::params::{
    KvRun, KvSeq, KvStream, NONE, RUN_HOT, RUN_SEALED, RUN_SINK, SEQ_PROMPT,
};
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream};
use kvfold::backend::{Geometry, KvGroup};
use kvfold::cache::{ClassDesc, ClassId, ClassKind, RowKind};
use kvfold::codec::{KvFormat, TILE_TOKENS};

/// S and R of all cells: kvfold's defaults.
pub const SINKS: usize = 4;
pub const HOT_WINDOW: usize = 128;
/// The most queries that are taken for generated ones, unless a cell says what they are.
const VERIFIED: usize = 16;

/// What `q_len` queries are: generated ones, or a chunk of a prompt.
pub fn kind_of(q_len: usize) -> RowKind {
    if q_len <= VERIFIED { RowKind::Generated } else { RowKind::Prompt }
}

/// How the blocks of a sequence lie in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Contiguous,
    Shuffled,
}

/// What is cached: `batch` sequences of `context` tokens, the last `q_len` of which
/// are the queries.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub format: KvFormat,
    pub batch: usize,
    pub context: usize,
    pub q_len: usize,
    pub kind: RowKind,
}

/// Pages of one sequence, by ARCHITECTURE, rule 1: all queries see `sealed`
/// pages sealed at most, and the pages from `hot_from` on in 16 bits at least.
struct Pages {
    sinks: usize,
    sealed: usize,
    hot_from: usize,
}

impl KvShape {
    fn pages(&self) -> Pages {
        if !self.format.seals() {
            return Pages { sinks: 0, sealed: 0, hot_from: 0 };
        }
        let sinks = SINKS.min(self.context);
        let bound = |query: usize| {
            (query.saturating_sub(sinks) / TILE_TOKENS).saturating_sub(HOT_WINDOW / TILE_TOKENS)
        };
        let (first, last) = (self.context - self.q_len, self.context - 1);
        Pages { sinks, sealed: bound(last), hot_from: bound(first) }
    }

    /// Whether its queries are generated rows.
    pub fn generated(&self) -> bool {
        self.kind == RowKind::Generated
    }

    fn form(&self, kind: ClassKind) -> PageForm {
        let hot = self.format.hot();
        let (key, value, tokens) = match kind {
            ClassKind::Sealed => (self.format.key, self.format.value, TILE_TOKENS),
            ClassKind::Sink => (hot, hot, SINKS),
            _ => (hot, hot, TILE_TOKENS),
        };
        PageForm { key, value, head_dim: self.head_dim, tokens }
    }

    /// The runs of every sequence, each with an arena of its own.
    fn runs(&self) -> Vec<Run> {
        let p = self.pages();
        let run = |kind, first_page, tokens: usize| Run { kind, first_page, tokens };
        let hot = self.context - p.sinks - p.hot_from * TILE_TOKENS;
        let mut runs = vec![
            run(ClassKind::Sink, 0, p.sinks),
            run(ClassKind::Sealed, 0, p.sealed * TILE_TOKENS),
            run(ClassKind::Hot, p.hot_from, hot),
        ];
        runs.retain(|run| run.tokens > 0);
        runs
    }

    /// Bytes of the pages of one layer.
    pub fn layer_bytes(&self) -> u64 {
        let bytes = |run: Run| run.pages() * self.form(run.kind).page_bytes();
        let sequence: usize = self.runs().into_iter().map(bytes).sum();
        (sequence * self.kv_heads * self.batch) as u64
    }

    /// Bytes of one layer that attention must read: each page in one form, and of a
    /// page that is being filled its rows.
    pub fn read_bytes(&self) -> u64 {
        let p = self.pages();
        let row = self.form(ClassKind::Hot).page_bytes() / TILE_TOKENS;
        let rows = self.context - p.sealed * TILE_TOKENS;
        let sequence = rows * row + p.sealed * self.form(ClassKind::Sealed).page_bytes();
        (sequence * self.kv_heads * self.batch) as u64
    }
}

#[derive(Clone, Copy)]
struct Run {
    kind: ClassKind,
    /// On the page grid.
    first_page: usize,
    tokens: usize,
}

impl Run {
    fn pages(&self) -> usize {
        self.tokens.div_ceil(TILE_TOKENS)
    }
}

/// Device memory of such a cache.
pub struct KvArenas {
    shape: KvShape,
    layers: usize,
    arenas: Arenas,
    runs: DeviceBuffer<KvRun>,
    streams: DeviceBuffer<KvStream>,
    seqs: DeviceBuffer<KvSeq>,
    table: DeviceBuffer<u32>,
}

impl KvArenas {
    /// A cache of `layers` layers. All share one table, as those of a model do.
    ///
    /// # Errors
    /// [`kvfold::Error::DeviceOutOfMemory`].
    pub fn new(
        shape: KvShape,
        layers: usize,
        order: Order,
        device: &Device,
        stream: &DeviceStream,
    ) -> Result<Self> {
        let arenas = arenas(&shape, layers, device, stream)?;
        let mut random = Random::new(7);
        let blocks: Vec<_> = (shape.runs().iter())
            .map(|run| numbers(run.pages() * shape.batch, order, &mut random))
            .collect();
        let mut tables = Tables::default();
        (0..shape.batch).for_each(|seq| tables.add(&shape, seq, &blocks));
        Ok(Self {
            shape,
            layers,
            arenas,
            runs: device.upload(&tables.runs, stream)?,
            streams: device.upload(&tables.streams, stream)?,
            seqs: device.upload(&tables.seqs, stream)?,
            table: device.upload(&tables.table, stream)?,
        })
    }

    /// A call over layer `turn % layers`; queries and outputs are still to be named.
    pub fn call(&self, turn: usize) -> AttentionCall {
        AttentionCall {
            seqs: self.seqs.address(),
            n_seqs: self.shape.batch,
            max_generated: if self.shape.generated() { self.shape.q_len } else { 0 },
            max_prompt: if self.shape.generated() { 0 } else { self.shape.q_len },
            streams: self.streams.address(),
            runs: self.runs.address(),
            table: self.table.address(),
            arenas: self.arenas.table(),
            layer: turn % self.layers,
            ..AttentionCall::default()
        }
    }
}

/// One arena a run, full of pages.
fn arenas(
    shape: &KvShape,
    layers: usize,
    device: &Device,
    stream: &DeviceStream,
) -> Result<Arenas> {
    let group = KvGroup {
        layers,
        kv_heads: shape.kv_heads,
        geometry: Geometry::gqa(shape.head_dim),
        format: shape.format,
        streams: None,
        sinks: SINKS,
        hot_window: HOT_WINDOW,
        rope: None,
        window: None,
    };
    let (mut classes, mut blocks) = (Vec::new(), Vec::new());
    for run in shape.runs() {
        let form = shape.form(run.kind);
        let block_bytes = (form.page_bytes() * layers * shape.kv_heads) as u64;
        classes.push(ClassDesc { kind: run.kind, group: 0, page_tokens: form.tokens, block_bytes });
        blocks.push((run.pages() * shape.batch) as u32);
    }
    let mut arenas = Arenas::with_blocks(device, &[group], &classes, &blocks, stream)?;
    for (class, run) in shape.runs().into_iter().enumerate() {
        shape.form(run.kind).write(arenas.memory(ClassId(class as u16))?, stream)?;
    }
    Ok(arenas)
}

/// What the kernels know of the sequences.
#[derive(Default)]
struct Tables {
    runs: Vec<KvRun>,
    streams: Vec<KvStream>,
    seqs: Vec<KvSeq>,
    table: Vec<u32>,
}

impl Tables {
    /// Adds sequence `seq`; `blocks` are those of each arena.
    fn add(&mut self, shape: &KvShape, seq: usize, blocks: &[Vec<u32>]) {
        let (first_run, first_entry) = (self.runs.len() as u32, self.table.len() as u32);
        for (arena, run) in shape.runs().into_iter().enumerate() {
            self.runs.push(KvRun {
                arena: arena as u32,
                kind: match run.kind {
                    ClassKind::Sink => RUN_SINK,
                    ClassKind::Sealed => RUN_SEALED,
                    _ => RUN_HOT,
                },
                first: self.table.len() as u32 - first_entry,
                start: (run.first_page * TILE_TOKENS) as u32,
                n_tokens: run.tokens as u32,
                live: NONE,
                rotation: NONE,
                reserved: 0,
            });
            self.table.extend(&blocks[arena][seq * run.pages()..][..run.pages()]);
        }
        self.streams.push(KvStream {
            first_run,
            n_runs: self.runs.len() as u32 - first_run,
            first_entry,
            first_mask: 0,
            kept: shape.context as u32,
            sealed_bound: 0,
        });
        self.seqs.push(KvSeq {
            first_row: (seq * shape.q_len) as u32,
            q_len: shape.q_len as u32,
            first_stream: seq as u32,
            flags: if shape.generated() { 0 } else { SEQ_PROMPT },
        });
    }
}

/// Block numbers 0 to n. A shuffle exchanges blocks of equal content only, which
/// [`PAGES`] blocks apart are, so that results do not depend on the order.
fn numbers(n: usize, order: Order, random: &mut Random) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..n as u32).collect();
    if order == Order::Shuffled {
        for class in 0..PAGES.min(n) {
            let mut alike: Vec<u32> = (class as u32..n as u32).step_by(PAGES).collect();
            random.shuffle(&mut alike);
            blocks.iter_mut().skip(class).step_by(PAGES).zip(alike).for_each(|(b, a)| *b = a);
        }
    }
    blocks
}
