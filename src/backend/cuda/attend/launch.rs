//! How attention's kernels are launched: threads and shared memory of a block, which the
//! kernels' sources say too (`tests.rs` holds one against the other).

use crate::backend::driver::Launch;
use crate::codec::{Codec, KvFormat};

/// Bytes of the `Context` of kernels/attention/decode_room.cuh.
const DECODE_CONTEXT: usize = 640;

/// Bytes of the `PrefillContext` of kernels/attention/prefill.cuh, which has the
/// other numbers of a launch too.
const PREFILL_CONTEXT: usize = 256;

/// Entries of a block of `attend_plan`: `OWN` of kernels/attention/plan.cu.
const PLANNED: u32 = 32;

/// `attend_plan` for so many (sequence, KV head) pairs.
pub(super) fn plan(entries: u32) -> Launch {
    // Two sums of each warp.
    Launch::new(entries.div_ceil(PLANNED), 256).shared(8 * 2 * 4)
}

/// A block of `decode_*`, for items of so many columns.
pub(super) fn decode(head_dim: usize, format: KvFormat, columns: usize) -> Launch {
    let warps = if head_dim == 256 { 2 } else { 4 };
    // A state that is set aside: `decode_aside_bytes` there.
    let state = columns * (head_dim + 2) * size_of::<f32>();
    let aside = if format.value.rotated() { state } else { 0 };
    let shared = DECODE_CONTEXT + warps * warp_bytes(head_dim, format) + aside;
    Launch::new(1, 32 * warps as u32).shared(shared as u32)
}

/// Shared memory of a decode warp: `decode_warp_bytes` of kernels/attention/decode_room.cuh.
fn warp_bytes(d: usize, format: KvFormat) -> usize {
    let half = 64 * d;
    let tile = |codec: Codec| match codec {
        Codec::Fp8 => 32 * d,
        codec => codec.tile().tile_bytes(d),
    };
    let sealed = if format.seals() { tile(format.key) + tile(format.value) } else { 0 };
    let two = 2 * half.max(sealed);
    let three = two.max(3 * if sealed > 0 { sealed } else { half });
    if three <= 24 << 10 { three } else { two }
}

/// Rows of a tile of `prefill_*`, and pages in flight.
fn prefill_tile(head_dim: usize) -> (usize, usize) {
    if head_dim == 256 { (64, 2) } else { (128, 3) }
}

/// A block of `prefill_*`.
pub(super) fn prefill(head_dim: usize) -> Launch {
    let (rows, stages) = prefill_tile(head_dim);
    let shared = PREFILL_CONTEXT + (rows + 64 * stages) * 2 * head_dim;
    Launch::new(1, 128).shared(shared as u32)
}

/// Tiles of a sequence's (query, head) pairs; blocks beyond its end leave at once.
pub(super) fn prefill_tiles(head_dim: usize, columns: usize) -> usize {
    columns.div_ceil(prefill_tile(head_dim).0)
}
