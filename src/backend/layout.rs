//! How pages lie in the blocks of a class, the same on every backend.

use super::{Geometry, KvGroup};
use crate::cache::{ClassDesc, ClassKind};
use crate::codec::{Codec, KvFormat, TILE_TOKENS};
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// How pages lie in the blocks of an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// The KV group that it serves.
    pub group: usize,
    /// Codec of the key half of a page, where all streams have the same.
    pub key: Codec,
    /// Codec of the value half, likewise.
    pub value: Codec,
    /// The rows of a KV head.
    pub geometry: Geometry,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Bytes of the key half.
    pub key_bytes: usize,
    /// Bytes of the page: of the largest, where streams differ.
    pub page_bytes: usize,
    /// Pages of a block: one for each stream of the group, or a single one.
    pub pages: usize,
    /// Whether a block is one page of one stream.
    pub ragged: bool,
    /// Formats of the streams and where their pages begin, where they differ.
    mixed: Option<Arc<[(KvFormat, usize)]>>,
}

/// One stream's page in a block.
pub(super) struct PagePlace {
    /// Codec of the key half.
    pub key: Codec,
    /// Codec of the value half.
    pub value: Codec,
    /// Bytes of the key half.
    pub key_bytes: usize,
    /// Where the page lies in its block.
    pub bytes: Range<usize>,
}

impl PageLayout {
    /// The layout of a class of blocks.
    pub(super) fn new(groups: &[KvGroup], class: &ClassDesc) -> Result<Self> {
        use ClassKind::{RaggedHot, RaggedSealed, RaggedSink, Sealed};
        let group = groups
            .get(class.group)
            .ok_or_else(|| Error::misuse("classes", format!("no KV group {}", class.group)))?;
        let hot = KvFormat::uniform(group.format.hot());
        let sealed = matches!(class.kind, Sealed | RaggedSealed);
        let format = if sealed { group.format } else { hot };
        let ragged = matches!(class.kind, RaggedSink | RaggedHot | RaggedSealed);
        let streams = group.layers * group.kv_heads;
        if group.streams.as_ref().is_some_and(|formats| formats.len() != streams) {
            let what = format!("formats of {streams} streams are needed, one each");
            return Err(Error::misuse("streams", what));
        }
        let (geometry, page_tokens) = (group.geometry, class.page_tokens);
        let [key_dim, value_dim] = geometry.stored();
        let mut fed = group.streams.iter().flat_map(|all| all.iter()).flat_map(|s| &s.feedback);
        if let Some(other) = fed.find(|feedback| feedback.head_dim() != key_dim) {
            let what = format!("feedback of {} channels, not {key_dim}", other.head_dim());
            return Err(Error::misuse("streams", what));
        }
        let bytes = |whole: usize| whole * page_tokens / TILE_TOKENS;
        let page = |format: KvFormat| bytes(geometry.page_bytes(format));
        let formats = group.streams.as_deref().filter(|_| sealed);
        let formats = formats.map(|all| all.iter().map(|s| s.format).collect::<Vec<_>>());
        let same = |of: &KvFormat| (of.key, of.value) == (format.key, format.value);
        let formats = formats.filter(|formats| !formats.iter().all(same));
        let formats = formats.as_deref();
        for format in formats.unwrap_or(&[format]) {
            let halves = [(format.key, key_dim), (format.value, value_dim)];
            let misfit = halves.into_iter().find(|(codec, d)| *d > 0 && !codec.fits(*d));
            if let Some((codec, d)) = misfit {
                return Err(Error::Unsupported {
                    what: format!("the KV codec {codec} with a head_dim of {d}"),
                    remedy: "kf formats take 64, 128 and 256, kivi formats multiples of 32".into(),
                });
            }
        }
        let mut block_bytes = 0;
        let mut place = |format: &KvFormat| {
            block_bytes += page(*format);
            (*format, block_bytes - page(*format))
        };
        let mixed = formats.map(|formats| formats.iter().map(&mut place).collect::<Arc<[_]>>());
        let pages = if ragged { 1 } else { streams };
        let (page_bytes, block_bytes) = match formats {
            None => (page(format), page(format) * pages),
            Some(formats) => {
                let largest = formats.iter().map(|format| page(*format)).max().unwrap_or(0);
                (largest, if ragged { largest } else { block_bytes })
            }
        };
        if block_bytes as u64 != class.block_bytes {
            let what = format!(
                "{:?} blocks have {} bytes, the format {format} needs {block_bytes}",
                class.kind, class.block_bytes,
            );
            return Err(Error::misuse("classes", what));
        }
        let (group, KvFormat { key, value, .. }) = (class.group, format);
        let key_bytes = bytes(key.tile().tile_bytes(key_dim));
        Ok(Self {
            group,
            key,
            value,
            geometry,
            page_tokens,
            key_bytes,
            page_bytes,
            pages,
            ragged,
            mixed,
        })
    }

    /// Whether streams have formats of their own.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed.is_some()
    }

    /// Where the page of a stream lies.
    pub(super) fn page(&self, stream: usize) -> PagePlace {
        let Some(mixed) = &self.mixed else {
            let at = if self.ragged { 0 } else { stream * self.page_bytes };
            let bytes = at..at + self.page_bytes;
            return PagePlace {
                key: self.key,
                value: self.value,
                key_bytes: self.key_bytes,
                bytes,
            };
        };
        let (KvFormat { key, value, .. }, at) = mixed[stream];
        let [key_dim, value_dim] = self.geometry.stored();
        let key_bytes = key.tile().tile_bytes(key_dim);
        let value_bytes = value.tile().tile_bytes(value_dim);
        let at = if self.ragged { 0 } else { at };
        PagePlace { key, value, key_bytes, bytes: at..at + key_bytes + value_bytes }
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        match self.mixed.as_deref().and_then(|mixed| mixed.len().checked_sub(1)) {
            Some(last) if !self.ragged => self.page(last).bytes.end,
            _ => self.page_bytes * self.pages,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of blocks of one kind, whose bytes are worked out here.
    fn layout(
        geometry: Geometry,
        format: &str,
        kind: ClassKind,
        bytes: usize,
    ) -> Result<PageLayout> {
        let group = KvGroup {
            layers: 3,
            kv_heads: 2,
            geometry,
            format: format.parse()?,
            streams: None,
            sinks: 4,
            hot_window: 128,
            rope: None,
            window: None,
        };
        let page_tokens = if kind == ClassKind::Sink { 4 } else { TILE_TOKENS };
        let class = ClassDesc { kind, group: 0, page_tokens, block_bytes: 6 * bytes as u64 };
        PageLayout::new(&[group], &class)
    }

    #[test]
    fn a_page_is_as_wide_as_its_geometry() {
        let uneven = Geometry { key_dim: 192, ..Geometry::gqa(128) };
        for (geometry, kind, key_bytes, value_bytes) in [
            (Geometry::gqa(128), ClassKind::Hot, 64 * 128 * 2, 64 * 128 * 2),
            (Geometry::gqa(128), ClassKind::Sink, 4 * 128 * 2, 4 * 128 * 2),
            (Geometry::gqa(128), ClassKind::Sealed, 64 * 128 * 5 / 8, 64 * 128 * 3 / 8),
            (uneven, ClassKind::Hot, 64 * 192 * 2, 64 * 128 * 2),
            (uneven, ClassKind::Sealed, 64 * 192 * 5 / 8, 64 * 128 * 3 / 8),
            (Geometry::mla(512, 64), ClassKind::Hot, 64 * 576 * 2, 0),
            (Geometry::mla(512, 64), ClassKind::Sink, 4 * 576 * 2, 0),
            (Geometry::mla(512, 64), ClassKind::Sealed, 64 * 576 * 5 / 8, 0),
        ] {
            let bytes = key_bytes + value_bytes;
            let layout = layout(geometry, "kivi4/kivi2", kind, bytes).unwrap();
            assert_eq!((layout.key_bytes, layout.page_bytes), (key_bytes, bytes), "{geometry:?}");
            let page = layout.page(5);
            assert_eq!((page.key_bytes, page.bytes), (key_bytes, 5 * bytes..6 * bytes));
        }
    }

    #[test]
    fn a_codec_must_fit_each_half() {
        let uneven = Geometry { key_dim: 192, ..Geometry::gqa(128) };
        let refused = |geometry, format| {
            layout(geometry, format, ClassKind::Sealed, 0).unwrap_err().to_string()
        };
        assert!(refused(uneven, "kf4/kivi2").contains("kf4 with a head_dim of 192"));
        assert!(refused(Geometry::mla(512, 64), "kf2").contains("kf2 with a head_dim of 576"));
        // Values that are not stored need no codec.
        let narrow = Geometry { value_dim: 48, ..Geometry::mla(64, 64) };
        assert!(refused(narrow, "kivi4/kivi2").contains("bytes"));
    }
}
