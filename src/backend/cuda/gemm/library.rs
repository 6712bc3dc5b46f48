//! Finds libcublasLt and the functions that are used of it. Nothing links to it.

use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// Names the library or a folder that it is in; the only place to look if it is set.
const VARIABLE: &str = "KVFOLD_CUBLASLT";

/// Newest first.
const NAMES: &[&str] = match cfg!(windows) {
    true => &["cublasLt64_13.dll", "cublasLt64_12.dll"],
    false => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
};

/// Where the library is within a folder: in itself, in a toolkit's, or in a Python
/// environment's site-packages.
const FOLDERS: &[&str] = match cfg!(windows) {
    true => &["", "bin", "bin/x64", "nvidia/cu13/bin/x86_64", "nvidia/cublas/bin"],
    false => &["", "lib64", "lib", "nvidia/cu13/lib", "nvidia/cublas/lib"],
};

/// The oldest version whose constants and structs are used here.
const OLDEST: usize = 120_000;

pub(super) type Status = c_int;
pub(super) type Handle = *mut c_void;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Heuristic {
    pub algorithm: [u64; 8],
    pub workspace: usize,
    pub status: Status,
    pub waves: f32,
    reserved: [c_int; 4],
}

/// Declares the functions of cublasLt.h, and reads them from a library.
macro_rules! functions {
    ($($name:ident = $symbol:literal: fn($($type:ty),*) -> $result:ty;)*) => {
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        impl Functions {
            /// # Safety
            /// The library is cuBLASLt.
            unsafe fn read(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the functions of cublasLt.h have these types.
                unsafe { Ok(Self { $($name: *library.get($symbol)?,)* }) }
            }
        }
    };
}

functions! {
    version = b"cublasLtGetVersion\0": fn() -> usize;
    status_name = b"cublasLtGetStatusName\0": fn(Status) -> *const c_char;
    create = b"cublasLtCreate\0": fn(*mut Handle) -> Status;
    destroy = b"cublasLtDestroy\0": fn(Handle) -> Status;
    create_layout = b"cublasLtMatrixLayoutCreate\0": fn(*mut Handle, c_int, u64, u64, i64) -> Status;
    destroy_layout = b"cublasLtMatrixLayoutDestroy\0": fn(Handle) -> Status;
    create_product = b"cublasLtMatmulDescCreate\0": fn(*mut Handle, c_int, c_int) -> Status;
    destroy_product = b"cublasLtMatmulDescDestroy\0": fn(Handle) -> Status;
    set_product = b"cublasLtMatmulDescSetAttribute\0":
        fn(Handle, c_int, *const c_void, usize) -> Status;
    create_preference = b"cublasLtMatmulPreferenceCreate\0": fn(*mut Handle) -> Status;
    destroy_preference = b"cublasLtMatmulPreferenceDestroy\0": fn(Handle) -> Status;
    set_preference = b"cublasLtMatmulPreferenceSetAttribute\0":
        fn(Handle, c_int, *const c_void, usize) -> Status;
    // Library, product, layouts of A, B, C and D, preference, results asked for and given.
    choose = b"cublasLtMatmulAlgoGetHeuristic\0": fn(
        Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int
    ) -> Status;
    // Library, product, alpha, A, B, beta, C, D (each with its layout), algorithm,
    // workspace and its bytes, stream.
    multiply = b"cublasLtMatmul\0": fn(
        Handle, Handle, *const f32, u64, Handle, u64, Handle, *const f32, u64, Handle, u64, Handle,
        *const [u64; 8], u64, usize, u64
    ) -> Status;
}

/// A library that could be loaded.
pub(super) struct Library {
    pub functions: Functions,
    /// Its version and where it is.
    pub name: String,
}

/// Why a library is not used.
enum Unusable {
    /// It could not be loaded: the linker's words.
    Absent(String),
    /// It is not what is needed.
    Unfit(String),
}

impl Library {
    fn open(path: &Path) -> Result<Self, Unusable> {
        let told = |error: libloading::Error| {
            use std::error::Error as _;
            error.source().map_or_else(|| error.to_string(), |source| source.to_string())
        };
        // SAFETY: the library's initialisers are safe to run.
        let library = unsafe { libloading::Library::new(path) };
        let library = library.map_err(|error| Unusable::Absent(told(error)))?;
        // SAFETY: by its name it is cuBLASLt.
        let functions = unsafe { Functions::read(&library) }
            .map_err(|error| Unusable::Unfit(format!("{}: {}", path.display(), told(error))))?;
        // SAFETY: it needs no initialisation.
        let version = unsafe { (functions.version)() };
        let name = format!("{} ({})", dotted(version), path.display());
        if version < OLDEST {
            return Err(Unusable::Unfit(format!("{name} is older than {}", dotted(OLDEST))));
        }
        // It stays loaded: the CUDA runtime inside has threads and exit handlers.
        std::mem::forget(library);
        Ok(Self { functions, name })
    }

    /// `what`'s outcome: the name of a status other than success.
    pub fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it takes any status and gives a string that is never freed, or null.
        let name = unsafe {
            let name = (self.functions.status_name)(status);
            (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
        };
        Err(name.unwrap_or_else(|| format!("status {status}")))
    }
}

/// `13.0.2` of 130002.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// The first library that can be loaded and that `start` makes something of.
///
/// # Errors
/// [`Error::NoCublasLt`] with what became of each; an error of `start` that is not text
/// for it ends the search.
pub(super) fn first<S>(
    mut start: impl FnMut(&Library) -> Result<Result<S, String>>,
) -> Result<(Library, S)> {
    let named = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    let (mut absent, mut unfit) = (None, Vec::new());
    for path in candidates(named.as_deref()) {
        let library = match Library::open(&path) {
            Ok(library) => library,
            Err(Unusable::Absent(reason)) => {
                absent.get_or_insert(reason);
                continue;
            }
            Err(Unusable::Unfit(reason)) => {
                unfit.push(reason);
                continue;
            }
        };
        match start(&library)? {
            Ok(started) => return Ok((library, started)),
            Err(reason) => unfit.push(format!("{} does not start: {reason}", library.name)),
        }
    }
    let reason = match unfit.is_empty() {
        true => absent.unwrap_or_else(|| "it is not there".into()),
        false => unfit.join("; "),
    };
    let reason = match named {
        Some(path) => format!("{VARIABLE}={}: {reason}", path.display()),
        None => reason,
    };
    Err(Error::NoCublasLt { reason })
}

/// What to load, best first.
fn candidates(named: Option<&Path>) -> Vec<PathBuf> {
    match named {
        None => NAMES.iter().map(PathBuf::from).collect(),
        Some(path) if path.is_dir() => {
            let in_folder = |folder| NAMES.iter().map(move |name| path.join(folder).join(name));
            FOLDERS.iter().flat_map(in_folder).filter(|file| file.is_file()).collect()
        }
        Some(path) if path.exists() => vec![path.to_owned()],
        Some(_) => Vec::new(),
    }
}

/// The version and place of the cuBLASLt that products would use.
///
/// # Errors
/// [`Error::NoCublasLt`].
pub fn describe() -> Result<String> {
    Ok(first(|_| Ok(Ok(())))?.0.name)
}
