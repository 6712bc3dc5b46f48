//! Launchers of the kernels in `kernels/`: one file a kernel family.

pub mod params;
