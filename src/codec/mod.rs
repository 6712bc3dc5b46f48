//! Numbers to bytes and back (floor 1): one file per codec, each a scalar
//! implementation that defines the bytes and serves as the oracle for every
//! faster path.
//!
//! A codec works on a *tile*: [`TILE_TOKENS`] consecutive tokens of one head,
//! `head_dim` channels each. Keys and values are different sides of a codec,
//! because the axis along which a group shares its scale differs, and so does
//! the matrix fragment that reads the bytes ([`fragment`]).
//!
//! [`formats`] is the table of all codecs and of the formats made of them.

pub mod affine;
pub mod clip;
pub mod feedback;
pub mod float;
pub mod formats;
pub mod fragment;
pub mod hadamard;
mod kv_format;
mod tile;
mod weights;

pub use formats::Codec;
pub use kv_format::KvFormat;
pub use tile::{Side, TILE_TOKENS, TileCodec};
pub(crate) use weights::SUPPORTED_TYPES;
pub use weights::WeightType;
