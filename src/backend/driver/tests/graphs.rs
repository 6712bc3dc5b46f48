//! Captures and their graphs.

use super::*;

fn told<T>(result: Result<T>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_graph_does_what_was_captured_each_time() {
    for device in devices() {
        let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
        let mut copy = Copy::new(&device, &stream);
        let mut seen = device.zeroed::<u32>(12, &stream).unwrap();
        let mut source = device.host_buffer::<u32>(4).unwrap();
        let mut result = device.host_buffer::<u32>(12).unwrap();
        // Kernels are loaded when they first run, which a capture may not do.
        // SAFETY: `copy` holds what the parameters name, here and below.
        unsafe { stream.launch("copy", Launch::new(1, 256), &copy.params).unwrap() };
        let before = copy.blocks.to_vec(&stream).unwrap();
        let graph = stream
            .capture(|stream| {
                // SAFETY: the pinned buffers are not touched while the graph runs.
                unsafe {
                    copy.blocks.write_pinned(0, &source, 0..4, stream)?;
                    stream.launch("copy", Launch::new(1, 256), &copy.params)?;
                    seen.copy_from(0, &copy.blocks, 0, 12, stream)?;
                    seen.read_pinned(0, &mut result, 0..12, stream)?;
                }
                copy.blocks.fill(0xff, stream)
            })
            .unwrap();
        assert_eq!(copy.blocks.to_vec(&stream).unwrap(), before, "it was captured, not run");
        for turn in [10, 20] {
            source.as_mut_slice().copy_from_slice(&[turn, turn + 1, turn + 2, turn + 3]);
            // SAFETY: everything lives, and nobody else uses it.
            unsafe { graph.launch(&other).unwrap() };
            other.synchronize().unwrap();
            assert_eq!(result.as_slice()[..4], [turn, turn + 1, turn + 2, turn + 3]);
            assert_eq!(result.as_slice()[8..], [turn, turn + 1, turn + 2, turn + 3]);
            assert_eq!(copy.blocks.to_vec(&other).unwrap(), [u32::MAX; 12]);
        }
        let empty = stream.capture(|_| Ok(())).unwrap();
        // SAFETY: there is nothing in it.
        unsafe { empty.launch(&stream).unwrap() };
        // SAFETY: it is refused.
        let error = told(unsafe { graph.launch(&emulated(Default::default()).stream().unwrap()) });
        assert!(error.contains("of another device"), "{error}");
        stream.synchronize().unwrap();
    }
}

#[test]
fn what_cannot_be_captured_is_an_error_that_says_so() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let event = device.event().unwrap();
        let mut a = device.zeroed::<u32>(4, &stream).unwrap();
        let b = device.zeroed::<u32>(4, &stream).unwrap();
        type Wrong<'a> = &'a mut dyn FnMut(&DeviceStream) -> Result<()>;
        let wrong: [Wrong<'_>; 5] = [
            &mut |s| a.write(0, &[1], s),
            &mut |s| b.read(0, &mut [0], s),
            &mut |s| s.synchronize(),
            &mut |s| s.device().alloc::<u32>(4).map(|_| ()),
            &mut |s| s.capture(|_| Ok(())).map(|_| ()),
        ];
        for (i, wrong) in wrong.into_iter().enumerate() {
            // Returned, it is the error of the capture.
            let error = told(stream.capture(&mut *wrong)).to_lowercase();
            assert!(error.contains("captur"), "{i}: {error}");
            stream.synchronize().unwrap();
        }
        // Swallowed, it still spoils the capture. (Whether an event may be recorded is
        // the driver's affair: the emulated device is strict.)
        let swallow = |stream: &DeviceStream| {
            let _ = stream.synchronize();
            Ok(())
        };
        assert!(told(stream.capture(swallow)).contains("end a capture"));
        if device.info().name.starts_with("emulated") {
            let wrong: [Wrong<'_>; 4] = [
                &mut |s| s.record(&event),
                &mut |s| s.wait(&event),
                &mut |_| event.is_done().map(|_| ()),
                &mut |s| s.device().host_buffer::<u8>(1).map(|_| ()),
            ];
            for wrong in wrong {
                let error = told(stream.capture(&mut *wrong));
                assert!(error.contains("not permitted during a capture"), "{error}");
            }
        }
        // What a failed capture recorded is gone.
        let mut filled = device.zeroed::<u32>(1, &stream).unwrap();
        let failed = stream.capture(|stream| {
            filled.fill(1, stream)?;
            Err(crate::Error::Cancelled)
        });
        assert!(matches!(failed, Err(crate::Error::Cancelled)));
        assert_eq!(filled.to_vec(&stream).unwrap(), [0]);
    }
}

#[test]
fn other_threads_work_while_one_captures() {
    for device in devices() {
        let stream = device.stream().unwrap();
        let mut a = device.zeroed::<u32>(2, &stream).unwrap();
        let capture = |stream: &DeviceStream| {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    let stream = device.stream()?;
                    device.upload(&[7u32], &stream)?.to_vec(&stream)
                });
                assert_eq!(other.join().unwrap().unwrap(), [7]);
            });
            a.fill(1, stream)
        };
        let graph = stream.capture(capture).unwrap();
        // SAFETY: `a` lives, and nobody else uses it.
        unsafe { graph.launch(&stream).unwrap() };
        assert_eq!(a.to_vec(&stream).unwrap(), [0x0101_0101; 2]);
    }
}

#[test]
fn the_default_stream_and_panics() {
    for device in devices() {
        // SAFETY: null is the default stream.
        let default = unsafe { device.borrow_stream(std::ptr::null_mut()) };
        assert!(told(default.capture(|_| Ok(()))).contains("begin a capture"));
        let stream = device.stream().unwrap();
        let panics = std::panic::AssertUnwindSafe(|| stream.capture(|_| panic!("as asked")));
        assert!(std::panic::catch_unwind(panics).is_err());
        stream.synchronize().unwrap();
    }
}
