//! What every driver promises, on the emulated device and on CUDA if there is one.

use super::*;
use crate::backend::cuda::params::{CopyJob, CopyParams, KvArena};
use crate::error::Error;
use std::time::Duration;

fn emulated(options: emulated::EmulatorOptions) -> Device {
    Device::emulated(options)
}

/// The devices of this machine.
fn devices() -> Vec<Device> {
    let mut all = vec![emulated(Default::default())];
    all.extend(Device::cuda(0));
    all
}

#[test]
fn memory_keeps_what_is_written() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let mut a = device.upload(&[1u32, 2, 3, 4, 5], &stream).unwrap();
        assert_eq!((a.len(), a.bytes(), a.address() % 256), (5, 20, 0));
        a.write(1, &[20, 30], &stream).unwrap();
        let mut b = device.zeroed::<u32>(4, &stream).unwrap();
        b.copy_from(1, &a, 2, 3, &stream).unwrap();
        assert_eq!(b.to_vec(&stream).unwrap(), [0, 30, 4, 5]);
        b.fill(0xff, &stream).unwrap();
        let mut two = [0; 2];
        b.read(2, &mut two, &stream).unwrap();
        assert_eq!(two, [u32::MAX; 2]);
        assert_eq!(a.to_vec(&stream).unwrap(), [1, 20, 30, 4, 5]);
        assert_eq!(a.address_of(2), a.address() + 8);
    }
}

#[test]
fn ranges_and_devices_are_checked() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let mut a = device.zeroed::<u32>(4, &stream).unwrap();
        let b = device.zeroed::<u32>(4, &stream).unwrap();
        let told = |r: Result<()>| r.unwrap_err().to_string();
        assert!(told(a.write(3, &[0; 2], &stream)).contains("exceed the buffer of 4"));
        assert!(told(a.read(usize::MAX, &mut [0; 2], &stream)).contains("exceed the buffer"));
        assert!(told(a.copy_from(0, &b, 2, 3, &stream)).contains("exceed the buffer"));
        assert_eq!(a.to_vec(&stream).unwrap(), [0; 4]);

        let other = emulated(Default::default());
        let foreign = other.stream().unwrap();
        assert!(told(a.fill(1, &foreign)).contains("of another device"));
        assert!(told(stream.record(&other.event().unwrap())).contains("of another device"));
    }
}

#[test]
fn empty_buffers_and_grids_are_no_work() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let mut empty = device.upload::<u64>(&[], &stream).unwrap();
        assert!(empty.is_empty() && empty.address() == 0);
        empty.fill(1, &stream).unwrap();
        assert!(empty.to_vec(&stream).unwrap().is_empty());
        // SAFETY: nothing is launched.
        unsafe { stream.launch("no such kernel", Launch::grid([1, 0, 1], 32), &0u64).unwrap() };
    }
}

#[test]
fn memory_that_is_full_says_how_much_is_free() {
    let device = emulated(emulated::EmulatorOptions { memory: 1000, ..Default::default() });
    let stream = device.stream().unwrap();
    let a = device.zeroed::<u8>(600, &stream).unwrap();
    assert_eq!(device.memory().unwrap(), MemoryInfo { free: 400, total: 1000 });
    match device.alloc::<u64>(51) {
        Err(Error::DeviceOutOfMemory { needed: 408, free: 400 }) => {}
        other => panic!("{other:?}"),
    }
    drop(a);
    assert_eq!(device.memory().unwrap().free, 1000);
    // Lengths whose bytes overflow are refused before the device is asked.
    assert!(matches!(device.alloc::<u64>(usize::MAX), Err(Error::Config { .. })));
    // A borrowed buffer frees nothing.
    let a = device.zeroed::<u8>(600, &stream).unwrap();
    // SAFETY: `a` outlives it.
    drop(unsafe { DeviceBuffer::<u8>::borrow(&device, a.address(), 100) });
    assert_eq!(device.memory().unwrap().free, 400);
}

/// Three blocks of 16 bytes, the third a copy of the first once `copy` has run.
struct Copy {
    blocks: DeviceBuffer<u32>,
    // Named by `params`.
    _arenas: DeviceBuffer<KvArena>,
    _jobs: DeviceBuffer<CopyJob>,
    params: CopyParams,
}

impl Copy {
    fn new(device: &Device, stream: &Stream) -> Self {
        let numbers: Vec<u32> = (0..12).collect();
        let blocks = device.upload(&numbers, stream).unwrap();
        let arena = KvArena { base: blocks.address(), block_bytes: 16, ..Default::default() };
        let arenas = device.upload(&[arena], stream).unwrap();
        let jobs = device.upload(&[CopyJob { from: 0, to: 2, ..Default::default() }], stream);
        let jobs = jobs.unwrap();
        let (copies, arenas_at) = (jobs.address(), arenas.address());
        let params = CopyParams { copies, arenas: arenas_at, n_copies: 1, reserved: 0 };
        Self { blocks, _arenas: arenas, _jobs: jobs, params }
    }
}

#[test]
fn kernels_run() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let copy = Copy::new(&device, &stream);
        // SAFETY: `copy` holds what the parameters name.
        unsafe { stream.launch("copy", Launch::new(1, 256), &copy.params).unwrap() };
        let after = copy.blocks.to_vec(&stream).unwrap();
        assert_eq!(after, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]);
    }
}

#[test]
fn events_measure() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let copy = Copy::new(&device, &stream);
        let (start, end) = (device.event().unwrap(), device.event().unwrap());
        assert!(end.elapsed_since(&start).is_err(), "nothing was recorded");
        stream.record(&start).unwrap();
        for _ in 0..2 {
            // SAFETY: `copy` holds what the parameters name.
            unsafe { stream.launch("copy", Launch::new(1, 256), &copy.params).unwrap() };
        }
        stream.record(&end).unwrap();
        stream.wait(&end).unwrap();
        stream.synchronize().unwrap();
        let elapsed = end.elapsed_since(&start).unwrap();
        match device.info().name.starts_with("emulated") {
            true => assert_eq!(elapsed, Duration::from_nanos(2)),
            false => assert!(elapsed > Duration::ZERO),
        }
    }
}

#[test]
fn what_cannot_be_launched_is_named() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let params = CopyParams::default();
        let told = |kernel: &str, shape: Launch| {
            // SAFETY: none of these comes to run.
            unsafe { stream.launch(kernel, shape, &params) }.unwrap_err().to_string()
        };
        assert!(told("no_such_kernel", Launch::new(1, 256)).contains("no_such_kernel"));
        assert!(told("a\0b", Launch::new(1, 256)).contains("no such kernel"));
        let much = Launch::new(1, 256).shared(1 << 20);
        assert!(told("copy", much).contains("bytes of shared memory"));
        let error = told("copy", Launch::new(1, 2048));
        assert!(error.contains("launch copy") && error.contains("2048"), "{error}");
        // SAFETY: the parameters have the wrong size and are refused.
        let error = unsafe { stream.launch("copy", Launch::new(1, 256), &0u32) }.unwrap_err();
        assert!(error.to_string().contains("launch copy"), "{error}");
    }
}

/// The records of a trace as kernels/emulator/replay/trace.h defines them, a line each;
/// addresses by the number of their allocation, bytes by their hash.
fn lines_of(trace: &[u8]) -> Vec<String> {
    let mut rest = trace.strip_prefix(b"kvftrace\x01\0\0\0").unwrap();
    let mut allocations = Vec::new();
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let mut take = |n: u64| {
            let (taken, after) = rest.split_at(n as usize);
            rest = after;
            taken.to_vec()
        };
        let word = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap());
        let half = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
        let kind = take(1)[0];
        if kind == 6 {
            let shape: Vec<u32> = (0..5).map(|_| half(take(4))).collect();
            let seed = word(take(8));
            let [name_bytes, params_bytes] = [0; 2].map(|_| u64::from(half(take(4))));
            let name = String::from_utf8(take(name_bytes)).unwrap();
            let params = trace::hash(&take(params_bytes));
            lines.push(format!("launch {name} {shape:?} seed {seed} of {params}"));
            continue;
        }
        let at = word(take(8));
        if kind == 1 {
            allocations.push(at);
        }
        let name = allocations.iter().position(|a| *a == at);
        let name = name.map_or(at.to_string(), |n| format!("#{n}"));
        lines.push(match kind {
            1 => format!("alloc {name} {}", word(take(8))),
            2 => format!("free {name}"),
            3 => {
                let bytes = word(take(8));
                format!("write {name} {bytes} {}", trace::hash(&take(bytes)))
            }
            4 => format!("fill {name} {} {}", word(take(8)), take(1)[0]),
            5 => format!("copy {name} {} {}", word(take(8)), word(take(8))),
            7 => format!("read {name} {} {}", word(take(8)), word(take(8))),
            8 => format!("end {name}"),
            other => panic!("kind {other}"),
        });
    }
    lines
}

#[test]
fn calls_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let options = emulated::EmulatorOptions { seed: 5, memory: 1 << 20, ..Default::default() };
    let driver = emulated::EmulatedDriver::new(options);
    let device = Device::new(recording::RecordingDriver::new(driver, folder.path()));
    let stream = device.stream().unwrap();
    let mut other = device.alloc::<u32>(12).unwrap();
    let copy = Copy::new(&device, &stream);
    // SAFETY: the first is refused; `copy` holds what the parameters name.
    unsafe {
        stream.launch("no_such_kernel", Launch::new(1, 256), &copy.params).unwrap_err();
        stream.launch("copy", Launch::new(1, 256), &copy.params).unwrap();
    }
    assert!(matches!(device.alloc::<u8>(1 << 20), Err(Error::DeviceOutOfMemory { .. })));
    other.fill(9, &stream).unwrap();
    other.copy_from(0, &copy.blocks, 0, 12, &stream).unwrap();
    assert_eq!(other.to_vec(&stream).unwrap()[8..], [0, 1, 2, 3]);
    let [blocks, arenas, jobs] = [
        trace::hash(bytemuck::bytes_of(&[0u32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])),
        trace::hash(bytemuck::cast_slice(&copy._arenas.to_vec(&stream).unwrap())),
        trace::hash(bytemuck::cast_slice(&copy._jobs.to_vec(&stream).unwrap())),
    ];
    let params = trace::hash(bytemuck::bytes_of(&copy.params));
    let after = trace::hash(bytemuck::bytes_of(&[0u32, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]));
    let at = other.address();
    drop((copy, other, stream, device));

    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].file_name().to_string_lossy().contains("calls_are_recorded"));
    let want = format!(
        "alloc #0 48
         alloc #1 48
         write #1 48 {blocks}
         alloc #2 40
         write #2 40 {arenas}
         alloc #3 16
         write #3 16 {jobs}
         launch copy [1, 1, 1, 256, 0] seed 6 of {params}
         fill #0 48 9
         copy #1 {at} 48
         read #0 48 {after}
         read #2 40 {arenas}
         read #3 16 {jobs}
         free #1
         free #2
         free #3
         free #0
         end 17"
    );
    let lines = lines_of(&std::fs::read(files[0].path()).unwrap());
    assert_eq!(lines, want.lines().map(str::trim).collect::<Vec<_>>());
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap().path().join("gone");
    let driver = emulated::EmulatedDriver::new(Default::default());
    let device = Device::new(recording::RecordingDriver::new(driver, &folder));
    let error = device.alloc::<u32>(1).unwrap_err().to_string();
    assert!(error.contains(&*folder.to_string_lossy()), "{error}");
    // For good: a trace without this call would be another program's.
    let error = device.alloc::<u32>(1).unwrap_err().to_string();
    assert!(error.contains("incomplete"), "{error}");
}
