//! Score passes over what a call attended to.

use super::{Buffer, CudaBackend, attention, check_rows, no_kv};
use crate::backend::cuda::append::Element;
use crate::backend::cuda::attend::AttentionCall;
use crate::backend::cuda::params::ScoreTop;
use crate::backend::cuda::score::{ScoreCall, ScoreStarts, Scorer};
use crate::backend::score::{Score, Scores, Spans, Top, TopHeads};
use crate::backend::{Attend, KvGroup};
use crate::error::{Error, Result};

impl<T: Element> CudaBackend<T> {
    pub(super) fn run_score(
        &self,
        call: &Attend<'_>,
        pass: Score,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Scores,
    ) -> Result<()> {
        let (score, group) = self.score_call(call, q, lse)?;
        let spans = Spans::new(call.seqs, group.kv_heads, call.at.layer)?;
        let scorer = Scorer::new(self.device(), attention::shape(call, group))?;
        let mut starts = ScoreStarts::new(self.device())?;
        starts.set(&spans, &self.stream)?;
        let scores = self.device().alloc::<f32>(spans.total())?;
        // SAFETY: as in `attend`; the scores have room for all spans, and are read, and
        // so complete, before anything is dropped.
        unsafe { scorer.score(&score, pass, starts.address(), scores.address(), &self.stream)? };
        *out = Scores { spans, values: scores.to_vec(&self.stream)? };
        Ok(())
    }

    pub(super) fn run_top(
        &self,
        call: &Attend<'_>,
        of: TopHeads,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Vec<Top>,
    ) -> Result<()> {
        let (score, group) = self.score_call(call, q, lse)?;
        let scorer = Scorer::new(self.device(), attention::shape(call, group))?;
        let columns = if of == TopHeads::Each { call.heads } else { group.kv_heads };
        let rows = score.sizes.rows;
        // Few rows leave most of the device idle, unless several blocks share a stream.
        let chunks = if rows <= 16 { 8 } else { 1 };
        let mut workspace = scorer.top_workspace(rows, of, chunks)?;
        let none = ScoreTop { value: Top::NONE.value, index: Top::NONE.index };
        let tops = self.device().upload(&vec![none; rows * columns], &self.stream)?;
        // SAFETY: as in `score`.
        unsafe { scorer.top(&score, of, tops.address(), &mut workspace, &self.stream)? };
        let tops = tops.to_vec(&self.stream)?;
        *out = tops.iter().map(|t| Top { value: t.value, index: t.index }).collect();
        Ok(())
    }

    /// What the score passes of a call read.
    fn score_call(
        &self,
        call: &Attend<'_>,
        q: &Buffer<T>,
        lse: &Buffer<T>,
    ) -> Result<(ScoreCall, &KvGroup)> {
        let kv = self.kv.as_ref().ok_or_else(no_kv)?;
        let group = kv.arenas.group(call.at.group)?;
        let tables = &kv.plans(call.at)?.tables;
        let sizes = tables.sizes();
        check_rows("q", q, sizes.rows, call.heads * group.head_dim)?;
        if lse.rows() < sizes.rows || lse.cols() != call.heads {
            let what = format!("[{}, {}], not [rows, {}]", lse.rows(), lse.cols(), call.heads);
            return Err(Error::config("lse", what));
        }
        let attention = AttentionCall {
            q: q.narrow()?.address(),
            q_stride: q.cols(),
            lse: lse.wide()?.address(),
            ..tables.call(&kv.arenas, call.at.layer)?
        };
        Ok((ScoreCall { attention, sizes }, group))
    }
}
