//! Cells of decode and prefill: [`Attention`] over a cache made by hand, its calls captured
//! as those of a model's step are. A step has [`STEP`] of them, one a layer, and one plan.

use crate::captured::Captured;
use crate::kv::{HOT_WINDOW, KvArenas, KvShape, Order, SINKS};
use crate::pattern::halves;
use crate::work::{Cell, Work, rotation};
use kvfold::backend::cuda::attend::{AttendScratch, Attention, AttentionShape, Limits, Parts};
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream};
use kvfold::cache::RowKind;
use kvfold::{Error, Result};

/// Calls of a step, by one plan.
pub const STEP: usize = 32;

/// Which kernels of a call are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All, with the plan once a step.
    Step,
    Plan,
    /// The attention kernel alone.
    Attend,
    Merge,
}

impl Part {
    /// As names of cells and rows have it.
    pub fn name(self, generated: bool) -> &'static str {
        match self {
            Part::Step => "step",
            Part::Plan => "plan",
            Part::Attend if generated => "decode",
            Part::Attend => "prefill",
            Part::Merge => "merge",
        }
    }

    fn kernels(self, turn: usize) -> Parts {
        let first = turn.is_multiple_of(STEP);
        match self {
            Part::Step => Parts { plan: first, attend: true, merge: true },
            Part::Plan => Parts { plan: true, attend: false, merge: false },
            Part::Attend => Parts { plan: false, attend: true, merge: false },
            Part::Merge => Parts { plan: false, attend: false, merge: true },
        }
    }
}

/// One attention call.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub heads: usize,
    pub kv: KvShape,
    pub order: Order,
    pub causal: bool,
}

impl Case {
    fn rows(&self) -> usize {
        self.kv.batch * self.kv.q_len
    }

    fn is_decode(&self) -> bool {
        self.kv.generated()
    }

    /// Operations of both products over all (query, token) pairs that are seen.
    fn flops(&self) -> u64 {
        let KvShape { batch, context, q_len, head_dim, .. } = self.kv;
        let own = if self.causal { q_len * (q_len + 1) / 2 } else { q_len * q_len };
        let pairs = q_len * (context - q_len) + own;
        (4 * pairs * head_dim * self.heads * batch) as u64
    }

    /// Bytes of queries or outputs.
    fn row_bytes(&self) -> u64 {
        (2 * self.rows() * self.heads * self.kv.head_dim) as u64
    }

    fn limits(&self) -> Limits {
        let generated_rows = if self.is_decode() { self.rows() } else { 0 };
        Limits { seqs: self.kv.batch, generated_rows, tokens: self.kv.context }
    }

    /// The fewest bytes that a part must move: pages, queries and outputs of generated rows.
    /// What plans and partial results have to move is nobody's goal.
    pub fn bytes_of(&self, part: Part) -> u64 {
        match part {
            Part::Step | Part::Attend if self.is_decode() => {
                self.kv.read_bytes() + 2 * self.row_bytes()
            }
            _ => 0,
        }
    }

    /// Operations of a part.
    pub fn flops_of(&self, part: Part) -> u64 {
        if matches!(part, Part::Step | Part::Attend) { self.flops() } else { 0 }
    }

    /// Layers that calls take in turn, so that no two read what the device's cache holds.
    pub fn layers(&self, device: &Device) -> usize {
        rotation(device, self.kv.layer_bytes())
    }

    /// Device memory of a case of so many layers.
    pub fn memory(&self, layers: usize) -> u64 {
        // Splits have 8 pages or more; f32 parts.
        let splits = self.kv.context.div_ceil(512) as u64;
        let parts = 2 * self.row_bytes() * splits * u64::from(self.is_decode());
        self.kv.layer_bytes() * layers as u64 + 2 * self.row_bytes() + parts
    }

    /// Calls of a graph: whole steps that pass all layers, or as many calls as should take
    /// 30 ms, if those of a step take longer.
    fn calls(&self, layers: usize) -> usize {
        let seconds = self.kv.read_bytes() as f64 / 3e12 + self.flops() as f64 / 4e14;
        match (0.03 / seconds) as usize {
            few @ ..STEP => few.max(layers).max(1),
            _ => layers.next_multiple_of(STEP),
        }
    }

    /// Calls as a step has them, or a part of each, over `layers` layers in turn.
    pub fn captured(
        &self,
        part: Part,
        layers: usize,
        device: &Device,
        stream: &DeviceStream,
    ) -> Result<Captured<AttentionWork>> {
        let mut work = AttentionWork::new(self, layers, 1, device, stream)?;
        // A part needs a plan and partial results.
        work.enqueue(0, stream)?;
        work.part = Some(part);
        Captured::new(work, self.calls(layers), stream)
    }

    /// The cell of this case.
    pub fn cell(self, device: &Device, name: String, quick: bool) -> Cell {
        self.cell_of(Part::Step, self.layers(device), name, quick)
    }

    /// The cell of a part of it, over so many layers.
    pub fn cell_of(self, part: Part, layers: usize, name: String, quick: bool) -> Cell {
        Cell {
            name,
            quick,
            bytes: self.bytes_of(part),
            flops: self.flops_of(part),
            memory: self.memory(layers),
            lacks: None,
            setup: Box::new(move |device, stream| {
                Ok(Box::new(self.captured(part, layers, device, stream)?))
            }),
        }
    }
}

/// Memory of a case.
pub struct AttentionWork {
    attention: Attention,
    scratch: AttendScratch,
    kv: KvArenas,
    q: DeviceBuffer<u16>,
    q_stride: usize,
    /// None: whole calls, each with a plan of its own.
    pub part: Option<Part>,
    pub out: DeviceBuffer<u16>,
    pub lse: DeviceBuffer<f32>,
}

impl AttentionWork {
    /// Random queries from `seed`; 0 stands for queries of zeros.
    pub fn new(
        case: &Case,
        layers: usize,
        seed: u64,
        device: &Device,
        stream: &DeviceStream,
    ) -> Result<Self> {
        let KvShape { kv_heads, head_dim, format, .. } = case.kv;
        let shape = AttentionShape {
            head_dim,
            heads: case.heads,
            kv_heads,
            format,
            sinks: SINKS,
            hot_window: HOT_WINDOW,
            causal: case.causal,
            window: None,
            scale: (head_dim as f32).powf(-0.5),
        };
        let attention = Attention::new(device, shape)?;
        let q_stride = case.heads * head_dim;
        let n = case.rows() * q_stride;
        let queries = if seed == 0 { vec![0; n] } else { halves(n, seed) };
        Ok(Self {
            scratch: attention.scratch(case.limits())?,
            kv: KvArenas::new(case.kv, layers, case.order, device, stream)?,
            q: device.upload(&queries, stream)?,
            out: device.alloc(n)?,
            lse: device.alloc(case.rows() * case.heads)?,
            q_stride,
            part: None,
            attention,
        })
    }

    /// Outputs and log-sum-exps of the last run.
    pub fn results(&self, stream: &DeviceStream) -> Result<(Vec<u16>, Vec<f32>)> {
        if self.attention.overflowed(&self.scratch, stream)? {
            return Err(Error::config("scratch", "the plan overflowed"));
        }
        Ok((self.out.to_vec(stream)?, self.lse.to_vec(stream)?))
    }
}

impl Work for AttentionWork {
    fn enqueue(&mut self, turn: usize, stream: &DeviceStream) -> Result<()> {
        let mut call = self.kv.call(turn);
        (call.q, call.q_stride) = (self.q.address(), self.q_stride);
        (call.out, call.lse) = (self.out.address(), self.lse.address());
        let whole = Parts { plan: true, attend: true, merge: true };
        let parts = self.part.map_or(whole, |part| part.kernels(turn));
        // SAFETY: the tables name blocks of the arenas only; queries, outputs and the
        // scratch are of the case's size, and live as long as the work. Parts follow on
        // whole calls, and the tables stay as they are.
        unsafe { self.attention.attend_parts(&call, parts, &mut self.scratch, stream) }
    }
}

/// Why prefill of this kind cannot run on this device, tried with few tokens.
pub fn lacks(case: &Case, device: &Device, stream: &DeviceStream) -> Option<String> {
    const TOKENS: usize = 17;
    let kind = RowKind::Prompt;
    let few = KvShape { batch: 1, context: TOKENS, q_len: TOKENS, kind, ..case.kv };
    let few = Case { kv: few, ..*case };
    let tried = AttentionWork::new(&few, 1, 1, device, stream)
        .and_then(|mut work| work.enqueue(0, stream).and_then(|()| stream.synchronize()));
    match tried {
        Err(error @ Error::Unsupported { .. }) => Some(error.to_string()),
        _ => None,
    }
}
