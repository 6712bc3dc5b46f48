//! Device buffers that grow.

use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;
use bytemuck::Pod;

/// Makes room for `rows` rows of `cols` elements, up to a power of two of rows, so that it
/// grows seldom; what was in the buffer is lost if it has to.
pub(super) fn reserve<E: Pod>(
    buffer: &mut DeviceBuffer<E>,
    rows: usize,
    cols: usize,
    stream: &DeviceStream,
) -> Result<()> {
    if rows * cols > buffer.len() {
        // Kernels may still use the old one.
        stream.synchronize()?;
        *buffer = stream.device().alloc(0)?;
        *buffer = stream.device().alloc(rows.next_power_of_two() * cols)?;
    }
    Ok(())
}
