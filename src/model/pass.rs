//! What is done with a step: which layers, who watches, what follows.

use super::observe::Observer;
use std::ops::Range;

/// One run of a step through layers of a model.
///
/// The first pass of a step begins at layer 0; a later one may go on where the one before
/// has left the residual stream.
pub struct Pass<'a> {
    /// The layers.
    pub layers: Range<usize>,
    /// Who looks at attention, layer by layer.
    pub observer: Option<&'a mut dyn Observer>,
    /// What follows them.
    pub tail: Tail,
}

/// What follows the last layer of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tail {
    /// The wanted rows' logits, and a token drawn from each as the step says.
    Draw,
    /// The wanted rows' hidden states, whose logits can be asked for.
    Hidden,
    /// The layers that are left get keys and values from the residual stream as it is, and
    /// nothing else: what early exit needs (Schuster et al. 2022, state propagation), and a
    /// chunk of a prompt of which no row is wanted.
    KvOnly,
    /// Nothing: another pass goes on.
    Nothing,
}

impl Tail {
    /// Its name in [`GraphKey`](crate::backend::GraphKey)s.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Draw => "draw",
            Self::Hidden => "hidden",
            Self::KvOnly => "kv only",
            Self::Nothing => "nothing",
        }
    }
}

impl Pass<'_> {
    /// All of so many layers, unwatched.
    pub fn all(layers: usize, tail: Tail) -> Self {
        Self { layers: 0..layers, observer: None, tail }
    }

    /// Keys and values of all of so many layers, and nothing else: the last one's attention
    /// and MLP are left out.
    pub fn kv_only(layers: usize) -> Self {
        Self { layers: 0..layers.saturating_sub(1), observer: None, tail: Tail::KvOnly }
    }
}
