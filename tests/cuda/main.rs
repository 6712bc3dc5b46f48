//! CUDA's driver and cuBLASLt as libraries of our own (`fake_cuda/`), without a GPU. The
//! feature `cuda` builds this.
#![cfg(target_os = "linux")]

mod cublaslt;
mod driver;
mod fake_cuda;
#[path = "../kernels/gemm/product.rs"]
#[allow(dead_code)] // not all of it is needed here
mod product;
