//! Arenas with canaries: behind each block lie bytes that no kernel may write. Blocks lie
//! in chunks of megabytes, where no tool sees what runs from one into the next.

use super::Arenas;
use crate::backend::KvGroup;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::cache::{BlockRef, ClassDesc, ClassId};
use crate::error::{Error, Result};

/// Bytes behind each block, and what they hold: NaN in every format.
const CANARY_BYTES: u64 = 4096;
const CANARY: u8 = 0xff;

impl Arenas {
    /// As [`new`](Self::new), for tests: behind each block lie bytes that no kernel may
    /// write, as [`check_canaries`](Self::check_canaries) finds out. They do not count to
    /// the budget.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[doc(hidden)]
    pub fn with_canaries(
        device: &Device,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
        stream: &DeviceStream,
    ) -> Result<Self> {
        Self::with_gap(device, groups, classes, budget, CANARY_BYTES, stream)
    }

    /// Fills what lies behind blocks that were just taken.
    pub(super) fn fill_canaries(
        &mut self,
        blocks: &[BlockRef],
        stream: &DeviceStream,
    ) -> Result<()> {
        if self.gap == 0 {
            return Ok(());
        }
        blocks.iter().try_for_each(|block| self.canary_of(*block)?.fill(CANARY, stream))
    }

    /// Whether nothing was written behind any block in use; always, without canaries.
    ///
    /// # Errors
    /// [`Error::Device`] that names the first byte that was.
    #[doc(hidden)]
    pub fn check_canaries(&self, stream: &DeviceStream) -> Result<()> {
        if self.gap == 0 {
            return Ok(());
        }
        for (class, memory) in self.memory.iter().enumerate() {
            for index in (0..memory.known()).filter(|index| memory.is_taken(*index)) {
                let block = BlockRef { class: ClassId(class as u16), index };
                let canary = self.canary_of(block)?.to_vec(stream)?;
                if let Some(at) = canary.iter().position(|byte| *byte != CANARY) {
                    let what = format!("byte {at} behind block {index} of class {class} changed");
                    return Err(Error::device("write blocks", what));
                }
            }
        }
        Ok(())
    }

    /// What lies behind a block in use.
    fn canary_of(&self, block: BlockRef) -> Result<DeviceBuffer<u8>> {
        let bytes = self.block(block)?.block_bytes() as u64;
        let address = self.address_of(block) + bytes;
        // SAFETY: as in `bytes_of`; a block's memory includes what lies behind it.
        Ok(unsafe { DeviceBuffer::borrow(self.table.device(), address, self.gap as usize) })
    }
}
