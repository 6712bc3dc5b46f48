//! `--test` of whole models, in small: captured steps give the tokens of uncaptured ones,
//! sequences that were copied those of one that was computed, and goals find their cells.

use crate::model::{self, Case};
use crate::shape::TINY;
use crate::subject::{Subject, WARM_UP};
use anyhow::{Result, ensure};
use half::f16;
use kvfold::backend::driver::Device;
use kvfold::codec::Codec;

/// A prompt long enough that pages are sealed in it, and one while it is decoded.
const CONTEXT: usize = 250;
const STEPS: usize = 12;

pub fn all(device: &Device) -> Result<()> {
    let mut subject = Subject::<f16>::new(&TINY, device)?;
    for codec in [None, Some(Codec::Kivi2)] {
        decode(&mut subject, codec)?;
    }
    model::check_goals()
}

fn decode(subject: &mut Subject<f16>, codec: Option<Codec>) -> Result<()> {
    let case = Case { codec, batch: 3, context: CONTEXT };
    let format = case.format(Codec::F16)?;
    let budget = subject.kv_bytes(format, case.batch, CONTEXT + WARM_UP + STEPS)?;
    subject.configure(format, budget)?;
    let base = subject.prompt(CONTEXT, case.batch)?;

    let before = subject.backend().repeated();
    let times = model::decode(subject, &base, None, STEPS)?;
    ensure!(times.same, "{format}: tokens differ between captured and uncaptured runs");
    let repeated = subject.backend().repeated() - before;
    ensure!(repeated as usize >= 3 * STEPS, "{format}: only {repeated} steps were repeated");

    // Each sequence alone reads a copy, or the original, of the first one's pages.
    let batch = subject.decode(&base, STEPS)?.tokens;
    ensure!(batch.len() == WARM_UP + STEPS, "{format}: {} steps", batch.len());
    ensure!(batch.iter().all(|step| step.len() == case.batch), "{format}: a token is missing");
    let computed = subject.decode(&base[..1], STEPS)?.tokens;
    for copied in &base[1..] {
        let copied = subject.decode(&[*copied], STEPS)?.tokens;
        ensure!(copied == computed, "{format}: a copied sequence goes another way");
    }
    ensure!(batch.iter().zip(&computed).all(|(b, c)| b[0] == c[0]), "{format}: the batch matters");
    subject.free(&base)?;
    ensure!(subject.held() == 0, "{format}: blocks are still held");
    Ok(())
}
