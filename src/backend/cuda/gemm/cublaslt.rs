//! Products by cuBLASLt.
//!
//! Its matrices are column-major. A row-major `[rows][cols]` is a column-major
//! cols × rows, so `y = x · wᵀ` is asked for as `Y = opT(W) · X` with Y n × rows, W
//! k × n and X k × rows, none of them copied.

use super::library::{self, Handle, Heuristic, Library, Status};
use super::problem::{ALIGNMENT, GemmShape, Operands, Problem};
use crate::backend::driver::cuda::Current;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::codec::Codec;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};

// From library_types.h, cublas_api.h and cublasLt.h.
const CUDA_R_32F: c_int = 0;
const CUDA_R_16F: c_int = 2;
const CUDA_R_16BF: c_int = 14;
const CUBLAS_COMPUTE_32F: c_int = 68;
const CUBLAS_OP_T: c_int = 1;
const CUBLASLT_MATMUL_DESC_TRANSA: c_int = 3;
const CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: c_int = 3;
const CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5; // B, C and D follow
/// Partial sums in f32 in the workspace, added up in a separate step. The scheme that
/// orders them by counters and those in 16 bits are left out.
const CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: u32 = 2;

/// Bytes of the workspace: what NVIDIA recommends for Hopper and later, and more than it
/// does for what came before.
fn workspace_bytes(arch: u32) -> usize {
    if arch >= 90 { 32 << 20 } else { 8 << 20 }
}

/// A handle of the library with its workspace and the algorithms chosen so far.
pub(super) struct CublasLt {
    plans: HashMap<Problem, Plan>,
    handle: Handle,
    workspace: DeviceBuffer<u8>,
    library: Library,
}

// SAFETY: handles and descriptors may be used from any thread (cuBLAS, "Thread Safety");
// what changes is behind `&mut`.
unsafe impl Send for CublasLt {}
// SAFETY: as above; `&self` changes nothing.
unsafe impl Sync for CublasLt {}

/// How products of one shape and type are computed.
struct Plan {
    product: Descriptor,
    /// Of `w`, `x` and `y`.
    layouts: [Descriptor; 3],
    algorithm: [u64; 8],
}

/// Something that the library made and destroys.
struct Descriptor {
    raw: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; nothing is left to do if that fails.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// The device's context is current while the guard lives.
fn enter(device: &Device) -> Result<Current> {
    let no_context = || Error::device("multiply", "cuBLASLt works on CUDA devices only");
    device.driver().cuda_context().ok_or_else(no_context)?.enter()
}

impl CublasLt {
    /// Opens the library on a CUDA device.
    pub fn new(device: &Device) -> Result<Self> {
        let (library, handle) = library::first(|library| {
            let _current = enter(device)?;
            let mut handle = std::ptr::null_mut();
            // SAFETY: the device's context is current.
            let status = unsafe { (library.functions.create)(&mut handle) };
            Ok(library.check(status).map(|()| handle))
        })?;
        // From here on the handle is destroyed by the drop.
        let workspace = device.alloc(0)?;
        let mut cublaslt = Self { plans: HashMap::new(), handle, workspace, library };
        cublaslt.workspace = device.alloc(workspace_bytes(device.info().arch))?;
        Ok(cublaslt)
    }

    /// The library's version and place.
    pub fn name(&self) -> &str {
        &self.library.name
    }

    /// Chooses an algorithm unless that has been done.
    pub fn prepare(&mut self, problem: Problem) -> Result<()> {
        let _current = enter(self.workspace.device())?;
        self.plan(problem)
    }

    /// Enqueues a product of matrices whose sizes and alignment have been checked.
    pub fn multiply(
        &mut self,
        problem: Problem,
        at: Operands,
        stream: &DeviceStream,
    ) -> Result<()> {
        let _current = enter(self.workspace.device())?;
        self.plan(problem)?;
        let plan = &self.plans[&problem];
        let [w, x, y] = plan.layouts.each_ref().map(|layout| layout.raw);
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the matrices lie within their buffers as the layouts say, `y` is
        // exclusive, and the workspace is used in the order of one stream only.
        let status = unsafe {
            (self.library.functions.multiply)(
                self.handle,
                plan.product.raw,
                &one,
                at.w,
                w,
                at.x,
                x,
                &zero,
                at.y,
                y,
                at.y,
                y,
                &plan.algorithm,
                self.workspace.address(),
                self.workspace.len(),
                stream.raw().0,
            )
        };
        self.check(&problem, status)
    }

    /// Sees to it that there is a plan. The context is current.
    fn plan(&mut self, problem: Problem) -> Result<()> {
        if self.plans.contains_key(&problem) {
            return Ok(());
        }
        let plan = self.choose(&problem)?;
        self.plans.insert(problem, plan);
        Ok(())
    }

    fn choose(&self, problem: &Problem) -> Result<Plan> {
        let GemmShape { rows, n, k } = problem.shape;
        let functions = &self.library.functions;
        let element = match problem.element {
            Codec::Bf16 => CUDA_R_16BF,
            _ => CUDA_R_16F,
        };
        let out = if problem.wide { CUDA_R_32F } else { element };
        let layout = |kind: c_int, rows: usize, cols: usize| {
            self.make(problem, functions.destroy_layout, |raw| {
                // SAFETY: `raw` takes the new layout; a column follows the other.
                unsafe {
                    (functions.create_layout)(raw, kind, rows as u64, cols as u64, rows as i64)
                }
            })
        };
        let layouts = [layout(element, k, n)?, layout(element, k, rows)?, layout(out, n, rows)?];
        let product = self.make(problem, functions.destroy_product, |raw| {
            // SAFETY: `raw` takes the new descriptor.
            unsafe { (functions.create_product)(raw, CUBLAS_COMPUTE_32F, CUDA_R_32F) }
        })?;
        self.set(
            problem,
            functions.set_product,
            &product,
            CUBLASLT_MATMUL_DESC_TRANSA,
            &CUBLAS_OP_T,
        )?;
        let preference = self.preference(problem)?;

        let [w, x, y] = layouts.each_ref().map(|layout| layout.raw);
        let (mut best, mut found) = (Heuristic::default(), 0);
        // SAFETY: all descriptors are live, and one result is asked for.
        let status = unsafe {
            (functions.choose)(
                self.handle,
                product.raw,
                w,
                x,
                y,
                y,
                preference.raw,
                1,
                &mut best,
                &mut found,
            )
        };
        self.check(problem, status)?;
        self.check(problem, best.status)?;
        if found < 1 || best.workspace > self.workspace.len() {
            return Err(Error::device(problem.to_string(), "cuBLASLt has no algorithm for it"));
        }
        Ok(Plan { product, layouts, algorithm: best.algorithm })
    }

    /// What an algorithm must keep to.
    fn preference(&self, problem: &Problem) -> Result<Descriptor> {
        let functions = &self.library.functions;
        let preference = self.make(problem, functions.destroy_preference, |raw| {
            // SAFETY: `raw` takes the new descriptor.
            unsafe { (functions.create_preference)(raw) }
        })?;
        let bytes = self.workspace.len();
        let set = functions.set_preference;
        self.set(problem, set, &preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes)?;
        let scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        self.set(problem, set, &preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme)?;
        let alignment = ALIGNMENT as u32;
        for matrix in 0..4 {
            let attribute = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + matrix;
            self.set(problem, set, &preference, attribute, &alignment)?;
        }
        Ok(preference)
    }

    fn make(
        &self,
        problem: &Problem,
        destroy: unsafe extern "C" fn(Handle) -> Status,
        create: impl FnOnce(&mut Handle) -> Status,
    ) -> Result<Descriptor> {
        let mut raw = std::ptr::null_mut();
        self.check(problem, create(&mut raw))?;
        Ok(Descriptor { raw, destroy })
    }

    /// Sets an attribute whose type is `V`.
    fn set<V>(
        &self,
        problem: &Problem,
        set: unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status,
        of: &Descriptor,
        attribute: c_int,
        value: &V,
    ) -> Result<()> {
        // SAFETY: the descriptor is live, and the value is read with its size.
        let status = unsafe { set(of.raw, attribute, (&raw const *value).cast(), size_of::<V>()) };
        self.check(problem, status)
    }

    fn check(&self, problem: &Problem, status: Status) -> Result<()> {
        self.library.check(status).map_err(|name| Error::device(problem.to_string(), name))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let Ok(_current) = enter(self.workspace.device()) else { return };
        self.plans.clear();
        // SAFETY: the handle was created once and is destroyed once, in its context.
        let status = unsafe { (self.library.functions.destroy)(self.handle) };
        if let Err(name) = self.library.check(status) {
            tracing::warn!("cuBLASLt does not end: {name}");
        }
    }
}
