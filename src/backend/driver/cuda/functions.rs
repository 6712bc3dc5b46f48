//! Kernels by name.

use super::answer::{check, complain, refused};
use super::context::Context;
use super::probe;
use crate::backend::driver::{DeviceInfo, embedded};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUfunction_attribute, CUresult};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_BYTES: u32 = 48 << 10;

/// All embedded modules, loaded in a context.
pub(super) struct KernelFunctions {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    /// Modules that were loaded late, by the stems of their sources.
    late: Mutex<HashMap<&'static str, sys::CUmodule>>,
    found: RwLock<HashMap<String, Function>>,
}

#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    /// Dynamic shared memory that it may have now.
    shared_bytes: u32,
    /// Whether the driver knows that it has any.
    prefers_shared: bool,
}

impl Function {
    /// Whether it may be launched with so much, as it is.
    fn takes(&self, shared_bytes: u32) -> bool {
        shared_bytes <= self.shared_bytes && (shared_bytes == 0 || self.prefers_shared)
    }

    /// Sets one of its attributes. Its context is current.
    fn set(&self, doing: &str, attribute: CUfunction_attribute, value: i32) -> Result<()> {
        // SAFETY: the function is of a live module of the current context.
        check(doing, unsafe { sys::cuFuncSetAttribute(self.raw, attribute, value) })
    }
}

// SAFETY: modules and functions may be used from any thread.
unsafe impl Send for KernelFunctions {}
// SAFETY: as above.
unsafe impl Sync for KernelFunctions {}

impl KernelFunctions {
    /// Loads the embedded fatbins.
    pub(super) fn load(context: Arc<Context>, info: &DeviceInfo) -> Result<Self> {
        let (modules, late, found) = Default::default();
        let mut functions = Self { context, modules, late, found };
        let current = functions.context.enter()?;
        for (stem, fatbin) in embedded().map_or(&[][..], |e| e.fatbins) {
            functions.modules.push(load(stem, fatbin, info)?);
        }
        drop(current);
        Ok(functions)
    }

    /// The kernel called `name`, allowed `shared_bytes` of dynamic shared memory. The
    /// context is current.
    pub(super) fn get(
        &self,
        name: &str,
        shared_bytes: u32,
        info: &DeviceInfo,
    ) -> Result<sys::CUfunction> {
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        match found {
            Some(function) if function.takes(shared_bytes) => return Ok(function.raw),
            _ if shared_bytes > info.shared_bytes => {
                return Err(Error::device(
                    format!("launch {name}"),
                    format!(
                        "{shared_bytes} bytes of shared memory are needed, the device has {}",
                        info.shared_bytes
                    ),
                ));
            }
            _ => {}
        }
        let mut all = self.found.write().unwrap_or_else(PoisonError::into_inner);
        let mut function = match all.get(name) {
            Some(function) => *function,
            None => {
                let raw = self.find(name, info)?;
                Function { raw, shared_bytes: SHARED_BYTES, prefers_shared: false }
            }
        };
        let doing = || format!("give {name} {shared_bytes} bytes of shared memory");
        if shared_bytes > function.shared_bytes {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set(&doing(), most, shared_bytes as i32)?;
            function.shared_bytes = shared_bytes;
        }
        if shared_bytes > 0 && !function.prefers_shared {
            // What kernels read twice they keep in shared memory: as many blocks as fit it are
            // worth more than a first-level cache, whatever the driver would have chosen.
            let share = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            function.set(&doing(), share, 100)?;
            function.prefers_shared = true;
        }
        all.insert(name.to_owned(), function);
        Ok(function.raw)
    }

    fn find(&self, name: &str, info: &DeviceInfo) -> Result<sys::CUfunction> {
        let missing = || Error::device(format!("launch {name}"), "the build has no such kernel");
        let symbol = CString::new(name).map_err(|_| missing())?;
        let late = embedded().and_then(|e| e.late_with(name));
        let late = late.map(|(stem, fatbin)| self.load_late(stem, fatbin, info)).transpose()?;
        for module in late.iter().chain(&self.modules) {
            let mut function = std::ptr::null_mut();
            // SAFETY: the module is live and of the current context.
            match unsafe { sys::cuModuleGetFunction(&mut function, *module, symbol.as_ptr()) } {
                CUresult::CUDA_SUCCESS => return Ok(function),
                CUresult::CUDA_ERROR_NOT_FOUND => {}
                status => return Err(refused(&format!("find the kernel {name}"), status)),
            }
        }
        Err(missing())
    }

    /// A module that is loaded once; the driver compiles it, which takes a while.
    fn load_late(
        &self,
        stem: &'static str,
        fatbin: &'static [u8],
        info: &DeviceInfo,
    ) -> Result<sys::CUmodule> {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = late.get(stem) {
            return Ok(*module);
        }
        let module = load(stem, fatbin, info)?;
        late.insert(stem, module);
        Ok(module)
    }
}

/// Loads a fatbin in the current context.
fn load(stem: &str, fatbin: &[u8], info: &DeviceInfo) -> Result<sys::CUmodule> {
    let mut module = std::ptr::null_mut();
    // SAFETY: a context is current; nvcc made the fatbin, which gives its own size.
    match unsafe { sys::cuModuleLoadData(&mut module, fatbin.as_ptr().cast()) } {
        CUresult::CUDA_SUCCESS => Ok(module),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Err(probe::no_kernel(info)),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Err(probe::too_old()?),
        status => Err(refused(&format!("load the kernels of {stem}"), status)),
    }
}

impl Drop for KernelFunctions {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        let late = self.late.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in self.modules.drain(..).chain(late.drain().map(|(_, module)| module)) {
            // SAFETY: loaded once, unloaded once; the driver waits for its kernels.
            complain("unload kernels", unsafe { sys::cuModuleUnload(module) });
        }
    }
}
