//! Attention, the cache's and the dense layers' kernels, matrix products: on every SIMD
//! level of this processor, the emulated device, and CUDA device 0 if there is one.
//! `common/` has what they share.

mod attention_conformance;
mod attention_invariance;
mod attention_layer;
mod attention_splits;
mod cache_kernels;
mod common;
mod dense_kernels;
mod gemm;
mod normal_codes;
mod sanitizer_cases;
mod score_conformance;
mod strong_sinks;
mod subnormal;
