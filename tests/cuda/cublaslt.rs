//! cuBLASLt without a GPU: what it is asked, and what is said when it is missing.

use crate::fake_cuda::{self, FakeDriver};
use crate::product::{Case, SHAPES, check_all, shape};
use half::{bf16, f16};
use kvfold::Error;
use kvfold::backend::cuda::gemm::Gemm;
use kvfold::backend::driver::{Device, DeviceStream};
use std::ffi::CString;
use std::path::PathBuf;

/// A device with room for the workspace.
const PRETEND: &str = "13000 1 90 0 100000000";

fn device() -> (Device, DeviceStream) {
    let device = Device::cuda(0).unwrap();
    let stream = device.stream().unwrap();
    (device, stream)
}

/// The folder with the library.
fn folder() -> PathBuf {
    std::env::var_os("LD_LIBRARY_PATH").unwrap().into()
}

/// Objects that live, algorithms chosen, products computed.
fn counts() -> [u64; 3] {
    let library = folder().join("libcublasLt.so.13").into_os_string().into_encoded_bytes();
    let mut counts = [0u64; 3];
    // SAFETY: the function writes three words.
    unsafe {
        let to = counts.as_mut_ptr().cast();
        fake_cuda::call(&CString::new(library).unwrap(), c"fake_cublaslt_counts", to);
    }
    counts
}

fn set(variable: &str, value: impl AsRef<std::ffi::OsStr>) {
    // SAFETY: this process runs one test, and nothing else in it reads the environment.
    unsafe { std::env::set_var(variable, value) }
}

#[test]
fn it_is_asked_for_the_right_products() {
    let test = "cublaslt::it_is_asked_for_the_right_products";
    FakeDriver::within(FakeDriver::with_cublaslt, test, PRETEND, || {
        let (device, stream) = device();
        let mut gemm = Gemm::new(&device).unwrap();
        assert!(gemm.name().starts_with("cuBLASLt 13.1.2 ("), "{}", gemm.name());
        assert!(device.memory().unwrap().free <= 100_000_000 - (32 << 20), "a workspace");
        check_all(&mut gemm, &stream);
        // An algorithm is chosen once a shape and type.
        let products = 4 * SHAPES.len() as u64;
        assert_eq!(counts()[1..], [products, products]);
        check_all(&mut gemm, &stream);
        assert_eq!(counts()[1..], [products, 2 * products]);
        // One that is prepared is not chosen again, and another type is another one.
        gemm.prepare::<bf16, f32>(shape(2, 24, 16)).unwrap();
        gemm.prepare::<bf16, f32>(shape(2, 24, 16)).unwrap();
        assert_eq!(counts()[1], products + 1);
        Case::<bf16>::new(shape(2, 24, 16)).check::<f32>(&mut gemm, &stream);
        assert_eq!(counts()[1], products + 1);
        Case::<bf16>::new(shape(2, 24, 16)).check::<bf16>(&mut gemm, &stream);
        assert_eq!(counts()[1], products + 2);
        // Moved to another thread, as an engine's is, and gone with all that it made.
        std::thread::spawn(move || drop(gemm)).join().unwrap();
        assert_eq!(counts()[0], 0);
    });
}

#[test]
fn older_architectures_get_a_smaller_workspace() {
    let test = "cublaslt::older_architectures_get_a_smaller_workspace";
    FakeDriver::within(FakeDriver::with_cublaslt, test, "13000 1 80 0 9000000", || {
        let (device, stream) = device();
        check_all(&mut Gemm::new(&device).unwrap(), &stream);
    });
}

fn error(device: &Device) -> Error {
    Gemm::new(device).map(|gemm| gemm.name()).unwrap_err()
}

#[test]
fn without_it_one_line_says_what_to_do() {
    let test = "cublaslt::without_it_one_line_says_what_to_do";
    FakeDriver::within(FakeDriver::new, test, PRETEND, || {
        let (device, _stream) = device();
        let told = |words: &[&str]| {
            let error = error(&device);
            assert!(matches!(error, Error::NoCublasLt { .. }), "{error:?}");
            let text = error.to_string();
            let usual = ["install cuBLAS 12 or 13", "nvidia-cublas", "KVFOLD_CUBLASLT"];
            assert!(usual.iter().chain(words).all(|w| text.contains(w)), "{text}");
            assert!(!text.contains('\n'), "{text}");
        };
        // A folder without it, a file that is none, and nowhere.
        told(&["it is not there"]);
        let file = folder().join("libcublasLt.so.12");
        std::fs::write(&file, "no library, but long enough to be one").unwrap();
        told(&["libcublasLt.so.12"]);
        set("KVFOLD_CUBLASLT", &file);
        told(&["libcublasLt.so.12"]);
        // A library without its functions.
        set("KVFOLD_CUBLASLT", folder().join("libcuda.so.1"));
        told(&["libcuda.so.1", "cublasLtGetVersion"]);
        set("KVFOLD_CUBLASLT", "/nowhere/libcublasLt.so");
        told(&["KVFOLD_CUBLASLT=/nowhere/libcublasLt.so: it is not there"]);
        // The plain loop does not take its place.
        let text = Gemm::plain(&device).name();
        assert_eq!(text, "a plain loop");
    });
}

#[test]
fn what_it_refuses_is_told() {
    let test = "cublaslt::what_it_refuses_is_told";
    FakeDriver::within(FakeDriver::with_cublaslt, test, PRETEND, || {
        let (device, stream) = device();
        set("FAKE_CUBLASLT", "110803 0 1 0");
        let text = error(&device).to_string();
        assert!(text.contains("11.8.3 (") && text.contains("older than 12.0.0"), "{text}");
        set("FAKE_CUBLASLT", "130102 1 1 0");
        let text = error(&device).to_string();
        assert!(text.contains("does not start: CUBLAS_STATUS_AS_ASKED"), "{text}");

        set("FAKE_CUBLASLT", "130102 0 0 0");
        let mut gemm = Gemm::new(&device).unwrap();
        let text = gemm.prepare::<f16, f32>(shape(3, 5, 8)).unwrap_err().to_string();
        let words = "device: multiply 3×8 by 5×8 of f16 to f32: CUBLAS_STATUS_AS_ASKED";
        assert_eq!(text, words);
        // It is asked again, since nothing was chosen; and a failed product is an error.
        set("FAKE_CUBLASLT", "130102 0 1 13");
        gemm.prepare::<f16, f32>(shape(3, 5, 8)).unwrap();
        let zeros = device.zeroed::<f16>(64, &stream).unwrap();
        let mut y = device.zeroed::<f32>(15, &stream).unwrap();
        let failed = gemm.matmul(&zeros, &zeros, &mut y, shape(3, 5, 8), &stream);
        assert_eq!(failed.unwrap_err().to_string(), words);
        drop(gemm);
        assert_eq!(counts()[0], 0);
    });
}

#[test]
fn the_workspace_must_fit() {
    let test = "cublaslt::the_workspace_must_fit";
    FakeDriver::within(FakeDriver::with_cublaslt, test, "13000 1 90 0 1000000", || {
        let (device, _stream) = device();
        let error = error(&device);
        assert!(matches!(error, Error::DeviceOutOfMemory { free: 1_000_000, .. }), "{error}");
        assert_eq!(counts()[0], 0);
    });
}

#[test]
fn it_is_found_among_python_wheels() {
    let test = "cublaslt::it_is_found_among_python_wheels";
    FakeDriver::within(FakeDriver::with_cublaslt, test, PRETEND, || {
        let (device, _stream) = device();
        for inside in ["nvidia/cu13/lib", "nvidia/cublas/lib", "lib64"] {
            let site = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(site.path().join(inside)).unwrap();
            let library = site.path().join(inside).join("libcublasLt.so.12");
            std::fs::copy(folder().join("libcublasLt.so.13"), &library).unwrap();
            set("KVFOLD_CUBLASLT", site.path());
            let name = Gemm::new(&device).unwrap().name();
            assert!(name.contains(library.to_str().unwrap()), "{name}");
        }
    });
}
