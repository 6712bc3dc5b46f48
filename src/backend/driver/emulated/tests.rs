//! What traces say.

use super::*;
use crate::backend::driver::tests::Copy;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream, Reservation};

/// The records of the one device that `work` is done on, a line each.
fn recorded(work: impl FnOnce(&Device, &DeviceStream)) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let options = EmulatorOptions { seed: 5, memory: 1 << 20, ..Default::default() };
    let device = Device::new(EmulatedDriver::recording(options, folder.path()));
    let stream = device.stream().unwrap();
    work(&device, &stream);
    drop((stream, device));
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].file_name().to_string_lossy().contains("recorded"));
    lines_of(&std::fs::read(files[0].path()).unwrap())
}

fn hash<T: bytemuck::Pod>(values: &[T]) -> u64 {
    trace::hash(bytemuck::cast_slice(values))
}

/// The records of a trace as kernels/emulator/replay/trace.h defines them, a line each;
/// addresses by the number of their range, bytes by their hash.
fn lines_of(trace: &[u8]) -> Vec<String> {
    let mut rest = trace.strip_prefix(b"kvftrace\x01\0\0\0").unwrap();
    let mut ranges: Vec<u64> = Vec::new();
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let mut take = |n: u64| {
            let (taken, after) = rest.split_at(n as usize);
            rest = after;
            taken.to_vec()
        };
        let half = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
        let word = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap());
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
        if kind == 1 || kind == 8 {
            ranges.push(at);
        }
        // A range has addresses above those of all before it.
        let place = |at: u64| match ranges.iter().rposition(|begin| *begin <= at) {
            Some(n) if ranges[n] == at => format!("#{n}"),
            Some(n) => format!("#{n}+{}", at - ranges[n]),
            None => at.to_string(),
        };
        let name = place(at);
        lines.push(match kind {
            1 => format!("alloc {name} {}", word(take(8))),
            2 => format!("free {name}"),
            3 => {
                let bytes = word(take(8));
                format!("write {name} {bytes} {}", trace::hash(&take(bytes)))
            }
            4 => format!("fill {name} {} {}", word(take(8)), take(1)[0]),
            5 => format!("copy {name} {} {}", place(word(take(8))), word(take(8))),
            7 => format!("read {name} {} {}", word(take(8)), word(take(8))),
            8 => format!("reserve {name} {}", word(take(8))),
            9 => format!("commit {name} {}", word(take(8))),
            10 => format!("decommit {name} {}", word(take(8))),
            11 => format!("release {name} {}", word(take(8))),
            12 => format!("end {at}"),
            other => panic!("kind {other}"),
        });
    }
    lines
}

fn assert_lines(got: &[String], want: &str) {
    assert_eq!(got, want.lines().map(str::trim).collect::<Vec<_>>());
}

#[test]
fn calls_are_recorded() {
    let (mut arenas, mut jobs, mut params) = (0, 0, 0);
    let lines = recorded(|device, stream| {
        let mut other = device.alloc::<u32>(12).unwrap();
        let copy = Copy::new(device, stream);
        // SAFETY: the first is refused; `copy` holds what the parameters name.
        unsafe {
            stream.launch("no_such_kernel", Launch::new(1, 256), &copy.params).unwrap_err();
            stream.launch("copy", Launch::new(1, 256), &copy.params).unwrap();
        }
        assert!(matches!(device.alloc::<u8>(1 << 20), Err(Error::DeviceOutOfMemory { .. })));
        other.fill(9, stream).unwrap();
        other.copy_from(0, &copy.blocks, 0, 12, stream).unwrap();
        assert_eq!(other.to_vec(stream).unwrap()[8..], [0, 1, 2, 3]);
        arenas = hash(&copy.arenas.to_vec(stream).unwrap());
        jobs = hash(&copy.jobs.to_vec(stream).unwrap());
        params = hash(&[copy.params]);
        drop((copy, other));
    });
    let blocks = hash(&[0u32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let after = hash(&[0u32, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]);
    let want = format!(
        "alloc #0 48
         alloc #1 48
         write #1 48 {blocks}
         alloc #2 40
         write #2 40 {arenas}
         alloc #3 24
         write #3 24 {jobs}
         launch copy [1, 1, 1, 256, 0] seed 6 of {params}
         fill #0 48 9
         copy #1 #0 48
         read #0 48 {after}
         read #2 40 {arenas}
         read #3 24 {jobs}
         free #1
         free #2
         free #3
         free #0
         end 17"
    );
    assert_lines(&lines, &want);
}

#[test]
fn captured_and_pinned_work_is_recorded_when_it_is_done() {
    let mut params = 0;
    let lines = recorded(|device, stream| {
        let mut copy = Copy::new(device, stream);
        params = hash(&[copy.params]);
        let mut given = device.host_buffer::<u32>(4).unwrap();
        let mut taken = device.host_buffer::<u32>(4).unwrap();
        let captured = stream.capture(|stream| {
            // SAFETY: all of it lives, and is not used while copies are under way.
            unsafe {
                copy.blocks.write_pinned(0, &given, 0..4, stream)?;
                stream.launch("copy", Launch::new(1, 256), &copy.params)?;
                copy.blocks.read_pinned(8, &mut taken, 0..4, stream)
            }
        });
        let graph = captured.unwrap();
        for n in [7, 8] {
            given.as_mut_slice().fill(n);
            // SAFETY: as above.
            unsafe { graph.launch(stream).unwrap() };
            stream.synchronize().unwrap();
            assert_eq!(taken.as_slice(), [n; 4]);
        }
    });
    let mut want = String::new();
    for (n, seed) in [(7u32, 5), (8, 6)] {
        let four = hash(&[n; 4]);
        want += &format!(
            "write #0 16 {four}
             launch copy [1, 1, 1, 256, 0] seed {seed} of {params}
             read #0+32 16 {four}\n"
        );
    }
    assert_lines(&lines[6..12], &want);
    assert_lines(&lines[12..], "free #0\nfree #1\nfree #2\nend 15");
}

#[test]
fn virtual_memory_is_recorded() {
    let lines = recorded(|device, stream| {
        let mut range = Reservation::new(device, 3 * GRANULARITY, GRANULARITY).unwrap();
        range.commit(1..3).unwrap();
        let page = range.address() + GRANULARITY;
        // SAFETY: it has memory as long as the buffer lives.
        let mut numbers = unsafe { DeviceBuffer::<u8>::borrow(device, page + 8, 8) };
        numbers.fill(3, stream).unwrap();
        drop(numbers);
        // SAFETY: nothing is under way.
        unsafe { range.decommit(1) };
        // More than there is.
        let many = Reservation::new(device, 1 << 21, 1 << 21);
        assert!(many.unwrap().commit(0..1).is_err());
        assert!(device.driver().reserve(1 << 60).is_err());
    });
    let want = "reserve #0 12288
         commit #0+4096 4096
         commit #0+8192 4096
         fill #0+4104 8 3
         decommit #0+4096 4096
         reserve #1 2097152
         release #1 2097152
         decommit #0+8192 4096
         release #0 12288
         end 9";
    assert_lines(&lines, want);
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap().path().join("gone");
    let device = Device::new(EmulatedDriver::recording(Default::default(), &folder));
    let error = device.alloc::<u32>(1).unwrap_err().to_string();
    assert!(error.contains(&*folder.to_string_lossy()), "{error}");
    // For good: a trace without this call would be another program's.
    let error = device.alloc::<u32>(1).unwrap_err().to_string();
    assert!(error.contains("incomplete"), "{error}");
    assert_eq!(device.memory().unwrap().free, EmulatorOptions::default().memory);
}
