//! What the cache is told about a model and its memory.

use super::class::{ClassId, PAGE_TOKENS};
use crate::error::{Error, Result};

/// One KV group: the layers that share codec, retention and head geometry.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Layers of the group.
    pub layers: usize,
    /// KV heads of each layer.
    pub kv_heads: usize,
    /// Bytes, K and V together, of one 64-token 16-bit page of one head of one
    /// layer; a multiple of 64.
    pub hot_page_bytes: u64,
    /// Bytes of pages as written by the codec. `None`: the group stays
    /// in 16 bits; nothing is ever sealed and `sinks` counts as 0.
    pub sealed: Option<SealedBytes>,
    /// S: tokens at the start of a stream that are never sealed, at most 64.
    pub sinks: usize,
    /// R: tokens that every query still sees in 16 bits; a multiple of 64.
    pub hot_window: usize,
    /// W, if no query sees a token that is W or more behind it: what no query will see
    /// again is freed at a commit, as long as the group is uniform.
    pub window: Option<usize>,
}

/// Bytes of sealed pages. They differ where streams have codecs of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedBytes {
    /// Of the largest page of a stream: a block of a ragged stream.
    pub page: u64,
    /// Of one page of each stream: a block of all of them.
    pub block: u64,
}

impl SealedBytes {
    /// Equal pages of so many streams.
    pub fn equal(page: u64, streams: usize) -> Self {
        Self { page, block: page * streams as u64 }
    }
}

impl GroupSpec {
    /// R when nothing else is asked for.
    pub const DEFAULT_HOT_WINDOW: usize = 128;

    /// Streams of a sequence in this group: layers × KV heads.
    pub fn streams(&self) -> usize {
        self.layers * self.kv_heads
    }

    fn validate(&self) -> Result<()> {
        let page = PAGE_TOKENS as u64;
        if self.layers == 0 || self.kv_heads == 0 {
            return Err(Error::config("layers, kv_heads", "must be at least 1"));
        }
        if self.hot_page_bytes == 0 || !self.hot_page_bytes.is_multiple_of(page) {
            return Err(Error::config(
                "hot_page_bytes",
                format!("{} is not a positive multiple of {page}", self.hot_page_bytes),
            ));
        }
        if self.sealed.is_some_and(|sealed| sealed.page == 0 || sealed.block < sealed.page) {
            let what = "a page has at least 1 byte, a block at least as many as a page";
            return Err(Error::config("sealed", what));
        }
        if self.sinks > PAGE_TOKENS {
            return Err(Error::config(
                "sinks",
                format!("{} is more than {PAGE_TOKENS}", self.sinks),
            ));
        }
        if !self.hot_window.is_multiple_of(PAGE_TOKENS) {
            return Err(Error::config(
                "hot_window",
                format!("{} is not a multiple of {PAGE_TOKENS}", self.hot_window),
            ));
        }
        if self.window == Some(0) {
            return Err(Error::config("window", "must be at least 1"));
        }
        let page_bytes = self.hot_page_bytes.max(self.sealed.map_or(0, |sealed| sealed.page));
        let block_bytes = (self.layers as u64)
            .checked_mul(self.kv_heads as u64)
            .and_then(|streams| streams.checked_mul(page_bytes));
        match block_bytes {
            // So that sums over 2^32 tokens cannot overflow 64 bits.
            Some(bytes) if bytes.max(self.sealed.map_or(0, |s| s.block)) <= u64::from(u32::MAX) => {
                Ok(())
            }
            _ => Err(Error::config("layers, kv_heads, page bytes", "a block exceeds 4 GiB")),
        }
    }
}

/// The groups of a model and the memory that they may use.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// KV groups, in the order in which views are handed out.
    pub groups: Vec<GroupSpec>,
    /// Most bytes of blocks that may be held at any time.
    pub budget_bytes: u64,
}

impl CacheConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let classes_of_a_group = super::class::ClassKind::ALL.len();
        let most = usize::from(ClassId(u16::MAX).0) / classes_of_a_group;
        if self.groups.is_empty() || self.groups.len() > most {
            return Err(Error::config(
                "groups",
                format!("{} groups; 1 to {most} are allowed", self.groups.len()),
            ));
        }
        self.groups.iter().try_for_each(GroupSpec::validate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> GroupSpec {
        GroupSpec {
            layers: 30,
            kv_heads: 3,
            hot_page_bytes: 64 * 64 * 2 * 2,
            sealed: Some(SealedBytes::equal(3072, 90)),
            sinks: 4,
            hot_window: 128,
            window: None,
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        type Spoil = fn(&mut GroupSpec);
        let cases: [(&str, Spoil); 8] = [
            ("layers", |g| g.layers = 0),
            ("kv_heads", |g| g.kv_heads = 0),
            ("hot_page_bytes", |g| g.hot_page_bytes = 100),
            ("sealed", |g| g.sealed = Some(SealedBytes::equal(0, 90))),
            ("sinks", |g| g.sinks = 65),
            ("hot_window", |g| g.hot_window = 100),
            ("window", |g| g.window = Some(0)),
            ("4 GiB", |g| g.layers = usize::MAX),
        ];
        assert!(CacheConfig { groups: vec![good()], budget_bytes: 0 }.validate().is_ok());
        for (name, spoil) in cases {
            let mut group = good();
            spoil(&mut group);
            let config = CacheConfig { groups: vec![good(), group], budget_bytes: 1 };
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
        let message = CacheConfig { groups: vec![], budget_bytes: 1 }.validate().unwrap_err();
        assert!(message.to_string().contains("groups"));
    }
}
