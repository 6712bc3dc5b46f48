//! A whole backend as a subject: what users run, through the traits.

use super::subject::{Attended, LayerStep, Subject};
use half::{bf16, f16};
use kvfold::Result;
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::runner::CudaBackend;
use kvfold::backend::driver::Device;
use kvfold::backend::score_pass::{Score, Scores, Top, TopHeads};
use kvfold::backend::{Backend, KvGroup, RowToken, StepInput};
use kvfold::cache::{ClassDesc, Compaction, Step};
use kvfold::codec::Codec;

/// A backend with an arena and the buffers of the last layer.
pub struct OnBackend<B: Backend> {
    arena: Option<B::Arena>,
    qkv: B::Buffer,
    out: B::Buffer,
    lse: B::Buffer,
    backend: B,
    tolerance: (f64, f64),
    /// Whether nothing was written behind a block, of backends that can tell.
    check: fn(&B, &B::Arena) -> Result<()>,
}

impl<B: Backend> OnBackend<B> {
    pub fn new(backend: B) -> Self {
        Self::checked(backend, |_, _| Ok(()))
    }

    fn checked(backend: B, check: fn(&B, &B::Arena) -> Result<()>) -> Self {
        let tolerance = match backend.capabilities().element {
            None => (1e-5, 1e-4),
            Some(Codec::Bf16) => (6e-3, 2e-2),
            Some(_) => (1e-3, 3e-3),
        };
        let [qkv, out, lse] = [(); 3].map(|()| backend.buffer(0, 0).unwrap());
        Self { arena: None, qkv, out, lse, backend, tolerance, check }
    }

    fn check(&self) {
        (self.check)(&self.backend, self.arena.as_ref().unwrap()).unwrap();
    }

    fn read(&self, buffer: &B::Buffer, rows: usize, cols: usize) -> Vec<f32> {
        let mut all = vec![0.0; rows * cols];
        for (i, row) in all.chunks_exact_mut(cols).enumerate() {
            self.backend.read_row(buffer, i, row).unwrap();
        }
        all
    }
}

impl<B: Backend> Subject for OnBackend<B> {
    fn configure(&mut self, group: &KvGroup, classes: &[ClassDesc]) {
        // More than any test holds.
        let arena = self.backend.arena(std::slice::from_ref(group), classes, 64 << 20).unwrap();
        self.arena = Some(arena);
    }

    fn begin(&mut self, step: &Step) {
        let rows = step.seqs.iter().map(|seq| seq.new_tokens).sum();
        let tokens = vec![RowToken::Given(0); rows];
        let input = StepInput { step, tokens: &tokens, rows: &[], choices: &[] };
        self.backend.begin(self.arena.as_mut().unwrap(), &input).unwrap();
    }

    fn compact(&mut self, compaction: &Compaction) {
        self.backend.compact(self.arena.as_mut().unwrap(), compaction).unwrap();
        self.check();
    }

    fn write(&mut self, step: &LayerStep<'_>) {
        let LayerStep { call, qkv, cols, .. } = *step;
        let Self { backend, arena, qkv: buffer, .. } = self;
        let arena = arena.as_mut().unwrap();
        backend.write(qkv, cols, buffer).unwrap();
        backend.append(arena, call.at, call.heads, true, buffer).unwrap();
        backend.seal(arena, call.at.group, call.at.layer..call.at.layer + 1).unwrap();
    }

    fn layer(&mut self, step: &LayerStep<'_>) -> Attended {
        self.write(step);
        let LayerStep { call, qkv, cols, .. } = *step;
        let (rows, d) = (qkv.len() / cols, step.head_dim);
        let Self { backend, arena, qkv: buffer, out, lse, .. } = self;
        backend.attend(arena.as_mut().unwrap(), call, buffer, out, Some(lse)).unwrap();
        let out = self.read(&self.out, rows, call.heads * d);
        self.check();
        Attended { out, lse: self.read(&self.lse, rows, call.heads) }
    }

    fn score(&mut self, step: &LayerStep<'_>, _lse: &[f32], pass: Score) -> Scores {
        let mut scores = Scores::default();
        let Self { backend, arena, qkv, lse, .. } = self;
        let arena = arena.as_mut().unwrap();
        backend.score(arena, step.call, pass, qkv, lse, &mut scores).unwrap();
        scores
    }

    fn score_top(&mut self, step: &LayerStep<'_>, _lse: &[f32], of: TopHeads) -> Vec<Top> {
        let mut tops = Vec::new();
        let Self { backend, arena, qkv, lse, .. } = self;
        let arena = arena.as_mut().unwrap();
        backend.score_top(arena, step.call, of, qkv, lse, &mut tops).unwrap();
        tops
    }

    fn held_bytes(&self) -> u64 {
        self.arena.as_ref().map_or(0, |arena| self.backend.kv_bytes(arena))
    }

    fn query_type(&self) -> Option<Codec> {
        self.backend.capabilities().element
    }

    fn tolerance(&self) -> (f64, f64) {
        self.tolerance
    }
}

fn with_canaries<T: Element>(device: &Device) -> Box<dyn Subject> {
    let mut backend = CudaBackend::<T>::new(device).unwrap();
    backend.set_canaries();
    Box::new(OnBackend::checked(backend, CudaBackend::check_canaries))
}

/// The CUDA backend in the 16-bit type of the group that it is configured for.
pub struct ByElement {
    device: Device,
    inner: Option<Box<dyn Subject>>,
}

impl ByElement {
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), inner: None }
    }

    fn inner(&mut self) -> &mut dyn Subject {
        self.inner.as_deref_mut().unwrap()
    }
}

impl Subject for ByElement {
    fn configure(&mut self, group: &KvGroup, classes: &[ClassDesc]) {
        self.inner = Some(match group.format.hot() {
            Codec::Bf16 => with_canaries::<bf16>(&self.device),
            _ => with_canaries::<f16>(&self.device),
        });
        self.inner().configure(group, classes);
    }

    fn begin(&mut self, step: &Step) {
        self.inner().begin(step);
    }

    fn compact(&mut self, compaction: &Compaction) {
        self.inner().compact(compaction);
    }

    fn write(&mut self, step: &LayerStep<'_>) {
        self.inner().write(step);
    }

    fn layer(&mut self, step: &LayerStep<'_>) -> Attended {
        self.inner().layer(step)
    }

    fn score(&mut self, step: &LayerStep<'_>, lse: &[f32], pass: Score) -> Scores {
        self.inner().score(step, lse, pass)
    }

    fn score_top(&mut self, step: &LayerStep<'_>, lse: &[f32], of: TopHeads) -> Vec<Top> {
        self.inner().score_top(step, lse, of)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.held_bytes())
    }

    fn query_type(&self) -> Option<Codec> {
        self.inner.as_ref().and_then(|inner| inner.query_type())
    }

    fn tolerance(&self) -> (f64, f64) {
        self.inner.as_ref().map_or((1e-3, 3e-3), |inner| inner.tolerance())
    }
}
