//! Cells of sealing: 16-bit pages to a codec's bytes.

use crate::kv::{HOT_WINDOW, SINKS};
use crate::pattern::PageForm;
use crate::work::{Cell, Work, rotation};
use kvfold::Result;
use kvfold::backend::cuda::arenas::Arenas;
use kvfold::backend::cuda::seal::{SealPlan, seal};
use kvfold::backend::driver::{Device, DeviceStream};
use kvfold::backend::{Geometry, KvGroup};
use kvfold::cache::{BlockRef, ClassDesc, ClassId, ClassKind, RowKind, Seal, SeqId, SeqStep};
use kvfold::codec::{KvFormat, TILE_TOKENS};

const HOT: ClassId = ClassId(0);
const SEALED: ClassId = ClassId(1);

/// Blocks of one layer to seal at a time.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub format: KvFormat,
    pub blocks: usize,
}

impl Case {
    pub fn hot(&self) -> PageForm {
        let hot = self.format.hot();
        PageForm { key: hot, value: hot, head_dim: self.head_dim, tokens: TILE_TOKENS }
    }

    pub fn sealed(&self) -> PageForm {
        PageForm { key: self.format.key, value: self.format.value, ..self.hot() }
    }

    fn layer_bytes(&self) -> u64 {
        let page = self.hot().page_bytes() + self.sealed().page_bytes();
        (self.blocks * self.kv_heads * page) as u64
    }

    pub fn cell(self, device: &Device, name: String, quick: bool) -> Cell {
        let layers = rotation(device, self.layer_bytes());
        Cell {
            name,
            quick,
            bytes: self.layer_bytes(),
            flops: 0,
            memory: self.layer_bytes() * layers as u64,
            lacks: None,
            setup: Box::new(move |device, stream| {
                Ok(Box::new(SealWork::new(&self, layers, device, stream)?))
            }),
        }
    }
}

/// Memory of a case.
pub struct SealWork {
    arenas: Arenas,
    plan: SealPlan,
    layers: usize,
}

impl SealWork {
    pub fn new(case: &Case, layers: usize, device: &Device, stream: &DeviceStream) -> Result<Self> {
        let Case { kv_heads, head_dim, format, blocks } = *case;
        let group = KvGroup {
            layers,
            kv_heads,
            geometry: Geometry::gqa(head_dim),
            format,
            streams: None,
            sinks: SINKS,
            hot_window: HOT_WINDOW,
            rope: None,
            window: None,
        };
        let class = |kind, form: PageForm| ClassDesc {
            kind,
            group: 0,
            page_tokens: TILE_TOKENS,
            block_bytes: (form.page_bytes() * kv_heads * layers) as u64,
        };
        let classes = [class(ClassKind::Hot, case.hot()), class(ClassKind::Sealed, case.sealed())];
        let mut arenas =
            Arenas::with_blocks(device, &[group], &classes, &[blocks as u32; 2], stream)?;
        case.hot().write(arenas.memory(HOT)?, stream)?;
        let seals = (0..blocks as u32).map(|index| Seal {
            group: 0,
            stream: None,
            from: BlockRef { class: HOT, index },
            to: BlockRef { class: SEALED, index },
        });
        let step = SeqStep {
            seq: SeqId(0),
            kind: RowKind::Generated,
            new_tokens: 0,
            position: 0,
            appends: Vec::new(),
            seals: seals.collect(),
            views: Vec::new(),
        };
        let mut plan = SealPlan::new(device)?;
        plan.set(&mut arenas, 0, &[step], 0, stream)?;
        Ok(Self { arenas, plan, layers })
    }

    /// Bytes of the hot and of the sealed arena.
    pub fn bytes(&mut self, stream: &DeviceStream) -> Result<(Vec<u8>, Vec<u8>)> {
        let hot = self.arenas.memory(HOT)?.to_vec(stream)?;
        Ok((hot, self.arenas.memory(SEALED)?.to_vec(stream)?))
    }
}

impl Work for SealWork {
    fn enqueue(&mut self, turn: usize, stream: &DeviceStream) -> Result<()> {
        let layer = turn % self.layers;
        seal(&mut self.arenas, &self.plan, 0, layer..layer + 1, stream)
    }
}
