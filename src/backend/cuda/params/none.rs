//! What stands where there is no index.

/// "No such index" in any field that is one: `KV_NONE`.
pub const NONE: u32 = u32::MAX;
