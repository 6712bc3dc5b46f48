//! What a codec works on.

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
