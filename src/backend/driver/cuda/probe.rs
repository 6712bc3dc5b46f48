//! Is there a driver, is it new enough, and what devices does it have?

use super::status::{check, refused};
use crate::backend::driver::{DeviceInfo, Embedded, embedded};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::error::Error as _;
use std::sync::OnceLock;

/// The oldest driver whose functions are used here.
const OLDEST: (u32, u32) = (12, 0);

/// Loads the driver, or says why it cannot be used. Every other function of this
/// module and of cudarc is called after this one: cudarc panics without a driver.
fn load() -> Result<()> {
    // The names by which cudarc looks, too. The handle stays open.
    static LIBRARY: OnceLock<Result<libloading::Library, String>> = OnceLock::new();
    let names = match cfg!(windows) {
        true => &["nvcuda.dll"][..],
        false => &["libcuda.so.1", "libcuda.so"][..],
    };
    let library = LIBRARY.get_or_init(|| {
        let mut reason = String::new();
        for name in names {
            // SAFETY: the driver's initialisers are safe to run; cudarc runs them next.
            match unsafe { libloading::Library::new(*name) } {
                Ok(library) => return Ok(library),
                // What the linker said is the error's source.
                Err(error) if reason.is_empty() => {
                    reason = error.source().map_or_else(|| error.to_string(), |e| e.to_string());
                }
                Err(_) => {}
            }
        }
        Err(reason)
    });
    match library {
        Ok(_) => Ok(()),
        Err(reason) => Err(Error::NoDriver { reason: reason.clone() }),
    }
}

/// The CUDA version that the driver supports: major, minor.
///
/// # Errors
/// [`Error::NoDriver`].
pub fn driver_version() -> Result<(u32, u32)> {
    load()?;
    let mut version = 0;
    // SAFETY: the driver is loaded; this needs no initialisation.
    check("read the driver's version", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}

/// The CUDA version that a driver must support for these kernels: that of the
/// compiler's own generation, since code of a newer one is refused.
fn needed_version(embedded: &Embedded) -> (u32, u32) {
    OLDEST.max((embedded.toolkit.0, 0))
}

/// Initialises the driver and counts the devices.
pub(super) fn init() -> Result<usize> {
    let found = driver_version()?;
    let needed = embedded().as_ref().map_or(OLDEST, needed_version);
    if found < needed {
        return Err(outdated(found, needed));
    }
    // SAFETY: the driver is loaded.
    check("initialise the driver", unsafe { sys::cuInit(0) })?;
    let mut count = 0;
    // SAFETY: the driver is initialised.
    check("count the devices", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// All CUDA devices, each as it is or with the reason why it cannot be used.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], and what the driver reports.
pub fn devices() -> Result<Vec<(DeviceInfo, Result<()>)>> {
    (0..init()?)
        .map(|ordinal| {
            let info = describe(device(ordinal)?)?;
            let usable = serves(&info);
            Ok((info, usable))
        })
        .collect()
}

/// The driver's handle of a device; the driver is initialised.
pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let mut device = 0;
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    // SAFETY: the driver is initialised.
    check("find the device", unsafe { sys::cuDeviceGet(&mut device, number) })?;
    Ok(device)
}

/// What a device is; the driver is initialised.
pub(super) fn describe(device: sys::CUdevice) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute::*;
    let attribute = |attribute| attribute_of(device, attribute);
    let mut memory = 0;
    // SAFETY: the driver is initialised and gave the device.
    check("read the size of the memory", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) })?;
    Ok(DeviceInfo {
        name: result::device::get_name(device)
            .map_err(|e| refused("read the name of the device", e.0))?,
        arch: 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        memory: memory as u64,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
    })
}

/// Whether a device reads any host memory through the host's page tables (Grace Hopper and
/// its like): then nothing is staged for copies.
pub(super) fn reads_host_pages(device: sys::CUdevice) -> Result<bool> {
    use sys::CUdevice_attribute::*;
    Ok(attribute_of(device, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES)? != 0)
}

fn attribute_of(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the driver is initialised and gave the device.
    let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
    check("read an attribute of the device", status)?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Whether the binary has code for a device.
pub(super) fn serves(info: &DeviceInfo) -> Result<()> {
    match embedded() {
        Some(embedded) if !embedded.serves(info.arch) => Err(no_kernel(info)),
        _ => Ok(()),
    }
}

/// No code for this device.
pub(super) fn no_kernel(info: &DeviceInfo) -> Error {
    Error::NoKernelForArch {
        arch: format!("sm_{}", info.arch),
        embedded: embedded().map_or_else(String::new, |e| e.describe()),
    }
}

/// The driver cannot compile the embedded PTX.
pub(super) fn too_old() -> Result<Error> {
    let needed = embedded().map_or(OLDEST, |e| e.toolkit);
    Ok(outdated(driver_version()?, needed))
}

fn outdated(found: (u32, u32), needed: (u32, u32)) -> Error {
    Error::DriverTooOld { found: dotted(found), needed: dotted(needed) }
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}
