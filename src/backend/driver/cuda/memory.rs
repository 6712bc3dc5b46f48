//! Virtual memory of a device, and page-locked memory of the host. A context is
//! current everywhere here.

use super::answer::{check, complain, refused};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ptr::NonNull;

/// Page-locked for every context, and zeroed.
pub(super) fn alloc_host(bytes: u64) -> Result<NonNull<u8>> {
    let doing = || format!("allocate {bytes} bytes of pinned host memory");
    let mut memory = std::ptr::null_mut();
    // SAFETY: it writes an address.
    let status =
        unsafe { sys::cuMemHostAlloc(&mut memory, bytes as usize, sys::CU_MEMHOSTALLOC_PORTABLE) };
    if status != CUresult::CUDA_SUCCESS {
        return Err(refused(&doing(), status));
    }
    let memory = NonNull::new(memory.cast::<u8>());
    let memory = memory.ok_or_else(|| Error::device(doing(), "the driver gave none"))?;
    // SAFETY: so many bytes are there.
    unsafe { memory.write_bytes(0, bytes as usize) };
    Ok(memory)
}

/// What sizes and addresses must be multiples of, if the device has virtual memory.
pub(super) fn granularity(device: sys::CUdevice) -> Result<u64> {
    const DOING: &str = "ask for the granularity of memory";
    let attribute =
        sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
    let mut supported = 0;
    // SAFETY: the driver is initialised and gave the device.
    check(DOING, unsafe { sys::cuDeviceGetAttribute(&mut supported, attribute, device) })?;
    if supported == 0 {
        return Err(Error::Unsupported {
            what: "a KV cache on a device without virtual memory management".into(),
            remedy: "use another driver or virtual GPU profile, or the CPU".into(),
        });
    }
    let mut granularity = 0;
    let option = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    // SAFETY: it reads the properties and writes a number.
    check(DOING, unsafe {
        sys::cuMemGetAllocationGranularity(&mut granularity, &properties(device), option)
    })?;
    Ok(granularity as u64)
}

/// Addresses without memory.
pub(super) fn reserve(bytes: u64) -> Result<u64> {
    let mut address = 0;
    // SAFETY: it writes an address.
    let status = unsafe { sys::cuMemAddressReserve(&mut address, bytes as usize, 0, 0, 0) };
    match status {
        CUresult::CUDA_SUCCESS => Ok(address),
        _ => Err(refused(&format!("reserve {bytes} bytes of addresses"), status)),
    }
}

/// Creates memory and maps it to reserved addresses. After an error there is none; none
/// in its place says that the device's memory is full.
///
/// # Safety
/// The addresses are reserved and have no memory.
pub(super) unsafe fn commit(
    device: sys::CUdevice,
    address: u64,
    bytes: u64,
) -> Result<(), Option<Error>> {
    let full = |doing: &str, status| match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(None),
        status => Err(Some(refused(doing, status))),
    };
    let size = bytes as usize;
    let mut memory = 0;
    let access = sys::CUmemAccessDesc {
        location: properties(device).location,
        flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // SAFETY: the caller's promise. Memory that is mapped lives until it is unmapped,
    // so its handle is not needed any more.
    unsafe {
        full("create memory", sys::cuMemCreate(&mut memory, size, &properties(device), 0))?;
        let mapped = sys::cuMemMap(address, size, 0, memory, 0);
        complain("release memory", sys::cuMemRelease(memory));
        full("map memory", mapped)?;
        let granted = sys::cuMemSetAccess(address, size, &access, 1);
        if granted != CUresult::CUDA_SUCCESS {
            complain("unmap memory", sys::cuMemUnmap(address, size));
        }
        full("grant access to memory", granted)
    }
}

/// Memory of a device, for that device alone.
fn properties(device: sys::CUdevice) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: sys::CUmemLocation {
            type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: device,
        },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}
