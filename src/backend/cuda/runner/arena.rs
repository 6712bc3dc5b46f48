//! The blocks of a model on the device, and its step in hand: for each KV group where new
//! rows go, which pages are sealed and what is read.

use super::attention::Layers;
use super::begun::Begun;
use super::score_buffers::ScoreBuffers;
use crate::backend::cuda::append::{AppendPlan, inv_turns};
use crate::backend::cuda::arenas::Arenas;
use crate::backend::cuda::copy::Copier;
use crate::backend::cuda::gather::Gatherer;
use crate::backend::cuda::parcel::Parcel;
use crate::backend::cuda::seal::SealPlan;
use crate::backend::cuda::tables::AttendTables;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::backend::{KvGroup, LayerIndex, StepInput, attend_seqs};
use crate::cache::ClassDesc;
use crate::error::{Error, Result};
use std::sync::Arc;

/// The blocks of a model and its step under way.
///
/// Dropping it waits for all work of its stream.
pub struct Arena {
    stream: Arc<DeviceStream>,
    pub(super) arenas: Arenas,
    pub(super) copier: Copier,
    pub(super) gatherer: Gatherer,
    pub(super) groups: Vec<GroupPlans>,
    begun: Begun,
    /// What lists of the step have changed.
    parcel: Parcel,
    /// Whether a step has begun, and its lists are on their way.
    ready: bool,
    pub(super) layers: Layers,
    pub(super) scores: ScoreBuffers,
}

/// What the step in hand asks of one KV group.
pub(super) struct GroupPlans {
    pub appends: AppendPlan,
    pub seals: SealPlan,
    pub tables: AttendTables,
    /// Turns a position of each pair of channels, if the group is rotated.
    pub turns: Option<DeviceBuffer<f64>>,
}

impl Arena {
    /// Without blocks in use, with canaries behind those to come or not.
    pub(super) fn new(
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
        canaries: bool,
        stream: &Arc<DeviceStream>,
    ) -> Result<Self> {
        let device = stream.device();
        let arenas = if canaries { Arenas::with_canaries } else { Arenas::new };
        let parcel = Parcel::new(device)?;
        let group = |group: &KvGroup| -> Result<GroupPlans> {
            let turns = group.rope.as_deref().map(|rope| inv_turns(rope, stream));
            Ok(GroupPlans {
                appends: AppendPlan::within(device, &parcel)?,
                seals: SealPlan::within(device, &parcel)?,
                tables: AttendTables::within(device, &parcel)?,
                turns: turns.transpose()?,
            })
        };
        Ok(Self {
            stream: stream.clone(),
            arenas: arenas(device, groups, classes, budget, stream)?,
            copier: Copier::new(device)?,
            gatherer: Gatherer::new(device)?,
            groups: groups.iter().map(group).collect::<Result<_>>()?,
            begun: Begun::within(device, &parcel)?,
            parcel,
            ready: false,
            layers: Layers::default(),
            scores: ScoreBuffers::new(device)?,
        })
    }

    /// What tells arenas apart.
    pub(super) fn id(&self) -> u64 {
        self.arenas.id()
    }

    /// Takes in a step: blocks first, then its lists, padded, in one parcel.
    pub(super) fn begin(&mut self, input: &StepInput<'_>) -> Result<()> {
        self.ready = false;
        // Of a step that could not begin.
        self.parcel.lock().unpack();
        self.set(input)?;
        self.parcel.lock().send(&self.stream)?;
        self.ready = true;
        Ok(())
    }

    fn set(&mut self, input: &StepInput<'_>) -> Result<()> {
        let (step, stream) = (input.step, &*self.stream);
        self.arenas.free(&step.frees);
        if !step.copies.is_empty() {
            self.copier.copy(&mut self.arenas, &step.copies, stream)?;
        }
        for restore in &step.restores {
            self.arenas.write(restore.to, &restore.bytes, stream)?;
        }
        let padding = self.begun.set(input, stream)?;
        let places = self.begun.bucket.unwrap_or(0);
        for (index, group) in self.groups.iter_mut().enumerate() {
            let shape = self.arenas.group(index)?;
            let places = if shape.format.seals() { places } else { 0 };
            let rope = shape.rope.clone();
            group.appends.set(&mut self.arenas, index, &step.seqs, padding, stream)?;
            group.seals.set(&mut self.arenas, index, &step.seqs, places, stream)?;
            let seqs = attend_seqs(&step.seqs, index)?;
            group.tables.set(&self.arenas, index, &seqs, padding, rope.as_deref(), stream)?;
        }
        self.layers.forget_plans();
        for group in &self.groups {
            self.layers.reserve(super::attention::limits(&group.tables.sizes()), stream)?;
        }
        Ok(())
    }

    fn expect_step(&self) -> Result<()> {
        match self.ready {
            true => Ok(()),
            false => Err(Error::misuse("step", "none has begun, or it failed to")),
        }
    }

    /// What the step in hand has said.
    pub(super) fn begun(&self) -> Result<&Begun> {
        self.expect_step()?;
        Ok(&self.begun)
    }

    /// The same, to note what was done.
    pub(super) fn begun_mut(&mut self) -> Result<&mut Begun> {
        self.expect_step()?;
        Ok(&mut self.begun)
    }

    /// The plans of the group of a layer.
    pub(super) fn group(&self, at: LayerIndex) -> Result<&GroupPlans> {
        self.expect_step()?;
        let missing = || Error::NotFound { what: format!("KV group {}", at.group) };
        self.groups.get(at.group).ok_or_else(missing)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Kernels may still use what is freed next. If the device is lost, nothing does.
        let _ = self.stream.synchronize();
    }
}
