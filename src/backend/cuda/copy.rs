//! Launches `kernels/cache/copy.cu`: whole blocks, and pages to ragged blocks.

use super::arenas::{Arenas, PageLayout, layer_of};
use super::list::DeviceList;
use super::params::{CopyJob, CopyParams};
use crate::backend::driver::{Device, DeviceStream, Launch};
use crate::cache::{BlockRef, CopyBlock, PageMove};
use crate::error::{Error, Result};

const THREADS: u32 = 256;
/// Vectors of 16 bytes that a thread has in flight.
const DEPTH: u64 = 4;

/// Copies blocks; its list is reused. For one stream.
pub struct Copier {
    copies: DeviceList<CopyJob>,
}

impl Copier {
    /// A copier with an empty list.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { copies: DeviceList::new(device)? })
    }

    /// Copies whole blocks within their classes, and takes those that it writes. No
    /// block may be both read and written.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a block that does not exist; [`Error::Misuse`] for a
    /// copy between classes or of a block to itself; what [`Arenas::take`] refuses.
    pub fn copy(
        &mut self,
        arenas: &mut Arenas,
        copies: &[CopyBlock],
        stream: &DeviceStream,
    ) -> Result<()> {
        let mut jobs = Vec::with_capacity(copies.len());
        for copy in copies {
            arenas.block(copy.from)?;
            arenas.writable(copy.to)?;
            if copy.from.class != copy.to.class || copy.from == copy.to {
                return Err(Error::misuse("copies", format!("{copy:?}")));
            }
            jobs.push(job(arenas, copy.from, 0, copy.to));
        }
        self.launch(arenas, &copies.iter().map(|copy| copy.to).collect::<Vec<_>>(), jobs, stream)
    }

    /// Copies pages to ragged blocks, and takes those. No block may be both read and written.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a group, stream or block that does not exist;
    /// [`Error::Misuse`] for pages of another form or size; what [`Arenas::take`] refuses.
    pub fn move_pages(
        &mut self,
        arenas: &mut Arenas,
        moves: &[PageMove],
        stream: &DeviceStream,
    ) -> Result<()> {
        let mut jobs = Vec::with_capacity(moves.len());
        for moved in moves {
            let (from, to) = (arenas.block(moved.from)?, arenas.writable(moved.to)?);
            layer_of(arenas.group(moved.group)?, Some(moved.stream))?;
            let form = |l: &PageLayout| (l.group, l.key, l.value, l.page_bytes);
            if form(from) != form(to) || from.group != moved.group || from.ragged || !to.ragged {
                return Err(Error::misuse("moves", format!("{moved:?}")));
            }
            jobs.push(job(arenas, moved.from, moved.stream, moved.to));
        }
        self.launch(arenas, &moves.iter().map(|moved| moved.to).collect::<Vec<_>>(), jobs, stream)
    }

    fn launch(
        &mut self,
        arenas: &mut Arenas,
        written: &[BlockRef],
        jobs: Vec<CopyJob>,
        stream: &DeviceStream,
    ) -> Result<()> {
        let bytes = |to: &BlockRef| Ok(arenas.layout(to.class)?.block_bytes() as u64);
        let bytes = written.iter().map(bytes).collect::<Result<Vec<_>>>()?;
        let largest = bytes.into_iter().max().unwrap_or(0);
        arenas.take(written, stream)?;
        self.copies.set(&jobs, stream)?;
        let n_copies = jobs.len() as u32;
        let params = CopyParams {
            copies: self.copies.address_of(0),
            arenas: arenas.table(),
            n_copies,
            reserved: 0,
        };
        // Enough blocks to fill the device, no more than there is work.
        let resident = stream.device().resident_blocks("copy", Launch::new(1, THREADS))?;
        let fill = resident.div_ceil(n_copies.max(1));
        let work = (largest / 16).div_ceil(u64::from(THREADS) * DEPTH);
        let shape = Launch::grid([n_copies, fill.min(work.min(65_535) as u32), 1], THREADS);
        // SAFETY: the blocks were checked against the arenas, which are exclusive here.
        unsafe { stream.launch("copy", shape, &params) }
    }
}

fn job(arenas: &Arenas, from: BlockRef, page: usize, to: BlockRef) -> CopyJob {
    CopyJob {
        from_arena: from.class.0.into(),
        from: from.index,
        to_arena: to.class.0.into(),
        to: to.index,
        page: page as u32,
        gap: arenas.gap() as u32,
    }
}
