//! One subject, one cache and the oracle's copy of everything, led through steps.

use super::oracle::{Query, Stream};
use super::plan::{MIXED, cache_of, group, relocate, rope, round};
use super::random::Random;
use super::subject::{Attended, Kind, LayerStep, Subject};
use kvfold::backend::{Attend, KvGroup, LayerIndex, Rope, attend_seqs};
use kvfold::cache::{KvCache, NewTokens, RowKind, SeqId};

/// All formats; the last are for the CPU only.
pub const FORMATS: [&str; 25] = [
    "f16",
    "bf16",
    "fp8",
    "kivi4",
    "kivi2",
    "kivi4/kivi2",
    "bf16+fp8",
    "bf16+kivi4",
    "bf16+kivi2",
    "bf16+kivi4/kivi2",
    "kf4",
    "kf3",
    "kf3.2",
    "kf2",
    "bf16+kf4",
    "bf16+kf3",
    "bf16+kf3.2",
    "bf16+kf2",
    MIXED,
    "kf4/kf2",
    "kivi4/kf2",
    "f16/kivi2",
    "kivi2/f16",
    "bf16/kivi4",
    "bf16+f16",
];

pub struct Bench {
    pub kind: Kind,
    pub subject: Box<dyn Subject>,
    pub cache: KvCache,
    pub group: KvGroup,
    pub heads: usize,
    pub causal: bool,
    pub window: Option<usize>,
    /// What sealed runs are relocated by.
    pub shift: i32,
    pub rope: Rope,
    /// Queries are 0: all tokens that a query sees are alike.
    pub indifferent: bool,
    /// The kind of all new rows; else both in turns.
    pub rows_are: Option<RowKind>,
    /// What becomes of a new row once it is drawn.
    pub reshape: Option<Reshape>,
    /// Steps done.
    pub steps: usize,
    pub sequences: Vec<Sequence>,
}

pub struct Sequence {
    pub id: SeqId,
    /// What its rows are drawn from: the same in every batch.
    pub seed: u64,
    /// At layer · kv_heads + head.
    pub streams: Vec<Stream>,
    /// Tokens seen, evicted ones included.
    pub tokens: usize,
}

/// Sequence, token and row: query heads, key heads, value heads.
pub type Reshape = Box<dyn Fn(usize, usize, &mut [f32])>;

/// What a layer of a step was asked and gave.
pub struct Layer<'a> {
    pub step: LayerStep<'a>,
    /// The sequence of each of the step's `seqs`.
    pub asked: &'a [usize],
    pub attended: Attended,
}

impl Bench {
    /// Empty sequences, one a seed.
    pub fn new(kind: Kind, group: KvGroup, heads: usize, seeds: &[u64]) -> Self {
        Self::of(kind, kind.subject(), group, heads, seeds)
    }

    /// The same of a subject of this kind.
    pub fn of(
        kind: Kind,
        mut subject: Box<dyn Subject>,
        mut group: KvGroup,
        heads: usize,
        seeds: &[u64],
    ) -> Self {
        let n = group.layers * group.kv_heads;
        group.streams = group.streams.map(|all| all.iter().take(n).cloned().collect());
        let mut cache = cache_of(&group);
        let rope = rope(group.head_dim());
        subject.configure(&group, cache.classes());
        let streams = vec![Stream::default(); group.layers * group.kv_heads];
        let sequences = (seeds.iter())
            .map(|&seed| Sequence { id: cache.create(), seed, streams: streams.clone(), tokens: 0 })
            .collect();
        Self {
            kind,
            subject,
            cache,
            group,
            heads,
            causal: true,
            window: None,
            shift: 0,
            rope,
            indifferent: false,
            rows_are: None,
            reshape: None,
            steps: 0,
            sequences,
        }
    }

    /// Three sequences, any format, sinks, hot window, heads, mask and shift; none if the
    /// kind has no kernel for them.
    pub fn draw(kind: Kind, random: &mut Random) -> Option<Self> {
        let mut group = group(random.pick(&FORMATS), 64, random.pick(&[1, 3]));
        group.sinks = random.pick(&[0, 1, 4, 64]);
        group.hot_window = random.pick(&[0, 64, 128, 192]);
        if !kind.takes(&group) {
            return None;
        }
        let heads = group.kv_heads * random.pick(&[1, 2, 3, 5]);
        let mut bench = Self::new(kind, group, heads, &[(); 3].map(|()| random.next()));
        bench.window = random.pick(&[None, Some(1), Some(40), Some(150)]);
        bench.causal = bench.window.is_some() || random.below(2) == 0;
        bench.shift = random.pick(&[0, 0, 37, -500]);
        Some(bench)
    }

    /// What each of three sequences may be given in a step: one token, some, or many.
    pub fn draw_chunks(random: &mut Random) -> [usize; 3] {
        [(); 3].map(|()| match random.below(3) {
            0 => 1,
            1 => random.below(20),
            _ => random.below(150),
        })
    }

    /// Appends `new[i]` tokens to sequence i, attends, and has every layer checked.
    pub fn step(&mut self, new: &[usize], mut check: impl FnMut(&mut Self, &Layer<'_>)) {
        self.append(new, |bench, step, asked| {
            let attended = bench.subject.layer(&step);
            check(bench, &Layer { step, asked, attended });
        });
    }

    /// The same, and nothing attends.
    pub fn fill(&mut self, new: &[usize]) {
        self.append(new, |bench, step, _| bench.subject.write(&step));
    }

    /// Appends tokens and calls `work` for every layer, once its rows are remembered.
    fn append(&mut self, new: &[usize], mut work: impl FnMut(&mut Self, LayerStep<'_>, &[usize])) {
        let asked: Vec<usize> = (0..new.len()).filter(|&i| new[i] > 0).collect();
        if asked.is_empty() {
            return;
        }
        // Both kinds of rows, in one call and in turns, however many a sequence has; the same
        // in every batch.
        let new_tokens = |&i: &usize| {
            let Sequence { id, seed, .. } = self.sequences[i];
            let kind = match (self.steps as u64 ^ seed) % 2 {
                0 => RowKind::Generated,
                _ => RowKind::Prompt,
            };
            NewTokens { seq: id, n: new[i], kind: self.rows_are.unwrap_or(kind) }
        };
        let tokens: Vec<_> = asked.iter().map(new_tokens).collect();
        let mut step = self.cache.prepare(&tokens).unwrap();
        for seq in &mut step.seqs {
            relocate(&mut seq.views[0], self.shift);
        }
        self.subject.begin(&step);
        let seqs = attend_seqs(&step.seqs, 0).unwrap();
        let cols = (self.heads + 2 * self.group.kv_heads) * self.group.head_dim();
        for layer in 0..self.group.layers {
            let qkv = self.rows(layer, new, cols);
            let call = Attend {
                at: LayerIndex { group: 0, layer },
                heads: self.heads,
                scale: self.scale(),
                causal: self.causal,
                window: self.window,
            };
            let head_dim = self.group.head_dim();
            let step =
                LayerStep { call: &call, step: &step, seqs: &seqs, head_dim, qkv: &qkv, cols };
            self.remember(layer, new, &qkv, cols);
            work(self, step, &asked);
        }
        for (seq, new) in self.sequences.iter_mut().zip(new) {
            seq.tokens += new;
        }
        self.steps += 1;
        let accepted: Vec<_> = tokens.iter().map(|new| new.n).collect();
        self.cache.commit(step, &accepted).unwrap();
        self.release();
    }

    fn scale(&self) -> f32 {
        (self.group.head_dim() as f32).powf(-0.5)
    }

    /// Query, key and value heads of the new tokens, as the subject rounds them.
    fn rows(&self, layer: usize, new: &[usize], cols: usize) -> Vec<f32> {
        let mut rows = Vec::new();
        for (i, (seq, new)) in self.sequences.iter().zip(new).enumerate() {
            for token in seq.tokens..seq.tokens + new {
                let mut random =
                    Random::new((layer as u64) << 50 ^ (token as u64) << 20 ^ seq.seed);
                let first = rows.len();
                rows.extend((0..cols).map(|_| random.float()));
                if self.indifferent {
                    rows[first..][..self.heads * self.group.head_dim()].fill(0.0);
                }
                if let Some(reshape) = &self.reshape {
                    reshape(i, token, &mut rows[first..]);
                }
            }
        }
        if let Some(codec) = self.subject.query_type() {
            rows.iter_mut().for_each(|x| *x = round(codec, *x));
        }
        rows
    }

    fn remember(&mut self, layer: usize, new: &[usize], qkv: &[f32], cols: usize) {
        let (d, n) = (self.group.head_dim(), self.group.kv_heads);
        let hot = self.group.format.hot();
        let mut rows = qkv.chunks_exact(cols);
        for (seq, new) in self.sequences.iter_mut().zip(new) {
            for row in rows.by_ref().take(*new) {
                for head in 0..n {
                    let stream = &mut seq.streams[layer * n + head];
                    let part = |at: usize| row[at * d..][..d].iter().map(|x| round(hot, *x));
                    stream.keys.push(part(self.heads + head).collect());
                    stream.values.push(part(self.heads + n + head).collect());
                }
            }
        }
    }

    /// Query `i` of the call's share `share` in one head, and the stream that it reads.
    pub fn query<'a>(
        &'a self,
        layer: &Layer<'a>,
        share: usize,
        i: usize,
        head: usize,
    ) -> (&'a Stream, Query<'a>) {
        let LayerStep { call, seqs, qkv, cols, .. } = layer.step;
        let (d, kv_heads) = (self.group.head_dim(), self.group.kv_heads);
        let kv_head = head / (self.heads / kv_heads);
        let sequence = &self.sequences[layer.asked[share]];
        let stream = call.at.layer * kv_heads + kv_head;
        let (format, feedback) = self.group.sealing_of(stream);
        let stream = &sequence.streams[stream];
        let share = &seqs[share];
        let query = Query {
            group: &self.group,
            format,
            feedback,
            q: &qkv[(share.first_row + i) * cols + head * d..][..d],
            index: stream.keys.len() - share.q_len + i,
            scale: call.scale,
            causal: call.causal,
            window: call.window,
            shift: self.shift,
            rope: &self.rope,
        };
        (stream, query)
    }

    /// Evicts tokens of all streams of a sequence in place.
    pub fn evict(&mut self, seq: usize, gone: &[u32]) {
        let seq = &mut self.sequences[seq];
        for stream in &mut seq.streams {
            stream.dead = gone.iter().map(|&t| t as usize).collect();
        }
        self.cache.clear(seq.id, 0, None, gone).unwrap();
        self.release();
    }

    /// Evicts tokens of one stream of a sequence in place.
    pub fn evict_of(&mut self, seq: usize, stream: usize, gone: &[u32]) {
        let seq = &mut self.sequences[seq];
        seq.streams[stream].dead.extend(gone.iter().map(|&t| t as usize));
        self.cache.clear(seq.id, 0, Some(stream), gone).unwrap();
        self.release();
    }

    /// S, where pages are sealed.
    fn sinks(&self) -> usize {
        if self.group.format.seals() { self.group.sinks } else { 0 }
    }

    /// Pages that the last query of a stream reads sealed, and those that stay whole.
    fn whole(&self, stream: &Stream) -> usize {
        if !self.group.format.seals() {
            return stream.front;
        }
        let last = (stream.keys.len() - 1).saturating_sub(self.sinks()) / 64;
        last.saturating_sub(self.group.hot_window / 64).max(stream.front)
    }

    /// Keeps these tokens of each stream of a sequence: whole pages with the others dead, and
    /// rows.
    pub fn compact(&mut self, seq: usize, keep: &[Vec<u32>]) {
        let sinks = self.sinks();
        let whole: Vec<_> = self.sequences[seq].streams.iter().map(|s| self.whole(s)).collect();
        let seq = &mut self.sequences[seq];
        for ((stream, keep), whole) in seq.streams.iter_mut().zip(keep).zip(whole) {
            let keep: Vec<usize> = keep.iter().map(|&t| t as usize).collect();
            let is_whole = |t: usize| t >= sinks && (t - sinks) / 64 < whole;
            let mut pages: Vec<usize> =
                keep.iter().filter(|t| is_whole(**t)).map(|t| (t - sinks) / 64).collect();
            pages.dedup();
            let mut rows: Vec<usize> = keep.iter().copied().filter(|t| !is_whole(*t)).collect();
            let rest = rows.split_off(sinks.min(rows.len()));
            // Slots of sinks that are not there are dead.
            let missing = if pages.is_empty() { 0 } else { sinks - rows.len() };
            let dead = rows.len()..rows.len() + missing;
            rows.resize(rows.len() + missing, 0);
            rows.extend(pages.iter().flat_map(|p| sinks + p * 64..sinks + p * 64 + 64));
            rows.extend(rest);
            let pick = |of: &Vec<Vec<f32>>| rows.iter().map(|&t| of[t].clone()).collect();
            let shift = |p: &usize| stream.shifts.get(*p).copied().unwrap_or(0);
            let gone = |t: &usize| dead.contains(t) || !keep.contains(&rows[*t]);
            let mut new = Stream::default();
            (new.keys, new.values) = (pick(&stream.keys), pick(&stream.values));
            new.dead = (0..rows.len()).filter(gone).collect();
            (new.front, new.shifts) = (pages.len(), pages.iter().map(shift).collect());
            *stream = new;
        }
        let done = self.cache.compact(seq.id, 0, keep).unwrap();
        self.subject.compact(&done);
        self.release();
    }

    /// Attaches tokens of one sequence to another, to be seen from position `at` on.
    pub fn attach(&mut self, from: usize, tokens: std::ops::Range<usize>, to: usize, at: usize) {
        let run = self.cache.share(self.sequences[from].id, tokens.clone()).unwrap();
        self.cache.attach(self.sequences[to].id, &run, at).unwrap();
        let sinks = self.sinks();
        let shift = at as i32 - run.position() as i32;
        for stream in 0..self.sequences[to].streams.len() {
            let [keys, values] = {
                let source = &self.sequences[from].streams[stream];
                [&source.keys, &source.values].map(|rows| rows[tokens.clone()].to_vec())
            };
            let stream = &mut self.sequences[to].streams[stream];
            let begins = tokens.start == 0 && sinks > 0;
            let place = if begins { 0 } else { sinks + 64 * stream.front };
            let pages = tokens.len() / 64;
            stream.keys.splice(place..place, keys);
            stream.values.splice(place..place, values);
            stream.shifts.extend(vec![shift; pages]);
            stream.front += pages;
        }
    }

    /// A copy of a sequence, whose new tokens are its own.
    pub fn fork(&mut self, seq: usize, seed: u64) {
        let Sequence { id, ref streams, tokens, .. } = self.sequences[seq];
        let (id, streams) = (self.cache.fork(id).unwrap(), streams.clone());
        self.sequences.push(Sequence { id, seed, streams, tokens });
    }

    /// Mostly, what is free travels in the next step.
    fn release(&mut self) {
        if !self.steps.is_multiple_of(3) {
            return;
        }
        let step = self.cache.release();
        self.subject.begin(&step);
        self.cache.commit(step, &[]).unwrap();
        let held = self.cache.held_bytes() + self.cache.idle_bytes();
        assert_eq!(self.subject.held_bytes(), held);
    }
}
