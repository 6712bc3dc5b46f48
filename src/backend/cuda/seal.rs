//! Launches `kernels/cache/seal.cu`: 16-bit pages to the bytes of a codec.

use super::arenas::{Arenas, layer_of};
use super::list::LayerList;
use super::params::{NONE, SealJob, SealParams};
use super::parcel::Parcel;
use crate::backend::driver::{Device, DeviceStream, Launch};
use crate::cache::{Seal, SeqStep};
use crate::codec::affine::Affine;
use crate::codec::{Codec, Side, TILE_TOKENS};
use crate::error::{Error, Result};
use std::ops::Range;

const THREADS: u32 = 128;
/// Blocks that a multiprocessor holds at once (`KERNEL` of the kernels).
const OCCUPANCY: u32 = 4;

/// The pages that a step seals: made once a step, for one KV group, on one
/// stream.
pub struct SealPlan {
    arenas: u64,
    group: usize,
    jobs: LayerList<SealJob>,
}

impl SealPlan {
    /// An empty plan.
    pub fn new(device: &Device) -> Result<Self> {
        Self::within(device, &Parcel::at_once(device)?)
    }

    /// An empty plan that travels in a parcel.
    pub(super) fn within(device: &Device, parcel: &Parcel) -> Result<Self> {
        Ok(Self { arenas: 0, group: 0, jobs: LayerList::within(device, parcel)? })
    }

    /// Plans a step, with `places` jobs at the least: those too many do nothing. Takes
    /// the blocks that it writes; those that it reads were taken when their rows were
    /// planned.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a group, stream or block that does not exist;
    /// [`Error::Misuse`] for a block that does not hold what is asked for; what
    /// [`Arenas::take`] refuses.
    pub fn set(
        &mut self,
        arenas: &mut Arenas,
        group: usize,
        seqs: &[SeqStep],
        places: usize,
        stream: &DeviceStream,
    ) -> Result<()> {
        self.arenas = 0;
        let layers = arenas.group(group)?.layers;
        let seals = || seqs.iter().flat_map(|seq| &seq.seals).filter(|seal| seal.group == group);
        let mut jobs = seals().map(|seal| job(arenas, seal)).collect::<Result<Vec<_>>>()?;
        let nothing = SealJob { from_block: NONE, stream: NONE, ..SealJob::default() };
        jobs.resize(jobs.len().max(places), (None, nothing));
        arenas.take(&seals().map(|seal| seal.to).collect::<Vec<_>>(), stream)?;
        self.jobs.set(layers, jobs, stream)?;
        (self.arenas, self.group) = (arenas.id(), group);
        Ok(())
    }
}

fn job(arenas: &Arenas, seal: &Seal) -> Result<(Option<usize>, SealJob)> {
    let group = arenas.group(seal.group)?;
    let (from, to) = (arenas.block(seal.from)?, arenas.writable(seal.to)?);
    let ours = [from, to].iter().all(|l| l.group == seal.group && l.page_tokens == TILE_TOKENS);
    let forms = from.holds_rows_of(group.format.hot())
        && (to.key, to.value) == (group.format.key, group.format.value);
    // A ragged block holds one stream's page, so it needs to be told which.
    let streams = seal.stream.is_some() || !(from.ragged || to.ragged);
    if !(ours && forms && streams) || seal.from == seal.to {
        return Err(Error::misuse("seal", format!("{seal:?} does not fit the arenas")));
    }
    let job = SealJob {
        from_arena: seal.from.class.0.into(),
        from_block: seal.from.index,
        to_arena: seal.to.class.0.into(),
        to_block: seal.to.index,
        stream: seal.stream.map_or(NONE, |s| s as u32),
        reserved: 0,
    };
    Ok((layer_of(group, seal.stream)?, job))
}

/// Encodes the planned pages of layers of a KV group. A page can be sealed as soon as
/// its rows of that layer are written: in decode that is long before the step, so all
/// layers can be sealed at once.
///
/// # Errors
/// [`Error::Misuse`] if the plan is of another group; [`Error::NotFound`] for layers
/// that do not exist; [`Error::Unsupported`] for a codec that has no kernel.
pub fn seal(
    arenas: &mut Arenas,
    plan: &SealPlan,
    group: usize,
    layers: Range<usize>,
    stream: &DeviceStream,
) -> Result<()> {
    if (plan.arenas, plan.group) != (arenas.id(), group) {
        return Err(Error::misuse("seal", "the plan is of other arenas or another KV group"));
    }
    let feedback = arenas.feedback(group);
    let group = arenas.group(group)?;
    if layers.end > group.layers {
        return Err(Error::NotFound { what: format!("KV layer {}", layers.end - 1) });
    }
    let streams = (layers.len() * group.kv_heads) as u32;
    let (hot, d) = (group.format.hot(), group.head_dim());
    for (side, codec) in [(Side::Key, group.format.key), (Side::Value, group.format.value)] {
        let kernel = kernel(hot, codec, side)?;
        let fed = feedback != 0 && codec.rotated() && side == Side::Key;
        for (jobs, n_jobs, streams) in plan.jobs.parts(layers.clone(), streams) {
            let params = SealParams {
                jobs,
                arenas: arenas.table(),
                feedback,
                n_jobs,
                first_layer: layers.start as u32,
                streams,
                kv_heads: group.kv_heads as u32,
                head_dim: d as u32,
                reserved: 0,
            };
            let blocks = blocks(n_jobs, streams, stream.device().info().multiprocessors)?;
            let shape = Launch::new(blocks, THREADS).shared(shared_bytes(codec, d, fed));
            // SAFETY: the plan's blocks and streams were checked against the arenas;
            // sealed and hot pages are different blocks.
            unsafe { stream.launch(&kernel, shape, &params)? };
        }
    }
    Ok(())
}

/// As many blocks as there are halves to encode, but no more than run at once: they take
/// one half after the other, and most places of a captured step are empty.
fn blocks(n_jobs: u32, streams: u32, multiprocessors: u32) -> Result<u32> {
    let halves = n_jobs.checked_mul(streams).ok_or_else(|| {
        Error::misuse("seal", format!("{n_jobs} pages of {streams} streams in one step"))
    })?;
    Ok(halves.min(OCCUPANCY * multiprocessors))
}

/// The name of the kernel that encodes one half of `hot` pages.
fn kernel(hot: Codec, codec: Codec, side: Side) -> Result<String> {
    if (hot, codec) == (Codec::F16, Codec::Bf16) || !hot.is_16_bit() {
        return Err(Error::Unsupported {
            what: format!("sealing {hot} pages as {codec}"),
            remedy: "choose another --kv format".into(),
        });
    }
    let side = match side {
        Side::Key => "key",
        Side::Value => "value",
    };
    Ok(format!("seal_{hot}_{codec}_{side}"))
}

/// Affine codecs stage a half page, in f32 if it is rotated, its rows 16 bytes apart, with
/// scales and zeros; with feedback also its codes, a byte each, their rows 4 bytes apart,
/// two channels' aims and numbers, a row of floats a warp and two times four trials.
fn shared_bytes(codec: Codec, d: usize, fed: bool) -> u32 {
    let staged = |c: &Affine| {
        let element = if c.rotated { size_of::<f32>() } else { size_of::<u16>() };
        TILE_TOKENS * (element * d + 16) + 2 * size_of::<f32>() * TILE_TOKENS * d / c.group
    };
    let codes = TILE_TOKENS * (d + 4) + 2 * 8 * TILE_TOKENS + 4 * 4 * TILE_TOKENS + 2 * 4 * 16;
    let feedback = if fed { codes } else { 0 };
    codec.affine().map_or(0, |affine| (staged(affine) + feedback) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 sequences, 32 layers of 8 KV heads, on 132 multiprocessors: not 16,384 blocks.
    #[test]
    fn a_step_has_no_more_blocks_than_run_at_once() {
        assert_eq!(blocks(64, 256, 132).unwrap(), 528);
        assert_eq!(blocks(2, 8, 132).unwrap(), 16);
        assert_eq!(blocks(0, 8, 132).unwrap(), 0);
        let error = blocks(1 << 20, 1 << 20, 132).unwrap_err().to_string();
        assert!(error.contains("1048576 pages"), "{error}");
    }

    #[test]
    fn a_codec_without_a_kernel_is_named() {
        for (hot, codec) in [(Codec::F16, Codec::Bf16), (Codec::Fp8, Codec::Kivi2)] {
            let error = kernel(hot, codec, Side::Key).unwrap_err().to_string();
            assert!(error.contains(hot.name()) && error.contains(codec.name()), "{error}");
        }
    }
}
