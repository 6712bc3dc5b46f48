//! Pinned and virtual memory.

use super::*;

#[test]
fn pinned_copies_are_in_stream_order_and_done_when_waited_for() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let (first, second) = (device.event().unwrap(), device.event().unwrap());
        let mut source = device.host_buffer::<u32>(4).unwrap();
        let mut results = [(); 2].map(|()| device.host_buffer::<u32>(3).unwrap());
        assert_eq!((source.len(), source.as_slice()), (4, &[0; 4][..]));
        source.as_mut_slice().copy_from_slice(&[1, 2, 3, 4]);
        let mut a = device.zeroed::<u32>(3, &stream).unwrap();
        // SAFETY: every buffer is left alone until an event after its copy was waited for.
        unsafe {
            a.write_pinned(1, &source, 2..4, &stream).unwrap();
            a.read_pinned(0, &mut results[0], 0..3, &stream).unwrap();
            stream.record(&first).unwrap();
            a.fill(0, &stream).unwrap();
            a.read_pinned(1, &mut results[1], 1..3, &stream).unwrap();
            stream.record(&second).unwrap();
        }
        while !first.is_done().unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(results[0].as_slice(), [0, 3, 4]);
        second.wait().unwrap();
        assert!(first.is_done().unwrap() && second.is_done().unwrap());
        assert_eq!(results[1].as_slice(), [0; 3]);
        assert!(device.event().unwrap().is_done().unwrap(), "nothing was recorded");
    }
}

#[test]
fn pinned_ranges_are_checked() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let mut host = device.host_buffer::<u32>(4).unwrap();
        let mut a = device.zeroed::<u32>(4, &stream).unwrap();
        let other = emulated(Default::default());
        let foreign = other.host_buffer::<u32>(4).unwrap();
        let told = |r: Result<()>| r.unwrap_err().to_string();
        // SAFETY: none of these starts a copy.
        unsafe {
            assert!(told(a.write_pinned(0, &host, 2..5, &stream)).contains("host buffer of 4"));
            assert!(told(a.write_pinned(1, &host, 0..4, &stream)).contains("the buffer of 4"));
            #[allow(clippy::reversed_empty_ranges)]
            let error = told(a.read_pinned(0, &mut host, 2..1, &stream));
            assert!(error.contains("elements 2..1"), "{error}");
            assert!(told(a.write_pinned(0, &foreign, 0..4, &stream)).contains("another device"));
            a.write_pinned(4, &host, 4..4, &stream).unwrap();
        }
        assert!(matches!(device.host_buffer::<u64>(usize::MAX), Err(Error::Misuse { .. })));
        let empty = device.host_buffer::<u64>(0).unwrap();
        assert!(empty.is_empty() && empty.as_slice().is_empty());
    }
}

/// The emulated device makes copies as late as a real one may, so that whoever does not
/// wait is found out.
#[test]
fn pinned_buffers_in_use_are_found_out() {
    let device = emulated(Default::default());
    let stream = device.stream().unwrap();
    let mut host = device.host_buffer::<u32>(2).unwrap();
    let mut a = device.zeroed::<u32>(2, &stream).unwrap();
    // SAFETY: not kept, on purpose; the emulated device uses memory that lives.
    unsafe { a.write_pinned(0, &host, 0..2, &stream).unwrap() };
    host.as_mut_slice().fill(9);
    assert_eq!(a.to_vec(&stream).unwrap(), [9; 2], "written before the copy was made");
    let event = device.event().unwrap();
    // SAFETY: as above.
    unsafe { a.read_pinned(0, &mut host, 0..2, &stream).unwrap() };
    stream.record(&event).unwrap();
    assert_eq!(host.as_slice(), [u32::MAX; 2], "read before the copy was made");
    assert!(!event.is_done().unwrap());
    assert_eq!(host.as_slice(), [u32::MAX; 2]);
    assert!(event.is_done().unwrap());
    assert_eq!(host.as_slice(), [9; 2]);
}

#[test]
fn parts_of_a_range_have_memory_of_their_own() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let free = device.memory().unwrap().free;
        let mut range = Reservation::new(&device, 1, 1).unwrap();
        let chunk = range.chunk_bytes();
        assert_eq!((range.chunks(), range.bytes(), range.committed()), (1, chunk, 0));
        drop(range);
        range = Reservation::new(&device, 3 * chunk + 1, chunk - 1).unwrap();
        assert_eq!((range.chunks(), range.chunk_bytes(), range.bytes()), (4, chunk, 4 * chunk));
        let address = range.address();
        assert_eq!((address % 256, range.chunks_of(0..0)), (0, 0..0));
        assert_eq!(range.chunks_of(chunk - 1..chunk + 1), 0..2);
        range.commit(0..2).unwrap();
        // SAFETY: two chunks have memory, and outlive this.
        let mut bytes = unsafe { DeviceBuffer::<u8>::borrow(&device, address, 2 * chunk as usize) };
        bytes.fill(7, &stream).unwrap();
        range.commit(1..4).unwrap();
        assert_eq!((range.address(), range.committed()), (address, 4 * chunk));
        assert!(bytes.to_vec(&stream).unwrap().iter().all(|b| *b == 7));
        // SAFETY: nothing uses it.
        unsafe { range.decommit(2) };
        assert!(!range.is_committed(2) && range.is_committed(3) && !range.is_committed(4));
        assert!(bytes.to_vec(&stream).unwrap().iter().all(|b| *b == 7));
        assert_eq!(range.committed(), 3 * chunk);
        assert!(matches!(range.commit(3..5), Err(Error::NotFound { .. })));
        drop(range);
        if device.info().name.starts_with("emulated") {
            assert_eq!(device.memory().unwrap().free, free);
        }
        let nothing = Reservation::new(&device, 0, 1).unwrap();
        assert_eq!((nothing.address(), nothing.chunks()), (0, 0));
    }
}

#[test]
fn memory_that_is_full_leaves_a_range_as_it_was() {
    let options = emulated::EmulatorOptions { memory: 3 * 4096 + 100, ..Default::default() };
    let device = emulated(options);
    let mut range = Reservation::new(&device, 8 * 4096, 1).unwrap();
    range.commit(6..7).unwrap();
    match range.commit(0..3) {
        Err(Error::DeviceOutOfMemory { needed: 12_288, free: 8_292 }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!((range.committed(), device.memory().unwrap().free), (4096, 8_292));
    range.commit(0..2).unwrap();
    assert!(Reservation::new(&device, u64::MAX, 4096).is_err());
    assert!(Reservation::new(&device, 1 << 60, 4096).is_err());
}

#[test]
fn kernels_cross_chunks_but_not_into_what_has_no_memory() {
    let device = emulated(Default::default());
    let stream = device.stream().unwrap();
    let mut range = Reservation::new(&device, 5 * 4096, 1).unwrap();
    range.commit(0..1).unwrap();
    range.commit(2..3).unwrap();
    range.commit(1..2).unwrap();
    let block_bytes = 6144; // one and a half chunks
    let arena = KvArena { base: range.address(), block_bytes, ..Default::default() };
    let arenas = device.upload(&[arena], &stream).unwrap();
    let job = CopyJob { from: 0, to: 1, ..Default::default() };
    let jobs = device.upload(&[job], &stream).unwrap();
    let (copies, arenas) = (jobs.address(), arenas.address());
    let params = CopyParams { copies, arenas, n_copies: 1, reserved: 0 };
    // SAFETY: the parameters name memory that lives.
    let copy = || unsafe { stream.launch("copy", Launch::new(1, 256), &params) };
    let bytes = |block: u64| {
        let (at, len) = (range.address() + block * block_bytes, block_bytes as usize);
        // SAFETY: the first two blocks have memory.
        unsafe { DeviceBuffer::<u8>::borrow(&device, at, len) }
    };
    bytes(0).fill(3, &stream).unwrap();
    copy().unwrap();
    assert!(bytes(1).to_vec(&stream).unwrap().iter().all(|b| *b == 3));
    // SAFETY: nothing uses it.
    unsafe { range.decommit(2) };
    let error = copy().unwrap_err().to_string();
    assert!(error.contains("out of bounds") && error.contains("past the end"), "{error}");
    // It comes back as poison.
    range.commit(2..3).unwrap();
    let at = range.address() + 2 * 4096;
    // SAFETY: the chunk has memory.
    let again = unsafe { DeviceBuffer::<u8>::borrow(&device, at, 4096) };
    assert!(again.to_vec(&stream).unwrap().iter().all(|b| *b == 0xff));
}
