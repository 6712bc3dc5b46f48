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
mod weights;

pub use formats::Codec;
pub use kv_format::KvFormat;
pub(crate) use weights::SUPPORTED_TYPES;
pub use weights::WeightType;

/// Tokens in one tile.
pub const TILE_TOKENS: usize = 64;

/// Which half of the cache a tile belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Keys, after RoPE.
    Key,
    /// Values.
    Value,
}

/// A way to store one tile. `rows` is row-major `[TILE_TOKENS, head_dim]`.
pub trait TileCodec: Send + Sync {
    /// Bytes of one encoded tile.
    fn tile_bytes(&self, head_dim: usize) -> usize;

    /// Encodes a tile.
    ///
    /// # Panics
    /// If `rows` is not `TILE_TOKENS * head_dim` long, or `out` is not
    /// [`tile_bytes`](Self::tile_bytes) long.
    fn encode(&self, side: Side, rows: &[f32], head_dim: usize, out: &mut [u8]);

    /// Decodes a tile; the inverse of [`encode`](Self::encode) up to rounding.
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    fn decode(&self, side: Side, bytes: &[u8], head_dim: usize, rows: &mut [f32]);
}
