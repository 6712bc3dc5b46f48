//! Who is tested: one interface over the CPU backend and the kernels on a device.

use super::on_backend::{ByElement, OnBackend};
use half::{bf16, f16};
use kvfold::backend::cpu::{CpuBackend, Level};
use kvfold::backend::cuda::append::{AppendCall, AppendPlan, append};
use kvfold::backend::cuda::arenas::Arenas;
use kvfold::backend::cuda::attend::{Attention, AttentionCall, AttentionShape, Limits};
use kvfold::backend::cuda::copy::Copier;
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::gather::Gatherer;
use kvfold::backend::cuda::params::ScoreTop;
use kvfold::backend::cuda::score::{ScoreCall, ScoreStarts, Scorer};
use kvfold::backend::cuda::seal::{SealPlan, seal};
use kvfold::backend::cuda::subnormal::Number;
use kvfold::backend::cuda::tables::{AttendTables, Sizes};
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream};
use kvfold::backend::score_pass::{Score, Scores, Top, TopHeads};
use kvfold::backend::{Attend, AttendSeq, KvGroup};
use kvfold::cache::{ClassDesc, Compaction, Step};
use kvfold::codec::Codec;
use std::sync::OnceLock;

/// Bytes that the blocks of a device may have.
const KV_BUDGET: u64 = 256 << 20;

/// One layer of one step.
pub struct LayerStep<'a> {
    /// The attention call.
    pub call: &'a Attend,
    /// The step, which has begun.
    pub step: &'a Step,
    /// Its sequences.
    pub seqs: &'a [AttendSeq<'a>],
    /// Channels of a head.
    pub head_dim: usize,
    /// `[rows][cols]`: query heads, key heads, value heads.
    pub qkv: &'a [f32],
    /// Floats of a row.
    pub cols: usize,
}

/// Outputs `[rows][heads · head_dim]` and base-2 log-sum-exps `[rows][heads]`.
pub struct Attended {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

/// Something that keeps KV and attends.
pub trait Subject {
    fn configure(&mut self, group: &KvGroup, classes: &[ClassDesc]);
    /// Begins a step.
    fn begin(&mut self, step: &Step);
    fn compact(&mut self, compaction: &Compaction);
    /// Appends and seals.
    fn write(&mut self, step: &LayerStep<'_>);
    /// The same, and attends.
    fn layer(&mut self, step: &LayerStep<'_>) -> Attended;
    /// A score pass over what `layer` has just done, which gave `lse`.
    fn score(&mut self, step: &LayerStep<'_>, lse: &[f32], pass: Score) -> Scores;
    /// The best tokens, likewise: `[rows][kv_heads]` or `[rows][heads]`.
    fn score_top(&mut self, step: &LayerStep<'_>, lse: &[f32], of: TopHeads) -> Vec<Top>;
    /// Bytes of KV held.
    fn held_bytes(&self) -> u64;
    /// The type that queries are rounded to, if any.
    fn query_type(&self) -> Option<Codec>;
    /// Relative rms error of outputs, and error of log-sum-exps, that are allowed.
    fn tolerance(&self) -> (f64, f64);
}

/// The kernels on a device.
pub struct OnDevice {
    stream: DeviceStream,
    kv: Option<Kv>,
    /// What codes are to the kernels, if not what they find.
    number: Option<Number>,
}

struct Kv {
    group: KvGroup,
    arenas: Arenas,
    appends: AppendPlan,
    seals: SealPlan,
    tables: AttendTables,
    copier: Copier,
    gatherer: Gatherer,
}

impl Kv {
    fn shape(&self, call: &Attend) -> AttentionShape {
        AttentionShape {
            head_dim: self.group.head_dim(),
            heads: call.heads,
            kv_heads: self.group.kv_heads,
            format: self.group.format,
            sinks: self.group.sinks,
            hot_window: self.group.hot_window,
            causal: call.causal,
            window: call.window,
            scale: call.scale,
        }
    }
}

/// Rows in a 16-bit type, and the elements from one to the next.
fn narrow<T: Element>(rows: &[f32], cols: usize, round: fn(f32) -> T) -> (Vec<T>, usize) {
    let stride = cols.next_multiple_of(8);
    let mut narrow = vec![T::zeroed(); rows.len() / cols * stride];
    for (to, from) in narrow.chunks_exact_mut(stride).zip(rows.chunks_exact(cols)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = round(*from));
    }
    (narrow, stride)
}

impl OnDevice {
    pub fn new(device: &Device) -> Self {
        Self { stream: device.stream().unwrap(), kv: None, number: None }
    }

    /// With kernels to which codes are such numbers, whatever the device takes.
    pub fn with_number(device: &Device, number: Number) -> Self {
        Self { number: Some(number), ..Self::new(device) }
    }

    fn kv(&mut self) -> (&mut Kv, &DeviceStream) {
        (self.kv.as_mut().unwrap(), &self.stream)
    }

    /// Does `work` with a scorer and what a pass reads.
    fn scoring<T: Element, Out>(
        &mut self,
        step: &LayerStep<'_>,
        lse: &[f32],
        round: fn(f32) -> T,
        work: impl FnOnce(&Scorer, &ScoreCall, &DeviceStream) -> Out,
    ) -> Out {
        let (kv, stream) = self.kv();
        let device = stream.device();
        let (narrow, q_stride) = narrow(step.qkv, step.cols, round);
        let q = device.upload(&narrow, stream).unwrap();
        let lse = device.upload(lse, stream).unwrap();
        let scorer = Scorer::new(device, kv.shape(step.call)).unwrap();
        let tables = kv.tables.call(&kv.arenas, step.call.at.layer).unwrap();
        let attention = AttentionCall { q: q.address(), q_stride, lse: lse.address(), ..tables };
        let call = ScoreCall { attention, sizes: kv.tables.sizes() };
        let out = work(&scorer, &call, stream);
        stream.synchronize().unwrap();
        out
    }

    fn score_of<T: Element>(
        &mut self,
        step: &LayerStep<'_>,
        lse: &[f32],
        pass: Score,
        round: fn(f32) -> T,
    ) -> Scores {
        let kv = self.kv().0;
        let spans = kv.tables.spans(kv.group.kv_heads, step.call.at.layer).unwrap();
        self.scoring(step, lse, round, |scorer, call, stream| {
            let device = stream.device();
            let mut starts = ScoreStarts::new(device).unwrap();
            starts.set(&spans, stream).unwrap();
            // NaN: every score must be written.
            let mut scores = device.alloc::<f32>(spans.total()).unwrap();
            scores.fill(0xff, stream).unwrap();
            let (starts, to) = (starts.address(), scores.address());
            // SAFETY: the tables were checked against the arenas; buffers are of these shapes.
            unsafe { scorer.score(call, pass, starts, to, stream).unwrap() };
            Scores { spans: spans.clone(), values: scores.to_vec(stream).unwrap() }
        })
    }

    fn top_of<T: Element>(
        &mut self,
        step: &LayerStep<'_>,
        lse: &[f32],
        of: TopHeads,
        round: fn(f32) -> T,
    ) -> Vec<Top> {
        self.scoring(step, lse, round, |scorer, call, stream| {
            let columns =
                if of == TopHeads::Each { step.call.heads } else { scorer.shape().kv_heads };
            let rows = call.sizes.rows;
            let found = [1, 3].map(|chunks| {
                let mut workspace = scorer.top_scratch(rows, of, chunks).unwrap();
                let tops = stream.device().alloc::<ScoreTop>(rows * columns).unwrap();
                let to = tops.address();
                // SAFETY: as above.
                unsafe { scorer.top(call, of, to, &mut workspace, stream).unwrap() };
                tops.to_vec(stream).unwrap()
            });
            assert!(found[0] == found[1], "{of:?}: chunks change a bit");
            found[0].iter().map(|t| Top { value: t.value, index: t.index }).collect()
        })
    }

    /// Appends and seals; the rows on the device, and the elements from one to the next.
    fn write_of<T: Element>(
        &mut self,
        step: &LayerStep<'_>,
        round: fn(f32) -> T,
    ) -> (DeviceBuffer<T>, usize) {
        let LayerStep { call, step: Step { seqs, .. }, seqs: shares, qkv, cols, .. } = *step;
        let (kv, stream) = self.kv();
        let (narrow, stride) = narrow(qkv, cols, round);
        let mut qkv = stream.device().upload(&narrow, stream).unwrap();

        let group = call.at.group;
        kv.appends.set(&mut kv.arenas, group, seqs, 0, stream).unwrap();
        kv.seals.set(&mut kv.arenas, group, seqs, 0, stream).unwrap();
        let rope = kv.group.rope.as_deref();
        kv.tables.set(&kv.arenas, group, shares, 0, rope, stream).unwrap();
        let shape = AppendCall { at: call.at, heads: call.heads, stride, inv_turns: None };
        append(&mut kv.arenas, &kv.appends, &shape, &mut qkv, stream).unwrap();
        let layers = call.at.layer..call.at.layer + 1;
        seal(&mut kv.arenas, &kv.seals, group, layers, stream).unwrap();
        (qkv, stride)
    }

    fn layer_of<T: Element>(
        &mut self,
        step: &LayerStep<'_>,
        round: fn(f32) -> T,
        widen: fn(T) -> f32,
    ) -> Attended {
        let (qkv, stride) = self.write_of(step, round);
        let (call, rows, number) = (step.call, step.qkv.len() / step.cols, self.number);
        let (kv, stream) = self.kv();
        let device = stream.device();
        let attention = match number {
            Some(number) => Attention::with_number(device, kv.shape(call), number).unwrap(),
            None => Attention::new(device, kv.shape(call)).unwrap(),
        };
        let Sizes { seqs, generated_rows, tokens, .. } = kv.tables.sizes();
        let limits = Limits { seqs, generated_rows, tokens };
        let mut workspace = attention.scratch(limits).unwrap();
        let d = kv.group.head_dim();
        // NaN: every row must be written.
        let mut out = device.alloc::<T>(rows * call.heads * d).unwrap();
        let mut lse = device.alloc::<f32>(rows * call.heads).unwrap();
        out.fill(0xff, stream).unwrap();
        lse.fill(0xff, stream).unwrap();
        let tables = kv.tables.call(&kv.arenas, call.at.layer).unwrap();
        let (q, q_stride) = (qkv.address(), stride);
        let attend =
            AttentionCall { q, q_stride, out: out.address(), lse: lse.address(), ..tables };
        // SAFETY: the tables were checked against the arenas; buffers are of these shapes.
        unsafe { attention.attend(&attend, &mut workspace, stream).unwrap() };
        assert!(!attention.overflowed(&workspace, stream).unwrap());
        kv.arenas.check_canaries(stream).unwrap();
        Attended {
            out: out.to_vec(stream).unwrap().into_iter().map(widen).collect(),
            lse: lse.to_vec(stream).unwrap(),
        }
    }
}

impl Subject for OnDevice {
    fn configure(&mut self, group: &KvGroup, classes: &[ClassDesc]) {
        let (stream, groups) = (&self.stream, std::slice::from_ref(group));
        let device = stream.device();
        self.kv = Some(Kv {
            group: group.clone(),
            arenas: Arenas::with_canaries(device, groups, classes, KV_BUDGET, stream).unwrap(),
            appends: AppendPlan::new(device).unwrap(),
            seals: SealPlan::new(device).unwrap(),
            tables: AttendTables::new(device).unwrap(),
            copier: Copier::new(device).unwrap(),
            gatherer: Gatherer::new(device).unwrap(),
        });
    }

    fn begin(&mut self, step: &Step) {
        let (kv, stream) = self.kv();
        kv.arenas.free(&step.frees);
        if !step.copies.is_empty() {
            kv.copier.copy(&mut kv.arenas, &step.copies, stream).unwrap();
        }
    }

    fn compact(&mut self, compaction: &Compaction) {
        let (kv, stream) = self.kv();
        kv.arenas.free(&compaction.frees);
        kv.copier.move_pages(&mut kv.arenas, &compaction.moves, stream).unwrap();
        kv.gatherer.gather(&mut kv.arenas, &compaction.gathers, stream).unwrap();
        kv.arenas.check_canaries(stream).unwrap();
    }

    fn write(&mut self, step: &LayerStep<'_>) {
        match self.query_type() {
            Some(Codec::Bf16) => drop(self.write_of::<bf16>(step, bf16::from_f32)),
            _ => drop(self.write_of::<f16>(step, f16::from_f32)),
        }
    }

    fn layer(&mut self, step: &LayerStep<'_>) -> Attended {
        match self.query_type() {
            Some(Codec::Bf16) => self.layer_of::<bf16>(step, bf16::from_f32, bf16::to_f32),
            _ => self.layer_of::<f16>(step, f16::from_f32, f16::to_f32),
        }
    }

    fn score(&mut self, step: &LayerStep<'_>, lse: &[f32], pass: Score) -> Scores {
        match self.query_type() {
            Some(Codec::Bf16) => self.score_of::<bf16>(step, lse, pass, bf16::from_f32),
            _ => self.score_of::<f16>(step, lse, pass, f16::from_f32),
        }
    }

    fn score_top(&mut self, step: &LayerStep<'_>, lse: &[f32], of: TopHeads) -> Vec<Top> {
        match self.query_type() {
            Some(Codec::Bf16) => self.top_of::<bf16>(step, lse, of, bf16::from_f32),
            _ => self.top_of::<f16>(step, lse, of, f16::from_f32),
        }
    }

    fn held_bytes(&self) -> u64 {
        self.kv.as_ref().map_or(0, |kv| kv.arenas.bytes())
    }

    fn query_type(&self) -> Option<Codec> {
        self.kv.as_ref().map(|kv| kv.group.format.hot())
    }

    fn tolerance(&self) -> (f64, f64) {
        match self.query_type() {
            Some(Codec::Bf16) => (6e-3, 2e-2),
            _ => (1e-3, 3e-3),
        }
    }
}

/// Makes subjects of one kind.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Cpu(Level),
    /// Threads run in an order drawn from this seed. If it is even, the whole backend is
    /// tested; if it is odd, the kernels alone.
    Emulated(u64),
    /// The same of a device whose products take f16 subnormals as 0.
    Flushing(u64),
    /// The backend on the first CUDA device.
    Cuda,
}

impl Kind {
    /// Every SIMD level of this processor, the emulated device under each seed, and
    /// a CUDA device if there is one. `KVFOLD_CONFORMANCE_KINDS`, a list of `cpu`,
    /// `emulated` and `cuda`, asks for some of them, which must then be there.
    pub fn all(seeds: std::ops::Range<u64>) -> Vec<Kind> {
        let list = std::env::var("KVFOLD_CONFORMANCE_KINDS").ok();
        let named: Option<Vec<_>> = list.as_ref().map(|l| l.split(',').map(str::trim).collect());
        for name in named.iter().flatten() {
            assert!(["cpu", "emulated", "cuda"].contains(name), "there is no kind \"{name}\"");
        }
        let asked = |kind| named.as_ref().is_none_or(|named| named.contains(&kind));
        let mut kinds = Vec::new();
        if asked("cpu") {
            kinds.extend(Level::ALL.into_iter().filter(|l| l.available()).map(Kind::Cpu));
        }
        if asked("emulated") {
            kinds.extend(seeds.map(Kind::Emulated));
        }
        match cuda() {
            Ok(_) if asked("cuda") => kinds.push(Kind::Cuda),
            Err(error) if named.is_some() && asked("cuda") => panic!("no CUDA device: {error}"),
            _ => {}
        }
        kinds
    }

    /// Whether it has kernels for a shape. Others are refused: see the test of that.
    pub fn takes(self, group: &KvGroup) -> bool {
        const FORMATS: [&str; 10] =
            ["f16", "bf16", "fp8", "kivi4", "kivi2", "kivi4/kivi2", "kf4", "kf3", "kf3.2", "kf2"];
        let name = group.format.to_string();
        let format = FORMATS.contains(&name.trim_start_matches("bf16+"))
            && name != "bf16+f16"
            && group.streams.is_none();
        let fits =
            group.format.key.fits(group.head_dim()) && group.format.value.fits(group.head_dim());
        let cpu = matches!(self, Kind::Cpu(_)) && fits;
        cpu || (format && [64, 128, 256].contains(&group.head_dim()))
    }

    pub fn subject(self) -> Box<dyn Subject> {
        match (self, self.device()) {
            (Kind::Cpu(level), _) => Box::new(OnBackend::new(CpuBackend::with_level(level))),
            (Kind::Emulated(seed) | Kind::Flushing(seed), Some(device)) if seed % 2 == 1 => {
                Box::new(OnDevice::new(&device))
            }
            (_, device) => Box::new(ByElement::new(&device.unwrap())),
        }
    }

    /// The device, a new one if it is emulated; the CPU is none.
    pub fn device(self) -> Option<Device> {
        let emulated = |seed, flush_subnormals| {
            let options = EmulatorOptions { seed, flush_subnormals, ..Default::default() };
            Device::emulated(EmulatorOptions { host_threads: 2, ..options })
        };
        match self {
            Kind::Cpu(_) => None,
            Kind::Emulated(seed) => Some(emulated(seed, false)),
            Kind::Flushing(seed) => Some(emulated(seed, true)),
            Kind::Cuda => Some(cuda().as_ref().unwrap().clone()),
        }
    }
}

/// All kinds, with eight seeds of the emulated device in full tests and else `few`.
pub fn kinds(few: u64) -> Vec<Kind> {
    Kind::all(0..if full() { 8 } else { few })
}

/// The first CUDA device, opened once: loading its kernels takes a while.
fn cuda() -> &'static kvfold::Result<Device> {
    static CUDA: OnceLock<kvfold::Result<Device>> = OnceLock::new();
    CUDA.get_or_init(|| Device::cuda(0))
}

/// Whether `KVFOLD_CONFORMANCE=full` asks for more seeds and cases.
pub fn full() -> bool {
    std::env::var("KVFOLD_CONFORMANCE").is_ok_and(|set| set == "full")
}
