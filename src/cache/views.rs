//! The views of a stream from step to step: each adds to the one before.

use std::ops::Range;
use std::sync::Arc;

use super::class::{ClassId, PAGE_TOKENS};
use super::page::{Live, Page};
use super::spec::StreamSpec;
use super::view::{Run, RunKind, StreamView};

/// The pages of a stream, as a view is made of them.
pub(super) struct Pages<'a> {
    pub sink: &'a Page,
    pub grid: &'a [Page],
    /// Pages of the grid that are sealed for good, or freed.
    pub sealed: usize,
    /// Those at its front that every query reads sealed.
    pub bound: usize,
}

impl StreamView {
    /// Adds a page, to the last run if it goes on there. `tokens` of it are in use.
    fn push(&mut self, kind: RunKind, class: ClassId, page: &Page, at: usize, tokens: usize) {
        let Some(block) = (if kind == RunKind::Sealed { page.sealed } else { page.hot }) else {
            return;
        };
        let start = (at * PAGE_TOKENS) as u32;
        let (full, shift) = (page.live.is_full(), page.shift);
        let follows = |run: &&mut Run| {
            (run.kind, run.class, run.shift, run.start + run.n_tokens)
                == (kind, class, shift, start)
                && (full || run.live.is_some())
                && kind != RunKind::Sink
        };
        let mut masked = !full;
        match self.runs.last_mut().filter(follows) {
            Some(run) => {
                run.n_tokens += tokens as u32;
                masked = run.live.is_some();
            }
            None => self.runs.push(Run {
                class,
                first: self.table.len() as u32,
                start,
                n_tokens: tokens as u32,
                shift,
                live: masked.then(|| self.masks_of(0).len() as u32),
                kind,
            }),
        }
        self.table.push(block);
        if masked {
            self.push_mask(&page.live);
        }
    }

    fn push_mask(&mut self, live: &Live) {
        if live.words().len() > self.masks.len() {
            let first = self.masks_of(0).to_vec();
            self.masks.resize(live.words().len(), first);
        }
        self.masks.iter_mut().enumerate().for_each(|(s, masks)| masks.push(live.of(s)));
    }
}

/// A view that the next step adds to, so that making one costs what a step changes and not
/// what the stream keeps.
#[derive(Clone, Debug, Default)]
struct Growing {
    view: Arc<StreamView>,
    /// Pages that stand in the view for good, the first ones: those that are sealed or, where
    /// nothing is, full.
    settled: usize,
    /// The view's length there: runs, tokens of the last one, entries, masks.
    end: [usize; 4],
}

impl Growing {
    /// Says anew how long the view is.
    fn settle(&mut self, settled: usize) {
        let view = &self.view;
        let tokens = view.runs.last().map_or(0, |run| run.n_tokens as usize);
        let masks = view.masks_of(0).len();
        (self.settled, self.end) = (settled, [view.runs.len(), tokens, view.table.len(), masks]);
    }

    fn update(&mut self, stream: &Pages<'_>, spec: &StreamSpec, from: usize, to: usize) {
        let view = Arc::make_mut(&mut self.view);
        if self.settled == 0 {
            view.runs.clear();
            view.table.clear();
            view.masks.clear();
            view.push(RunKind::Sink, spec.sink, stream.sink, 0, to.min(spec.sinks));
        } else {
            let [runs, tokens, entries, masks] = self.end;
            view.runs.truncate(runs);
            if let Some(run) = view.runs.last_mut() {
                run.n_tokens = tokens as u32;
            }
            view.table.truncate(entries);
            view.masks.iter_mut().for_each(|column| column.truncate(masks));
        }
        let (bound, tokens) = (stream.bound, to.saturating_sub(spec.sinks));
        let sealed = spec.sealed_below(to - 1).max(bound);
        let first_hot = spec.sealed_below(from).max(bound);
        let add = |view: &mut StreamView, pages: Range<usize>, kind, class| {
            for at in pages {
                let tokens = (tokens - at * PAGE_TOKENS).min(PAGE_TOKENS);
                view.push(kind, class, &stream.grid[at], at, tokens);
            }
        };
        // What is sealed in this step may yet be taken back, and what is not full changes.
        let (settled, kind, class) = match spec.seals() {
            true => (stream.sealed.min(sealed), RunKind::Sealed, spec.sealed),
            false => (from.saturating_sub(spec.sinks) / PAGE_TOKENS, RunKind::Hot, spec.hot),
        };
        add(view, self.settled..settled, kind, class);
        self.settle(settled);
        let view = Arc::make_mut(&mut self.view);
        add(view, settled..sealed, RunKind::Sealed, spec.sealed);
        let hot = if spec.seals() { first_hot } else { settled };
        add(view, hot..stream.grid.len(), RunKind::Hot, spec.hot);
        (view.kept, view.sealed_bound) = (to as u32, bound as u32);
    }

    /// Writes the live masks of a settled page, where there is a place for them.
    fn mask(&mut self, at: usize, page: &Page) {
        let start = (at * PAGE_TOKENS) as u32;
        let holds = |run: &&Run| {
            run.kind != RunKind::Sink && run.start <= start && start < run.start + run.n_tokens
        };
        let word =
            self.view.runs.iter().find(holds).and_then(|run| {
                Some(run.live? as usize + (start - run.start) as usize / PAGE_TOKENS)
            });
        match word {
            Some(word) if page.live.words().len() <= self.view.masks.len() => {
                let view = Arc::make_mut(&mut self.view);
                for (s, column) in view.masks.iter_mut().enumerate() {
                    column[word] = page.live.of(s);
                }
            }
            _ => self.settled = 0,
        }
    }
}

/// The views of a stream. There are two, since a backend may still hold that of the step
/// before; a stream's views are read by one step at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Views([Growing; 2]);

impl Views {
    /// The view of a stream whose blocks for the tokens `[from, to)` are in
    /// place, for the queries at these kept indices.
    pub(super) fn of(
        &mut self,
        stream: &Pages<'_>,
        spec: &StreamSpec,
        from: usize,
        to: usize,
    ) -> Arc<StreamView> {
        let free = self.0.iter_mut().position(|own| Arc::get_mut(&mut own.view).is_some());
        let own = &mut self.0[free.unwrap_or(0)];
        own.update(stream, spec, from, to);
        own.view.clone()
    }

    /// The live masks of a page of the grid have changed.
    pub(super) fn mask(&mut self, at: usize, page: &Page) {
        self.0.iter_mut().filter(|own| at < own.settled).for_each(|own| own.mask(at, page));
    }

    /// Pages from this one on have, or will have, other blocks.
    pub(super) fn forget(&mut self, from: usize) {
        self.0.iter_mut().filter(|own| from < own.settled).for_each(|own| own.settled = 0);
    }
}
