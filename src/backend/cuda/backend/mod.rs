//! The CUDA backend: a whole model on one device and one stream.
//!
//! Weights, activations and new KV rows are `T` (f16 or bf16); the residual stream,
//! norms' weights, biases and logits are f32. What comes from the host goes up when a
//! step begins; everything else of a step is enqueued, and a step of single tokens is
//! captured once for each number of sequences and repeated from then on.

mod attention;
mod begun;
mod buffer;
mod kv;
mod repeat;
mod score;
mod tokens;

pub use buffer::Buffer;

use super::append::{AppendCall, Element, append, inv_turns};
use super::attend::{AttentionCall, Limits, check_head_dim};
use super::dense::{self, HeadNorm, Logits, RmsNorm};
use super::gemm::{Gemm, GemmShape};
use super::params::NONE;
use super::seal::seal;
use super::weights::{self, Matrix, Uploader};
use crate::backend::driver::{Device, DeviceBuffer, Stream};
use crate::backend::score::{Score, Scores, Top, TopHeads};
use crate::backend::{
    Attend, Backend, KvGroup, LayerIndex, MatrixBytes, Rope, StepInput, WeightPolicy,
};
use crate::cache::{BlockRef, ClassDesc, CopyBlock, Gather, SeqStep};
use crate::codec::Codec;
use crate::error::{Error, Result};
use attention::Layers;
use begun::Begun;
use kv::Kv;
use repeat::{Repeats, Stage};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokens::Tokens;

/// A device, its stream and what is on it besides weights and activations. It runs one
/// model.
pub struct CudaBackend<T> {
    stream: Arc<Stream>,
    gemm: Mutex<Gemm>,
    uploader: Mutex<Uploader<T>>,
    kv: Option<Kv>,
    begun: Begun,
    layers: Layers,
    /// Rotations by their frequencies.
    turns: Vec<(Rope, DeviceBuffer<f64>)>,
    tokens: Tokens,
    repeats: Repeats,
}

impl<T: Element> CudaBackend<T> {
    /// A backend on a device.
    ///
    /// # Errors
    /// [`Error::NoCublasLt`] on a CUDA device without the library;
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            stream: Arc::new(device.stream()?),
            gemm: Mutex::new(Gemm::new(device)?),
            uploader: Mutex::default(),
            kv: None,
            begun: Begun::new(device)?,
            layers: Layers::default(),
            turns: Vec::new(),
            tokens: Tokens::new(device)?,
            repeats: Repeats::default(),
        })
    }

    /// Steps that were done by launching a captured one.
    pub fn repeated(&self) -> u64 {
        self.repeats.repeated
    }

    /// Whether steps of single tokens are captured and repeated, as they are unless this
    /// says otherwise; without, the host launches each kernel of each step. Results are
    /// the same: this is for measuring what capturing saves, and for debuggers.
    ///
    /// # Errors
    /// Of a device that was lost.
    pub fn set_capturing(&mut self, capturing: bool) -> Result<()> {
        self.repeats.captures = capturing;
        self.repeats.forget(&self.stream)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    fn multiply<Out: super::gemm::Output<T>>(
        &self,
        matrix: &Matrix<T>,
        x: &Buffer<T>,
        y: &mut DeviceBuffer<Out>,
    ) -> Result<()> {
        let (n, k) = (matrix.rows(), matrix.cols());
        if x.cols() != k {
            return Err(Error::config("matmul", format!("rows of {}, not {k}", x.cols())));
        }
        let shape = GemmShape { rows: x.rows(), n, k };
        lock(&self.gemm).matmul(x.narrow()?, matrix.data(), y, shape, &self.stream)
    }

    fn kv(&mut self) -> Result<(&mut Kv, &Stream)> {
        Ok((self.kv.as_mut().ok_or_else(no_kv)?, &self.stream))
    }
}

impl<T: Element> Backend for CudaBackend<T> {
    type Buffer = Buffer<T>;
    type Matrix = Matrix<T>;
    type Vector = DeviceBuffer<f32>;

    fn name(&self) -> String {
        format!("{}, {}", self.device().info().name, T::CODEC)
    }

    fn element(&self) -> Option<Codec> {
        Some(T::CODEC)
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let arenas = self.kv.as_ref().map_or(0, |kv| kv.arenas.committed_bytes());
        Ok(Some(self.device().memory()?.free + arenas))
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer<T>> {
        let mut buffer = Buffer::new(self.device())?;
        buffer.set_narrow(rows, cols, &self.stream)?;
        buffer.set_narrow(0, cols, &self.stream)?;
        Ok(buffer)
    }

    fn write(&self, rows: &[f32], cols: usize, to: &mut Buffer<T>) -> Result<()> {
        if cols == 0 || !rows.len().is_multiple_of(cols) {
            return Err(Error::config("rows", format!("{} floats, {cols} a row", rows.len())));
        }
        let mut narrow = vec![T::zeroed(); rows.len()];
        T::narrow(rows, &mut narrow);
        let to = to.set_narrow(rows.len() / cols, cols, &self.stream)?;
        to.write(0, &narrow, &self.stream)
    }

    fn read_row(&self, from: &Buffer<T>, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= from.rows() || out.len() != from.cols() {
            return Err(Error::config("row", format!("{row} of {} floats", out.len())));
        }
        let at = row * from.cols();
        match from.wide() {
            Ok(wide) => wide.read(at, out, &self.stream),
            Err(_) => {
                let mut narrow = vec![T::zeroed(); out.len()];
                from.narrow()?.read(at, &mut narrow, &self.stream)?;
                T::widen(&narrow, out);
                Ok(())
            }
        }
    }

    fn rows(&self, from: &Buffer<T>, rows: Range<usize>, to: &mut Buffer<T>) -> Result<()> {
        // A repeated step does not tell the buffer how many rows it has written; the
        // caller knows.
        if rows.end > from.room() {
            return Err(Error::config("rows", format!("{rows:?} of {}", from.room())));
        }
        let cols = from.cols();
        let to = to.set_narrow(rows.len(), cols, &self.stream)?;
        to.copy_from(0, from.narrow()?, rows.start * cols, rows.len() * cols, &self.stream)
    }

    fn matrix(&self, parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Matrix<T>> {
        for part in parts {
            weights::check::<T>(part, policy)?;
        }
        lock(&self.uploader).matrix(parts, &self.stream)
    }

    fn vector(&self, values: &[f32]) -> Result<DeviceBuffer<f32>> {
        self.device().upload(values, &self.stream)
    }

    fn matrix_bytes(&self, matrix: &Matrix<T>) -> u64 {
        matrix.data().bytes()
    }

    fn begin(&mut self, step: &StepInput<'_>) -> Result<()> {
        let padding = self.begun.set(step, self.tokens.drawn(), &self.stream)?;
        self.tokens.begin(step.rows.len() + padding, &self.stream)?;
        if !self.turns.iter().any(|(rope, _)| rope.inv_freq == step.rope.inv_freq) {
            self.turns.push((step.rope.clone(), inv_turns(step.rope, &self.stream)?));
        }
        let kv = self.kv.as_mut().ok_or_else(no_kv)?;
        let places = self.begun.bucket.unwrap_or(0);
        kv.begin(step.seqs, padding, places, step.rope, &self.stream)?;
        let most = kv.plans.iter().map(|plans| limits(&plans.tables.sizes()));
        for needed in most {
            self.layers.begin(needed, &self.stream)?;
        }
        Ok(())
    }

    fn repeat(&mut self, key: u64, mut work: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let bucket = self.begun.bucket.filter(|_| self.repeats.captures);
        let Some(bucket) = bucket else { return work(self) };
        let (key, stream) = ((key, bucket), self.stream.clone());
        match self.repeats.stage(key, &stream)? {
            Stage::New => {
                work(self)?;
                return self.repeats.ran(key, &stream);
            }
            Stage::Ran => match stream.capture(|_| work(self)) {
                Ok(graph) => self.repeats.captured(key, Some(graph)),
                Err(error @ Error::DeviceOutOfMemory { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a step cannot be captured; it is launched piece by piece");
                    self.repeats.captured(key, None);
                    // The plans of that try were recorded, not made.
                    self.layers.forget_plans();
                    return work(self);
                }
            },
            Stage::Plain => return work(self),
            Stage::Captured => {}
        }
        // SAFETY: all that a work uses is this backend's, its model's and the workspace's
        // that the key names; no buffer was freed or allocated since, so all of them live
        // where they were; `begin` has filled the same lists for a step of the same shape.
        unsafe { self.repeats.launch(key, &stream) }
    }

    fn embed(&self, table: &Matrix<T>, to: &mut Buffer<T>) -> Result<()> {
        let (rows, cols) = (self.begun.ids.len(), table.cols());
        let to = to.set_wide(rows, cols, &self.stream)?;
        dense::embed(table.data(), self.begun.ids.buffer(), rows, cols, to, &self.stream)
    }

    fn select(&self, from: &Buffer<T>, to: &mut Buffer<T>) -> Result<()> {
        let (rows, cols) = (self.begun.rows.len(), from.cols());
        let to = to.set_narrow(rows, cols, &self.stream)?;
        dense::select_rows(from.narrow()?, self.begun.rows.buffer(), rows, cols, to, &self.stream)
    }

    fn matmul(&self, matrix: &Matrix<T>, x: &mut Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        let y = y.set_narrow(x.rows(), matrix.rows(), &self.stream)?;
        self.multiply(matrix, x, y)
    }

    fn logits(&self, matrix: &Matrix<T>, x: &mut Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        let y = y.set_wide(x.rows(), matrix.rows(), &self.stream)?;
        self.multiply(matrix, x, y)
    }

    fn sample(&mut self, logits: &mut Buffer<T>) -> Result<()> {
        let (rows, vocab) = (logits.rows(), logits.cols());
        let Begun { draws, .. } = &self.begun;
        if draws.len() != rows {
            return Err(Error::config("draws", format!("{} for {rows} rows", draws.len())));
        }
        let logits = Logits { values: logits.wide()?, rows, vocab, stride: vocab };
        // SAFETY: `begin` made the lists; they are consistent.
        unsafe { dense::penalise(logits, self.begun.penalties(), &self.stream)? };
        dense::sample(logits, draws.buffer(), self.tokens.drawn_mut(), &self.stream)
    }

    fn send_tokens(&mut self) -> Result<()> {
        self.tokens.send(self.begun.wanted, &self.stream)
    }

    fn receive_tokens(&mut self) -> Result<Vec<Option<u32>>> {
        let ids = self.tokens.receive()?;
        Ok(ids.into_iter().map(|id| (id != NONE).then_some(id)).collect())
    }

    fn add_bias(&self, x: &mut Buffer<T>, bias: &DeviceBuffer<f32>) -> Result<()> {
        let rows = x.rows();
        if bias.len() != x.cols() {
            return Err(Error::config("bias", format!("{} for {}", bias.len(), x.cols())));
        }
        dense::add_bias(x.narrow_mut()?, rows, bias, &self.stream)
    }

    fn rms_norm(
        &self,
        x: &mut Buffer<T>,
        delta: Option<&Buffer<T>>,
        weight: &DeviceBuffer<f32>,
        eps: f32,
        y: &mut Buffer<T>,
    ) -> Result<()> {
        let (rows, cols) = (x.rows(), x.cols());
        if weight.len() != cols || delta.is_some_and(|d| (d.rows(), d.cols()) != (rows, cols)) {
            return Err(Error::config("rms_norm", format!("weight or delta is not {cols} wide")));
        }
        let delta = delta.map(Buffer::narrow).transpose()?;
        let y = y.set_narrow(rows, cols, &self.stream)?;
        let call = RmsNorm { rows, weight, eps };
        dense::rms_norm(call, x.wide_mut()?, delta, y, &self.stream)
    }

    fn head_norm(
        &self,
        x: &mut Buffer<T>,
        first_col: usize,
        heads: usize,
        weight: &DeviceBuffer<f32>,
        eps: f32,
    ) -> Result<()> {
        let (rows, stride) = (x.rows(), x.cols());
        let call = HeadNorm { rows, stride, first_col, heads, weight, eps };
        dense::head_norm(call, x.narrow_mut()?, &self.stream)
    }

    fn silu_mul(&self, x: &Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        let (rows, cols) = (x.rows(), x.cols() / 2);
        let y = y.set_narrow(rows, cols, &self.stream)?;
        dense::silu_mul(x.narrow()?, rows, cols, y, &self.stream)
    }

    fn configure_kv(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
    ) -> Result<()> {
        groups.iter().try_for_each(|group| check_head_dim(group.head_dim))?;
        if let Some(group) = groups.iter().find(|g| g.format.hot() != T::CODEC) {
            let what = format!("{} on a device that computes in {}", group.format, T::CODEC);
            return Err(Error::config("kv", what));
        }
        self.repeats.forget(&self.stream)?;
        self.stream.synchronize()?;
        self.tokens.clear();
        // Weights are loaded by now; and two sets of arenas need not fit.
        *lock(&self.uploader) = Uploader::default();
        self.kv = None;
        self.layers = Layers::default();
        self.kv = Some(Kv::new(groups, classes, budget, &self.stream)?);
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        let (kv, stream) = self.kv()?;
        kv.copier.copy(&mut kv.arenas, copies, stream)
    }

    fn gather(&mut self, gathers: &[Gather]) -> Result<()> {
        let (kv, stream) = self.kv()?;
        kv.gatherer.gather(&mut kv.arenas, gathers, stream)
    }

    fn free_blocks(&mut self, blocks: &[BlockRef]) {
        if let Some(kv) = &mut self.kv {
            kv.arenas.free(blocks);
        }
    }

    fn kv_bytes(&self) -> u64 {
        self.kv.as_ref().map_or(0, |kv| kv.arenas.bytes())
    }

    fn append(
        &mut self,
        at: LayerIndex,
        heads: usize,
        rope: Option<&Rope>,
        qkv: &mut Buffer<T>,
        _seqs: &[SeqStep],
    ) -> Result<()> {
        let turns = rope.map(|rope| {
            let known = self.turns.iter().find(|(of, _)| of.inv_freq == rope.inv_freq);
            let other = || Error::config("rope", "it is not the rotation of the step");
            known.map(|(_, turns)| turns).ok_or_else(other)
        });
        let kv = self.kv.as_mut().ok_or_else(no_kv)?;
        let call = AppendCall { at, heads, stride: qkv.cols(), inv_turns: turns.transpose()? };
        let plans = kv.plans.get(at.group).ok_or_else(no_kv)?;
        append(&mut kv.arenas, &plans.appends, &call, qkv.narrow_mut()?, &self.stream)
    }

    fn seal(&mut self, group: usize, layers: Range<usize>, _seqs: &[SeqStep]) -> Result<()> {
        let (kv, stream) = self.kv()?;
        let plans = kv.plans.get(group).ok_or_else(no_kv)?;
        seal(&mut kv.arenas, &plans.seals, group, layers, stream)
    }

    fn attend(
        &mut self,
        call: &Attend<'_>,
        q: &Buffer<T>,
        out: &mut Buffer<T>,
        lse: Option<&mut Buffer<T>>,
    ) -> Result<()> {
        let stream = &self.stream;
        let kv = self.kv.as_ref().ok_or_else(no_kv)?;
        let group = kv.arenas.group(call.at.group)?;
        let tables = &kv.plans(call.at)?.tables;
        let sizes = tables.sizes();
        let columns = call.heads * group.head_dim;
        check_rows("q", q, sizes.rows, columns)?;
        let lse = match lse {
            Some(lse) => lse.set_wide(q.rows(), call.heads, stream)?.address(),
            None => 0,
        };
        let call_at = AttentionCall {
            q: q.narrow()?.address(),
            q_stride: q.cols(),
            out: out.set_narrow(q.rows(), columns, stream)?.address(),
            lse,
            ..tables.call(&kv.arenas, call.at.layer)?
        };
        let layer = self.layers.get(call, group, limits(&sizes), stream)?;
        // SAFETY: the tables were checked against the arenas when the step began, the
        // buffers hold its rows, and the workspace its limits; all live as long as the
        // backend, which waits for its stream before it lets go of any.
        unsafe {
            if layer.planned == Some(call.at.group) && tables.are_uniform() {
                return layer.attention.attend_as_planned(&call_at, &mut layer.workspace, stream);
            }
            layer.attention.attend(&call_at, &mut layer.workspace, stream)?;
        }
        layer.planned = Some(call.at.group);
        Ok(())
    }

    fn score(
        &mut self,
        call: &Attend<'_>,
        pass: Score,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Scores,
    ) -> Result<()> {
        self.run_score(call, pass, q, lse, out)
    }

    fn score_top(
        &mut self,
        call: &Attend<'_>,
        of: TopHeads,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Vec<Top>,
    ) -> Result<()> {
        self.run_top(call, of, q, lse, out)
    }
}

impl<T> Drop for CudaBackend<T> {
    fn drop(&mut self) {
        // Kernels may still use what is freed next. If the device is lost, nothing does.
        let _ = self.stream.synchronize();
    }
}

/// What a call over tables of these sizes asks of its workspace.
fn limits(sizes: &super::tables::Sizes) -> Limits {
    Limits { seqs: sizes.seqs, generated_rows: sizes.generated_rows, tokens: sizes.tokens }
}

fn check_rows<T: Element>(
    name: &'static str,
    x: &Buffer<T>,
    rows: usize,
    cols: usize,
) -> Result<()> {
    if x.rows() >= rows && x.cols() >= cols {
        return Ok(());
    }
    let has = format!("[{}, {}]", x.rows(), x.cols());
    Err(Error::config(name, format!("{has} does not hold the step's [{rows}, {cols}]")))
}

fn no_kv() -> Error {
    Error::NotFound { what: "KV arenas; configure them first".into() }
}

fn lock<X>(mutex: &Mutex<X>) -> MutexGuard<'_, X> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
