//! Matrix products and the weights that go into them, on the emulated device and, if
//! there is one, on a CUDA device; cuBLASLt also without one, as a library of our own
//! that computes what it is asked (`fake_cuda/`). Products against float64.

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod cublaslt;
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "../fake_cuda/mod.rs"]
mod fake_cuda;
mod product;
mod products;
mod weights;
