//! Passes through some of a model's layers, watched passes, models that share a device.

use super::runner::{Golden, Runner, golden_dir};
use half::f16;
use kvfold::backend::cpu::CpuBackend;
use kvfold::backend::cuda::runner::CudaBackend;
use kvfold::backend::draw::Choice;
use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::backend::score_pass::{Heads, Score, Scores, Top, TopHeads};
use kvfold::backend::{Backend, RowToken, StepInput, WeightPolicy};
use kvfold::cache::{KvCache, NewTokens, SeqId};
use kvfold::model::{
    Attended, Checkpoint, Graph, KvOptions, Model, Observer, Pass, Tail, Workspace, cache_config,
    kv_groups,
};

const FOLDER: &str = "mistral";

fn prompt() -> Vec<u32> {
    Golden::load(&golden_dir().join(FOLDER).join("golden.safetensors")).ids("input_ids.0")
}

fn cpu() -> CpuBackend {
    CpuBackend::new()
}

fn device(seed: u64) -> CudaBackend<f16> {
    let options = EmulatorOptions { seed, host_threads: 2, ..Default::default() };
    CudaBackend::new(&Device::emulated(options)).unwrap()
}

fn runner<B: Backend + Send>(backend: B, kv: &str) -> Runner<B> {
    Runner::new(backend, &golden_dir().join(FOLDER), WeightPolicy::Auto, kv)
}

fn given(ids: &[u32]) -> Vec<RowToken> {
    ids.iter().map(|id| RowToken::Given(*id)).collect()
}

/// Logits after the prompt's last token, whose other tokens were computed by `first`.
fn after<B: Backend + Send>(
    runner: &mut Runner<B>,
    first: impl FnOnce(&mut Runner<B>, SeqId, &[u32]),
) -> Vec<u32> {
    let ids = prompt();
    let (last, before) = ids.split_last().unwrap();
    let seq = runner.create();
    first(runner, seq, before);
    let mut pass = Pass::all(runner.layers(), Tail::Hidden);
    runner.step(&[NewTokens::prompt(seq, 1)], &given(&[*last]), &[0], &[], &mut pass);
    let bits = bits(runner);
    runner.free(vec![seq]);
    bits
}

/// Bits of the logits of the one row that was wanted.
fn bits<B: Backend + Send>(runner: &mut Runner<B>) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut keep = |_, row: &[f32]| {
        bits = row.iter().map(|x| x.to_bits()).collect();
        Ok(())
    };
    runner.placed.logits(0..1, &mut keep).unwrap();
    bits
}

fn whole<B: Backend + Send>(runner: &mut Runner<B>, seq: SeqId, ids: &[u32]) {
    let mut pass = Pass::all(runner.layers(), Tail::Hidden);
    let rows = [ids.len() - 1];
    runner.step(&[NewTokens::prompt(seq, ids.len())], &given(ids), &rows, &[], &mut pass);
}

/// What nobody reads can be left out: the keys and values are the same.
fn kv_only_is_as_good<B: Backend + Send>(backend: impl Fn() -> B) {
    for kv in ["f16", "kivi2"] {
        let want = after(&mut runner(backend(), kv), whole);
        let got = after(&mut runner(backend(), kv), |runner, seq, ids| {
            let mut pass = Pass::kv_only(runner.layers());
            runner.step(&[NewTokens::prompt(seq, ids.len())], &given(ids), &[], &[], &mut pass);
        });
        assert!(got == want, "{kv}");
    }
}

#[test]
fn a_pass_for_keys_and_values_alone_writes_what_a_whole_one_writes() {
    kv_only_is_as_good(cpu);
    kv_only_is_as_good(|| device(1));
}

/// A step in pieces, with a look at the hidden states between, is the step as a whole;
/// single tokens too, which a device repeats.
fn pieces_are_the_whole<B: Backend + Send>(backend: B) {
    let ids = prompt();
    let mut runner = runner(backend, "kivi2");
    let layers = runner.layers();
    let mut all = Vec::new();
    for pieces in [false, true] {
        let seq = runner.create();
        whole(&mut runner, seq, &ids[..150]);
        let mut found = Vec::new();
        for id in &ids[150..158] {
            let new = [NewTokens::generated(seq, 1)];
            if !pieces {
                let mut pass = Pass::all(layers, Tail::Hidden);
                runner.step(&new, &given(&[*id]), &[0], &[], &mut pass);
            } else {
                let first = &mut Pass { layers: 0..1, observer: None, tail: Tail::Hidden };
                runner.step(&new, &given(&[*id]), &[0], &[], first);
                assert_ne!(bits(&mut runner), Vec::<u32>::new());
                for (range, tail) in [(1..2, Tail::Nothing), (2..layers, Tail::Hidden)] {
                    let mut pass = Pass { layers: range, observer: None, tail };
                    runner.placed.forward(&mut pass).unwrap();
                }
            }
            found.push(bits(&mut runner));
        }
        runner.free(vec![seq]);
        all.push(found);
    }
    assert!(all[0] == all[1]);
}

#[test]
fn a_step_in_pieces_is_the_step_as_a_whole() {
    pieces_are_the_whole(cpu());
    pieces_are_the_whole(device(2));
}

#[test]
fn layers_follow_each_other() {
    let mut runner = runner(cpu(), "f16");
    let seq = runner.create();
    let mut first = Pass { layers: 0..1, observer: None, tail: Tail::Nothing };
    runner.step(&[NewTokens::prompt(seq, 3)], &given(&[1, 2, 3]), &[], &[], &mut first);
    for layers in [0..2, 2..3, 1..9] {
        let mut pass = Pass { layers, observer: None, tail: Tail::Nothing };
        let error = runner.placed.forward(&mut pass).unwrap_err().to_string();
        assert!(error.starts_with("layers: ") && error.contains("begins at 1"), "{error}");
    }
    runner.free(vec![seq]);
}

/// Adds up what each query gave away, and finds the tokens that it read most.
#[derive(Default)]
struct Watch {
    layers: Vec<usize>,
    sums: Vec<f32>,
    tops: Vec<Top>,
    head_dim: usize,
    projected: usize,
}

impl Observer for Watch {
    fn attended(&mut self, seen: &mut dyn Attended) -> kvfold::Result<()> {
        self.layers.push(seen.layer());
        let heads = seen.call().heads;
        let (mut scores, mut tops) = (Scores::default(), Vec::new());
        if seen.layer() != 1 {
            let refused = seen.score(Score::Max { last: 1 }, &mut scores);
            assert!(refused.unwrap_err().to_string().contains("lse"));
            return Ok(());
        }
        let pass = Score::Sum { last: usize::MAX, heads: Heads::Mean };
        seen.score(pass, &mut scores)?;
        self.sums.push(scores.of(0, 0).iter().sum());
        seen.score_top(TopHeads::Each, &mut tops)?;
        self.tops = tops;
        seen.project(&vec![0.0; 2 * heads * self.head_dim], &mut |_, row| {
            assert!(row.iter().all(|x| *x == 0.0));
            self.projected += 1;
        })
    }

    fn scores(&self, layer: usize) -> bool {
        layer == 1
    }
}

/// An observer runs score passes in the layers that it names, and nothing else changes.
fn watching<B: Backend + Send>(mut runner: Runner<B>) {
    let want = after(&mut runner, whole);
    let head_dim = runner.placed.config().head_dim;
    let mut watch = Watch { head_dim, ..Watch::default() };
    let got = after(&mut runner, |runner, seq, ids| {
        let layers = runner.layers();
        let mut pass = Pass { layers: 0..layers, observer: Some(&mut watch), tail: Tail::Hidden };
        let new = [NewTokens::prompt(seq, ids.len())];
        runner.step(&new, &given(ids), &[0], &[], &mut pass);
    });
    assert!(got == want);
    let rows = prompt().len() - 1;
    assert_eq!(watch.layers, (0..runner.layers()).collect::<Vec<_>>());
    assert_eq!(watch.projected, 2);
    // Every query hands out 1.
    assert!((watch.sums[0] / rows as f32 - 1.0).abs() < 5e-3, "{:?}", watch.sums);
    assert!(watch.tops.iter().all(|top| top.value > 0.0 && (top.index as usize) < rows));
}

#[test]
fn observers_run_score_passes() {
    watching(Runner::new(cpu(), &golden_dir().join("llama2"), WeightPolicy::Auto, "kivi2"));
    let folder = golden_dir().join("mistral");
    watching(Runner::new(cpu(), &folder, WeightPolicy::Auto, "f16"));
}

/// Score passes between steps cost no captured one: their buffers stay.
#[test]
fn score_passes_leave_captured_steps_alone() {
    let mut runner = Runner::new(device(4), &golden_dir().join("qwen3"), WeightPolicy::Auto, "f16");
    let layers = runner.layers();
    let ids = prompt();
    let (decoding, watched) = (runner.create(), runner.create());
    // Lengths stay below the next power of two, where buffers grow.
    whole(&mut runner, decoding, &ids[..70]);
    let look = |runner: &mut Runner<_>, ids: &[u32]| {
        let mut watch = Scorer;
        let mut pass = Pass { layers: 0..layers, observer: Some(&mut watch), tail: Tail::Hidden };
        runner.step(&[NewTokens::prompt(watched, ids.len())], &given(ids), &[0], &[], &mut pass);
    };
    look(&mut runner, &ids[..40]);
    let decode = |runner: &mut Runner<_>, n: usize| {
        for _ in 0..n {
            let new = [NewTokens::generated(decoding, 1)];
            let mut pass = Pass::all(layers, Tail::Draw);
            runner.step(&new, &given(&[5]), &[0], &[Choice::greedy(0)], &mut pass);
            runner.placed.receive().unwrap();
        }
    };
    decode(&mut runner, 4);
    let before = runner.placed.backend().repeated();
    // As long as the first, so that its buffers are as large.
    look(&mut runner, &ids[..20]);
    decode(&mut runner, 3);
    assert_eq!(runner.placed.backend().repeated() - before, 3);
    runner.free(vec![decoding, watched]);
}

/// Scores every layer.
struct Scorer;

impl Observer for Scorer {
    fn attended(&mut self, seen: &mut dyn Attended) -> kvfold::Result<()> {
        seen.score(Score::Max { last: 8 }, &mut Scores::default())?;
        seen.score_top(TopHeads::Group, &mut Vec::new())
    }

    fn scores(&self, _: usize) -> bool {
        true
    }
}

/// A model with an arena and a cache of its own, on a backend that it borrows.
struct Guest<B: Backend> {
    graph: Graph<B>,
    ws: Workspace<B>,
    arena: B::Arena,
    cache: KvCache,
    seq: SeqId,
    slot: u32,
    first: bool,
}

impl<B: Backend> Guest<B> {
    fn new(backend: &mut B, folder: &str, slot: u32) -> Self {
        let checkpoint = Checkpoint::open(golden_dir().join(folder)).unwrap();
        let graph = Graph::load(&checkpoint, backend, WeightPolicy::Auto).unwrap();
        let groups = kv_groups(graph.config(), &KvOptions::new("kivi4".parse().unwrap()));
        let mut cache = KvCache::new(cache_config(&groups, 8 << 20)).unwrap();
        let arena = backend.arena(&groups, cache.classes(), 8 << 20).unwrap();
        let (ws, seq) = (Workspace::new(backend).unwrap(), cache.create());
        Self { graph, ws, arena, cache, seq, slot, first: true }
    }

    /// Takes in the prompt, or what it has drawn last, and draws.
    fn next(&mut self, backend: &mut B) -> u32 {
        self.step(backend, RowToken::Drawn(self.slot))
    }

    /// Takes in the prompt, or a token, and draws.
    fn step(&mut self, backend: &mut B, token: RowToken) -> u32 {
        let ids: Vec<u32> = (0..70).map(|i| 3 + i * 37 % 250).collect();
        let (new, tokens) = match std::mem::take(&mut self.first) {
            true => (NewTokens::prompt(self.seq, ids.len()), given(&ids)),
            false => (NewTokens::generated(self.seq, 1), vec![token]),
        };
        let step = self.cache.prepare(&[new]).unwrap();
        let (rows, choices) = ([new.n - 1], [Choice::greedy(self.slot)]);
        let input = StepInput { step: &step, tokens: &tokens, rows: &rows, choices: &choices };
        let Self { graph, ws, arena, .. } = self;
        graph.begin(backend, arena, ws, &input).unwrap();
        let mut pass = Pass::all(graph.config().layers, Tail::Draw);
        graph.forward(backend, arena, ws, &mut pass).unwrap();
        self.cache.commit(step, &[new.n]).unwrap();
        backend.receive().unwrap()[0].unwrap()
    }
}

/// Two models take turns on one device, each with its own arena, and each draws what it
/// draws alone; and one takes in what the other has drawn.
fn sharing<B: Backend>(mut backend: impl FnMut() -> B) {
    let folders = ["smollm2", "qwen3"];
    let mut shared = backend();
    let [mut a, mut b] = [0, 1].map(|i| Guest::new(&mut shared, folders[i], i as u32));
    let both: Vec<_> = (0..7).map(|_| (a.next(&mut shared), b.next(&mut shared))).collect();
    // A draft's token, on the target.
    let drafted = a.next(&mut shared);
    let verified = b.step(&mut shared, RowToken::Drawn(0));

    let (of_a, of_b): (Vec<_>, Vec<_>) = both.into_iter().unzip();
    for (folder, together) in folders.into_iter().zip([of_a, of_b]) {
        let mut backend = backend();
        let mut guest = Guest::new(&mut backend, folder, 0);
        let alone: Vec<_> = (0..7).map(|_| guest.next(&mut backend)).collect();
        assert_eq!(together, alone, "{folder}");
        if folder == folders[1] {
            assert_eq!(guest.step(&mut backend, RowToken::Given(drafted)), verified);
        }
    }
}

#[test]
fn two_models_share_a_device() {
    sharing(cpu);
    sharing(|| device(6));
}
