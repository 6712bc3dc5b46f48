//! The naive model: what each stream keeps, and the bytes as rows of tokens.

use std::collections::{BTreeMap, BTreeSet};

use kvfold::cache::{
    Append, BlockRef, CacheConfig, ClassKind, GroupSpec, GroupView, KvCache, RunKind, SeqId,
    SharedRun, Step, StreamView,
};

/// A row of a block: whose stream (`None`: all of the group) and which token.
pub type Row = (Option<usize>, u64);

/// The naive counterpart of a group's specification.
#[derive(Clone, Copy)]
pub struct Rule {
    pub sinks: usize,
    pub window: Option<usize>,
    pub streams: usize,
    /// No query sees a token that is so far behind it.
    pub sight: Option<usize>,
}

impl Rule {
    pub fn new(spec: &GroupSpec) -> Self {
        let seals = spec.sealed.is_some();
        Self {
            sinks: if seals { spec.sinks } else { 0 },
            window: seals.then_some(spec.hot_window),
            streams: spec.layers * spec.kv_heads,
            sight: spec.window,
        }
    }

    /// The first page that a query at this kept index reads in 16 bits.
    pub fn bound(&self, index: usize) -> usize {
        let Some(window) = self.window else { return 0 };
        if index < self.sinks {
            return 0;
        }
        ((index - self.sinks) / 64).saturating_sub(window / 64)
    }

    /// The kept indices of every page of a stream, the sinks first (possibly none).
    pub fn pages(&self, kept: usize) -> Vec<std::ops::Range<usize>> {
        let grid = (self.sinks..kept).step_by(64).map(|at| at..(at + 64).min(kept));
        std::iter::once(0..self.sinks.min(kept)).chain(grid).collect()
    }
}

/// A kept token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    pub id: u64,
    pub live: bool,
    /// What its key was rotated by.
    pub position: usize,
    /// Where queries see it, less that.
    pub shift: i32,
}

impl Token {
    pub fn new(id: u64, position: usize) -> Self {
        Self { id, live: true, position, shift: 0 }
    }
}

/// What the model knows of one stream.
#[derive(Clone, Default)]
pub struct MStream {
    /// By kept index.
    pub tokens: Vec<Token>,
    /// Pages that have only their sealed form left.
    pub sealed: BTreeSet<usize>,
    /// Pages at the front that were attached, or stayed whole in a compaction.
    pub front: usize,
    /// The fewest tokens at which the next query sees nothing that is out of sight now.
    pub floor: usize,
}

impl MStream {
    /// Whole pages that are behind the sight of the next query are as good as cleared.
    pub fn look_ahead(&mut self, rule: &Rule) {
        let Some(sight) = rule.sight else { return };
        let first_seen = (self.tokens.len() + 1).saturating_sub(sight);
        if first_seen == 0 || first_seen < rule.sinks {
            return;
        }
        let end = first_seen - (first_seen - rule.sinks) % 64;
        self.tokens[..end].iter_mut().for_each(|token| token.live = false);
        self.sealed.retain(|page| *page >= (end - rule.sinks) / 64);
        self.floor = self.floor.max(end + sight - 1);
    }

    /// The first page that a query at this kept index reads in 16 bits.
    pub fn bound(&self, rule: &Rule, index: usize) -> usize {
        rule.bound(index).max(if rule.window.is_some() { self.front } else { 0 })
    }
}

/// The streams of a group, of which pages hold one or, unless it was compacted, all.
#[derive(Clone)]
pub struct MGroup {
    pub compacted: Option<usize>,
    pub streams: Vec<MStream>,
}

impl MGroup {
    /// Whether nothing of a page of a stream that is full is left.
    pub fn is_dead(&self, s: usize, page: &std::ops::Range<usize>, full: usize) -> bool {
        let of = if self.compacted.is_some() { s..s + 1 } else { 0..self.streams.len() };
        let dead = |stream: &MStream| stream.tokens[page.clone()].iter().all(|token| !token.live);
        page.len() == full && self.streams[of].iter().all(dead)
    }

    /// Takes the pages that are dead out of those that are sealed.
    pub fn drop_dead(&mut self, rule: &Rule) {
        for s in 0..self.streams.len() {
            let pages = rule.pages(self.streams[s].tokens.len());
            let mut sealed = std::mem::take(&mut self.streams[s].sealed);
            sealed.retain(|p| !self.is_dead(s, &pages[p + 1], 64));
            self.streams[s].sealed = sealed;
        }
    }
}

#[derive(Clone)]
pub struct MSeq {
    pub len: usize,
    /// The length after the last attachment.
    pub attached: usize,
    pub busy: bool,
    pub groups: Vec<MGroup>,
}

/// What the model knows of shared pages: of each group, the tokens.
pub struct MRun {
    pub run: SharedRun,
    pub with_sinks: bool,
    pub tokens: Vec<Vec<Token>>,
}

/// A step in flight and the identities of its new tokens.
pub struct Flight {
    pub step: Step,
    pub tokens: Vec<Vec<u64>>,
}

pub struct World {
    pub cache: KvCache,
    pub rules: Vec<Rule>,
    pub memory: BTreeMap<BlockRef, Vec<Option<Row>>>,
    pub seqs: BTreeMap<SeqId, MSeq>,
    pub flights: Vec<Flight>,
    pub runs: Vec<MRun>,
    pub next_token: u64,
    pub forked: bool,
    /// Whether blocks are freed with the next step, as a backend does it, and not at once.
    pub lazy: bool,
}

/// What happened in a run, so that a test can tell that it tested something.
#[derive(Default, Debug)]
pub struct Seen {
    pub seals: usize,
    pub copies: usize,
    pub gathers: usize,
    pub moves: usize,
    pub attached: usize,
    pub refused: usize,
}

impl World {
    pub fn new(groups: Vec<GroupSpec>, budget_bytes: u64, lazy: bool) -> Self {
        let rules = groups.iter().map(Rule::new).collect();
        let cache = KvCache::new(CacheConfig { groups, budget_bytes }).unwrap();
        Self {
            cache,
            rules,
            memory: BTreeMap::new(),
            seqs: BTreeMap::new(),
            flights: Vec::new(),
            runs: Vec::new(),
            next_token: 0,
            forked: false,
            lazy,
        }
    }

    pub fn kind(&self, block: BlockRef) -> ClassKind {
        self.cache.classes()[usize::from(block.class.0)].kind
    }

    pub fn rows_of(&self, block: BlockRef) -> usize {
        self.cache.classes()[usize::from(block.class.0)].page_tokens
    }

    pub fn make(&mut self, block: BlockRef, rows: Vec<Option<Row>>) {
        assert_eq!(rows.len(), self.rows_of(block));
        let new = self.memory.insert(block, rows).is_none();
        // Memory of an idle block may be used again at once.
        assert!(new || self.lazy || !self.runs.is_empty(), "{block:?} is in use");
    }

    /// Those that a step has freed which was given up are named once more.
    pub fn free(&mut self, freed: &[BlockRef]) {
        for block in freed {
            self.memory.remove(block);
        }
    }

    /// Frees what is free, unless that waits for the next step.
    pub fn release(&mut self) {
        if !self.lazy {
            let step = self.cache.release();
            assert!(step.seqs.is_empty() && step.copies.is_empty());
            self.free(&step.frees);
            self.cache.commit(step, &[]).unwrap();
        }
    }

    pub fn read(&self, block: BlockRef, slot: usize, group: usize, stream: usize) -> u64 {
        let rows = self.memory.get(&block).unwrap_or_else(|| panic!("{block:?} is not held"));
        let (owner, token) = rows[slot].unwrap_or_else(|| panic!("{block:?} {slot} is unwritten"));
        assert_eq!(self.cache.classes()[usize::from(block.class.0)].group, group);
        assert!(owner.is_none_or(|owner| owner == stream), "{block:?} is another stream's");
        token
    }

    pub fn append(&mut self, append: &Append, tokens: &[u64]) {
        use ClassKind::{Hot, RaggedHot, RaggedSink, Sink};
        let uniform = matches!(self.kind(append.block), Hot | Sink);
        assert!(uniform || matches!(self.kind(append.block), RaggedHot | RaggedSink));
        assert_eq!(uniform, append.stream.is_none());
        let empty = vec![None; self.rows_of(append.block)];
        let rows = self.memory.entry(append.block).or_insert(empty);
        for k in 0..append.n {
            rows[append.slot + k] = Some((append.stream, tokens[append.token + k]));
        }
    }

    pub fn execute(&mut self, step: &Step, tokens: &[Vec<u64>], seen: &mut Seen) {
        self.free(&step.frees);
        for copy in &step.copies {
            assert_eq!(copy.from.class, copy.to.class);
            self.make(copy.to, self.memory[&copy.from].clone());
            seen.copies += 1;
        }
        for (share, tokens) in step.seqs.iter().zip(tokens) {
            for append in &share.appends {
                self.append(append, tokens);
            }
            for seal in &share.seals {
                let rows = self.memory[&seal.from].clone();
                assert!(rows.iter().all(Option::is_some), "an unfinished page is sealed");
                let kinds = (self.kind(seal.from), self.kind(seal.to));
                assert!(match seal.stream {
                    None => kinds == (ClassKind::Hot, ClassKind::Sealed),
                    Some(_) => kinds == (ClassKind::RaggedHot, ClassKind::RaggedSealed),
                });
                self.make(seal.to, rows);
                seen.seals += 1;
            }
        }
    }

    pub fn check_step(&self, step: &Step, tokens: &[Vec<u64>]) {
        for (share, new) in step.seqs.iter().zip(tokens) {
            let seq = &self.seqs[&share.seq];
            assert_eq!((share.position, share.new_tokens), (seq.len, new.len()));
            for (g, (view, group)) in share.views.iter().zip(&seq.groups).enumerate() {
                for s in 0..self.rules[g].streams {
                    let view = match view {
                        GroupView::Uniform(view) => view,
                        GroupView::Ragged(views) => &views[s],
                    };
                    let mut expected = group.streams[s].clone();
                    let new = new.iter().enumerate();
                    let new = new.map(|(i, &id)| Token::new(id, seq.len + i));
                    let n = new.len();
                    expected.tokens.extend(new);
                    self.check_view(view, (g, s), group.compacted.is_some(), &expected, n);
                }
            }
        }
    }

    pub fn check_view(
        &self,
        view: &StreamView,
        (g, s): (usize, usize),
        ragged: bool,
        stream: &MStream,
        new: usize,
    ) {
        let (rule, expected) = (self.rules[g], &stream.tokens);
        let front = stream.bound(&rule, 0);
        assert_eq!((view.kept as usize, view.sealed_bound as usize), (expected.len(), front));
        let first_query = expected.len() - new;
        // (kept index, page, sealed?, token) of every live row.
        let mut rows: Vec<(usize, Option<usize>, bool, u64)> = Vec::new();
        let (mut entries, mut words) = (0, 0);
        for run in &view.runs {
            assert!(run.n_tokens > 0);
            assert_eq!((run.first as usize, run.start % 64), (entries, 0));
            let kind = match (run.kind, ragged) {
                (RunKind::Sink, false) => ClassKind::Sink,
                (RunKind::Hot, false) => ClassKind::Hot,
                (RunKind::Sealed, false) => ClassKind::Sealed,
                (RunKind::Sink, true) => ClassKind::RaggedSink,
                (RunKind::Hot, true) => ClassKind::RaggedHot,
                (RunKind::Sealed, true) => ClassKind::RaggedSealed,
            };
            let pages = (run.n_tokens as usize).div_ceil(64);
            for p in 0..pages {
                let block = BlockRef { class: run.class, index: view.table[entries + p] };
                assert_eq!(self.kind(block), kind);
                let masks = view.masks_of(s);
                let mask = run.live.map_or(u64::MAX, |first| masks[first as usize + p]);
                let filled = (run.n_tokens as usize - p * 64).min(64);
                let (page, base) = match run.kind {
                    RunKind::Sink => (None, 0),
                    _ => (
                        Some(run.start as usize / 64 + p),
                        rule.sinks + run.start as usize + p * 64,
                    ),
                };
                let sealed = run.kind == RunKind::Sealed;
                if let Some(page) = page {
                    let wanted = if sealed {
                        page < stream.bound(&rule, expected.len() - 1)
                    } else {
                        page >= stream.bound(&rule, first_query)
                    };
                    assert!(wanted, "page {page} is listed for no query");
                }
                for slot in (0..filled).filter(|slot| mask & (1 << slot) != 0) {
                    assert_eq!(run.shift, expected[base + slot].shift);
                    rows.push((base + slot, page, sealed, self.read(block, slot, g, s)));
                }
            }
            if let Some(first) = run.live {
                assert_eq!(first as usize, words);
                words += pages;
            }
            entries += pages;
        }
        assert_eq!(view.table.len(), entries);
        assert!([0, 1, rule.streams].contains(&view.masks.len()) || ragged);
        assert!(view.masks.iter().all(|column| column.len() == words));

        // Queries next to a page boundary, and the first and the last.
        let near = |q: &usize| {
            [0, 1, 63].contains(&((q + 64 - rule.sinks) % 64))
                || *q == first_query
                || q + 1 == expected.len()
        };
        for query in (first_query..expected.len()).filter(near) {
            let bound = stream.bound(&rule, query);
            let mut read: Vec<(usize, u64)> = rows
                .iter()
                .filter(|row| row.0 <= query && row.1.is_none_or(|p| (p < bound) == row.2))
                .map(|row| (row.0, row.3))
                .collect();
            read.sort_unstable();
            let visible = expected[..=query].iter().enumerate().filter(|(_, token)| token.live);
            let visible: Vec<(usize, u64)> =
                visible.map(|(index, token)| (index, token.id)).collect();
            assert_eq!(read, visible, "group {g} stream {s} query {query}");
        }
    }
}
