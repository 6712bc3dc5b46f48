//! Memory, streams and kernel launches of a device, behind one interface.
//!
//! Launchers (`backend/cuda/`) are written once against [`Device`],
//! [`DeviceBuffer`] and [`DeviceStream`]. Behind them stands a [`Driver`]: the CUDA
//! driver (feature `cuda`), or the emulated device (feature `emulator`, tests
//! only), which runs the same kernel sources on the host.
//!
//! ```no_run
//! # use kvfold::backend::driver::{Device, Launch};
//! # #[repr(C)] #[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
//! # struct ScaleParams { x: u64, n: u32, factor: f32 }
//! # fn main() -> kvfold::Result<()> {
//! let device = Device::cuda(0)?;
//! let stream = device.stream()?;
//! let x = device.upload(&[1f32; 1000], &stream)?;
//! let params = ScaleParams { x: x.address(), n: 1000, factor: 2.0 };
//! // SAFETY: `x` holds the n floats that the kernel reads and writes.
//! unsafe { stream.launch("scale", Launch::new(4, 256), &params)? };
//! let doubled = x.to_vec(&stream)?;
//! # Ok(()) }
//! ```

mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod embedded;
#[cfg(feature = "emulator")]
pub mod emulated;
mod graph;
mod host;
mod raw;
mod reservation;
mod stream;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub use buffer::DeviceBuffer;
pub use device::Device;
pub use embedded::{Embedded, embedded};
pub use graph::DeviceGraph;
pub use host::HostBuffer;
pub use raw::{DeviceInfo, Driver, Launch, MemoryInfo, RawEvent, RawGraph, RawStream};
pub use reservation::Reservation;
pub use stream::{DeviceEvent, DeviceStream};
