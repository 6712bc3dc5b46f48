//! What this device can do at best, measured in the same run as everything else.

use crate::attention::{Case, Part};
use crate::kv::{KvShape, Order, kind_of};
use crate::pattern::{PageForm, halves};
use crate::work::{Timer, Work};
use half::f16;
use kvfold::Result;
use kvfold::backend::cuda::gemm::{Gemm, GemmShape};
use kvfold::backend::cuda::roofs::{self, Operand};
use kvfold::backend::driver::{DeviceBuffer, DeviceStream};
use kvfold::codec::{Codec, KvFormat, TILE_TOKENS};

/// Rates that cells are compared with.
#[derive(Clone, Debug)]
pub struct Roofs {
    /// Bytes a second of a read-only reduction over memory far larger than the cache.
    pub read: f64,
    /// Operations a second of `mma.sync` m16n8k16 with f16 operands, from registers.
    pub mma: f64,
    /// The same with bf16 operands.
    pub mma_bf16: f64,
    /// Operations a second of a product of two 8192 × 8192 f16 matrices by cuBLASLt, or
    /// why there is none.
    pub cublaslt: std::result::Result<f64, String>,
    /// Seconds of an attention call of a captured step that has next to nothing to do.
    pub call: f64,
}

impl Roofs {
    /// The matrix rate that cells are compared with, and its name: that of a library's
    /// product if there is one, which uses the best instructions of the device.
    pub fn matrix(&self) -> (f64, &'static str) {
        match self.cublaslt {
            Ok(rate) => (rate, "cuBLASLt f16"),
            Err(_) => (self.mma, "mma.sync f16"),
        }
    }
}

/// Measures the roofs.
pub fn measure(timer: &mut Timer) -> Result<Roofs> {
    Ok(Roofs {
        read: read(timer)?,
        mma: multiply(timer, Operand::F16)?,
        mma_bf16: multiply(timer, Operand::Bf16)?,
        cublaslt: cublaslt(timer).map_err(|error| error.to_string()),
        call: call(timer)?,
    })
}

struct Read {
    from: DeviceBuffer<u32>,
    sums: DeviceBuffer<u32>,
    blocks: u32,
}

impl Work for Read {
    fn enqueue(&mut self, _turn: usize, stream: &DeviceStream) -> Result<()> {
        roofs::read(&self.from, &mut self.sums, self.blocks, stream)
    }
}

/// Bytes a second of the reduction, the best of several shapes of launch.
pub fn read(timer: &mut Timer) -> Result<f64> {
    const MOST: u64 = 4 << 30;
    let free = timer.device.memory()?.free;
    let words = (MOST.min(free / 2) / 4) as usize / roofs::SLAB_WORDS * roofs::SLAB_WORDS;
    let mut from = timer.device.alloc::<u32>(words)?;
    fill(&mut from, &timer.stream)?;
    let multiprocessors = timer.device.info().multiprocessors;
    let most = 64 * multiprocessors;
    let sums = timer.device.alloc(roofs::read_sums(most))?;
    let mut work = Read { from, sums, blocks: 0 };
    let mut best = 0f64;
    for blocks in [4, 8, 16, 64].map(|n| n * multiprocessors) {
        work.blocks = blocks;
        best = best.max(work.from.bytes() as f64 / timer.median(&mut work)?);
    }
    Ok(best)
}

/// Random words: constant memory can be faster than data.
fn fill(words: &mut DeviceBuffer<u32>, stream: &DeviceStream) -> Result<()> {
    let form = PageForm { key: Codec::F16, value: Codec::F16, head_dim: 64, tokens: TILE_TOKENS };
    // SAFETY: the same memory by its bytes, used while `words` is borrowed.
    let mut bytes =
        unsafe { DeviceBuffer::<u8>::borrow(words.device(), words.address(), words.len() * 4) };
    form.write(&mut bytes, stream)
}

struct Multiply {
    operand: Operand,
    operands: DeviceBuffer<u32>,
    sums: DeviceBuffer<f32>,
    blocks: u32,
}

const ROUNDS: u32 = 2000;

impl Work for Multiply {
    fn enqueue(&mut self, _turn: usize, stream: &DeviceStream) -> Result<()> {
        let Self { operand, operands, sums, blocks } = self;
        roofs::multiply(*operand, operands, sums, ROUNDS, *blocks, stream)
    }
}

fn multiply(timer: &mut Timer, operand: Operand) -> Result<f64> {
    // Random bits of f16 numbers are sane numbers in bf16, too.
    let bits = halves(2 * roofs::OPERAND_WORDS, 5);
    let words: Vec<u32> =
        bits.chunks_exact(2).map(|w| u32::from(w[0]) | u32::from(w[1]) << 16).collect();
    let blocks = 8 * timer.device.info().multiprocessors;
    let mut work = Multiply {
        operand,
        operands: timer.device.upload(&words, &timer.stream)?,
        sums: timer.device.alloc(roofs::multiply_sums(blocks))?,
        blocks,
    };
    Ok(roofs::multiply_flops(ROUNDS, blocks) as f64 / timer.median(&mut work)?)
}

/// Rows and columns of the library's matrices.
const SQUARE: usize = 8192;

struct Product {
    gemm: Gemm,
    x: DeviceBuffer<f16>,
    w: DeviceBuffer<f16>,
    y: DeviceBuffer<f16>,
}

impl Work for Product {
    fn enqueue(&mut self, _turn: usize, stream: &DeviceStream) -> Result<()> {
        let shape = GemmShape { rows: SQUARE, n: SQUARE, k: SQUARE };
        self.gemm.matmul(&self.x, &self.w, &mut self.y, shape, stream)
    }
}

fn cublaslt(timer: &mut Timer) -> Result<f64> {
    let (device, stream) = (&timer.device, &timer.stream);
    let gemm = Gemm::new(device)?;
    let matrix = |seed| -> Result<DeviceBuffer<f16>> {
        let mut matrix = device.alloc(SQUARE * SQUARE)?;
        let bits = halves(SQUARE * 64, seed);
        let rows =
            device.upload(&bits.into_iter().map(f16::from_bits).collect::<Vec<_>>(), stream)?;
        for at in (0..matrix.len()).step_by(rows.len()) {
            matrix.copy_from(at, &rows, 0, rows.len(), stream)?;
        }
        stream.synchronize()?;
        Ok(matrix)
    };
    let (x, w) = (matrix(1)?, matrix(2)?);
    let mut work = Product { gemm, x, w, y: device.alloc(SQUARE * SQUARE)? };
    Ok(2.0 * (SQUARE as f64).powi(3) / timer.median(&mut work)?)
}

fn call(timer: &mut Timer) -> Result<f64> {
    let (kv_heads, head_dim, format) = (8, 128, KvFormat::uniform(Codec::F16));
    let kind = kind_of(1);
    let kv = KvShape { kv_heads, head_dim, format, batch: 1, context: 1, q_len: 1, kind };
    let case = Case { heads: 32, kv, order: Order::Contiguous, causal: true };
    let mut work = case.captured(Part::Step, 1, &timer.device, &timer.stream)?;
    timer.median(&mut work)
}
