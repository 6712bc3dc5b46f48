//! How pages lie in the blocks of a class, the same on every backend.

use super::KvGroup;
use crate::cache::{ClassDesc, ClassKind};
use crate::codec::{Codec, TILE_TOKENS};
use crate::error::{Error, Result};

/// How pages lie in the blocks of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// The KV group that it serves.
    pub group: usize,
    /// Codec of the key half of a page.
    pub key: Codec,
    /// Codec of the value half.
    pub value: Codec,
    /// Channels of a head.
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Bytes of the key half.
    pub key_bytes: usize,
    /// Bytes of the page.
    pub page_bytes: usize,
    /// Pages of a block: one for each stream of the group, or a single one.
    pub pages: usize,
    /// Whether a block is one page of one stream.
    pub ragged: bool,
}

impl PageLayout {
    /// The layout of a class of blocks.
    pub(super) fn new(groups: &[KvGroup], class: &ClassDesc) -> Result<Self> {
        use ClassKind::{RaggedHot, RaggedSealed, RaggedSink, Sealed};
        let group = groups
            .get(class.group)
            .ok_or_else(|| Error::config("classes", format!("no KV group {}", class.group)))?;
        let hot = group.format.hot();
        let (key, value) = match class.kind {
            Sealed | RaggedSealed => (group.format.key, group.format.value),
            _ => (hot, hot),
        };
        for codec in [key, value] {
            if !codec.fits(group.head_dim) {
                return Err(Error::Unsupported {
                    what: format!("the KV format {codec} with a head_dim of {}", group.head_dim),
                    remedy:
                        "choose another --kv; kf formats take 64, 128 and 256, kivi multiples of 32"
                            .into(),
                });
            }
        }
        let ragged = matches!(class.kind, RaggedSink | RaggedHot | RaggedSealed);
        let (head_dim, page_tokens) = (group.head_dim, class.page_tokens);
        let bytes = |codec: Codec| codec.tile().tile_bytes(head_dim) * page_tokens / TILE_TOKENS;
        let (key_bytes, page_bytes) = (bytes(key), bytes(key) + bytes(value));
        let pages = if ragged { 1 } else { group.layers * group.kv_heads };
        if (page_bytes * pages) as u64 != class.block_bytes {
            let what = format!(
                "{:?} blocks have {} bytes, the format {} needs {}",
                class.kind,
                class.block_bytes,
                group.format,
                page_bytes * pages
            );
            return Err(Error::config("classes", what));
        }
        let group = class.group;
        Ok(Self { group, key, value, head_dim, page_tokens, key_bytes, page_bytes, pages, ragged })
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.page_bytes * self.pages
    }

    /// Bytes of one row of the key half; float codecs only.
    pub(super) fn key_row_bytes(&self) -> usize {
        self.key_bytes / self.page_tokens
    }

    /// Whether rows can be written to its pages in `codec`.
    pub(super) fn holds_rows_of(&self, codec: Codec) -> bool {
        codec.is_16_bit() && self.key == codec && self.value == codec
    }
}
