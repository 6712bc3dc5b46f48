//! Matrix products and the weights that go into them, on the emulated device and, if
//! there is one, on a CUDA device. Products against float64.

pub mod product;
mod products;
mod weights;
