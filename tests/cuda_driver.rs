//! The CUDA driver layer without a GPU: a driver of our own over host memory
//! (`fake_cuda/`) stands where the system's would.
#![cfg(all(feature = "cuda", target_os = "linux"))]

mod fake_cuda;

use fake_cuda::FakeDriver;
use kvfold::Error;
use kvfold::backend::driver::{Device, DeviceBuffer, Launch, Reservation, Stream, embedded};
use std::ffi::{CStr, c_void};
use std::time::Duration;

/// The lines of `kvfold info` about CUDA.
fn info(driver: &FakeDriver, pretend: &str) -> String {
    let output = driver.run(env!("CARGO_BIN_EXE_kvfold").into(), &["info"], pretend);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(output.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&output.stderr));
    let lines = text.lines().skip_while(|l| !l.starts_with("cuda"));
    lines.take_while(|l| !l.starts_with("models")).collect::<Vec<_>>().join("\n")
}

#[test]
fn info_names_the_driver_and_the_devices() {
    let driver = FakeDriver::new();
    let text = info(&driver, "13010 2 90 0");
    let kernels = embedded().unwrap();
    assert!(text.contains(&kernels.describe()), "{text}");
    assert!(text.contains("the driver supports CUDA 13.1"), "{text}");
    assert!(text.contains("device 0: Fake device, sm_90, 3 multiprocessors"), "{text}");
    assert!(text.contains("device 1: ") && !text.contains("cannot be used"), "{text}");
}

#[test]
fn info_names_cublaslt_or_says_that_it_is_missing() {
    let line = |driver: &FakeDriver| {
        let text = info(driver, "13000 1 90 0");
        let lines: Vec<_> = text.lines().filter(|l| l.contains("cuBLASLt")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        lines[0].trim().to_owned()
    };
    let text = line(&FakeDriver::with_cublaslt());
    assert!(
        text.starts_with("cuBLASLt 13.1.2 (") && text.ends_with("libcublasLt.so.13)"),
        "{text}"
    );
    let text = line(&FakeDriver::new());
    assert!(text.contains("install cuBLAS") && text.contains("KVFOLD_CUBLASLT"), "{text}");
}

#[test]
fn info_says_why_a_device_cannot_be_used() {
    let driver = FakeDriver::new();
    let text = info(&driver, "13000 1 75 0");
    assert!(text.contains("sm_75") && text.contains("no kernels for sm_75"), "{text}");
    assert!(text.contains("KVFOLD_CUDA_ARCHS"), "{text}");
    let text = info(&driver, "13000 0 90 0");
    assert!(text.contains("initialise the driver") && text.contains("NO_DEVICE"), "{text}");
    let text = info(&driver, "11040 1 90 0");
    assert!(
        text.contains("supports CUDA 11.4, but") && text.contains("update the driver"),
        "{text}"
    );
}

#[test]
fn a_binary_without_a_driver_starts_and_says_so() {
    let text = info(&FakeDriver::broken(), "");
    assert!(
        text.contains("no NVIDIA driver was found (") && text.contains("libcuda.so.1"),
        "{text}"
    );
}

fn with_fake_driver(test: &str, pretend: &str, body: fn()) {
    FakeDriver::within(FakeDriver::new, test, pretend, body);
}

#[test]
fn memory_streams_events_and_launches() {
    with_fake_driver("memory_streams_events_and_launches", "13000 1 90 0", || {
        let device = Device::cuda(0).unwrap();
        let info = device.info();
        assert_eq!((info.name.as_str(), info.arch, info.multiprocessors), ("Fake device", 90, 3));
        assert_eq!((info.shared_bytes, info.l2_bytes), (227 << 10, 50 << 20));
        assert!(matches!(Device::cuda(1), Err(Error::Config { .. })));

        let stream = device.stream().unwrap();
        let mut a = device.upload(&[1u8, 2, 3, 4], &stream).unwrap();
        assert_eq!(device.memory().unwrap().free, 999_996);
        match device.alloc::<u8>(1_000_000) {
            Err(Error::DeviceOutOfMemory { needed: 1_000_000, free: 999_996 }) => {}
            other => panic!("{other:?}"),
        }
        let mut b = device.zeroed::<u8>(4, &stream).unwrap();
        b.copy_from(1, &a, 0, 3, &stream).unwrap();
        assert_eq!(b.to_vec(&stream).unwrap(), [0, 1, 2, 3]);
        a.fill(9, &stream).unwrap();

        let (start, end) = (device.event().unwrap(), device.event().unwrap());
        stream.record(&start).unwrap();
        let params = [a.address(), 3];
        let launch = |kernel: &str, shape: Launch| {
            // SAFETY: `a` holds the 3 bytes that the kernel adds to.
            unsafe { stream.launch(kernel, shape, &params) }
        };
        launch("add_one", Launch::new(1, 32)).unwrap();
        // More shared memory than a kernel has without asking.
        launch("add_one", Launch::new(1, 32).shared(100 << 10)).unwrap();
        launch("add_one", Launch::new(1, 32).shared(64 << 10)).unwrap();
        stream.record(&end).unwrap();
        stream.wait(&end).unwrap();
        assert_eq!(end.elapsed_since(&start).unwrap(), Duration::from_micros(1500));
        assert_eq!(a.to_vec(&stream).unwrap(), [12, 12, 12, 9]);

        let told = |r: kvfold::Result<()>| r.unwrap_err().to_string();
        let error = told(launch("add_one", Launch::new(1, 32).shared(228 << 10)));
        assert!(error.contains("233472 bytes of shared memory are needed"), "{error}");
        let error = told(launch("subtract_one", Launch::new(1, 32)));
        assert!(error.contains("subtract_one: the build has no such kernel"), "{error}");
        // SAFETY: refused for its size.
        let error = told(unsafe { stream.launch("add_one", Launch::new(1, 32), &0u32) });
        assert!(error.contains("launch add_one") && error.contains("as the test asked"), "{error}");

        // In whatever order they go, the context goes last: the fake driver aborts
        // if anything is left in it.
        drop((device, a, end, stream, start, b));
    });
}

/// Launches the driver's one kernel: adds 1 to the first `n` bytes.
fn add_one(stream: &Stream, to: &DeviceBuffer<u8>, n: u64) -> kvfold::Result<()> {
    // SAFETY: every caller has so many bytes, which live until the graph has run.
    unsafe { stream.launch("add_one", Launch::new(1, 32), &[to.address(), n]) }
}

#[test]
fn graphs_run_what_was_captured() {
    with_fake_driver("graphs_run_what_was_captured", "13000 1 90 0", || {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        let mut a = device.upload(&[1u8, 2, 3, 4], &stream).unwrap();
        let mut host = device.host_buffer::<u8>(4).unwrap();
        assert_eq!(host.as_slice(), [0; 4]);
        let captured = |stream: &Stream| {
            // SAFETY: whoever launches the graph keeps `host` as it is until it has run.
            unsafe { a.write_pinned(0, &host, 0..4, stream)? };
            add_one(stream, &a, 3)
        };
        let graph = stream.capture(captured).unwrap();
        assert_eq!(a.to_vec(&stream).unwrap(), [1, 2, 3, 4], "nothing ran yet");
        for first in [5, 50] {
            host.as_mut_slice()[0] = first;
            // SAFETY: `a` and `host` live, and nobody else uses them.
            unsafe { graph.launch(&stream).unwrap() };
            assert_eq!(a.to_vec(&stream).unwrap(), [first + 1, 1, 1, 0]);
        }
        // Ordinary memory may be gone when the graph runs.
        let told = |r: kvfold::Result<_>| match r {
            Ok(_) => panic!("captured"),
            Err(error) => error.to_string(),
        };
        let error = told(stream.capture(|stream| a.to_vec(stream).map(drop)));
        assert!(error.contains("not permitted during a capture"), "{error}");
        let error = told(stream.capture(|stream| a.write(0, &[1], stream)));
        assert!(error.contains("not permitted during a capture"), "{error}");
        // Spoiled captures end, too.
        let error = told(stream.capture(|stream| stream.synchronize().or(Ok(()))));
        assert!(error.contains("end a capture"), "{error}");
        let error = told(stream.capture(|stream| stream.capture(|_| Ok(())).map(drop)));
        assert!(error.contains("begin a capture"), "{error}");
        add_one(&stream, &a, 1).unwrap();
        assert_eq!(a.to_vec(&stream).unwrap(), [52, 1, 1, 0]);
        drop((device, stream, host, a, graph));
    });
}

#[test]
fn a_graph_that_does_not_fit_is_an_error() {
    with_fake_driver("a_graph_that_does_not_fit_is_an_error", "13000 1 90 0 999 2", || {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        let a = device.zeroed::<u8>(9, &stream).unwrap();
        let error = stream.capture(|stream| add_one(stream, &a, 1)).map(drop).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("990 bytes are free") && error.contains("--kv-budget"), "{error}");
    });
}

#[test]
fn reserved_addresses_get_memory_in_parts() {
    with_fake_driver("reserved_addresses_get_memory_in_parts", "13000 1 90 0 1000000", || {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        let free = || device.memory().unwrap().free;
        // In units of 64 KiB.
        let mut range = Reservation::new(&device, 1_500_000, 100_000).unwrap();
        assert_eq!((range.chunks(), range.chunk_bytes(), free()), (12, 131_072, 1_000_000));
        range.commit(1..3).unwrap();
        range.commit(2..4).unwrap();
        assert_eq!((range.committed(), free()), (393_216, 606_784));
        // SAFETY: the three chunks have memory, and nobody else uses them.
        let mut part =
            unsafe { DeviceBuffer::<u8>::borrow(&device, range.address() + 131_072, 393_216) };
        part.fill(7, &stream).unwrap();
        part.write(131_070, &[1, 2, 3, 4], &stream).unwrap();
        let mut seen = [0; 6];
        part.read(131_069, &mut seen, &stream).unwrap();
        assert_eq!(seen, [7, 1, 2, 3, 4, 7]);
        drop(part);
        // All or nothing: nine chunks are missing, four would fit.
        match range.commit(0..12) {
            Err(Error::DeviceOutOfMemory { needed: 1_179_648, free: 606_784 }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!((range.committed(), free()), (393_216, 606_784));
        // SAFETY: nothing runs.
        unsafe { range.decommit(2) };
        assert_eq!((range.is_committed(2), free()), (false, 737_856));
        assert!(matches!(range.commit(11..13), Err(Error::NotFound { .. })));
        drop((device, stream, range));
    });
}

/// A function of the driver without arguments but one handle.
fn with_context(name: &CStr, context: *mut c_void) {
    // SAFETY: the driver has this function, of this type.
    assert_eq!(unsafe { fake_cuda::call(c"libcuda.so.1", name, context) }, 0);
}

#[test]
fn a_borrowed_context_is_given_back() {
    with_fake_driver("a_borrowed_context_is_given_back", "13000 1 90 0", || {
        let mut theirs = 0u64;
        let context: *mut c_void = (&raw mut theirs).cast();
        with_context(c"cuCtxPushCurrent_v2", context);
        // SAFETY: the fake driver takes any address for a context.
        let device = unsafe { Device::borrow_cuda(context).unwrap() };
        // SAFETY: null is the default stream.
        let stream = unsafe { device.borrow_stream(std::ptr::null_mut()) };
        let a = device.upload(&[1u32, 2], &stream).unwrap();
        assert_eq!(a.to_vec(&stream).unwrap(), [1, 2]);
        drop((a, stream, device));
        // Their context is current as before.
        let mut now: *mut c_void = std::ptr::null_mut();
        with_context(c"cuCtxGetCurrent", (&raw mut now).cast());
        assert_eq!(now, context);
        // SAFETY: as above.
        let null = unsafe { Device::borrow_cuda(std::ptr::null_mut()) };
        assert!(matches!(null, Err(Error::Config { .. })));
    });
}

fn refused() -> Error {
    Device::cuda(0).map(|_| ()).unwrap_err()
}

#[test]
fn no_code_for_the_device() {
    with_fake_driver("no_code_for_the_device", "13000 1 90 209", || match refused() {
        Error::NoKernelForArch { arch, embedded: has } => {
            assert_eq!((arch.as_str(), has), ("sm_90", embedded().unwrap().describe()));
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn no_code_for_an_old_device() {
    with_fake_driver("no_code_for_an_old_device", "13000 1 70 0", || {
        assert!(matches!(refused(), Error::NoKernelForArch { arch, .. } if arch == "sm_70"));
    });
}

#[test]
fn ptx_is_too_new() {
    with_fake_driver("ptx_is_too_new", "13000 1 90 222", || {
        assert!(matches!(refused(), Error::DriverTooOld { found, .. } if found == "13.0"));
    });
}

#[test]
fn the_driver_is_too_old() {
    with_fake_driver("the_driver_is_too_old", "11080 1 90 0", || {
        assert!(matches!(refused(), Error::DriverTooOld { found, .. } if found == "11.8"));
    });
}
