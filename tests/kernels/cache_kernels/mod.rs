//! The cache kernels (append, seal, gather, copy) on the emulated device, and on
//! CUDA device 0 of builds that have one: every byte of every arena against the
//! scalar codecs and plain copies, RoPE against float64.

mod append;
mod blocks;
mod canaries;
mod refusals;
mod seal;
mod world;
