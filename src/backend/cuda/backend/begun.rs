//! What the step in hand has said, on the device.

use crate::backend::cuda::dense::{Penalties, fixed};
use crate::backend::cuda::list::DeviceList;
use crate::backend::cuda::params::SampleDraw;
use crate::backend::draw::Choice;
use crate::backend::driver::{Device, DeviceBuffer, Stream};
use crate::backend::{Ids, StepInput};
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
    starts: DeviceList<u32>,
    tokens: DeviceList<u32>,
    factors: DeviceList<f32>,
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
            starts: DeviceList::new(device)?,
            tokens: DeviceList::new(device)?,
            factors: DeviceList::new(device)?,
            wanted: 0,
            bucket: None,
        })
    }

    /// Uploads ids, rows and choices; returns the sequences that pad the step.
    /// `drawn` are the tokens that the step before drew, and their number.
    pub fn set(
        &mut self,
        step: &StepInput<'_>,
        drawn: (&DeviceBuffer<u32>, usize),
        stream: &Stream,
    ) -> Result<usize> {
        check(step)?;
        self.bucket = repeats(step).then(|| step.seqs.len().next_power_of_two());
        let padding = self.bucket.map_or(0, |bucket| bucket - step.seqs.len());
        self.wanted = step.rows.len();

        let rows_in = step.ids.len() + padding;
        match step.ids {
            Ids::Given(ids) => {
                let mut ids = ids.to_vec();
                ids.resize(rows_in, 0);
                self.ids.set(&ids, stream)?;
            }
            // Those of padding are whatever was drawn for it.
            Ids::Drawn(n) if n == drawn.1 => self.ids.copy_from(drawn.0, rows_in, stream)?,
            Ids::Drawn(n) => {
                let what = format!("{n} were asked for, the step before has drawn {}", drawn.1);
                return Err(Error::config("ids", what));
            }
        }
        let mut rows: Vec<u32> = step.rows.iter().map(|&row| row as u32).collect();
        rows.resize(rows.len() + padding, 0);
        self.rows.set(&rows, stream)?;
        self.set_choices(step.choices, padding, stream)?;
        Ok(padding)
    }

    fn set_choices(&mut self, choices: &[Choice], padding: usize, stream: &Stream) -> Result<()> {
        let padding = if choices.is_empty() { 0 } else { padding };
        let (mut draws, mut factors) = (Vec::new(), Vec::new());
        let (mut starts, mut tokens) = (vec![0], Vec::new());
        for choice in choices.iter().chain(std::iter::repeat_n(&Choice::GREEDY, padding)) {
            draws.push(fixed(&choice.draw)?);
            factors.push(choice.penalty.factor);
            tokens.extend(&choice.penalty.tokens);
            starts.push(tokens.len() as u32);
        }
        self.draws.set(&draws, stream)?;
        self.factors.set(&factors, stream)?;
        self.starts.set(&starts, stream)?;
        self.tokens.set(&tokens, stream)
    }

    /// The penalties of a step that draws.
    pub fn penalties(&self) -> Penalties<'_> {
        Penalties {
            starts: self.starts.buffer(),
            tokens: self.tokens.buffer(),
            factors: self.factors.buffer(),
            rows: self.rows.buffer(),
            ids: self.ids.buffer(),
        }
    }
}

fn check(step: &StepInput<'_>) -> Result<()> {
    let rows = step.rows.len();
    if let Some(row) = step.rows.iter().find(|&&row| row >= step.ids.len()) {
        return Err(Error::config("rows", format!("{row} is not below {}", step.ids.len())));
    }
    let choices = step.choices.len();
    if choices != 0 && choices != rows {
        return Err(Error::config("choices", format!("{choices} for {rows} rows")));
    }
    let tokens = step.choices.iter().map(|choice| choice.penalty.tokens.len()).sum::<usize>();
    if u32::try_from(tokens).is_err() {
        return Err(Error::config("choices", format!("{tokens} tokens exceed 32 bits")));
    }
    Ok(())
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
