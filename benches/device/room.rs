//! Whether a card has room for a cell.

use anyhow::Result;
use kvfold::backend::driver::Device;

/// Why a cell that needs so many bytes does not fit this card.
pub fn lacking(memory: u64, device: &Device) -> Result<Option<String>> {
    /// What the driver and the cell's small buffers take besides.
    const SPARE: u64 = 512 << 20;
    let free = device.memory()?.free;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let fits = memory + SPARE <= free;
    Ok((!fits).then(|| format!("it needs {:.1} GiB, {:.1} are free", gib(memory), gib(free))))
}
