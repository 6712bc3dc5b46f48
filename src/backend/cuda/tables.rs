//! What the queries of a step read, as the attention kernels want it.

use super::arenas::Arenas;
use super::attend::AttentionCall;
use super::list::DeviceList;
use super::params::{
    KvRun, KvSeq, KvStream, NONE, RUN_HOT, RUN_SEALED, RUN_SINK, SEQ_PROMPT, SEQ_RAGGED,
};
use super::parcel::Parcel;
use crate::backend::driver::{Device, DeviceStream};
use crate::backend::score_pass::Spans;
use crate::backend::{AttendSeq, Rope};
use crate::cache::{BlockRef, GroupView, RowKind, Run, RunKind, StreamView};
use crate::error::{Error, Result};

/// Views of the sequences of a step in one KV group: made once a step, used by
/// every layer, on one stream.
pub struct AttendTables {
    arenas: u64,
    group: usize,
    seqs: DeviceList<KvSeq>,
    streams: DeviceList<KvStream>,
    runs: DeviceList<KvRun>,
    table: DeviceList<u32>,
    masks: DeviceList<u64>,
    rotations: DeviceList<f32>,
    sizes: Sizes,
    uniform: bool,
    /// Tokens that each stream of each sequence keeps; one number where they share a table.
    kept: Vec<Vec<u32>>,
}

/// What a call asks of its buffers and its scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of queries and outputs.
    pub rows: usize,
    /// Sequences, those without queries included.
    pub seqs: usize,
    /// Generated rows, over all sequences.
    pub generated_rows: usize,
    /// The most generated rows of a sequence.
    pub max_generated: usize,
    /// The most rows of a prompt.
    pub max_prompt: usize,
    /// The most tokens that a stream keeps.
    pub tokens: usize,
}

impl Sizes {
    /// The most queries of a sequence.
    pub fn max_q_len(&self) -> usize {
        self.max_generated.max(self.max_prompt)
    }
}

impl AttendTables {
    /// Tables of nothing.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(device: &Device) -> Result<Self> {
        Self::within(device, &Parcel::at_once(device)?)
    }

    /// Tables of nothing that travel in a parcel.
    pub(super) fn within(device: &Device, parcel: &Parcel) -> Result<Self> {
        Ok(Self {
            arenas: 0,
            group: 0,
            seqs: DeviceList::within(device, parcel)?,
            streams: DeviceList::within(device, parcel)?,
            runs: DeviceList::within(device, parcel)?,
            table: DeviceList::within(device, parcel)?,
            masks: DeviceList::within(device, parcel)?,
            rotations: DeviceList::within(device, parcel)?,
            sizes: Sizes::default(),
            uniform: true,
            kept: Vec::new(),
        })
    }

    /// Uploads what the sequences read, and `padding` sequences without queries after
    /// them. `rope` is needed if a run is relocated.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a group or block that does not exist;
    /// [`Error::Misuse`] for a view that does not fit its group, and for a relocated
    /// run without `rope`.
    pub fn set(
        &mut self,
        arenas: &Arenas,
        group: usize,
        seqs: &[AttendSeq<'_>],
        padding: usize,
        rope: Option<&Rope>,
        stream: &DeviceStream,
    ) -> Result<()> {
        self.arenas = 0;
        let mut tables = Tables::new(arenas, group, rope);
        seqs.iter().try_for_each(|seq| tables.add(seq))?;
        tables.seqs.resize(seqs.len() + padding, KvSeq::default());
        tables.sizes.seqs = tables.seqs.len();
        self.seqs.set(&tables.seqs, stream)?;
        self.streams.set(&tables.streams, stream)?;
        self.runs.set(&tables.runs, stream)?;
        self.table.set(&tables.table, stream)?;
        self.masks.set(&tables.masks, stream)?;
        self.rotations.set(&tables.rotations, stream)?;
        self.kept = tables.kept;
        self.uniform = tables.seqs.iter().all(|seq| seq.flags & SEQ_RAGGED == 0);
        (self.arenas, self.group, self.sizes) = (arenas.id(), group, tables.sizes);
        Ok(())
    }

    /// What calls over these tables ask for.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Where the scores of a layer's streams lie.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a layer that a ragged view lacks.
    pub fn spans(&self, kv_heads: usize, layer: usize) -> Result<Spans> {
        Spans::new(self.kept.iter().map(Vec::as_slice), kv_heads, layer)
    }

    /// Whether all streams of each sequence read the same, so that one plan serves all layers.
    pub fn are_uniform(&self) -> bool {
        self.uniform
    }

    /// A call over layer `layer`; `q`, `out` and `lse` are still to be named.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the tables are of other arenas.
    pub fn call(&self, arenas: &Arenas, layer: usize) -> Result<AttentionCall> {
        if self.arenas != arenas.id() {
            return Err(Error::misuse("attend", "the tables are of other arenas"));
        }
        if layer >= arenas.group(self.group)?.layers {
            return Err(Error::NotFound {
                what: format!("KV layer {layer} of group {}", self.group),
            });
        }
        Ok(AttentionCall {
            seqs: self.seqs.address_of(0),
            n_seqs: self.seqs.len(),
            max_generated: self.sizes.max_generated,
            max_prompt: self.sizes.max_prompt,
            streams: self.streams.address_of(0),
            runs: self.runs.address_of(0),
            table: self.table.address_of(0),
            masks: self.masks.address_of(0),
            arenas: arenas.table(),
            rotations: self.rotations.address_of(0),
            layer,
            ..AttentionCall::default()
        })
    }
}

/// The tables while they are made.
struct Tables<'a> {
    arenas: &'a Arenas,
    group: usize,
    rope: Option<&'a Rope>,
    seqs: Vec<KvSeq>,
    streams: Vec<KvStream>,
    runs: Vec<KvRun>,
    table: Vec<u32>,
    masks: Vec<u64>,
    rotations: Vec<f32>,
    /// Shifts that have a row of `rotations`.
    shifts: Vec<i32>,
    sizes: Sizes,
    kept: Vec<Vec<u32>>,
}

impl<'a> Tables<'a> {
    fn new(arenas: &'a Arenas, group: usize, rope: Option<&'a Rope>) -> Self {
        Self {
            arenas,
            group,
            rope,
            seqs: Vec::new(),
            streams: Vec::new(),
            runs: Vec::new(),
            table: Vec::new(),
            masks: Vec::new(),
            rotations: Vec::new(),
            shifts: Vec::new(),
            sizes: Sizes::default(),
            kept: Vec::new(),
        }
    }

    fn add(&mut self, seq: &AttendSeq<'_>) -> Result<()> {
        let group = self.arenas.group(self.group)?;
        let (views, ragged) = match seq.view {
            GroupView::Uniform(view) => (std::slice::from_ref(view), false),
            GroupView::Ragged(views) => (views.as_slice(), true),
        };
        let apart = !seq.view.is_shared();
        let streams = group.layers * group.kv_heads;
        if ragged && views.len() != streams {
            let what = format!("{} views for {} layers", views.len(), group.layers);
            return Err(Error::misuse("view", what));
        }
        self.seqs.push(KvSeq {
            first_row: seq.first_row as u32,
            q_len: seq.q_len as u32,
            first_stream: self.streams.len() as u32,
            flags: if apart { SEQ_RAGGED } else { 0 }
                | if seq.kind == RowKind::Prompt { SEQ_PROMPT } else { 0 },
        });
        self.kept.push(views.iter().map(|view| view.kept).collect());
        let sizes = &mut self.sizes;
        sizes.rows = sizes.rows.max(seq.first_row + seq.q_len);
        match seq.kind {
            RowKind::Generated => {
                sizes.generated_rows += seq.q_len;
                sizes.max_generated = sizes.max_generated.max(seq.q_len);
            }
            RowKind::Prompt => sizes.max_prompt = sizes.max_prompt.max(seq.q_len),
        }
        for view in views {
            let masks = if ragged || !apart { 1 } else { streams };
            self.add_streams(view, masks, seq.q_len, ragged)?;
        }
        Ok(())
    }

    /// Adds as many streams over one table as have masks of their own.
    fn add_streams(
        &mut self,
        view: &StreamView,
        streams: usize,
        q_len: usize,
        ragged: bool,
    ) -> Result<()> {
        if (view.kept as usize) < q_len {
            let what = format!("{q_len} queries, but {} tokens are kept", view.kept);
            return Err(Error::misuse("seqs", what));
        }
        let first_entry = self.table.len() as u32;
        let first_run = self.runs.len() as u32;
        for run in &view.runs {
            self.check(view, run, ragged)?;
            let rotation = self.rotation(run.shift)?;
            self.runs.push(KvRun {
                arena: run.class.0.into(),
                kind: match run.kind {
                    RunKind::Sink => RUN_SINK,
                    RunKind::Sealed => RUN_SEALED,
                    RunKind::Hot => RUN_HOT,
                },
                first: run.first,
                start: run.start,
                n_tokens: run.n_tokens,
                live: run.live.unwrap_or(NONE),
                rotation,
                reserved: 0,
            });
        }
        self.table.extend(&view.table);
        self.sizes.tokens = self.sizes.tokens.max(view.kept as usize);
        for stream in 0..streams {
            self.streams.push(KvStream {
                first_run,
                n_runs: view.runs.len() as u32,
                first_entry,
                first_mask: self.masks.len() as u32,
                kept: view.kept,
                sealed_bound: view.sealed_bound,
            });
            self.masks.extend(view.masks_of(stream));
        }
        Ok(())
    }

    /// Every entry of a run must be a block of the group, of the run's form.
    fn check(&self, view: &StreamView, run: &Run, ragged: bool) -> Result<()> {
        let layout = self.arenas.layout(run.class)?;
        let pages = (run.n_tokens as usize).div_ceil(layout.page_tokens.max(1));
        let (first, masks) = (run.first as usize, run.live.map(|m| m as usize));
        let wrong = |what: String| Err(Error::misuse("view", what));
        if layout.group != self.group || layout.ragged != ragged {
            return wrong(format!("class {} is not one of the stream's", run.class.0));
        }
        let Some(entries) = view.table.get(first..first + pages) else {
            return wrong(format!("a run of {pages} pages exceeds its table"));
        };
        let short = |m: usize| view.masks.iter().any(|column| column.get(m..m + pages).is_none());
        if masks.is_some_and(|m| view.masks.is_empty() || short(m)) {
            return wrong(format!("a run of {pages} pages exceeds its masks"));
        }
        for &index in entries {
            self.arenas.block(BlockRef { class: run.class, index })?;
        }
        Ok(())
    }

    /// The row of `rotations` for a shift.
    fn rotation(&mut self, shift: i32) -> Result<u32> {
        if shift == 0 {
            return Ok(NONE);
        }
        if let Some(row) = self.shifts.iter().position(|s| *s == shift) {
            return Ok(row as u32);
        }
        let half = self.arenas.group(self.group)?.head_dim() / 2;
        let Some(rope) = self.rope.filter(|rope| rope.inv_freq.len() == half) else {
            let what = format!("a run is relocated by {shift}, which needs {half} frequencies");
            return Err(Error::misuse("rope", what));
        };
        for freq in &rope.inv_freq {
            let (sin, cos) = (-f64::from(shift) * freq).sin_cos();
            self.rotations.extend([cos as f32, sin as f32]);
        }
        self.shifts.push(shift);
        Ok(self.shifts.len() as u32 - 1)
    }
}
