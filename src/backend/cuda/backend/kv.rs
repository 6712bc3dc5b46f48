//! The KV side of a step: arenas, and for each KV group where new rows go, which pages
//! are sealed and what is read.

use crate::backend::cuda::append::AppendPlan;
use crate::backend::cuda::arenas::Arenas;
use crate::backend::cuda::copy::Copier;
use crate::backend::cuda::gather::Gatherer;
use crate::backend::cuda::seal::SealPlan;
use crate::backend::cuda::tables::AttendTables;
use crate::backend::driver::Stream;
use crate::backend::{AttendSeq, KvGroup, LayerIndex, Rope, RowKind};
use crate::cache::{ClassDesc, SeqStep};
use crate::error::{Error, Result};

/// Arenas and the plans of the step in hand.
pub(super) struct Kv {
    pub arenas: Arenas,
    pub copier: Copier,
    pub gatherer: Gatherer,
    pub plans: Vec<Plans>,
}

/// Of one KV group.
pub(super) struct Plans {
    pub appends: AppendPlan,
    pub seals: SealPlan,
    pub tables: AttendTables,
}

impl Kv {
    pub fn new(
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
        stream: &Stream,
    ) -> Result<Self> {
        let device = stream.device();
        let plans = || -> Result<Plans> {
            Ok(Plans {
                appends: AppendPlan::new(device)?,
                seals: SealPlan::new(device)?,
                tables: AttendTables::new(device)?,
            })
        };
        Ok(Self {
            arenas: Arenas::new(device, groups, classes, budget, stream)?,
            copier: Copier::new(device)?,
            gatherer: Gatherer::new(device)?,
            plans: groups.iter().map(|_| plans()).collect::<Result<_>>()?,
        })
    }

    /// Plans a step, with `padding` sequences of no tokens after the others, each with a
    /// row of its own, and `places` pages to seal at the least, if any are.
    pub fn begin(
        &mut self,
        seqs: &[SeqStep],
        padding: usize,
        places: usize,
        rope: &Rope,
        stream: &Stream,
    ) -> Result<()> {
        for (group, plans) in self.plans.iter_mut().enumerate() {
            plans.appends.set(&mut self.arenas, group, seqs, padding, stream)?;
            let places = if self.arenas.group(group)?.format.seals() { places } else { 0 };
            plans.seals.set(&mut self.arenas, group, seqs, places, stream)?;
            let mut first_row = 0;
            let mut shares = Vec::with_capacity(seqs.len());
            for seq in seqs {
                let view = seq.views.get(group).ok_or_else(|| missing(group))?;
                let kind = match seq.new_tokens {
                    1 => RowKind::Generated,
                    _ => RowKind::Prompt,
                };
                shares.push(AttendSeq { first_row, q_len: seq.new_tokens, kind, view });
                first_row += seq.new_tokens;
            }
            plans.tables.set(&self.arenas, group, &shares, padding, Some(rope), stream)?;
        }
        Ok(())
    }

    /// The plans of the group of a layer that exists.
    pub fn plans(&self, at: LayerIndex) -> Result<&Plans> {
        self.plans.get(at.group).ok_or_else(|| missing(at.group))
    }
}

fn missing(group: usize) -> Error {
    Error::NotFound { what: format!("KV group {group}") }
}
