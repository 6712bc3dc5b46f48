//! Numbers to bytes and back (floor 1): one file per codec, each a scalar
//! implementation that defines the bytes and serves as the oracle for every
//! faster path.
//!
//! A codec works on a *tile*: [`TILE_TOKENS`] consecutive tokens of one head,
//! `head_dim` channels each. Keys and values are different sides of a codec,
//! because the axis along which a group shares its scale differs, and so does
//! the matrix fragment that reads the bytes ([`fragment`]).
//!
//! | name | stored bits an element | what |
//! |---|---|---|
//! | `f16`, `bf16` | 16 | row-major, as given |
//! | `fp8` | 8 | e4m3, row-major, saturating at ±448 |
//! | `kivi4` | 5.0 | KIVI, 4 bits, groups of 32 |
//! | `kivi2` | 3.0 | KIVI, 2 bits, groups of 32 |
//! | `kf4`, `kf3`, `kf2` | 4.5, 3.5, 2.5 | kvfold's own: rotated, ranges searched, groups of 64 |
//! | `kf3.2` | 3.0 | keys as `kf3`, values as `kf2` |

pub mod affine;
pub mod clip;
pub mod feedback;
pub mod float;
mod format;
pub mod fragment;
pub mod hadamard;
mod tile;
mod weights;

pub use format::{Codec, KvFormat};
pub use tile::{Side, TILE_TOKENS, TileCodec};
pub(crate) use weights::SUPPORTED_TYPES;
pub use weights::WeightType;
