//! Foreign pages: whole pages of one sequence, put in front of what another one appends.

use std::ops::Range;

use super::class::{BlockRef, ClassId, PAGE_TOKENS, SeqId};
use super::kv_cache::{KvCache, idle};
use super::page::Page;
use super::pool::Pool;
use super::sequence::SeqGroup;
use super::spec::{Group, StreamSpec};
use crate::error::{Error, Result};

/// Whole pages of adjacent tokens that sequences can share, from [`KvCache::share`]. They
/// stay in memory while a sequence holds them, and after that until their memory is needed
/// or [`KvCache::forget`] is called.
#[derive(Clone, Debug)]
pub struct SharedRun {
    position: usize,
    n_tokens: usize,
    /// Sinks that it begins with, where it begins a sequence.
    sinks: usize,
    /// Of each KV group.
    groups: Vec<SharedPages>,
}

#[derive(Clone, Debug)]
struct SharedPages {
    /// Of the sinks in front of the pages, if there are any; `None`: freed, likewise.
    sink: Option<Named>,
    /// `None`: freed, as no query behind the run sees it.
    pages: Vec<Option<Named>>,
}

/// A block, and the name of what it held when it was shared.
#[derive(Clone, Copy, Debug)]
struct Named {
    block: BlockRef,
    name: u64,
}

impl SharedRun {
    /// The position that its first token's key was computed for.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Its tokens, sinks included.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn blocks(&self) -> impl Iterator<Item = Named> {
        self.groups.iter().flat_map(|g| g.sink.into_iter().chain(g.pages.iter().flatten().copied()))
    }
}

impl KvCache {
    /// Shares the tokens at these kept indices of a sequence: whole pages, which lie at
    /// S + 64·p, with the S sinks before them where the range begins at 0. Pages of a
    /// group that seals must be sealed.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a range that is not of whole pages or not kept, for pages that are
    /// not sealed yet or freed, for positions that are not adjacent, and for compacted
    /// groups; [`Error::Unsupported`] if groups differ in S; [`Error::Busy`],
    /// [`Error::NotFound`].
    pub fn share(&mut self, seq: SeqId, tokens: Range<usize>) -> Result<SharedRun> {
        let state = self.idle(seq)?;
        let sinks = self.groups.first().map_or(0, |group| group.uniform.sinks);
        if self.groups.iter().any(|group| group.uniform.sinks != sinks) {
            return Err(Error::Unsupported {
                what: "sharing pages between KV groups with and without sinks".into(),
                remedy: "give all groups the same S: seal all or none, or set it to 0".into(),
            });
        }
        let whole = |token: usize| {
            let after = token.checked_sub(sinks)?;
            after.is_multiple_of(PAGE_TOKENS).then_some(after / PAGE_TOKENS)
        };
        let first = if tokens.start == 0 { Some(0) } else { whole(tokens.start) };
        let (Some(first), Some(end)) = (first, whole(tokens.end)) else {
            let what = format!("{tokens:?} are not whole pages: those begin at {sinks} + 64·p");
            return Err(Error::misuse("tokens", what));
        };
        if first >= end {
            return Err(Error::misuse("tokens", format!("{tokens:?} holds no page")));
        }
        let with_sinks = tokens.start == 0 && sinks > 0;
        let mut found = Vec::with_capacity(self.groups.len());
        for (state, group) in state.groups.iter().zip(&self.groups) {
            found.push(found_pages(state, &group.uniform, first..end, with_sinks)?);
        }
        // Behind sinks the first page begins at S.
        let sinks = if with_sinks { sinks } else { 0 };
        let position = found[0].position as usize - sinks;
        if found.iter().any(|of| of.position != found[0].position) {
            return Err(Error::misuse("tokens", "groups keep other tokens there"));
        }
        let n_tokens = tokens.len();
        let mut named = |block| Named { block, name: self.pool.name(block) };
        let groups = found.into_iter().map(|of| SharedPages {
            sink: of.sink.map(&mut named),
            pages: of.pages.into_iter().map(|block| block.map(&mut named)).collect(),
        });
        Ok(SharedRun { position, n_tokens, sinks, groups: groups.collect() })
    }

    /// Lets the next tokens of a sequence see a run, as if its tokens stood at the positions
    /// from `at` on: the run is relocated by Δ = `at` − its own position. Its pages come in
    /// front of those that the sequence appends, whose grid they do not touch, and every query
    /// reads them sealed. The sequence's length becomes the run's end, which it cannot be
    /// rewound below.
    ///
    /// A run with sinks begins an empty sequence at position 0; others come behind the
    /// sequence's own S tokens. In a group with a window a run must follow at once, and
    /// come before all but the sinks of what the sequence appends.
    ///
    /// # Errors
    /// [`Error::NotFound`] if memory of the run has been used again since; [`Error::Misuse`]
    /// for a run of another cache and a place where it cannot be; [`Error::Busy`]. Nothing has
    /// changed then.
    pub fn attach(&mut self, seq: SeqId, run: &SharedRun, at: usize) -> Result<()> {
        let state = self.idle(seq)?;
        let wrong = |what: String| Err(Error::misuse("attach", what));
        if run.groups.len() != self.groups.len() {
            return wrong("the run is of another cache".into());
        }
        if run.blocks().any(|named| !self.pool.has(named.block, named.name)) {
            let what = "memory of the shared run: it was needed for other tokens;".into();
            return Err(Error::NotFound { what });
        }
        let begins = run.sinks > 0;
        if begins && (state.len > 0 || at > 0) {
            return wrong(format!(
                "a run with sinks begins a sequence; this one has {}",
                state.len
            ));
        }
        let end = at.checked_add(run.n_tokens).filter(|&end| u32::try_from(end).is_ok());
        let (Some(end), true) = (end, at >= state.len) else {
            return wrong(format!("position {at} in a sequence of {} tokens", state.len));
        };
        for (state_of, group) in state.groups.iter().zip(&self.groups) {
            may_attach(state_of, group, state.len, at, begins)?;
        }

        let state = idle(&mut self.seqs, seq)?;
        (state.len, state.attached) = (end, end);
        let shift = (at as i64 - run.position as i64) as i32;
        for ((state, group), of) in state.groups.iter_mut().zip(&self.groups).zip(&run.groups) {
            let (spec, stream) = (&group.uniform, &mut state.streams[0]);
            if begins {
                stream.sink.hot = of.sink.map(|named| revived(&mut self.pool, named));
                stream.kept = run.sinks;
            }
            let pages = of.pages.iter().enumerate().map(|(p, named)| {
                let mut page = Page::new(run.position + run.sinks + p * PAGE_TOKENS);
                page.shift = shift;
                let block = named.map(|named| revived(&mut self.pool, named));
                *(if spec.seals() { &mut page.sealed } else { &mut page.hot }) = block;
                page
            });
            let pages = pages.collect();
            stream.attach(spec, pages);
        }
        Ok(())
    }

    /// Says that a run will not be attached any more: what of it nobody holds is free.
    pub fn forget(&mut self, run: &SharedRun) {
        for named in run.blocks() {
            if self.pool.has(named.block, named.name) {
                self.pool.forget(named.block);
            }
        }
    }
}

fn revived(pool: &mut Pool, named: Named) -> u32 {
    pool.revive(named.block);
    named.block.index
}

/// What a group has of a run.
struct Found {
    position: u32,
    sink: Option<BlockRef>,
    pages: Vec<Option<BlockRef>>,
}

fn found_pages(
    state: &SeqGroup,
    spec: &StreamSpec,
    pages: Range<usize>,
    with_sinks: bool,
) -> Result<Found> {
    let wrong = |what: String| Err(Error::misuse("tokens", what));
    if state.compacted.is_some() {
        return wrong("the sequence was compacted".into());
    }
    let stream = &state.streams[0];
    let end = spec.sinks + pages.end * PAGE_TOKENS;
    if end > stream.kept {
        return wrong(format!("{end} tokens are asked for, {} are kept", stream.kept));
    }
    let (unseen, no_sinks) = spec.unseen(end);
    let of = |class: ClassId, index: Option<u32>| index.map(|index| BlockRef { class, index });
    let first = &stream.pages[pages.start];
    let mut blocks = Vec::with_capacity(pages.len());
    for (i, (at, page)) in pages.clone().zip(&stream.pages[pages]).enumerate() {
        let adjacent = page.position as usize == first.position as usize + i * PAGE_TOKENS;
        if !adjacent || !page.is_contiguous() || page.shift != first.shift {
            return wrong(format!("page {at} does not follow the one before it"));
        }
        let block = match spec.seals() {
            true => of(spec.sealed, page.sealed),
            false => of(spec.hot, page.hot),
        };
        if block.is_none() && at >= unseen {
            let state = if page.hot.is_some() { "not sealed yet" } else { "freed" };
            return wrong(format!("page {at} is {state}"));
        }
        blocks.push(block);
    }
    let sink = if with_sinks { of(spec.sink, stream.sink.hot) } else { None };
    if with_sinks && sink.is_none() && !no_sinks {
        return wrong("the sinks are freed".into());
    }
    if with_sinks && (first.shift != 0 || first.position as usize != spec.sinks) {
        return wrong("the first page does not follow the sinks".into());
    }
    Ok(Found { position: first.position, sink, pages: blocks })
}

/// Whether a run can come to stand at `at` in a group of a sequence of `len` tokens.
fn may_attach(state: &SeqGroup, group: &Group, len: usize, at: usize, begins: bool) -> Result<()> {
    let (spec, stream) = (&group.uniform, &state.streams[0]);
    let wrong = |what: String| Err(Error::misuse("attach", what));
    if state.compacted.is_some() {
        return wrong("the sequence was compacted; attach runs before".into());
    }
    if !begins && stream.kept < spec.sinks {
        return wrong(format!("the sequence has {} of its {} sinks", stream.kept, spec.sinks));
    }
    // Windows compare kept indices, so these must go on being positions.
    let follows = stream.kept == len && at == len && stream.pages.len() == stream.front;
    if spec.slides() && !follows {
        return wrong(format!(
            "a KV group with a window takes runs right behind the sinks and each other, not at \
             {at} in a sequence of {len} tokens"
        ));
    }
    Ok(())
}
