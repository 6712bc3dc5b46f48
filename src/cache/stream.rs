//! One stream: its sink page, its pages, and how a step changes them.

use std::ops::Range;
use std::sync::Arc;

use super::class::{BlockRef, ClassId, PAGE_TOKENS};
use super::ops::{Append, CopyBlock, Seal};
use super::page::{Of, Page};
use super::pool::Pool;
use super::spec::StreamSpec;
use super::view::StreamView;
use super::views::{Pages, Views};

/// The kept tokens of one stream, or of all streams of a uniform group.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// Tokens, sinks included.
    pub kept: usize,
    /// The sink page; it never has a sealed form.
    pub sink: Page,
    /// The page grid. During a step also the pages of its new tokens.
    pub pages: Vec<Page>,
    /// Pages at the front of the grid that are not this stream's to fill or to seal: they
    /// were attached, or were sealed before a compaction.
    pub front: usize,
    /// One more than the last page that has a sealed form after the last
    /// commit; the pages below it are sealed or freed.
    pub sealed: usize,
    /// Pages from the first on that were freed because no query would see them again.
    gone: usize,
    /// The fewest kept tokens at which the next query sees nothing of what was freed so.
    floor: usize,
    views: Views,
}

/// How the partially filled page takes the next tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Open {
    /// There is none, or this sequence alone holds it.
    Ready,
    /// It is the sink page before its first token.
    Fresh,
    /// Its block is shared, or has a content that may be wanted again.
    Shared,
}

/// The blocks that a step needs in one stream.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    open: Open,
    new_pages: usize,
    /// Pages that may have to be sealed; freed ones among them are passed over.
    seal: Range<usize>,
    seals: usize,
}

/// What a step changed in one stream, to settle or undo it.
#[derive(Clone, Debug)]
pub(super) struct Undo {
    /// The partially filled page's block before the step, where it was replaced.
    replaced: Option<Option<u32>>,
    seal: Range<usize>,
}

/// Where a step's operations are collected.
pub(super) struct Ops<'a> {
    pub group: usize,
    pub stream: Option<usize>,
    pub copies: &'a mut Vec<CopyBlock>,
    pub appends: &'a mut Vec<Append>,
    pub seals: &'a mut Vec<Seal>,
}

impl Stream {
    pub(super) fn new() -> Self {
        let (sink, pages, views) = (Page::new(0), Vec::new(), Views::default());
        Self { kept: 0, sink, pages, front: 0, sealed: 0, gone: 0, floor: 0, views }
    }

    /// A stream of pages that are there, the first `front` of them whole.
    pub(super) fn of_pages(
        spec: &StreamSpec,
        kept: usize,
        sink: Page,
        pages: Vec<Page>,
        front: usize,
    ) -> Self {
        let sealed = if spec.seals() { front } else { 0 };
        Self { kept, sink, pages, front, sealed, ..Self::new() }
    }

    /// h of rule 1: pages that every query reads sealed.
    pub(super) fn bound(&self, spec: &StreamSpec) -> usize {
        if spec.seals() { self.front } else { 0 }
    }

    /// What the queries of a step read that adds the tokens `[kept, to)`; their blocks are in
    /// place.
    pub(super) fn view(&mut self, spec: &StreamSpec, to: usize) -> Arc<StreamView> {
        let (sink, grid, sealed, bound) = (&self.sink, &self.pages, self.sealed, self.bound(spec));
        self.views.of(&Pages { sink, grid, sealed, bound }, spec, self.kept, to)
    }

    /// Puts whole pages that others may hold too in front of its own.
    pub(super) fn attach(&mut self, spec: &StreamSpec, pages: Vec<Page>) {
        self.views.forget(0);
        self.kept += pages.len() * PAGE_TOKENS;
        let front = self.front;
        self.front += pages.len();
        self.sealed += if spec.seals() { pages.len() } else { 0 };
        self.pages.splice(front..front, pages);
    }

    /// The page that is partially filled, with its class.
    fn open_page(&mut self, spec: &StreamSpec) -> Option<(ClassId, &mut Page)> {
        match spec.slot(self.kept) {
            None => Some((spec.sink, &mut self.sink)),
            Some((_, 0)) => None,
            Some((page, _)) => Some((spec.hot, &mut self.pages[page])),
        }
    }

    /// The blocks that `n` more tokens need, and the pages that some query
    /// among them reads sealed.
    pub(super) fn plan(&self, spec: &StreamSpec, pool: &Pool, n: usize) -> Growth {
        let end = self.kept + n;
        let partial = match spec.slot(self.kept) {
            None => Some((spec.sink, self.sink.hot)),
            Some((_, 0)) => None,
            Some((page, _)) => Some((spec.hot, self.pages[page].hot)),
        };
        let open = match partial {
            Some((_, None)) => Open::Fresh,
            Some((class, Some(block))) if pool.is_shared(class, block) => Open::Shared,
            _ => Open::Ready,
        };
        let seal = self.sealed..spec.sealed_below(end - 1).max(self.sealed);
        let has_bytes = |&p: &usize| self.pages.get(p).is_none_or(|page| page.hot.is_some());
        let seals = seal.clone().filter(has_bytes).count();
        Growth { open, new_pages: spec.pages(end) - self.pages.len(), seal, seals }
    }

    /// Reserves the blocks of `growth` for the tokens at these positions and lists the
    /// operations that fill them.
    pub(super) fn grow(
        &mut self,
        spec: &StreamSpec,
        pool: &mut Pool,
        growth: Growth,
        positions: Range<usize>,
        ops: &mut Ops<'_>,
    ) -> Undo {
        let replaced = match self.open_page(spec) {
            Some((class, page)) if growth.open != Open::Ready => {
                let to = pool.take(class);
                let before = page.hot.replace(to);
                if let Some(from) = before {
                    let block = |index| BlockRef { class, index };
                    ops.copies.push(CopyBlock { from: block(from), to: block(to) });
                }
                Some(before)
            }
            _ => None,
        };
        for _ in 0..growth.new_pages {
            let at = self.pages.len();
            let first = spec.sinks + at * PAGE_TOKENS;
            let mut page = Page::new(positions.start + first - self.kept);
            page.hot = Some(pool.take(spec.hot));
            self.pages.push(page);
        }
        let slot = spec.slot(self.kept).map_or(self.kept, |(_, slot)| slot);
        if let Some((_, page)) = self.open_page(spec) {
            page.place(slot, positions.start);
        }
        self.append(spec, positions.len(), ops);
        for page in &mut self.pages[growth.seal.clone()] {
            if let Some(hot) = page.hot {
                let sealed = pool.take(spec.sealed);
                page.sealed = Some(sealed);
                ops.seals.push(Seal {
                    group: ops.group,
                    stream: ops.stream,
                    from: BlockRef { class: spec.hot, index: hot },
                    to: BlockRef { class: spec.sealed, index: sealed },
                });
            }
        }
        Undo { replaced, seal: growth.seal }
    }

    fn append(&self, spec: &StreamSpec, n: usize, ops: &mut Ops<'_>) {
        let mut token = 0;
        while token < n {
            let index = self.kept + token;
            let (class, page, slot, room) = match spec.slot(index) {
                None => (spec.sink, &self.sink, index, spec.sinks - index),
                Some((page, slot)) => (spec.hot, &self.pages[page], slot, PAGE_TOKENS - slot),
            };
            let n = room.min(n - token);
            if let Some(block) = page.hot {
                ops.appends.push(Append {
                    group: ops.group,
                    stream: ops.stream,
                    token,
                    n,
                    block: BlockRef { class, index: block },
                    slot,
                });
            }
            token += n;
        }
    }

    /// Ends a step of which `accepted` tokens stay. Each page is left in the
    /// form in which the next query reads it.
    pub(super) fn settle(
        &mut self,
        spec: &StreamSpec,
        pool: &mut Pool,
        undo: Undo,
        accepted: usize,
    ) {
        if let Some(before) = undo.replaced
            && let Some((class, page)) = self.open_page(spec)
        {
            // With no token accepted the shared block is as good as its copy.
            let unused =
                if accepted > 0 { before } else { std::mem::replace(&mut page.hot, before) };
            if let Some(block) = unused {
                pool.release(class, block);
            }
        }
        self.kept += accepted;
        self.drop_rest(spec, pool);
        // With no token accepted the books return to what they were, so that a
        // step can be abandoned whether or not its operations were executed.
        let bound = if accepted > 0 { spec.sealed_below(self.kept) } else { 0 };
        let end = undo.seal.end.min(self.pages.len());
        for p in undo.seal.start.min(end)..end {
            let page = &mut self.pages[p];
            if page.sealed.is_none() {
                continue;
            }
            let (class, form) =
                if p < bound { (spec.hot, &mut page.hot) } else { (spec.sealed, &mut page.sealed) };
            if let Some(block) = form.take() {
                pool.release(class, block);
            }
        }
        self.sealed = self.sealed.max(end.min(bound));
        if accepted > 0 {
            self.free_unseen(spec, pool);
        }
        self.trim_sealed();
    }

    /// Frees what the next query and later ones do not see.
    fn free_unseen(&mut self, spec: &StreamSpec, pool: &mut Pool) {
        let (gone, sinks) = spec.unseen(self.kept);
        if !sinks {
            return;
        }
        let end = gone.min(self.pages.len());
        if self.sink.hot.is_some() || end > self.gone {
            self.views.forget(0);
        }
        self.sink.release(spec.sink, spec.sealed, pool);
        for page in &mut self.pages[self.gone.min(end)..end] {
            page.release(spec.hot, spec.sealed, pool);
        }
        self.gone = self.gone.max(end);
        self.floor = self.floor.max(spec.kept_to_miss(self.gone));
    }

    /// The fewest kept tokens, from `kept` on, that the stream can be cut to.
    pub(super) fn rewindable_to(&self, spec: &StreamSpec, kept: usize) -> usize {
        let own = if self.sealed > self.front { self.sealed } else { 0 };
        let kept = kept.max(spec.kept_to_seal(own)).max(self.floor);
        // The rows of a freed page cannot be had back, and to fill it further
        // around unwritten rows would seal those with the others.
        match spec.slot(kept) {
            None if kept > 0 && self.sink.hot.is_none() => spec.sinks,
            Some((page, slot)) if slot > 0 && self.pages[page].hot.is_none() => {
                kept - slot + PAGE_TOKENS
            }
            _ => kept,
        }
    }

    /// Forgets the tokens from `kept` on; the caller has checked that none of
    /// the pages that are needed in 16 bits has lost that form.
    pub(super) fn truncate(&mut self, spec: &StreamSpec, pool: &mut Pool, kept: usize) {
        self.kept = kept;
        self.drop_rest(spec, pool);
        if kept == 0 {
            self.sink.release(spec.sink, spec.sealed, pool);
        }
        self.views.forget(spec.slot(kept).map_or(0, |(page, _)| page));
    }

    /// Drops the pages past the last kept token, and what is said of slots past it.
    fn drop_rest(&mut self, spec: &StreamSpec, pool: &mut Pool) {
        let pages = spec.pages(self.kept);
        for mut page in self.pages.drain(pages..) {
            page.release(spec.hot, spec.sealed, pool);
        }
        let fill = spec.slot(self.kept).map_or(self.kept, |(_, slot)| slot);
        if let Some((_, page)) = self.open_page(spec) {
            page.refill(fill);
        }
    }

    fn trim_sealed(&mut self) {
        while self.sealed > 0 && self.pages[self.sealed - 1].sealed.is_none() {
            self.sealed -= 1;
        }
    }

    /// Clears tokens, which exist; pages that nothing is left of are freed,
    /// unless they are still being filled.
    pub(super) fn clear(&mut self, spec: &StreamSpec, pool: &mut Pool, of: Of, indices: &[u32]) {
        for &index in indices {
            let index = index as usize;
            match spec.slot(index) {
                None => {
                    if self.sink.clear(index, of, spec.sinks) {
                        self.sink.release(spec.sink, spec.sealed, pool);
                    }
                    self.views.forget(0);
                }
                // Slots not yet filled count as live, so a page being filled stays.
                Some((at, slot)) => {
                    let page = &mut self.pages[at];
                    if page.clear(slot, of, PAGE_TOKENS) {
                        page.release(spec.hot, spec.sealed, pool);
                        self.views.forget(at);
                    } else {
                        self.views.mask(at, page);
                    }
                }
            }
        }
        self.trim_sealed();
    }

    /// Whether stream `s` of those that this one stands for has the token at a kept index.
    pub(super) fn has(&self, spec: &StreamSpec, index: usize, s: usize) -> bool {
        let (page, slot) = match spec.slot(index) {
            None => (&self.sink, index),
            Some((page, slot)) if index < self.kept => (&self.pages[page], slot),
            Some(_) => return false,
        };
        let there = page.hot.or(page.sealed).is_some() && index < self.kept;
        there && page.live.of(s) & (1 << slot) != 0
    }

    /// The block that a step in flight replaced by a copy.
    pub(super) fn replaced(&self, spec: &StreamSpec, undo: &Undo) -> Option<BlockRef> {
        let class = if self.kept < spec.sinks { spec.sink } else { spec.hot };
        undo.replaced.flatten().map(|index| BlockRef { class, index })
    }

    /// Kept indices of a group with a window are positions, as its queries see them.
    pub(super) fn audit_positions(&self, spec: &StreamSpec) -> Result<(), String> {
        let pages = self.pages.iter().enumerate();
        let strays = |&(at, page): &(usize, &Page)| {
            let seen = i64::from(page.position) + i64::from(page.shift);
            seen != (spec.sinks + at * PAGE_TOKENS) as i64 || !page.is_contiguous()
        };
        match pages.clone().find(strays) {
            Some((at, page)) => {
                Err(format!("page {at} stands at {} + {}", page.position, page.shift))
            }
            None => Ok(()),
        }
    }

    /// Every reference to a block.
    pub(super) fn blocks(&self, spec: &StreamSpec) -> impl Iterator<Item = BlockRef> {
        let (hot, sealed) = (spec.hot, spec.sealed);
        let block = |class| move |index| BlockRef { class, index };
        let sink = self.sink.hot.map(block(spec.sink));
        let pages = self.pages.iter().flat_map(move |page| {
            let hot = page.hot.map(block(hot));
            hot.into_iter().chain(page.sealed.map(block(sealed)))
        });
        sink.into_iter().chain(pages)
    }
}

impl Growth {
    /// Bytes of the blocks to reserve.
    pub(super) fn bytes(&self, spec: &StreamSpec, pool: &Pool, kept: usize) -> u64 {
        let open = match self.open {
            Open::Ready => 0,
            _ if kept < spec.sinks => pool.block_bytes(spec.sink),
            _ => pool.block_bytes(spec.hot),
        };
        open + self.new_pages as u64 * pool.block_bytes(spec.hot)
            + self.seals as u64 * pool.block_bytes(spec.sealed)
    }
}
