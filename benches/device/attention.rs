//! Cells of decode and prefill: [`Attention`] over a cache made by hand.

use crate::kv::{HOT_WINDOW, KvArenas, KvShape, Order, SINKS, VERIFIED};
use crate::pattern::halves;
use crate::work::{Cell, Work, rotation};
use kvfold::backend::cuda::attend::{AttendScratch, Attention, AttentionShape, Limits};
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream};
use kvfold::{Error, Result};

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

    /// The cell of this case.
    pub fn cell(self, device: &Device, name: String, quick: bool) -> Cell {
        let layers = rotation(device, self.kv.layer_bytes());
        // Splits have 8 pages or more; f32 parts.
        let splits = self.kv.context.div_ceil(512) as u64;
        let parts = 2 * self.row_bytes() * splits * u64::from(self.is_decode());
        Cell {
            name,
            quick,
            bytes: if self.is_decode() { self.kv.read_bytes() + 2 * self.row_bytes() } else { 0 },
            flops: self.flops(),
            memory: self.kv.layer_bytes() * layers as u64 + 2 * self.row_bytes() + parts,
            lacks: None,
            setup: Box::new(move |device, stream| {
                Ok(Box::new(AttentionWork::new(&self, layers, 1, device, stream)?))
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
        // SAFETY: the tables name blocks of the arenas only; queries, outputs and the
        // scratch are of the case's size, and live as long as the work.
        unsafe { self.attention.attend(&call, &mut self.scratch, stream) }
    }
}

/// Why prefill of this kind cannot run on this device, tried with few tokens.
pub fn lacks(case: &Case, device: &Device, stream: &DeviceStream) -> Option<String> {
    let tokens = VERIFIED + 1;
    let few = KvShape { batch: 1, context: tokens, q_len: tokens, ..case.kv };
    let few = Case { kv: few, ..*case };
    let tried = AttentionWork::new(&few, 1, 1, device, stream)
        .and_then(|mut work| work.enqueue(0, stream).and_then(|()| stream.synchronize()));
    match tried {
        Err(error @ Error::Unsupported { .. }) => Some(error.to_string()),
        _ => None,
    }
}
