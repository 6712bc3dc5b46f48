//! Bookkeeping of the KV cache (floor 2): which blocks exist, who shares them,
//! which tokens a stream keeps and in which form a query reads them.
//!
//! The cache owns no bytes and does no arithmetic. [`KvCache`] hands out block
//! indices, run tables ([`StreamView`]) and operations ([`Append`], [`Seal`],
//! [`CopyBlock`], [`Gather`]) that a backend executes. One step of a model:
//!
//! ```text
//! prepare ─► frees ─► copies ─► per layer: appends ─► seals ─► attend(views) ─► commit
//!    │                                                                            │
//!    └── all blocks of the step are reserved here, or nothing changes             └─ or abort
//! ```
//!
//! What is freed between steps, at commits and aborts, goes with the next step
//! ([`KvCache::release`] makes one without sequences).
//!
//! A stream of kept tokens, S sinks first, then the page grid (kept index i
//! counts from the first token *after* the sinks):
//!
//! ```text
//! | sinks | page 0 | page 1 | … | page p-1 | page p | … | page being filled |
//!  16-bit   sealed   sealed        sealed    16-bit        16-bit
//! ```
//!
//! A query at i reads page p sealed if and only if p < ⌊i/64⌋ − R/64, else in
//! 16 bits; what was attached lies in front and is sealed for all. So within one step a page may be read in both forms, by different
//! rows; its hot copy is released at the commit. A group with a window frees blocks that no
//! later query can see.

mod attach;
mod audit;
mod class;
mod config;
mod evict;
mod kv_cache;
mod ops;
mod page;
mod pool;
mod rewind;
mod sequence;
mod spec;
mod step;
mod stream;
mod view;
mod views;

pub use attach::SharedRun;
pub use class::{BlockRef, ClassDesc, ClassId, ClassKind, PAGE_TOKENS, SeqId};
pub use config::{CacheConfig, GroupSpec, SealedBytes};
pub use kv_cache::KvCache;
pub use ops::{Append, Compaction, CopyBlock, Gather, PageMove, Restore, Seal};
pub use step::{NewTokens, RowKind, SeqStep, Step};
pub use view::{GroupView, Run, RunKind, StreamView};
