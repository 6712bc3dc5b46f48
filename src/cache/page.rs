//! A page: the blocks that hold it, which of its tokens are live, and where they stand.

use super::class::ClassId;
use super::pool::Pool;

/// Which slots of a page are live: bit s is set unless slot s is filled and cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// The same ones in every stream that the page stands for.
    Same(u64),
    /// Others in each stream, by layer · kv_heads + head.
    Each(Box<[u64]>),
}

impl Live {
    const ALL: Self = Self::Same(u64::MAX);

    /// One word for all streams, or one for each.
    pub(super) fn words(&self) -> &[u64] {
        match self {
            Self::Same(word) => std::slice::from_ref(word),
            Self::Each(words) => words,
        }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        match self {
            Self::Same(word) => std::slice::from_mut(word),
            Self::Each(words) => words,
        }
    }

    /// The word of a stream.
    pub(super) fn of(&self, stream: usize) -> u64 {
        let words = self.words();
        words[stream.min(words.len() - 1)]
    }

    /// Whether nothing was cleared.
    pub(super) fn is_full(&self) -> bool {
        self.words().iter().all(|&word| word == u64::MAX)
    }

    /// Whether nothing is left in the first `slots` slots, be they filled or not.
    fn is_dead(&self, slots: usize) -> bool {
        self.words().iter().all(|word| word.trailing_zeros() as usize >= slots)
    }

    /// The words, one for each of so many streams.
    fn each(&mut self, streams: usize) -> &mut [u64] {
        if let Self::Same(word) = *self {
            *self = Self::Each(vec![word; streams].into());
        }
        self.words_mut()
    }
}

/// Whose tokens a change concerns.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// All streams that the page stands for.
    All,
    /// One of so many.
    One(usize, usize),
}

/// A page and the blocks that hold it. Between steps a page has one form, or
/// none when every token of it was cleared.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub hot: Option<u32>,
    pub sealed: Option<u32>,
    pub live: Live,
    /// The position of its first token: what its key was rotated by.
    pub position: u32,
    /// Slots at which positions do not follow the slot before, and theirs.
    jumps: Vec<(u8, u32)>,
    /// Δ: queries see its tokens so many positions further on.
    pub shift: i32,
}

impl Page {
    /// A page without blocks whose first token has this position.
    pub(super) fn new(position: usize) -> Self {
        let position = position as u32;
        Self { hot: None, sealed: None, live: Live::ALL, position, jumps: Vec::new(), shift: 0 }
    }

    /// A 16-bit page of rows at these positions, which increase.
    pub(super) fn packed(hot: Option<u32>, positions: &[u32]) -> Self {
        let mut page = Self::new(positions.first().map_or(0, |&p| p as usize));
        page.hot = hot;
        for (slot, &position) in positions.iter().enumerate() {
            page.place(slot, position as usize);
        }
        page
    }

    /// The page with these tokens alone, of one stream.
    pub(super) fn masked(&self, live: u64) -> Self {
        Self { live: Live::Same(live), ..self.clone() }
    }

    /// Says the position of the token in a slot; slots are filled in order.
    pub(super) fn place(&mut self, slot: usize, position: usize) {
        if slot == 0 {
            self.position = position as u32;
        } else if self.position_of(slot) != position as u32 {
            self.jumps.push((slot as u8, position as u32));
        }
    }

    /// The position of the token in a slot.
    pub(super) fn position_of(&self, slot: usize) -> u32 {
        let jump = self.jumps.iter().rev().find(|jump| usize::from(jump.0) <= slot);
        let (from, position) = jump.map_or((0, self.position), |&(from, p)| (from.into(), p));
        position + (slot - from) as u32
    }

    /// Whether the positions of its tokens are adjacent.
    pub(super) fn is_contiguous(&self) -> bool {
        self.jumps.is_empty()
    }

    /// Forgets what was in the slots from `fill` on.
    pub(super) fn refill(&mut self, fill: usize) {
        self.jumps.retain(|jump| usize::from(jump.0) < fill);
        self.live.words_mut().iter_mut().for_each(|word| *word |= u64::MAX << fill);
    }

    /// Clears a slot of a page of which `slots` are or will be filled; whether nothing is
    /// left then.
    pub(super) fn clear(&mut self, slot: usize, of: Of, slots: usize) -> bool {
        let words = match of {
            Of::All => self.live.words_mut(),
            Of::One(stream, streams) => &mut self.live.each(streams)[stream..=stream],
        };
        words.iter_mut().for_each(|word| *word &= !(1 << slot));
        self.live.is_dead(slots)
    }

    /// Gives its blocks back.
    pub(super) fn release(&mut self, hot: ClassId, sealed: ClassId, pool: &mut Pool) {
        if let Some(block) = self.hot.take() {
            pool.release(hot, block);
        }
        if let Some(block) = self.sealed.take() {
            pool.release(sealed, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_jump_and_are_forgotten() {
        let mut page = Page::packed(Some(1), &[3, 4, 9, 12]);
        page.place(4, 13);
        page.place(5, 70);
        let positions: Vec<u32> = (0..7).map(|slot| page.position_of(slot)).collect();
        assert_eq!(positions, [3, 4, 9, 12, 13, 70, 71]);
        page.refill(5);
        assert_eq!((page.position_of(4), page.position_of(5)), (13, 14));
    }

    #[test]
    fn one_stream_s_clear_leaves_the_others() {
        let mut page = Page::new(0);
        for slot in 0..3 {
            assert!(!page.clear(slot, Of::One(1, 2), 4));
        }
        assert_eq!(page.live.words(), [u64::MAX, u64::MAX << 3]);
        assert!(!page.clear(3, Of::One(1, 2), 4));
        for slot in 0..3 {
            assert!(!page.clear(slot, Of::All, 4));
        }
        assert!(page.clear(3, Of::All, 4));
    }
}
