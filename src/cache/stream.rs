//! One stream: its sink page, its pages, and how a step changes them.

use std::ops::Range;

use super::PAGE_TOKENS;
use super::class::{BlockRef, ClassId};
use super::ops::{Append, CopyBlock, Seal};
use super::pool::Pool;
use super::spec::StreamSpec;

/// The mask of a page with no cleared token.
pub(super) const ALL_LIVE: u64 = u64::MAX;

/// A page and the blocks that hold it. Between steps a page has one form, or
/// none when every token of it was cleared.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub hot: Option<u32>,
    pub sealed: Option<u32>,
    /// Bit s is set unless slot s is filled and cleared.
    pub live: u64,
}

impl Page {
    const NEW: Self = Self { hot: None, sealed: None, live: ALL_LIVE };

    fn release(&mut self, hot: ClassId, sealed: ClassId, pool: &mut Pool) {
        if let Some(block) = self.hot.take() {
            pool.release(hot, block);
        }
        if let Some(block) = self.sealed.take() {
            pool.release(sealed, block);
        }
    }
}

/// The kept tokens of one stream, or of all streams of a uniform group.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// Tokens, sinks included.
    pub kept: usize,
    /// The sink page; it never has a sealed form.
    pub sink: Page,
    /// The page grid. During a step also the pages of its new tokens.
    pub pages: Vec<Page>,
    /// One more than the last page that has a sealed form after the last
    /// commit; the pages below it are sealed or freed.
    pub sealed: usize,
    /// Pages from the first on that were freed because no query would see them again.
    gone: usize,
    /// The fewest kept tokens at which the next query sees nothing of what was freed so.
    floor: usize,
}

/// How the partially filled page takes the next tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Open {
    /// There is none, or this sequence alone holds it.
    Ready,
    /// It is the sink page before its first token.
    Fresh,
    /// Its block is shared.
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
        Self { kept: 0, sink: Page::NEW, pages: Vec::new(), sealed: 0, gone: 0, floor: 0 }
    }

    /// A stream over ragged or uniform blocks that hold `kept` tokens in 16 bits.
    pub(super) fn from_blocks(kept: usize, sink: Option<u32>, hot: Vec<u32>) -> Self {
        let page = |block| Page { hot: block, ..Page::NEW };
        let pages = hot.into_iter().map(|block| page(Some(block))).collect();
        Self { kept, sink: page(sink), pages, sealed: 0, gone: 0, floor: 0 }
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
            Some((class, Some(block))) if pool.refs(class, block) > 1 => Open::Shared,
            _ => Open::Ready,
        };
        let seal = self.sealed..spec.sealed_below(end - 1);
        let has_bytes = |&p: &usize| self.pages.get(p).is_none_or(|page| page.hot.is_some());
        let seals = seal.clone().filter(has_bytes).count();
        Growth { open, new_pages: spec.pages(end) - self.pages.len(), seal, seals }
    }

    /// Reserves the blocks of `growth` and lists the operations that fill them.
    pub(super) fn grow(
        &mut self,
        spec: &StreamSpec,
        pool: &mut Pool,
        growth: Growth,
        n: usize,
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
            self.pages.push(Page { hot: Some(pool.take(spec.hot)), ..Page::NEW });
        }
        self.append(spec, n, ops);
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
        self.drop_pages(spec, pool);
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
        self.sink.release(spec.sink, spec.sealed, pool);
        let end = gone.min(self.pages.len());
        for page in &mut self.pages[self.gone.min(end)..end] {
            page.release(spec.hot, spec.sealed, pool);
        }
        self.gone = self.gone.max(end);
        self.floor = self.floor.max(spec.kept_to_miss(self.gone));
    }

    /// The fewest kept tokens, from `kept` on, that the stream can be cut to.
    pub(super) fn rewindable_to(&self, spec: &StreamSpec, kept: usize) -> usize {
        let kept = kept.max(spec.kept_to_seal(self.sealed)).max(self.floor);
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
        self.drop_pages(spec, pool);
        let fill = spec.slot(kept).map_or(kept, |(_, slot)| slot);
        if kept == 0 {
            self.sink.release(spec.sink, spec.sealed, pool);
        }
        if let Some((_, page)) = self.open_page(spec) {
            page.live |= ALL_LIVE << fill;
        }
    }

    /// Drops the pages past the last kept token.
    fn drop_pages(&mut self, spec: &StreamSpec, pool: &mut Pool) {
        let pages = spec.pages(self.kept);
        for mut page in self.pages.drain(pages..) {
            page.release(spec.hot, spec.sealed, pool);
        }
    }

    fn trim_sealed(&mut self) {
        while self.sealed > 0 && self.pages[self.sealed - 1].sealed.is_none() {
            self.sealed -= 1;
        }
    }

    /// Clears tokens, which exist; pages that nothing is left of are freed,
    /// unless they are still being filled.
    pub(super) fn clear(&mut self, spec: &StreamSpec, pool: &mut Pool, indices: &[u32]) {
        for &index in indices {
            let index = index as usize;
            let (hot, page, slot, full) = match spec.slot(index) {
                None => (spec.sink, &mut self.sink, index, spec.sinks),
                Some((page, slot)) => (spec.hot, &mut self.pages[page], slot, PAGE_TOKENS),
            };
            page.live &= !(1 << slot);
            // Slots not yet filled count as live, so a page being filled stays.
            if page.live.trailing_zeros() as usize >= full {
                page.release(hot, spec.sealed, pool);
            }
        }
        self.trim_sealed();
    }

    /// The 16-bit row of a kept index; `None` if it was cleared, was never
    /// kept, or is sealed.
    pub(super) fn row(&self, spec: &StreamSpec, index: usize) -> Option<(BlockRef, u16)> {
        if index >= self.kept {
            return None;
        }
        let (class, page, slot) = match spec.slot(index) {
            None => (spec.sink, &self.sink, index),
            Some((page, slot)) => (spec.hot, &self.pages[page], slot),
        };
        let block = page.hot.filter(|_| page.live & (1 << slot) != 0)?;
        Some((BlockRef { class, index: block }, slot as u16))
    }

    /// The block that a step in flight replaced by a copy.
    pub(super) fn replaced(&self, spec: &StreamSpec, undo: &Undo) -> Option<BlockRef> {
        let class = if self.kept < spec.sinks { spec.sink } else { spec.hot };
        undo.replaced.flatten().map(|index| BlockRef { class, index })
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
