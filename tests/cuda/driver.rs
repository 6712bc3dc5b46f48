//! The CUDA driver layer without a GPU: a driver of our own over host memory
//! (`fake_cuda/`) stands where the system's would.

use crate::fake_cuda::{self, FakeDriver};
use kvfold::Error;
use kvfold::backend::driver::{Device, DeviceStream, Launch, Reservation, embedded};
use std::ffi::{CStr, CString, c_void};
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
    FakeDriver::within(FakeDriver::new, &format!("driver::{test}"), pretend, body);
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

        let (start, end) = (device.timed_event().unwrap(), device.timed_event().unwrap());
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
        let order = device.event().unwrap();
        stream.record(&order).unwrap();
        assert!(order.elapsed_since(&start).is_err() && end.elapsed_since(&order).is_err());
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
        drop((device, a, end, order, stream, start, b));
    });
}

/// The driver is asked once a kernel and shape, and told first how much shared memory there
/// will be, and that it matters more than a first-level cache.
#[test]
fn resident_blocks_are_asked_for_once() {
    with_fake_driver("resident_blocks_are_asked_for_once", "13000 1 90 0", || {
        const ASKED: &str = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
        let device = Device::cuda(0).unwrap();
        let blocks = |kernel: &str, threads, shared_kb: u32| {
            device.resident_blocks(kernel, Launch::new(1, threads).shared(shared_kb << 10))
        };
        calls();
        // Three multiprocessors of 2,048 threads and 228 KB, of which a block takes one more.
        assert_eq!(blocks("add_one", 1024, 0).unwrap(), 3 * 2);
        assert_eq!(calls(), ASKED, "it has no shared memory to prefer");
        assert_eq!(blocks("add_one", 128, 100).unwrap(), 3 * 2);
        assert_eq!(
            calls(),
            format!("cuFuncSetAttribute(8,102400) cuFuncSetAttribute(9,100) {ASKED}")
        );
        assert_eq!(blocks("add_one", 128, 64).unwrap(), 3 * 3);
        assert_eq!(calls(), ASKED, "it may have that already");
        assert_eq!(blocks("add_one", 128, 100).unwrap(), 3 * 2);
        assert_eq!(calls(), "");

        let told = |r: kvfold::Result<u32>| r.unwrap_err().to_string();
        let error = told(blocks("subtract_one", 128, 0));
        assert!(error.contains("subtract_one: the build has no such kernel"), "{error}");
        let error = told(blocks("add_one", 4096, 0));
        assert!(error.contains("add_one") && error.contains("none with 4096 threads"), "{error}");
        refuse(&format!("{ASKED} 1"));
        let error = told(blocks("add_one", 64, 0));
        assert!(error.contains("count the blocks of add_one"), "{error}");
        assert_eq!(blocks("add_one", 64, 0).unwrap(), 3 * 32, "asked anew");
        refuse("cuFuncSetAttribute 1");
        let error = told(blocks("add_one", 64, 120));
        assert!(error.contains("give add_one 122880 bytes of shared memory"), "{error}");
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
        assert!(matches!(null, Err(Error::Misuse { .. })));
    });
}

/// The calls of the driver since the last time, of those that it takes note of.
fn calls() -> String {
    let mut text = [0u8; 10_000];
    with_context(c"fake_cuda_calls", text.as_mut_ptr().cast());
    CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap().to_owned()
}

/// Lets the next call of this name fail: "name status".
fn refuse(call: &str) {
    let call = CString::new(call).unwrap();
    with_context(c"fake_cuda_refuse", call.as_ptr().cast_mut().cast());
}

fn add_one(
    stream: &DeviceStream,
    a: &kvfold::backend::driver::DeviceBuffer<u8>,
) -> kvfold::Result<()> {
    let params = [a.address(), a.len() as u64];
    // SAFETY: `a` holds the bytes that the kernel adds to, and outlives every run.
    unsafe { stream.launch("add_one", Launch::new(1, 32), &params) }
}

#[test]
fn graphs_are_captured_and_launched() {
    with_fake_driver("graphs_are_captured_and_launched", "13000 1 90 0", || {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        let mut a = device.upload(&[1u8, 2, 3], &stream).unwrap();
        let mut b = device.zeroed::<u8>(3, &stream).unwrap();
        let mut host = device.host_buffer::<u8>(2).unwrap();
        calls();
        let graph = stream
            .capture(|stream| {
                add_one(stream, &a)?;
                b.copy_from(0, &a, 0, 3, stream)?;
                // SAFETY: `host` is not touched while the graph runs.
                unsafe { b.read_pinned(1, &mut host, 0..2, stream) }
            })
            .unwrap();
        assert_eq!(
            calls(),
            "cuStreamBeginCapture_v2 cuLaunchKernel cuStreamEndCapture \
             cuGraphInstantiateWithFlags cuGraphDestroy"
        );
        assert_eq!((b.to_vec(&stream).unwrap(), host.as_slice()), (vec![0; 3], &[0, 0][..]));
        for _ in 0..2 {
            // SAFETY: the buffers live, and nobody else uses them.
            unsafe { graph.launch(&stream).unwrap() };
        }
        assert_eq!((b.to_vec(&stream).unwrap(), host.as_slice()), (vec![3, 4, 5], &[4, 5][..]));
        drop(graph);
        assert_eq!(calls(), "cuGraphLaunch cuGraphLaunch cuGraphExecDestroy");

        let told = |r: kvfold::Result<_>| r.map(|_| ()).unwrap_err().to_string();
        // The closure's own error; the graph of what was captured is not kept.
        let error = told(stream.capture(|stream| {
            add_one(stream, &a)?;
            a.write(0, &[1], stream)
        }));
        assert!(error.contains("copy to the device: not permitted during a capture"), "{error}");
        assert_eq!(
            calls(),
            "cuStreamBeginCapture_v2 cuLaunchKernel cuStreamEndCapture \
             cuGraphInstantiateWithFlags cuGraphDestroy cuGraphExecDestroy"
        );
        // What spoils a capture is an error at its end, even if nobody looked.
        let error = told(stream.capture(|stream| {
            let _ = stream.device().alloc::<u8>(1);
            add_one(stream, &a)
        }));
        assert!(error.contains("end a capture"), "{error}");
        assert_eq!(calls(), "cuStreamBeginCapture_v2 cuLaunchKernel cuStreamEndCapture");
        let error = told(stream.capture(|stream| stream.capture(|_| Ok(())).map(|_| ())));
        assert!(error.contains("begin a capture"), "{error}");
        calls();
        for (status, says) in [(2, "memory is full, "), (1, "as the test asked")] {
            refuse(&format!("cuGraphInstantiateWithFlags {status}"));
            let error = told(stream.capture(|stream| add_one(stream, &a)));
            assert!(error.contains("instantiate a graph") && error.contains(says), "{error}");
            assert!(calls().ends_with("cuGraphInstantiateWithFlags cuGraphDestroy"));
        }
        // A panic ends the capture, too.
        let panic = std::panic::AssertUnwindSafe(|| stream.capture(|_| panic!("as asked")));
        assert!(std::panic::catch_unwind(panic).is_err());
        stream.synchronize().unwrap();
        assert_eq!(a.to_vec(&stream).unwrap(), [3, 4, 5]);
    });
}

#[test]
fn pinned_memory_and_events() {
    with_fake_driver("pinned_memory_and_events", "13000 1 90 0", || {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        let (mut host, event) = (device.host_buffer::<u32>(4).unwrap(), device.event().unwrap());
        assert_eq!(host.as_slice(), [0; 4]);
        host.as_mut_slice().copy_from_slice(&[1, 2, 3, 4]);
        let mut a = device.zeroed::<u32>(3, &stream).unwrap();
        calls();
        // SAFETY: the event is waited for before `host` is used again.
        unsafe {
            a.write_pinned(1, &host, 2..4, &stream).unwrap();
            a.read_pinned(0, &mut host, 0..3, &stream).unwrap();
        }
        stream.record(&event).unwrap();
        refuse("cuEventQuery 600"); // not ready
        assert!(!event.is_done().unwrap() && event.is_done().unwrap());
        event.wait().unwrap();
        assert_eq!(host.as_slice(), [0, 3, 4, 4]);
        assert_eq!(calls(), "cuEventQuery cuEventQuery cuEventSynchronize");
        refuse("cuEventQuery 700");
        assert!(event.is_done().unwrap_err().to_string().contains("ask for an event"));

        refuse("cuMemHostAlloc 2");
        let error = device.host_buffer::<u32>(10).unwrap_err().to_string();
        assert!(error.contains("allocate 40 bytes of pinned host memory"), "{error}");
        calls();
        drop(host);
        assert_eq!(calls(), "cuMemFreeHost");
    });
}

#[test]
fn virtual_memory_is_mapped_and_unmapped() {
    with_fake_driver("virtual_memory_is_mapped_and_unmapped", "13000 1 90 0 300000", || {
        const CHUNK: usize = 65536;
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        let free = || device.memory().unwrap().free;
        calls();
        let mut range = Reservation::new(&device, 5 * CHUNK as u64 + 1, 1).unwrap();
        assert_eq!((range.chunks(), range.chunk_bytes()), (6, CHUNK as u64));
        assert_eq!((range.committed(), free()), (0, 300_000));
        range.commit(1..3).unwrap();
        range.commit(2..4).unwrap();
        const COMMIT: &str = " cuMemCreate cuMemMap cuMemRelease cuMemSetAccess";
        assert_eq!(calls(), "cuMemAddressReserve".to_owned() + &COMMIT.repeat(3));
        assert_eq!((range.committed() as usize, free() as usize), (3 * CHUNK, 300_000 - 3 * CHUNK));
        // Three chunks are one piece of memory.
        let at = range.address() + CHUNK as u64;
        // SAFETY: the range has memory here, and outlives the buffer.
        let mut a =
            unsafe { kvfold::backend::driver::DeviceBuffer::borrow(&device, at, 3 * CHUNK) };
        a.write(0, &vec![7u8; 3 * CHUNK], &stream).unwrap();

        // The second of two chunks does not fit: neither stays.
        match range.commit(4..6) {
            Err(Error::DeviceOutOfMemory { needed, free }) => {
                assert_eq!((needed as usize, free as usize), (2 * CHUNK, 300_000 - 3 * CHUNK));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(calls(), COMMIT[1..].to_owned() + " cuMemCreate cuMemUnmap");
        assert!(matches!(range.commit(5..7), Err(Error::NotFound { .. })));
        for (call, after) in [
            ("cuMemCreate 1", "cuMemCreate"),
            ("cuMemMap 1", "cuMemCreate cuMemMap cuMemRelease"),
            ("cuMemSetAccess 1", &(COMMIT[1..].to_owned() + " cuMemUnmap")),
        ] {
            refuse(call);
            assert!(matches!(range.commit(0..1), Err(Error::Device { .. })), "{call}");
            assert_eq!(calls(), after);
            assert_eq!((range.is_committed(0), free() as usize), (false, 300_000 - 3 * CHUNK));
        }
        // SAFETY: nothing runs.
        unsafe {
            range.decommit(2);
            range.decommit(2);
        }
        assert_eq!((calls().as_str(), range.committed() as usize), ("cuMemUnmap", 2 * CHUNK));
        drop(range);
        assert_eq!(calls(), "cuCtxSynchronize cuMemUnmap cuMemUnmap cuMemAddressFree");
        assert_eq!(free(), 300_000);
    });
}

#[test]
fn a_device_without_virtual_memory() {
    with_fake_driver("a_device_without_virtual_memory", "13000 1 90 0 1000000 0", || {
        let error = Reservation::new(&Device::cuda(0).unwrap(), 1, 1).err().unwrap();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("virtual memory management"), "{error}");
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
