//! Libraries of our own, over host memory, where the CUDA driver and cuBLASLt would be:
//! the sources are in this folder. Programs that use them are processes of their own,
//! because a process looks for its driver once.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with `libcuda.so` and `libcuda.so.1`, and perhaps `libcublasLt.so.13`.
pub struct FakeDriver(tempfile::TempDir);

impl FakeDriver {
    pub fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        compile("libcuda.cpp", &place.path().join("libcuda.so.1"));
        std::os::unix::fs::symlink("libcuda.so.1", place.path().join("libcuda.so")).unwrap();
        Self(place)
    }

    pub fn with_cublaslt() -> Self {
        let driver = Self::new();
        compile("libcublasLt.cpp", &driver.0.path().join("libcublasLt.so.13"));
        driver
    }

    /// What is no library stands where the driver would.
    pub fn broken() -> Self {
        let place = tempfile::tempdir().unwrap();
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::fs::write(place.path().join(name), "no library, but long enough to be one")
                .unwrap();
        }
        Self(place)
    }

    /// Runs a program that finds this driver. `pretend` is for its FAKE_CUDA.
    pub fn run(&self, program: PathBuf, args: &[&str], pretend: &str) -> Output {
        (Command::new(program).args(args))
            .env("LD_LIBRARY_PATH", self.0.path())
            .env("FAKE_CUDA", pretend)
            .env("KVFOLD_CUBLASLT", self.0.path())
            .env("KVFOLD_CACHE", self.0.path())
            .output()
            .unwrap()
    }

    /// Runs `body` with this driver: in this test, started again in a process of its own.
    pub fn within(make: fn() -> Self, test: &str, pretend: &str, body: fn()) {
        if std::env::var_os("FAKE_CUDA").is_some() {
            return body();
        }
        let args = ["--exact", test, "--nocapture"];
        let output = make().run(std::env::current_exe().unwrap(), &args, pretend);
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
    }
}

fn compile(source: &str, library: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let status = (Command::new(compiler).args(["-std=c++17", "-O1", "-shared", "-fPIC", "-I"]))
        .arg(root.join("kernels"))
        .arg("-o")
        .arg(library)
        .arg(root.join("tests/cuda/fake_cuda").join(source))
        .arg("-ldl")
        .status()
        .expect("a C++ compiler");
    assert!(status.success());
}

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
}

/// Calls a function of a library with one address.
///
/// # Safety
/// The library is loaded and has this function, of type `int (void*)`.
pub unsafe fn call(library: &CStr, function: &CStr, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let found = dlsym(dlopen(library.as_ptr(), 2), function.as_ptr());
        assert!(!found.is_null());
        let function: extern "C" fn(*mut c_void) -> c_int = std::mem::transmute(found);
        function(argument)
    }
}
