//! Score passes over what a call attended to.

use super::arena::Arena;
use super::attention;
use super::backend::CudaBackend;
use super::buffer::Buffer;
use super::room::reserve;
use super::score_buffers::ScoreBuffers;
use crate::backend::cuda::attend::AttentionCall;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::ScoreTop;
use crate::backend::cuda::score::{ScoreCall, Scorer};
use crate::backend::score_pass::{Score, Scores, Top, TopHeads};
use crate::backend::{Attend, KvGroup};
use crate::error::{Error, Result};

/// With fewer rows, most of the device is idle unless several blocks share a stream.
const FEW_ROWS: usize = 16;

impl<T: Element> CudaBackend<T> {
    pub(super) fn run_score(
        &self,
        arena: &mut Arena,
        call: &Attend,
        pass: Score,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Scores,
    ) -> Result<()> {
        let stream = &*self.stream;
        let (score, group) = score_call(arena, call, q, lse)?;
        let scorer = Scorer::new(self.device(), attention::shape(call, &group))?;
        out.spans = arena.group(call.at)?.tables.spans(group.kv_heads, call.at.layer)?;
        let total = out.spans.total();
        let ScoreBuffers { starts, scores, .. } = &mut arena.scores;
        // Scores of the last pass were read, so nothing uses the buffers.
        starts.set(&out.spans, stream)?;
        reserve(scores, total, 1, stream)?;
        // SAFETY: as in `attend`; the scores have room for all spans, and are read, and
        // so complete, before anything is dropped.
        unsafe { scorer.score(&score, pass, starts.address(), scores.address(), stream)? };
        out.values.resize(total, 0.0);
        scores.read(0, &mut out.values, stream)
    }

    pub(super) fn run_top(
        &self,
        arena: &mut Arena,
        call: &Attend,
        of: TopHeads,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Vec<Top>,
    ) -> Result<()> {
        let stream = &*self.stream;
        let (score, group) = score_call(arena, call, q, lse)?;
        let scorer = Scorer::new(self.device(), attention::shape(call, &group))?;
        let columns = if of == TopHeads::Each { call.heads } else { group.kv_heads };
        let rows = score.sizes.rows;
        let chunks = if rows <= FEW_ROWS { 8 } else { 1 };
        let ScoreBuffers { tops, parts, .. } = &mut arena.scores;
        scorer.reserve_top(parts, rows, of, chunks)?;
        reserve(tops, rows, columns, stream)?;
        // SAFETY: as in `score`; all rows are of sequences, so all tops are written.
        unsafe { scorer.top(&score, of, tops.address(), parts, stream)? };
        let mut found = vec![ScoreTop::default(); rows * columns];
        tops.read(0, &mut found, stream)?;
        out.clear();
        out.extend(found.iter().map(|t| Top { value: t.value, index: t.index }));
        Ok(())
    }
}

/// What the score passes of a call read.
fn score_call<T: Element>(
    arena: &Arena,
    call: &Attend,
    q: &Buffer<T>,
    lse: &Buffer<T>,
) -> Result<(ScoreCall, KvGroup)> {
    let group = arena.arenas.group(call.at.group)?;
    let tables = &arena.group(call.at)?.tables;
    let sizes = tables.sizes();
    q.check("q", sizes.rows, call.heads * group.head_dim())?;
    if lse.rows() < sizes.rows || lse.cols() != call.heads {
        let what = format!("[{}, {}], not [rows, {}]", lse.rows(), lse.cols(), call.heads);
        return Err(Error::misuse("lse", what));
    }
    let attention = AttentionCall {
        q: q.narrow()?.address(),
        q_stride: q.cols(),
        lse: lse.wide()?.address(),
        ..tables.call(&arena.arenas, call.at.layer)?
    };
    Ok((ScoreCall { attention, sizes }, group.clone()))
}
