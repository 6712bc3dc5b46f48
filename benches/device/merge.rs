//! Cells of the merge of split streams, alone. Its parts stay in the device's cache,
//! as they do right after decode, so it may beat the memory's bandwidth.

use crate::random::Random;
use crate::work::{Cell, Work};
use kvfold::Result;
use kvfold::backend::cuda::params::{AttendEntry, AttendParams, AttendPlan, KvSeq, KvStream, NONE};
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream, Launch};

/// One query a sequence, each stream in `splits` parts.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub batch: usize,
    pub splits: usize,
}

impl Case {
    fn parts(&self) -> usize {
        self.batch * self.heads * self.splits
    }

    pub fn cell(self, name: String, quick: bool) -> Cell {
        let parts = (self.parts() * (self.head_dim + 1) * 4) as u64;
        let rows = (self.batch * self.heads * (2 * self.head_dim + 4)) as u64;
        Cell {
            name,
            quick,
            bytes: parts + rows,
            flops: 0,
            memory: parts + rows,
            lacks: None,
            setup: Box::new(move |device, stream| {
                Ok(Box::new(MergeWork::new(&self, device, stream)?))
            }),
        }
    }
}

/// Memory of a case.
pub struct MergeWork {
    case: Case,
    plan: DeviceBuffer<AttendPlan>,
    entries: DeviceBuffer<AttendEntry>,
    seqs: DeviceBuffer<KvSeq>,
    streams: DeviceBuffer<KvStream>,
    part_out: DeviceBuffer<f32>,
    part_lse: DeviceBuffer<f32>,
    pub out: DeviceBuffer<u16>,
    pub lse: DeviceBuffer<f32>,
}

impl MergeWork {
    pub fn new(case: &Case, device: &Device, stream: &DeviceStream) -> Result<Self> {
        let Case { heads, kv_heads, head_dim, batch, splits } = *case;
        let mut random = Random::new(3);
        let mut floats = |n: usize| (0..n).map(|_| random.float()).collect::<Vec<f32>>();
        let (n_splits, group) = (splits as u32, (heads / kv_heads) as u32);
        let entries: Vec<_> = (0..(batch * kv_heads) as u32)
            .map(|i| AttendEntry {
                first_item: i * n_splits,
                n_items: n_splits,
                first_part: i * group * n_splits,
                n_splits,
            })
            .collect();
        let seqs: Vec<_> = (0..batch as u32)
            .map(|i| KvSeq { first_row: i, q_len: 1, first_stream: i, ..Default::default() })
            .collect();
        // A stream that is split so: 8 pages each up to 256, then 16.
        let pages = n_splits * if n_splits <= 32 { 8 } else { 16 };
        let kept = KvStream { kept: 64 * pages, ..Default::default() };
        let n_items = entries.len() as u32 * n_splits;
        let plan = AttendPlan { n_items, n_parts: case.parts() as u32, ..Default::default() };
        Ok(Self {
            plan: device.upload(&[plan], stream)?,
            entries: device.upload(&entries, stream)?,
            seqs: device.upload(&seqs, stream)?,
            streams: device.upload(&vec![kept; batch], stream)?,
            part_out: device.upload(&floats(case.parts() * head_dim), stream)?,
            part_lse: device.upload(&floats(case.parts()), stream)?,
            out: device.alloc(batch * heads * head_dim)?,
            lse: device.alloc(batch * heads)?,
            case: *case,
        })
    }
}

impl Work for MergeWork {
    fn enqueue(&mut self, _turn: usize, stream: &DeviceStream) -> Result<()> {
        let Case { heads, kv_heads, head_dim, batch, .. } = self.case;
        let params = AttendParams {
            out: self.out.address(),
            lse: self.lse.address(),
            seqs: self.seqs.address(),
            streams: self.streams.address(),
            plan: self.plan.address(),
            entries: self.entries.address(),
            part_out: self.part_out.address(),
            part_lse: self.part_lse.address(),
            n_seqs: batch as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            window: NONE,
            causal: 1,
            ..AttendParams::default()
        };
        let grid = [(batch * kv_heads) as u32, (heads / kv_heads).div_ceil(4) as u32, 1];
        let kernel = format!("attend_merge_f16_d{head_dim}");
        // SAFETY: entries, parts and rows are of the case's size, and live as long as
        // the work.
        unsafe { stream.launch(&kernel, Launch::grid(grid, 128), &params) }
    }
}
