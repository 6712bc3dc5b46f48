//! Memory full of plausible pages: random rows, encoded as a codec encodes them.

use crate::random::Random;
use half::f16;
use kvfold::backend::driver::{DeviceBuffer, DeviceStream};
use kvfold::codec::{Codec, Side, TILE_TOKENS};
use kvfold::{Error, Result};

/// Different pages; arenas repeat them. Being prime, it makes page s of a block
/// differ from block to block.
pub const PAGES: usize = 17;

/// Most bytes that the host prepares; the rest is copied on the device.
const CHUNK: usize = 32 << 20;

/// f16 numbers for queries: their bits.
pub fn halves(n: usize, seed: u64) -> Vec<u16> {
    let mut random = Random::new(seed);
    (0..n).map(|_| f16::from_f32(random.float()).to_bits()).collect()
}

/// How the pages of an arena are stored.
#[derive(Clone, Copy)]
pub struct PageForm {
    pub key: Codec,
    pub value: Codec,
    pub head_dim: usize,
    /// 64, or fewer in pages of 16-bit rows.
    pub tokens: usize,
}

impl PageForm {
    pub fn page_bytes(&self) -> usize {
        self.half_bytes(self.key) + self.half_bytes(self.value)
    }

    fn half_bytes(&self, codec: Codec) -> usize {
        codec.tile().tile_bytes(self.head_dim) * self.tokens / TILE_TOKENS
    }

    /// One page of random rows.
    fn page(&self, random: &mut Random) -> Vec<u8> {
        let mut page = Vec::with_capacity(self.page_bytes());
        for (side, codec) in [(Side::Key, self.key), (Side::Value, self.value)] {
            let rows: Vec<f32> = (0..TILE_TOKENS * self.head_dim).map(|_| random.float()).collect();
            let mut bytes = vec![0; codec.tile().tile_bytes(self.head_dim)];
            codec.tile().encode(side, &rows, self.head_dim, &mut bytes);
            page.extend_from_slice(&bytes[..self.half_bytes(codec)]);
        }
        page
    }

    /// Fills memory: page i is the same as page i % [`PAGES`].
    pub fn write(&self, memory: &mut DeviceBuffer<u8>, stream: &DeviceStream) -> Result<()> {
        if !memory.len().is_multiple_of(self.page_bytes()) {
            return Err(Error::config("memory", "it is no whole number of pages"));
        }
        let mut random = Random::new(self.page_bytes() as u64);
        let period = (0..PAGES).flat_map(|_| self.page(&mut random)).collect::<Vec<u8>>();
        let repeats = memory.len().min(CHUNK).div_ceil(period.len()).max(1);
        let chunk = memory.device().upload(&period.repeat(repeats), stream)?;
        for at in (0..memory.len()).step_by(chunk.len()) {
            let len = chunk.len().min(memory.len() - at);
            memory.copy_from(at, &chunk, 0, len, stream)?;
        }
        // The chunk may be freed once it has been copied.
        stream.synchronize()
    }
}
