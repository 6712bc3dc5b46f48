//! Launches `kernels/cache/gather.cu`: kept rows to ragged blocks.

use super::arenas::{Arenas, PageLayout, layer_of};
use super::list::DeviceList;
use super::params::{GatherParams, GatherRow};
use crate::backend::driver::{Device, DeviceStream, Launch};
use crate::cache::Gather;
use crate::error::{Error, Result};

const WARPS: u32 = 4;

/// Gathers rows; its list is reused. For one stream.
pub struct Gatherer {
    rows: DeviceList<GatherRow>,
}

impl Gatherer {
    /// A gatherer with an empty list.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { rows: DeviceList::new(device)? })
    }

    /// Copies the rows, and takes the blocks that they go to. No block may be both read
    /// and written.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a group, stream or block that does not exist;
    /// [`Error::Misuse`] for slots out of range and blocks that hold no rows; what
    /// [`Arenas::take`] refuses.
    pub fn gather(
        &mut self,
        arenas: &mut Arenas,
        gathers: &[Gather],
        stream: &DeviceStream,
    ) -> Result<()> {
        let Some(last) = gathers.iter().map(|g| g.group).max() else { return Ok(()) };
        for group in 0..=last {
            let (mut rows, mut blocks) = (Vec::new(), Vec::new());
            for gather in gathers.iter().filter(|g| g.group == group) {
                add_rows(arenas, gather, &mut rows)?;
                blocks.push(gather.to);
            }
            arenas.take(&blocks, stream)?;
            self.launch(arenas, group, &rows, stream)?;
        }
        Ok(())
    }

    fn launch(
        &mut self,
        arenas: &mut Arenas,
        group: usize,
        rows: &[GatherRow],
        stream: &DeviceStream,
    ) -> Result<()> {
        self.rows.set(rows, stream)?;
        let params = GatherParams {
            rows: self.rows.address_of(0),
            arenas: arenas.table(),
            n_rows: rows.len() as u32,
            head_dim: arenas.group(group)?.head_dim() as u32,
        };
        let shape = Launch::new(params.n_rows.div_ceil(WARPS), 32 * WARPS);
        // SAFETY: blocks, slots and streams were checked against the arenas, which
        // are exclusive here.
        unsafe { stream.launch("gather", shape, &params) }
    }
}

fn add_rows(arenas: &Arenas, gather: &Gather, rows: &mut Vec<GatherRow>) -> Result<()> {
    let group = arenas.group(gather.group)?;
    let hot = group.format.hot();
    layer_of(group, Some(gather.stream))?;
    let to = arenas.writable(gather.to)?;
    let wrong = |what: String| Err(Error::misuse("gather", what));
    if !to.ragged || gather.rows.len() > to.page_tokens {
        return wrong(format!(
            "{} rows to a block of class {}",
            gather.rows.len(),
            gather.to.class.0
        ));
    }
    for (i, &(block, slot)) in gather.rows.iter().enumerate() {
        let from = arenas.block(block)?;
        let ours = |l: &PageLayout| l.group == gather.group && l.holds_rows_of(hot);
        if !ours(from) || !ours(to) || usize::from(slot) >= from.page_tokens || block == gather.to {
            return wrong(format!("row {slot} of {block:?} to {:?}", gather.to));
        }
        rows.push(GatherRow {
            from_arena: block.class.0.into(),
            from_block: block.index,
            from_slot: slot.into(),
            stream: gather.stream as u32,
            to_arena: gather.to.class.0.into(),
            to_block: gather.to.index,
            to_slot: i as u32,
            reserved: 0,
        });
    }
    Ok(())
}
