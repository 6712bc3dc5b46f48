//! KV groups: the layers that share head geometry, format and rotation.

use super::geometry::Geometry;
use crate::codec::KvFormat;
use crate::codec::feedback::Feedback;
use std::sync::Arc;

/// What one group of layers keeps, and how.
#[derive(Clone, Debug)]
pub struct KvGroup {
    /// Layers of the group.
    pub layers: usize,
    /// KV heads of each layer.
    pub kv_heads: usize,
    /// The rows of a KV head.
    pub geometry: Geometry,
    /// How sealed pages are stored.
    pub format: KvFormat,
    /// How those of each stream (layer · kv_heads + head) are, where formats differ or keys
    /// have feedback. All are written in the 16-bit form of `format`.
    pub streams: Option<Arc<[StreamFormat]>>,
    /// S: tokens at the start that stay in 16 bits.
    pub sinks: usize,
    /// R: tokens that every query sees in 16 bits, a multiple of 64.
    pub hot_window: usize,
    /// The rotation of queries and keys. `None`: they are not rotated, and no run can be
    /// relocated.
    pub rope: Option<Arc<Rope>>,
    /// W, if no layer of the group sees a token that is W or more behind a query; the books
    /// free such tokens.
    pub window: Option<usize>,
}

/// How sealed pages of one stream are stored.
#[derive(Clone, Debug)]
pub struct StreamFormat {
    /// The codecs.
    pub format: KvFormat,
    /// What keys of a kf codec are encoded with.
    pub feedback: Option<Arc<Feedback>>,
}

impl KvGroup {
    /// Channels of a head, of keys as of values: kernels take none where they differ
    /// ([`Geometry::check`]).
    pub fn head_dim(&self) -> usize {
        self.geometry.key_dim
    }

    /// How sealed pages of a stream are stored.
    pub fn format_of(&self, stream: usize) -> KvFormat {
        self.sealing_of(stream).0
    }

    /// The same, and what its keys are encoded with.
    pub fn sealing_of(&self, stream: usize) -> (KvFormat, Option<&Feedback>) {
        match &self.streams {
            Some(streams) => (streams[stream].format, streams[stream].feedback.as_deref()),
            None => (self.format, None),
        }
    }

    /// Bytes of a sealed page of each stream, the largest and all together.
    pub fn sealed_bytes(&self) -> (u64, u64) {
        let bytes = |stream| self.geometry.page_bytes(self.format_of(stream)) as u64;
        let all = (0..self.layers * self.kv_heads).map(bytes);
        (all.clone().max().unwrap_or(0), all.sum())
    }
}

/// Which layer a KV operation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// The KV group.
    pub group: usize,
    /// The layer within the group.
    pub layer: usize,
}

/// Rotary embedding: `cos` and `sin` of `position · inv_freq`, half-split
/// convention (channel i rotates with channel i + dim/2).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians a position of each pair, `dim / 2` long.
    pub inv_freq: Vec<f64>,
}
