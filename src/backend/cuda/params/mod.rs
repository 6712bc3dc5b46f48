//! The parameter structs of the kernels: `kernels/common/params/` in Rust, a file a family.
//!
//! The headers say what the fields mean; shapes stand there. Sizes and offsets are
//! checked where a struct is defined, and against the C++ compiler by a test.

#[macro_use]
mod mirror;

mod attention;
mod bench;
mod cache;
mod dense;
mod none;
mod score;
mod subnormal;

pub use attention::*;
pub use bench::*;
pub use cache::*;
pub use dense::*;
pub use none::NONE;
pub use score::*;
pub use subnormal::*;

#[cfg(all(test, feature = "emulator"))]
mod tests;
