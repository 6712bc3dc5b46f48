//! The CUDA backend as a subject: what users run, through the trait.

use super::subject::{Attended, LayerStep, Subject};
use half::{bf16, f16};
use kvfold::backend::cuda::append::Element;
use kvfold::backend::cuda::backend::{Buffer, CudaBackend};
use kvfold::backend::driver::Device;
use kvfold::backend::score::{Score, Scores, Top, TopHeads};
use kvfold::backend::{Backend, Ids, KvGroup, StepInput};
use kvfold::cache::{BlockRef, ClassDesc, CopyBlock, Gather};
use kvfold::codec::Codec;

/// A backend in the 16-bit type of the group that it is configured for.
pub struct OnBackend {
    device: Device,
    inner: Option<Box<dyn Subject>>,
}

impl OnBackend {
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), inner: None }
    }

    fn inner(&mut self) -> &mut dyn Subject {
        self.inner.as_deref_mut().unwrap()
    }
}

impl Subject for OnBackend {
    fn configure(&mut self, group: &KvGroup, classes: &[ClassDesc]) {
        self.inner = Some(match group.format.hot() {
            Codec::Bf16 => Box::new(Typed::<bf16>::new(&self.device)),
            _ => Box::new(Typed::<f16>::new(&self.device)),
        });
        self.inner().configure(group, classes);
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) {
        self.inner().copy_blocks(copies);
    }

    fn gather(&mut self, gathers: &[Gather]) {
        self.inner().gather(gathers);
    }

    fn free_blocks(&mut self, blocks: &[BlockRef]) {
        self.inner().free_blocks(blocks);
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

/// A backend with the buffers of the last layer.
struct Typed<T> {
    backend: CudaBackend<T>,
    qkv: Buffer<T>,
    out: Buffer<T>,
    lse: Buffer<T>,
}

impl<T: Element> Typed<T> {
    fn new(device: &Device) -> Self {
        let backend = CudaBackend::new(device).unwrap();
        let [qkv, out, lse] = [(); 3].map(|()| backend.buffer(0, 0).unwrap());
        Self { backend, qkv, out, lse }
    }

    fn read(&self, buffer: &Buffer<T>) -> Vec<f32> {
        let mut all = vec![0.0; buffer.rows() * buffer.cols()];
        for (i, row) in all.chunks_exact_mut(buffer.cols()).enumerate() {
            self.backend.read_row(buffer, i, row).unwrap();
        }
        all
    }
}

impl<T: Element> Subject for Typed<T> {
    fn configure(&mut self, group: &KvGroup, classes: &[ClassDesc]) {
        // More than any test holds.
        self.backend.configure_kv(std::slice::from_ref(group), classes, 64 << 20).unwrap();
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) {
        self.backend.copy_blocks(copies).unwrap();
    }

    fn gather(&mut self, gathers: &[Gather]) {
        self.backend.gather(gathers).unwrap();
    }

    fn free_blocks(&mut self, blocks: &[BlockRef]) {
        self.backend.free_blocks(blocks);
    }

    fn layer(&mut self, step: &LayerStep<'_>) -> Attended {
        let LayerStep { call, seqs, qkv, cols } = *step;
        let ids = vec![0; qkv.len() / cols];
        let rope = call.rope.unwrap();
        let input = StepInput { seqs, ids: Ids::Given(&ids), rows: &[], choices: &[], rope };
        let Self { backend, qkv: buffer, out, lse } = self;
        backend.begin(&input).unwrap();
        backend.write(qkv, cols, buffer).unwrap();
        backend.append(call.at, call.heads, None, buffer, seqs).unwrap();
        let layers = call.at.layer..call.at.layer + 1;
        backend.seal(call.at.group, layers, seqs).unwrap();
        backend.attend(call, buffer, out, Some(lse)).unwrap();
        Attended { out: self.read(&self.out), lse: self.read(&self.lse) }
    }

    fn score(&mut self, step: &LayerStep<'_>, _lse: &[f32], pass: Score) -> Scores {
        let mut scores = Scores::default();
        let Self { backend, qkv, lse, .. } = self;
        Backend::score(backend, step.call, pass, qkv, lse, &mut scores).unwrap();
        scores
    }

    fn score_top(&mut self, step: &LayerStep<'_>, _lse: &[f32], of: TopHeads) -> Vec<Top> {
        let mut tops = Vec::new();
        let Self { backend, qkv, lse, .. } = self;
        Backend::score_top(backend, step.call, of, qkv, lse, &mut tops).unwrap();
        tops
    }

    fn held_bytes(&self) -> u64 {
        self.backend.kv_bytes()
    }

    fn query_type(&self) -> Option<Codec> {
        Some(T::CODEC)
    }

    fn tolerance(&self) -> (f64, f64) {
        if T::CODEC == Codec::Bf16 { (6e-3, 2e-2) } else { (1e-3, 3e-3) }
    }
}
