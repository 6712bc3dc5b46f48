//! Asking for bytes before they are read.
//!
//! A stream's pages lie far apart, so the hardware does not guess them. All of a
//! page at once would fill the core's miss buffers and stall it; so the next page
//! is asked for in parts, between the products with the present one.

/// Asks for part `i` of `parts` of a tile, counted from the end: there its scales
/// and zeros lie, which are read first.
#[inline(always)]
pub(super) fn prefetch_part(bytes: &[u8], i: usize, parts: usize) {
    let part = bytes.len().div_ceil(parts).next_multiple_of(64);
    let start = ((parts - 1 - i) * part).min(bytes.len());
    let end = (start + part).min(bytes.len());
    prefetch(&bytes[start..end]);
}

/// Asks for bytes.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch of valid memory; SSE is part of the architecture.
        unsafe {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
