//! What the step in hand has said, on the device.

use crate::backend::StepInput;
use crate::backend::cuda::dense::fixed;
use crate::backend::cuda::list::DeviceList;
use crate::backend::cuda::params::SampleDraw;
use crate::backend::draw::Draw;
use crate::backend::driver::{Device, Stream};
use crate::cache::GroupView;
use crate::error::{Error, Result};

/// Rows and lists of a step, padded to its bucket.
pub(super) struct Begun {
    /// Token ids, one a row.
    pub ids: DeviceList<u32>,
    /// Numbers of the wanted rows.
    pub rows: DeviceList<u32>,
    /// One a wanted row, or none.
    pub draws: DeviceList<SampleDraw>,
    /// Wanted rows without padding.
    pub wanted: usize,
    /// The number of sequences that the step was padded to, if it is one that can be
    /// repeated.
    pub bucket: Option<usize>,
}

impl Begun {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            ids: DeviceList::new(device)?,
            rows: DeviceList::new(device)?,
            draws: DeviceList::new(device)?,
            wanted: 0,
            bucket: None,
        })
    }

    /// Uploads ids, rows and draws; returns the sequences that pad the step.
    pub fn set(&mut self, step: &StepInput<'_>, stream: &Stream) -> Result<usize> {
        if let Some(row) = step.rows.iter().find(|&&row| row >= step.ids.len()) {
            return Err(Error::config("rows", format!("{row} is not below {}", step.ids.len())));
        }
        if !(step.draws.is_empty() || step.draws.len() == step.rows.len()) {
            let what = format!("{} for {} rows", step.draws.len(), step.rows.len());
            return Err(Error::config("draws", what));
        }
        self.bucket = repeats(step).then(|| step.seqs.len().next_power_of_two());
        let padding = self.bucket.map_or(0, |bucket| bucket - step.seqs.len());
        self.wanted = step.rows.len();

        let mut ids = step.ids.to_vec();
        ids.resize(ids.len() + padding, 0);
        let mut rows: Vec<u32> = step.rows.iter().map(|&row| row as u32).collect();
        rows.resize(rows.len() + padding, 0);
        let mut draws = step.draws.iter().map(fixed).collect::<Result<Vec<_>>>()?;
        if !draws.is_empty() {
            draws.resize(draws.len() + padding, fixed(&Draw::GREEDY)?);
        }
        self.ids.set(&ids, stream)?;
        self.rows.set(&rows, stream)?;
        self.draws.set(&draws, stream)?;
        Ok(padding)
    }
}

/// Whether what a step enqueues depends on the number of its sequences alone: each has
/// one new token whose hidden state is wanted, streams that share one table, and not
/// more than a page of each KV group to seal.
fn repeats(step: &StepInput<'_>) -> bool {
    let single = step.seqs.iter().all(|seq| {
        seq.new_tokens == 1 && seq.views.iter().all(|v| matches!(v, GroupView::Uniform(_)))
    });
    let groups = step.seqs.first().map_or(0, |seq| seq.views.len());
    let seals = |group| step.seqs.iter().flat_map(|s| &s.seals).filter(move |s| s.group == group);
    let few = (0..groups).all(|group| seals(group).count() <= step.seqs.len());
    single && few && !step.seqs.is_empty() && step.rows.iter().copied().eq(0..step.seqs.len())
}
