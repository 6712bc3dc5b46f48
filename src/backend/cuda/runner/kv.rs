//! The KV cache on the device.

use super::arena::Arena;
use super::attention::{limits, shape};
use super::backend::{CudaBackend, lock};
use super::buffer::Buffer;
use super::repeat::{Key, Stage};
use crate::backend::cuda::append::{AppendCall, append};
use crate::backend::cuda::attend::AttentionCall;
use crate::backend::cuda::dense::{RopeCall, rope};
use crate::backend::cuda::element::Element;
use crate::backend::cuda::seal::seal;
use crate::backend::cuda::weights::Uploader;
use crate::backend::score_pass::{Score, Scores, Top, TopHeads};
use crate::backend::{Attend, GraphKey, Kernels, Kv, KvGroup, LayerIndex, StepInput};
use crate::cache::{BlockRef, ClassDesc, Compaction};
use crate::error::{Error, Result};
use std::ops::Range;

impl<T: Element> Kv for CudaBackend<T> {
    type Arena = Arena;

    fn arena(&mut self, groups: &[KvGroup], classes: &[ClassDesc], budget: u64) -> Result<Arena> {
        groups.iter().try_for_each(|group| group.geometry.check(Kernels::CudaAttention))?;
        if let Some(group) = groups.iter().find(|g| g.format.hot() != T::CODEC) {
            let what = format!("{} on a device that computes in {}", group.format, T::CODEC);
            return Err(Error::config("kv", what));
        }
        self.repeats.forget(&self.stream)?;
        // Weights are loaded by now.
        *lock(&self.uploader) = Uploader::default();
        Arena::new(groups, classes, budget, self.canaries, &self.stream)
    }

    fn kv_bytes(&self, arena: &Arena) -> u64 {
        arena.arenas.bytes()
    }

    fn arena_memory(&self, arena: &Arena) -> u64 {
        arena.arenas.committed_bytes()
    }

    fn begin(&mut self, arena: &mut Arena, step: &StepInput<'_>) -> Result<()> {
        arena.begin(step)?;
        self.slots.reserve(arena.begun()?.n_slots, &self.stream)
    }

    fn repeat(
        &mut self,
        arena: &mut Arena,
        key: &GraphKey,
        mut work: impl FnMut(&mut Self, &mut Arena) -> Result<()>,
    ) -> Result<()> {
        let bucket = arena.begun()?.bucket.filter(|_| self.repeats.captures);
        let Some(seqs) = bucket else { return work(self, arena) };
        let key = Key { work: key.clone(), arena: arena.id(), seqs };
        let stream = self.stream.clone();
        match self.repeats.stage(&key, &stream)? {
            Stage::New => {
                work(self, arena)?;
                return self.repeats.ran(key, &stream);
            }
            Stage::Ran => match stream.capture(|_| work(self, arena)) {
                Ok(graph) => self.repeats.captured(key.clone(), Some(graph)),
                Err(error @ Error::DeviceOutOfMemory { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a step cannot be captured; it is launched piece by piece");
                    self.repeats.captured(key, None);
                    // The plans of that try were recorded, not made.
                    arena.layers.forget_plans();
                    return work(self, arena);
                }
            },
            Stage::Plain => return work(self, arena),
            Stage::Captured => {}
        }
        // SAFETY: all that a work uses is this backend's, the arena's, its model's and the
        // workspace's that the key names; no buffer was freed or allocated since, so all of
        // them live where they were; `begin` has filled the same lists for a step of the
        // same shape.
        unsafe { self.repeats.launch(&key, &stream) }
    }

    fn compact(&mut self, arena: &mut Arena, compaction: &Compaction) -> Result<()> {
        let Arena { arenas, gatherer, copier, .. } = arena;
        arenas.free(&compaction.frees);
        copier.move_pages(arenas, &compaction.moves, &self.stream)?;
        gatherer.gather(arenas, &compaction.gathers, &self.stream)
    }

    fn read_block(&mut self, arena: &Arena, block: BlockRef) -> Result<Vec<u8>> {
        arena.arenas.read(block, &self.stream)
    }

    fn append(
        &mut self,
        arena: &mut Arena,
        at: LayerIndex,
        heads: usize,
        rotated: bool,
        qkv: &mut Buffer<T>,
    ) -> Result<()> {
        arena.group(at)?;
        let (arenas, group) = (&mut arena.arenas, &arena.groups[at.group]);
        let inv_turns = group.turns.as_ref().filter(|_| !rotated);
        let call = AppendCall { at, heads, stride: qkv.cols(), inv_turns };
        append(arenas, &group.appends, &call, qkv.narrow_mut()?, &self.stream)
    }

    fn rotate(
        &mut self,
        arena: &mut Arena,
        at: LayerIndex,
        heads: usize,
        q: &mut Buffer<T>,
    ) -> Result<()> {
        let group = arena.group(at)?;
        let Some(inv_turns) = &group.turns else { return Ok(()) };
        let positions = group.appends.positions();
        let (rows, stride) = (q.rows(), q.cols());
        let call = RopeCall { rows, stride, heads, positions, inv_turns };
        rope(call, q.narrow_mut()?, &self.stream)
    }

    fn seal(&mut self, arena: &mut Arena, group: usize, layers: Range<usize>) -> Result<()> {
        arena.group(LayerIndex { group, layer: layers.start })?;
        let (arenas, plans) = (&mut arena.arenas, &arena.groups[group]);
        seal(arenas, &plans.seals, group, layers, &self.stream)
    }

    fn attend(
        &mut self,
        arena: &mut Arena,
        call: &Attend,
        q: &Buffer<T>,
        out: &mut Buffer<T>,
        lse: Option<&mut Buffer<T>>,
    ) -> Result<()> {
        let stream = &*self.stream;
        arena.group(call.at)?;
        let Arena { arenas, groups, layers, .. } = arena;
        let (group, tables) = (arenas.group(call.at.group)?, &groups[call.at.group].tables);
        let sizes = tables.sizes();
        let columns = call.heads * group.head_dim();
        q.check("q", sizes.rows, columns)?;
        let lse = match lse {
            Some(lse) => lse.set_wide(q.rows(), call.heads, stream)?.address(),
            None => 0,
        };
        let call_at = AttentionCall {
            q: q.narrow()?.address(),
            q_stride: q.cols(),
            out: out.set_narrow(q.rows(), columns, stream)?.address(),
            lse,
            ..tables.call(arenas, call.at.layer)?
        };
        let layer = layers.get(shape(call, group), limits(&sizes), stream)?;
        // SAFETY: the tables were checked against the arenas when the step began, the
        // buffers hold its rows, and the scratch its limits; all live as long as the
        // arena and the backend, which wait for their stream before they let go of any.
        unsafe {
            if layer.planned == Some(call.at.group) && tables.are_uniform() {
                return layer.attention.attend_as_planned(&call_at, &mut layer.scratch, stream);
            }
            layer.attention.attend(&call_at, &mut layer.scratch, stream)?;
        }
        layer.planned = Some(call.at.group);
        Ok(())
    }

    fn score(
        &mut self,
        arena: &mut Arena,
        call: &Attend,
        pass: Score,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Scores,
    ) -> Result<()> {
        self.run_score(arena, call, pass, q, lse, out)
    }

    fn score_top(
        &mut self,
        arena: &mut Arena,
        call: &Attend,
        of: TopHeads,
        q: &Buffer<T>,
        lse: &Buffer<T>,
        out: &mut Vec<Top>,
    ) -> Result<()> {
        self.run_top(arena, call, of, q, lse, out)
    }
}
