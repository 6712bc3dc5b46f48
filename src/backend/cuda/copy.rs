//! Launches `kernels/cache/copy.cu`: whole blocks.

use super::arenas::Arenas;
use super::list::DeviceList;
use super::params::{CopyJob, CopyParams};
use crate::backend::driver::{Device, DeviceStream, Launch};
use crate::cache::CopyBlock;
use crate::error::{Error, Result};

const THREADS: u32 = 256;
/// Vectors of 16 bytes that a thread has in flight.
const DEPTH: u64 = 4;
/// Blocks of threads that a multiprocessor holds at once, about.
const OCCUPANCY: u32 = 8;

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
        let mut largest = 0;
        for copy in copies {
            arenas.block(copy.from)?;
            largest = largest.max(arenas.writable(copy.to)?.block_bytes() as u64);
            if copy.from.class != copy.to.class || copy.from == copy.to {
                return Err(Error::misuse("copies", format!("{copy:?}")));
            }
            let (from, to) = (copy.from.index, copy.to.index);
            jobs.push(CopyJob { arena: copy.from.class.0.into(), from, to, reserved: 0 });
        }
        arenas.take(&copies.iter().map(|copy| copy.to).collect::<Vec<_>>(), stream)?;
        self.copies.set(&jobs, stream)?;
        let n_copies = jobs.len() as u32;
        let params = CopyParams {
            copies: self.copies.address_of(0),
            arenas: arenas.table(),
            n_copies,
            reserved: 0,
        };
        // Enough blocks to fill the device, no more than there is work.
        let fill = (OCCUPANCY * stream.device().info().multiprocessors).div_ceil(n_copies.max(1));
        let work = (largest / 16).div_ceil(u64::from(THREADS) * DEPTH);
        let shape = Launch::grid([n_copies, fill.min(work.min(65_535) as u32), 1], THREADS);
        // SAFETY: the blocks were checked against the arenas, which are exclusive here.
        unsafe { stream.launch("copy", shape, &params) }
    }
}
