//! Launchers of the dense layers' small kernels (`kernels/dense/`).
//!
//! `T` is the 16-bit type of activations ([`Element`](super::element::Element)); the
//! residual stream, norms' weights, biases and logits are f32. Rows, columns and
//! strides count elements. Numbers of rows come from the host, ids and positions
//! from device memory, so that a captured step can be replayed. A row's result
//! depends on that row alone, bit for bit.

mod activate;
mod bias;
mod embed;
mod norm;
mod penalise;
mod rope;
mod sample;
mod select;
mod shapes;

pub use activate::{gelu_mul, silu_mul};
pub use bias::add_bias;
pub use embed::{Rows, embed};
pub use norm::{HeadNorm, RmsNorm, head_norm, rms_norm};
pub use penalise::{Penalties, penalise};
pub use rope::{RopeCall, rope};
pub use sample::{Logits, argmax, draw_to, sample};
pub use select::select_rows;
