//! All cells, family by family.
//!
//! Names: `decode/gqa32-8/d128/kivi2/b16/32k` has 32 query and 8 KV heads, 16
//! sequences and 32·1024 tokens each; pages lie shuffled unless the name ends in
//! `contiguous`. `decode/…/32-layers` has the pages of 32 layers in each block, as a model of 32
//! layers has, so that a layer reads a small part of each; `apart/…/merge` is one kernel of
//! the decode cell of that name.

use crate::attention::{Part, STEP};
use crate::kv::{KvShape, Order, kind_of};
use crate::work::Cell;
use crate::{attention, seal};
use kvfold::backend::driver::{Device, DeviceStream};
use kvfold::codec::{Codec, KvFormat};

/// Formats of decode and prefill cells, the reference first.
pub const FORMATS: [KvFormat; 6] = [
    F16,
    KvFormat::uniform(Codec::Fp8),
    KvFormat::uniform(Codec::Kivi4),
    KIVI2,
    KvFormat::new(Codec::Kf3, Codec::Kf2),
    KvFormat::uniform(Codec::Kf2),
];
const F16: KvFormat = KvFormat::uniform(Codec::F16);
const KIVI2: KvFormat = KvFormat::uniform(Codec::Kivi2);
const BATCHES: [usize; 3] = [1, 16, 64];
const CONTEXTS: [usize; 5] = [1 << 10, 4 << 10, 16 << 10, 32 << 10, 128 << 10];
const HEAD_DIMS: [usize; 2] = [128, 64];
/// Name, query heads, KV heads.
const GQA: (&str, usize, usize) = ("gqa32-8", 32, 8);
const MHA: (&str, usize, usize) = ("mha32-32", 32, 32);

/// Cells that share a name's first part.
pub struct Family {
    pub name: &'static str,
    pub cells: Vec<Cell>,
}

/// Everything, in the order in which it is measured.
pub fn families(device: &Device, stream: &DeviceStream) -> Vec<Family> {
    vec![
        Family { name: "decode", cells: decode(device) },
        Family { name: "prefill", cells: prefill(device, stream) },
        Family { name: "seal", cells: seal(device) },
        Family { name: "apart", cells: apart(device) },
    ]
}

/// The name of a decode cell.
pub fn decode_name(
    heads: &str,
    head_dim: usize,
    format: KvFormat,
    batch: usize,
    context: usize,
    order: Order,
) -> String {
    let name = format!("{heads}/d{head_dim}/{format}/b{batch}/{}k", context >> 10);
    match order {
        Order::Shuffled => name,
        Order::Contiguous => format!("{name}/contiguous"),
    }
}

/// Head dims and tokens for which the goals of decode count.
pub fn decode_cases() -> impl Iterator<Item = (&'static str, usize, usize, usize)> {
    let heads = [GQA, MHA].into_iter().flat_map(|h| HEAD_DIMS.map(|d| (h.0, d)));
    heads.flat_map(|(heads, d)| {
        BATCHES.into_iter().flat_map(move |b| CONTEXTS.map(|context| (heads, d, b, context)))
    })
}

/// Decode cases that are also measured with contiguous pages.
pub fn has_twin(heads: &str, head_dim: usize, batch: usize, context: usize) -> bool {
    (heads, head_dim, batch, context) == (GQA.0, 128, 16, 32 << 10)
        || (heads, head_dim, batch, context) == (GQA.0, 128, 64, 4 << 10)
}

/// The case that is also measured with 32 layers, and formats that are.
fn has_layers(heads: &str, head_dim: usize, batch: usize, context: usize) -> bool {
    (heads, head_dim, batch, context) == (GQA.0, 128, 16, 32 << 10)
}
pub const LAYERED: [KvFormat; 3] = [F16, KIVI2, KvFormat::uniform(Codec::Kf2)];

/// The name of a decode cell of 32 layers, and that of its twin of one.
pub fn layers_name(format: KvFormat) -> String {
    format!("{}/{STEP}-layers", one_layer_name(format))
}
pub fn one_layer_name(format: KvFormat) -> String {
    decode_name(GQA.0, 128, format, 16, 32 << 10, Order::Shuffled)
}

fn decode(device: &Device) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (heads, head_dim, batch, context) in decode_cases() {
        let twin = has_twin(heads, head_dim, batch, context);
        let main = heads == GQA.0 && head_dim == 128;
        let quick = match (batch, context >> 10) {
            (16, 32) => true,
            (1 | 64, 4 | 32) => main,
            _ => false,
        };
        let (_, q_heads, kv_heads) = if heads == GQA.0 { GQA } else { MHA };
        for format in FORMATS {
            let kind = kind_of(1);
            let kv = KvShape { kv_heads, head_dim, format, batch, context, q_len: 1, kind };
            for order in [Order::Shuffled, Order::Contiguous] {
                if order == Order::Contiguous && !twin {
                    continue;
                }
                let name = decode_name(heads, head_dim, format, batch, context, order);
                let case = attention::Case { heads: q_heads, kv, order, causal: true };
                cells.push(case.cell(device, name, quick));
            }
            if has_layers(heads, head_dim, batch, context) && LAYERED.contains(&format) {
                let name = layers_name(format);
                let case =
                    attention::Case { heads: q_heads, kv, order: Order::Shuffled, causal: true };
                cells.push(case.cell_of(Part::Step, STEP, name, quick));
            }
        }
    }
    cells
}

/// The name of a causal prefill cell over 16-bit pages.
pub fn prefill_name(head_dim: usize, context: usize, order: Order) -> String {
    let name = format!("{}/d{head_dim}/f16/{}k/causal", GQA.0, context >> 10);
    match order {
        Order::Shuffled => name,
        Order::Contiguous => format!("{name}/contiguous"),
    }
}

/// Lengths of prefill.
pub const PREFILLS: [usize; 6] = [1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10];
/// The length that is also measured with contiguous pages.
pub const PREFILL_TWIN: usize = 8 << 10;

fn prefill(device: &Device, stream: &DeviceStream) -> Vec<Cell> {
    let (heads_name, heads, kv_heads) = GQA;
    let mut cells = Vec::new();
    for head_dim in HEAD_DIMS {
        let case = |context, q_len, format, order| {
            let kind = kind_of(q_len);
            let kv = KvShape { kv_heads, head_dim, format, batch: 1, context, q_len, kind };
            attention::Case { heads, kv, order, causal: true }
        };
        let whole = |tokens, order| case(tokens, tokens, F16, order);
        let mut add = |name, case: attention::Case, quick, lacks: &Option<String>| {
            cells.push(Cell { lacks: lacks.clone(), ..case.cell(device, name, quick) });
        };
        let lacks = |format| attention::lacks(&case(1, 1, format, Order::Shuffled), device, stream);
        let lacking = FORMATS.map(lacks);
        for tokens in PREFILLS {
            let quick = head_dim == 128 && [4 << 10, 8 << 10, 32 << 10].contains(&tokens);
            for order in [Order::Shuffled, Order::Contiguous] {
                if order == Order::Shuffled || tokens == PREFILL_TWIN {
                    let name = prefill_name(head_dim, tokens, order);
                    add(name, whole(tokens, order), quick, &lacking[0]);
                }
            }
        }
        // A chunk late in a long prompt, over pages of each form.
        for (format, lacking) in FORMATS.into_iter().zip(&lacking) {
            let name = format!("{heads_name}/d{head_dim}/{format}/32k/last1k");
            let quick = head_dim == 128 && format == KIVI2;
            add(name, case(32 << 10, 1 << 10, format, Order::Shuffled), quick, lacking);
        }
        for tokens in PREFILLS {
            let name = format!("{heads_name}/d{head_dim}/f16/{}k/full", tokens >> 10);
            let full = attention::Case { causal: false, ..whole(tokens, Order::Shuffled) };
            add(name, full, false, &lacking[0]);
        }
    }
    cells
}

fn seal(device: &Device) -> Vec<Cell> {
    let mut cells = Vec::new();
    for head_dim in HEAD_DIMS {
        for format in FORMATS[1..].iter().copied() {
            // A long prompt's pages, and those of a batch that decodes.
            for blocks in [2048, 16] {
                let case = seal::Case { kv_heads: GQA.2, head_dim, format, blocks };
                let name = format!("{}/d{head_dim}/{format}/{blocks}-pages", GQA.0);
                let quick = head_dim == 128 && format == KIVI2;
                cells.push(case.cell(device, name, quick));
            }
        }
    }
    cells
}

/// Kernels of decode one by one.
fn apart(device: &Device) -> Vec<Cell> {
    let mut cells = Vec::new();
    let (name, heads, kv_heads) = GQA;
    for (batch, context) in [(16, 32 << 10), (64, 16 << 10)] {
        for format in LAYERED {
            let kind = kind_of(1);
            let kv = KvShape { kv_heads, head_dim: 128, format, batch, context, q_len: 1, kind };
            let case = attention::Case { heads, kv, order: Order::Shuffled, causal: true };
            let layers = case.layers(device);
            for part in [Part::Plan, Part::Attend, Part::Merge] {
                let name = decode_name(name, 128, format, batch, context, Order::Shuffled);
                let name = format!("{name}/{}", part.name(true));
                cells.push(case.cell_of(part, layers, name, batch == 16));
            }
        }
    }
    cells
}
