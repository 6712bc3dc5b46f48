//! From tokens to rows and back.

use super::{Dense, Kv};
use crate::error::Result;

/// Embedding the tokens of a step and choosing the next ones.
///
/// Tokens are drawn to *slots*, numbered by whoever plans steps, which a later step names
/// ([`RowToken::Drawn`](super::RowToken::Drawn)): so the next step can be begun before a
/// token has come to the host. Slots belong to the device, not to an arena: a token that
/// one model has drawn can be taken in by another.
pub trait Tokens: Dense + Kv {
    /// The step's rows of an embedding table, times `scale`.
    fn embed(
        &mut self,
        arena: &mut Self::Arena,
        table: &Self::Matrix,
        scale: f32,
        to: &mut Self::Buffer,
    ) -> Result<()>;
    /// The wanted rows.
    fn select(&self, arena: &Self::Arena, from: &Self::Buffer, to: &mut Self::Buffer)
    -> Result<()>;
    /// Draws a token from each row of logits as the step says, to its slot; the logits are
    /// changed. [`draw`](super::draw) is the one arithmetic of all devices.
    fn sample(&mut self, arena: &Self::Arena, logits: &mut Self::Buffer) -> Result<()>;
    /// Lets the tokens that the step has drawn come to the host.
    fn send(&mut self, arena: &Self::Arena) -> Result<()>;
    /// The tokens of the earliest step whose tokens were sent and not yet received, in the
    /// order of its choices; none where a logit was NaN or +∞ or no logit was above −∞, as
    /// far as the device looks. Waits for that step alone.
    fn receive(&mut self) -> Result<Vec<Option<u32>>>;
}
