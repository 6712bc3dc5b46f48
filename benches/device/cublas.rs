//! cuBLAS, if the machine has it: a matrix rate that somebody else reached. It is
//! opened at run time and nothing needs it.

use crate::pattern::halves;
use crate::work::Work;
use kvfold::backend::driver::{Device, DeviceBuffer, Stream};
use kvfold::{Error, Result};
use libloading::Library;
use std::ffi::{c_int, c_void};

const N: usize = 8192;

/// Operations of one product.
pub const FLOPS: u64 = 2 * (N * N * N) as u64;

type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;
type SetStream = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type GemmEx = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const f32,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

// From cublas_api.h and library_types.h.
const OP_N: c_int = 0;
const OP_T: c_int = 1;
const CUDA_R_16F: c_int = 2;
const COMPUTE_32F: c_int = 68;
const GEMM_DEFAULT: c_int = -1;

/// C = Aᵀ · B, all of them N × N, f16 with f32 accumulators.
pub struct Product {
    library: Library,
    handle: *mut c_void,
    a: DeviceBuffer<u16>,
    b: DeviceBuffer<u16>,
    c: DeviceBuffer<u16>,
}

impl Product {
    /// Opens the library and fills the matrices. It works in the device's primary
    /// context, which kvfold's is too.
    pub fn new(device: &Device, stream: &Stream) -> std::result::Result<Self, String> {
        let text = |error: Error| error.to_string();
        let library = open()?;
        let matrix = |seed| -> Result<DeviceBuffer<u16>> {
            let mut matrix = device.alloc(N * N)?;
            let rows = device.upload(&halves(N * 64, seed), stream)?;
            for at in (0..N * N).step_by(rows.len()) {
                matrix.copy_from(at, &rows, 0, rows.len(), stream)?;
            }
            stream.synchronize()?;
            Ok(matrix)
        };
        let (a, b) = (matrix(1).map_err(text)?, matrix(2).map_err(text)?);
        let c = device.alloc(N * N).map_err(text)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: these are the functions of cublas_api.h; the stream is of the primary
        // context, in which the handle is made.
        let status = unsafe {
            let create = library.get::<Create>(b"cublasCreate_v2\0").map_err(|e| e.to_string())?;
            let bind =
                library.get::<SetStream>(b"cublasSetStream_v2\0").map_err(|e| e.to_string())?;
            match create(&mut handle) {
                0 => bind(handle, stream.raw().0 as *mut c_void),
                status => status,
            }
        };
        match status {
            0 => Ok(Self { library, handle, a, b, c }),
            status => Err(format!("cuBLAS does not start: status {status}")),
        }
    }
}

fn open() -> std::result::Result<Library, String> {
    let names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];
    // SAFETY: the library's initialisers are safe to run.
    let found = names.into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
    found.ok_or_else(|| "no libcublas was found".into())
}

impl Work for Product {
    fn enqueue(&mut self, _turn: usize, _stream: &Stream) -> Result<()> {
        let failed = |what: String| Error::config("cublas", what);
        let (n, one, zero) = (N as c_int, 1f32, 0f32);
        let at = |buffer: &DeviceBuffer<u16>| buffer.address() as *mut c_void;
        let (a, b, c) = (at(&self.a), at(&self.b), at(&self.c));
        let (half, handle) = (CUDA_R_16F, self.handle);
        // SAFETY: the function of cublas_api.h; the matrices are N × N.
        let status = unsafe {
            let gemm = self.library.get::<GemmEx>(b"cublasGemmEx\0");
            let gemm = gemm.map_err(|error| failed(error.to_string()))?;
            gemm(
                handle,
                OP_T,
                OP_N,
                n,
                n,
                n,
                &one,
                a,
                half,
                n,
                b,
                half,
                n,
                &zero,
                c,
                half,
                n,
                COMPUTE_32F,
                GEMM_DEFAULT,
            )
        };
        match status {
            0 => Ok(()),
            status => Err(failed(format!("the product failed: status {status}"))),
        }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: the handle was created once and is destroyed once.
        unsafe {
            if let Ok(destroy) = self.library.get::<Destroy>(b"cublasDestroy_v2\0") {
                destroy(self.handle);
            }
        }
    }
}
