//! The launchers' numbers against those that the kernels' sources state for
//! `scripts/sass-check`, and against the launch bounds.

use super::launch;
use super::splits::SplitEnds;
use crate::backend::driver::{Device, Launch};
use crate::codec::KvFormat;
use crate::codec::formats::NAMED_FORMATS;
use std::collections::HashMap;

/// Bytes of shared memory of a multiprocessor of sm_80 and sm_90; a block takes 1 KB more
/// than it asks for (CUDA C++ Programming Guide, table of technical specifications).
const SHARED: [(&str, u32); 2] = [("blocks_80", 164 << 10), ("blocks_90", 228 << 10)];

/// What a header states of a kernel, by name: the lines `// sass: PATTERN name=d64:A/B …`
/// whose pattern is `family_*`.
fn stated(header: &str, family: &str, d: usize, columns: usize) -> HashMap<String, u32> {
    let lines = header.lines().filter_map(|line| line.strip_prefix("// sass: "));
    let fields = lines.filter_map(|line| {
        let (pattern, fields) = line.split_once(' ')?;
        (pattern == format!("{family}_*")).then_some(fields)
    });
    let mut found = HashMap::new();
    for (name, values) in fields.flat_map(|f| f.split(';')).filter_map(|f| f.trim().split_once('='))
    {
        let of_d = format!("d{d}:");
        let Some(values) = values.split(' ').find_map(|v| v.strip_prefix(&of_d)) else { continue };
        let values: Vec<u32> = values.split('/').map(|v| v.parse().unwrap()).collect();
        found.insert(name.to_owned(), values[(columns / 8).min(values.len()) - 1]);
    }
    found
}

/// The launch has the shared memory that the header states, and as many blocks of it fit a
/// multiprocessor as that states.
fn agrees(name: &str, launch: Launch, stated: &HashMap<String, u32>) {
    assert_eq!(Some(&launch.shared_bytes), stated.get("shared"), "{name}");
    for (blocks, shared) in SHARED {
        let fit = shared / (launch.shared_bytes + 1024);
        assert!((1..=fit).contains(&stated[blocks]), "{name}: {blocks}, {fit} fit");
    }
}

#[test]
fn decode_is_launched_as_its_header_says() {
    let header = include_str!("../../../../kernels/attention/decode.cuh");
    let device = Device::emulated(Default::default());
    let resident = |name: &str, launch: Launch| {
        device.resident_blocks(name, launch).unwrap() / device.info().multiprocessors
    };
    for format in NAMED_FORMATS {
        let (stem, format) = (format.stem, format.name.parse::<KvFormat>().unwrap());
        for (d, columns) in [(64, 8), (64, 16), (128, 8), (128, 16), (256, 8)] {
            let stated = stated(header, &format!("decode_{stem}"), d, columns);
            let name = format!("decode_{stem}_{}_d{d}_n{columns}", format.hot());
            let launch = launch::decode(d, format, columns);
            agrees(&name, launch, &stated);
            // The emulated device is asked for the threads that the kernel was compiled for,
            // and knows its launch bounds, which are those of sm_90; it has as much shared
            // memory as an sm_80.
            let fit = (164 << 10) / (launch.shared_bytes + 1024);
            assert_eq!(resident(&name, launch), stated["blocks_90"].min(fit), "{name}");
        }
    }
}

#[test]
#[should_panic(expected = "a kernel with more")]
fn a_launch_with_other_shared_memory_is_found() {
    let header = include_str!("../../../../kernels/attention/decode.cuh");
    let launch = launch::decode(128, "kivi2".parse().unwrap(), 8);
    let more = launch.shared(launch.shared_bytes + 128);
    agrees("a kernel with more", more, &stated(header, "decode_kivi2", 128, 8));
}

#[test]
fn prefill_is_launched_as_its_header_says() {
    let header = include_str!("../../../../kernels/attention/prefill.cuh");
    let device = Device::emulated(Default::default());
    for d in [64, 128, 256] {
        let launch = launch::prefill(d);
        agrees(&format!("prefill d{d}"), launch, &stated(header, "prefill", d, 8));
        for format in NAMED_FORMATS {
            let name = format!("prefill_{}_f16_d{d}", format.stem);
            device.resident_blocks(&name, launch).unwrap();
        }
    }
}

/// What is counted of items is counted for the splits that there are: with 32 KV heads of 64
/// channels, and 8 of more.
#[test]
fn splits_are_as_their_header_says() {
    let header = include_str!("../../../../kernels/attention/plan.cuh");
    let lines: Vec<_> = header.lines().filter_map(|line| line.strip_prefix("// sass: ")).collect();
    for format in NAMED_FORMATS {
        for (head_dim, kv_heads) in [(64, 32), (128, 8), (256, 8)] {
            let ends = SplitEnds::of(head_dim, kv_heads, format.name.parse().unwrap());
            let [short, middle, long] = ends.as_params();
            let ours = format!("8:{short},16:{middle},32:{long},64");
            // The last line that is about it counts: that of the form, or of all.
            let pattern = [format!("decode_{}_*", format.stem), "decode_*".into()];
            let splits = pattern.iter().find_map(|pattern| {
                let of = |line: &&str| line.split(' ').next() == Some(pattern.as_str());
                let line = lines.iter().copied().rfind(|line| of(line))?;
                line.split_once("splits=").map(|(_, splits)| splits)
            });
            let lists = splits.unwrap().split(' ');
            let of_d = format!("d{head_dim}:");
            let mut its = lists.map(|l| l.strip_prefix(&of_d).unwrap_or(l));
            assert!(its.any(|list| list == ours), "{} d{head_dim}: {ours}", format.name);
        }
    }
}

#[test]
fn plan_and_merge_have_the_threads_they_are_launched_with() {
    let device = Device::emulated(Default::default());
    device.resident_blocks("attend_plan", launch::plan(1)).unwrap();
    device.resident_blocks("attend_merge_f16_d64", Launch::new(1, 128)).unwrap();
    assert!(device.resident_blocks("attend_merge_f16_d64", Launch::new(1, 64)).is_err());
}
