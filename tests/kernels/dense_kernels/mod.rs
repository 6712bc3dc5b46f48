//! The dense layers' small kernels on the emulated device, in several orders of threads,
//! and on CUDA device 0 of builds that have one: against float64, one number at a time,
//! and for samples against the host's twin, token for token.
//!
//! `KVFOLD_CONFORMANCE_KINDS`, a list of `emulated` and `cuda`, asks for some of them.

mod elementwise;
mod norm;
mod penalise;
mod refusals;
mod rope;
mod rows;
mod sample;
mod world;
