//! Launchers of the kernels in `kernels/`: one file a kernel family.
//!
//! Launchers check on the host what a kernel takes for granted: codecs, head
//! dims, block numbers, rows. They enqueue work and return.

pub mod append;
pub mod arenas;
pub mod attend;
mod class_memory;
pub mod copy;
pub mod dense;
pub mod element;
mod forms;
pub mod gather;
pub mod gemm;
mod list;
pub mod params;
mod parcel;
pub mod roofs;
pub mod runner;
pub mod score;
pub mod seal;
pub mod subnormal;
pub mod tables;
pub mod weights;
