//! What every driver promises, on the emulated device and on CUDA if there is one.

mod graphs;
mod memory;

use super::*;
use crate::backend::cuda::params::{CopyJob, CopyParams, KvArena};
use crate::error::{Error, Result};
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
    assert!(matches!(device.alloc::<u64>(usize::MAX), Err(Error::Misuse { .. })));
    // A borrowed buffer frees nothing.
    let a = device.zeroed::<u8>(600, &stream).unwrap();
    // SAFETY: `a` outlives it.
    drop(unsafe { DeviceBuffer::<u8>::borrow(&device, a.address(), 100) });
    assert_eq!(device.memory().unwrap().free, 400);
}

/// Three blocks of 16 bytes, the third a copy of the first once `copy` has run.
pub(super) struct Copy {
    pub blocks: DeviceBuffer<u32>,
    // Named by `params`.
    pub arenas: DeviceBuffer<KvArena>,
    pub jobs: DeviceBuffer<CopyJob>,
    pub params: CopyParams,
}

impl Copy {
    pub fn new(device: &Device, stream: &DeviceStream) -> Self {
        let numbers: Vec<u32> = (0..12).collect();
        let blocks = device.upload(&numbers, stream).unwrap();
        let arena = KvArena { base: blocks.address(), block_bytes: 16, ..Default::default() };
        let arenas = device.upload(&[arena], stream).unwrap();
        let jobs = device.upload(&[CopyJob { from: 0, to: 2, ..Default::default() }], stream);
        let jobs = jobs.unwrap();
        let (copies, arenas_at) = (jobs.address(), arenas.address());
        let params = CopyParams { copies, arenas: arenas_at, n_copies: 1, reserved: 0 };
        Self { blocks, arenas, jobs, params }
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
        let (start, end) = (device.timed_event().unwrap(), device.timed_event().unwrap());
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
        let order = device.event().unwrap();
        stream.record(&order).unwrap();
        assert!(order.elapsed_since(&start).is_err(), "it has no time");
        assert!(end.elapsed_since(&order).is_err(), "it has no time");
    }
}

#[test]
fn resident_blocks_are_counted() {
    for device in devices() {
        let blocks = |kernel: &str, threads, shared: u32| {
            device.resident_blocks(kernel, Launch::new(1, threads).shared(shared))
        };
        let (alone, beside) =
            (blocks("copy", 256, 0).unwrap(), blocks("copy", 256, 80 << 10).unwrap());
        let multiprocessors = device.info().multiprocessors;
        assert!(alone >= 4 * multiprocessors && alone.is_multiple_of(multiprocessors));
        assert!(beside >= multiprocessors && beside < alone);
        assert!(blocks("no_such_kernel", 256, 0).is_err());
        assert!(blocks("copy", 256, device.info().shared_bytes + 1).is_err());
        if device.info().name.starts_with("emulated") {
            // What the kernel's launch bounds promise, and 164 KB of shared memory.
            assert_eq!((alone, beside), (4 * multiprocessors, 2 * multiprocessors));
            assert!(
                blocks("copy", 128, 0).unwrap_err().to_string().contains("128 threads, of 256")
            );
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
