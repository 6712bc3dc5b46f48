//! What the step in hand has said, on the device.

use super::room::reserve;
use super::slots::Slots;
use crate::backend::cuda::dense::{Penalties, draw_to};
use crate::backend::cuda::list::DeviceList;
use crate::backend::cuda::params::{SampleDraw, TOKEN_DRAWN};
use crate::backend::cuda::parcel::Parcel;
use crate::backend::draw::{Choice, Draw, Penalty};
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::backend::{RowToken, StepInput};
use crate::cache::{GroupView, RowKind};
use crate::error::{Error, Result};

/// Rows and lists of a step, padded to its bucket.
pub(super) struct Begun {
    /// Tokens, one a row: ids, or slots.
    pub tokens: DeviceList<u32>,
    /// Their ids, once they were embedded.
    pub ids: DeviceBuffer<u32>,
    /// Numbers of the wanted rows.
    pub rows: DeviceList<u32>,
    /// One a wanted row, or none.
    pub draws: DeviceList<SampleDraw>,
    starts: DeviceList<u32>,
    penalised: DeviceList<u32>,
    factors: DeviceList<f32>,
    /// Where the tokens go that are wanted.
    pub slots: Vec<u32>,
    /// Elements of the slots that the step reads or writes.
    pub n_slots: usize,
    /// The number of sequences that the step was padded to, if it is one that can be
    /// repeated.
    pub bucket: Option<usize>,
}

impl Begun {
    /// Nothing yet; what will be travels in a parcel.
    pub fn within(device: &Device, parcel: &Parcel) -> Result<Self> {
        Ok(Self {
            tokens: DeviceList::within(device, parcel)?,
            ids: device.alloc(0)?,
            rows: DeviceList::within(device, parcel)?,
            draws: DeviceList::within(device, parcel)?,
            starts: DeviceList::within(device, parcel)?,
            penalised: DeviceList::within(device, parcel)?,
            factors: DeviceList::within(device, parcel)?,
            slots: Vec::new(),
            n_slots: 0,
            bucket: None,
        })
    }

    /// Uploads tokens, rows and choices; returns the sequences that pad the step.
    pub fn set(&mut self, input: &StepInput<'_>, stream: &DeviceStream) -> Result<usize> {
        check(input)?;
        let seqs = input.step.seqs.len();
        self.bucket = repeats(input).then(|| seqs.next_power_of_two());
        let padding = self.bucket.map_or(0, |bucket| bucket - seqs);
        self.slots = input.choices.iter().map(|choice| choice.slot).collect();

        let token = |token: &RowToken| match *token {
            RowToken::Given(id) => id,
            RowToken::Drawn(slot) => TOKEN_DRAWN | Slots::place(slot),
        };
        let mut tokens: Vec<u32> = input.tokens.iter().map(token).collect();
        tokens.resize(tokens.len() + padding, 0);
        self.tokens.set(&tokens, stream)?;
        reserve(&mut self.ids, tokens.len(), 1, stream)?;
        let mut rows: Vec<u32> = input.rows.iter().map(|&row| row as u32).collect();
        rows.resize(rows.len() + padding, 0);
        self.rows.set(&rows, stream)?;
        let drawn = input.tokens.iter().filter_map(|token| match token {
            RowToken::Drawn(slot) => Some(*slot),
            RowToken::Given(_) => None,
        });
        let slots = drawn.chain(self.slots.iter().copied());
        self.n_slots = slots.map(|slot| Slots::place(slot) as usize + 1).max().unwrap_or(1);
        self.set_choices(input.choices, padding, stream)?;
        Ok(padding)
    }

    fn set_choices(
        &mut self,
        choices: &[Choice],
        padding: usize,
        stream: &DeviceStream,
    ) -> Result<()> {
        let padding = if choices.is_empty() { 0 } else { padding };
        let (mut draws, mut factors) = (Vec::new(), Vec::new());
        let (mut starts, mut tokens) = (vec![0], Vec::new());
        for Choice { penalty, draw, slot } in choices {
            draws.push(draw_to(Slots::place(*slot), draw)?);
            factors.push(penalty.factor);
            tokens.extend(&penalty.tokens);
            starts.push(tokens.len() as u32);
        }
        for _ in 0..padding {
            draws.push(draw_to(Slots::NOWHERE, &Draw::GREEDY)?);
            factors.push(Penalty::NONE.factor);
            starts.push(tokens.len() as u32);
        }
        self.draws.set(&draws, stream)?;
        self.factors.set(&factors, stream)?;
        self.starts.set(&starts, stream)?;
        self.penalised.set(&tokens, stream)
    }

    /// The penalties of a step that draws.
    pub fn penalties(&self) -> Penalties<'_> {
        Penalties {
            starts: self.starts.buffer(),
            tokens: self.penalised.buffer(),
            factors: self.factors.buffer(),
            rows: self.rows.buffer(),
            ids: &self.ids,
        }
    }
}

fn check(input: &StepInput<'_>) -> Result<()> {
    let rows = input.rows.len();
    if let Some(row) = input.rows.iter().find(|&&row| row >= input.tokens.len()) {
        return Err(Error::misuse("rows", format!("{row} is not below {}", input.tokens.len())));
    }
    let choices = input.choices.len();
    if choices != 0 && choices != rows {
        return Err(Error::config("choices", format!("{choices} for {rows} rows")));
    }
    let penalised = input.choices.iter().map(|choice| choice.penalty.tokens.len()).sum::<usize>();
    if u32::try_from(penalised).is_err() {
        return Err(Error::config("choices", format!("{penalised} tokens exceed 32 bits")));
    }
    Ok(())
}

/// Whether what a step enqueues depends on the number of its sequences alone: each has
/// one new token whose hidden state is wanted, streams that share one table, and not
/// more than a page of each KV group to seal.
fn repeats(input: &StepInput<'_>) -> bool {
    let seqs = &input.step.seqs;
    let single = seqs.iter().all(|seq| {
        seq.new_tokens == 1
            && seq.kind == RowKind::Generated
            && seq.views.iter().all(GroupView::is_shared)
    });
    let groups = seqs.first().map_or(0, |seq| seq.views.len());
    let seals = |group| seqs.iter().flat_map(|s| &s.seals).filter(move |s| s.group == group);
    let few = (0..groups).all(|group| seals(group).count() <= seqs.len());
    single && few && !seqs.is_empty() && input.rows.iter().copied().eq(0..seqs.len())
}
