//! Launches `kernels/cache/append.cu`: RoPE, then new rows to 16-bit pages.

use super::arenas::{Arenas, layer_of};
use super::element::Element;
use super::list::{DeviceList, LayerList};
use super::params::{AppendParams, AppendSlot, NONE};
use super::parcel::Parcel;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream, Launch};
use crate::backend::{KvGroup, LayerIndex, Rope};
use crate::cache::{Append, SeqStep};
use crate::codec::Codec;
use crate::error::{Error, Result};

const THREADS: u32 = 64;

/// Uploads what the kernel turns channels by: `inv_freq / 2π`.
///
/// # Errors
/// [`Error::DeviceOutOfMemory`].
pub fn inv_turns(rope: &Rope, stream: &DeviceStream) -> Result<DeviceBuffer<f64>> {
    let turns: Vec<f64> = rope.inv_freq.iter().map(|f| f / std::f64::consts::TAU).collect();
    stream.device().upload(&turns, stream)
}

/// Where the new tokens of a step go: made once a step, used by every layer of one
/// KV group, on one stream.
pub struct AppendPlan {
    arenas: u64,
    group: usize,
    rows: usize,
    slots: LayerList<AppendSlot>,
    positions: DeviceList<u32>,
}

impl AppendPlan {
    /// An empty plan.
    pub fn new(device: &Device) -> Result<Self> {
        Self::within(device, &Parcel::at_once(device)?)
    }

    /// An empty plan that travels in a parcel.
    pub(super) fn within(device: &Device, parcel: &Parcel) -> Result<Self> {
        let slots = LayerList::within(device, parcel)?;
        let positions = DeviceList::within(device, parcel)?;
        Ok(Self { arenas: 0, group: 0, rows: 0, slots, positions })
    }

    /// Positions, one a row.
    pub(super) fn positions(&self) -> &DeviceBuffer<u32> {
        self.positions.buffer()
    }

    /// Plans a step, and takes the blocks that it writes. The rows of each sequence
    /// follow those of the one before it; after them come `padding` rows that go nowhere.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a group, stream or block that does not exist;
    /// [`Error::Misuse`] for a slot, token or position that is out of range, and for
    /// a block that does not hold rows; what [`Arenas::take`] refuses.
    pub fn set(
        &mut self,
        arenas: &mut Arenas,
        group: usize,
        seqs: &[SeqStep],
        padding: usize,
        stream: &DeviceStream,
    ) -> Result<()> {
        self.arenas = 0;
        let layers = arenas.group(group)?.layers;
        let (mut slots, mut positions, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for seq in seqs {
            let first_row = positions.len();
            for append in seq.appends.iter().filter(|a| a.group == group) {
                add_slots(arenas, append, seq.new_tokens, first_row, &mut slots)?;
                blocks.push(append.block);
            }
            for position in seq.position..seq.position + seq.new_tokens {
                let what = || Error::misuse("position", format!("{position} exceeds 32 bits"));
                positions.push(u32::try_from(position).map_err(|_| what())?);
            }
        }
        arenas.take(&blocks, stream)?;
        let nowhere = AppendSlot { row: NONE, stream: NONE, ..AppendSlot::default() };
        slots.resize(slots.len() + padding, (None, nowhere));
        positions.resize(positions.len() + padding, 0);
        self.slots.set(layers, slots, stream)?;
        self.positions.set(&positions, stream)?;
        (self.arenas, self.group, self.rows) = (arenas.id(), group, positions.len());
        Ok(())
    }
}

/// One slot for each row of an append.
fn add_slots(
    arenas: &Arenas,
    append: &Append,
    new_tokens: usize,
    first_row: usize,
    slots: &mut Vec<(Option<usize>, AppendSlot)>,
) -> Result<()> {
    let group = arenas.group(append.group)?;
    let layout = arenas.writable(append.block)?;
    if layout.group != append.group || !layout.holds_rows_of(group.format.hot()) {
        let what = format!("class {} does not hold rows of the group", append.block.class.0);
        return Err(Error::misuse("append", what));
    }
    if append.slot + append.n > layout.page_tokens || append.token + append.n > new_tokens {
        return Err(Error::misuse("append", format!("{append:?} is out of range")));
    }
    let layer = layer_of(group, append.stream)?;
    slots.extend((0..append.n).map(|i| {
        let slot = AppendSlot {
            row: (first_row + append.token + i) as u32,
            arena: append.block.class.0.into(),
            block: append.block.index,
            slot: (append.slot + i) as u32,
            stream: append.stream.map_or(NONE, |s| s as u32),
            reserved: 0,
        };
        (layer, slot)
    }));
    Ok(())
}

/// The columns of `qkv` and what is done to them.
#[derive(Clone, Copy, Debug)]
pub struct AppendCall<'a> {
    /// The layer.
    pub at: LayerIndex,
    /// Query heads; a multiple of the group's KV heads.
    pub heads: usize,
    /// Elements from a row to the next: a multiple of 8.
    pub stride: usize,
    /// [`inv_turns`], to rotate queries and keys in place first.
    pub inv_turns: Option<&'a DeviceBuffer<f64>>,
}

/// Writes the keys and values of `qkv`, `[rows][stride]` with
/// `[q heads | k heads | v heads]` in the first columns, to the planned pages.
///
/// # Errors
/// [`Error::Misuse`] if the plan is of another group, `T` is not the group's 16-bit
/// type, or a shape does not fit.
pub fn append<T: Element>(
    arenas: &mut Arenas,
    plan: &AppendPlan,
    call: &AppendCall<'_>,
    qkv: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    let group = arenas.group_of(call.at)?;
    let (d, kv_heads) = (group.head_dim(), group.kv_heads);
    if (plan.arenas, plan.group) != (arenas.id(), call.at.group) {
        return Err(Error::misuse("append", "the plan is of other arenas or another KV group"));
    }
    check(group, call, T::CODEC, plan.rows, qkv.len())?;
    let layer = call.at.layer;
    for (slots, n_slots, streams) in plan.slots.parts(layer..layer + 1, kv_heads as u32) {
        let params = AppendParams {
            qkv: qkv.address(),
            positions: plan.positions.address_of(0),
            slots,
            arenas: arenas.table(),
            inv_turns: call.inv_turns.map_or(0, DeviceBuffer::address),
            n_slots,
            stride: call.stride as u32,
            heads: call.heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: d as u32,
            layer: layer as u32,
        };
        // Cosines and sines.
        let shape = Launch::grid([n_slots, streams, 1], THREADS).shared(4 * d as u32);
        // SAFETY: the plan's rows, slots, streams and blocks were checked against the
        // arenas and the shapes against the buffers; `qkv` is exclusive here.
        unsafe { stream.launch(&format!("append_{}", T::CODEC), shape, &params)? };
    }
    Ok(())
}

fn check(
    group: &KvGroup,
    call: &AppendCall<'_>,
    element: Codec,
    rows: usize,
    len: usize,
) -> Result<()> {
    let (d, kv_heads, hot) = (group.head_dim(), group.kv_heads, group.format.hot());
    let cols = (call.heads + 2 * kv_heads) * d;
    let wrong = if element != hot {
        format!("rows are {element}, pages are {hot}")
    } else if call.heads == 0 || !call.heads.is_multiple_of(kv_heads) {
        format!("{} query heads for {kv_heads} KV heads", call.heads)
    } else if !call.stride.is_multiple_of(8) || call.stride < cols {
        format!("rows of {} elements; a multiple of 8 that holds {cols} is needed", call.stride)
    } else if rows * call.stride > len {
        format!("{rows} rows of {} elements exceed a buffer of {len}", call.stride)
    } else if call.inv_turns.is_some_and(|turns| turns.len() != d / 2) {
        format!("inv_turns must have {} elements", d / 2)
    } else {
        return Ok(());
    };
    Err(Error::misuse("append", wrong))
}
