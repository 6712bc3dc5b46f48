//! Whether devices multiply f16 subnormals in full: the first that a device is asked, for
//! decode rests on it where it can. `normal_codes.rs` tests what is done where it cannot.

use crate::common::subject::Kind;
use kvfold::backend::cuda::attend::{Attention, AttentionShape};
use kvfold::backend::cuda::subnormal::{Number, Operand, probe};
use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;

fn shape(format: &str) -> AttentionShape {
    AttentionShape {
        head_dim: 64,
        heads: 2,
        kv_heads: 1,
        format: format.parse().unwrap(),
        sinks: 4,
        hot_window: 128,
        causal: true,
        window: None,
        scale: 0.125,
    }
}

/// On a device that fails here attention is right all the same, but slower than it is said
/// to be, and nobody has studied its tensor cores.
#[test]
fn devices_take_subnormals_in_full() {
    for device in Kind::all(0..2).into_iter().filter_map(Kind::device) {
        let findings = probe(&device).unwrap();
        let name = &device.info().name;
        let (cases, wrong) = (findings.cases.len(), findings.cases.iter().filter(|c| c.wrong > 0));
        println!("{name}: f16 subnormals, {} of {cases} cases wrong", wrong.count());
        let slower = "sealed pages are decoded by slower kernels there";
        assert!(findings.right(Operand::Codes), "{name}: {slower}:\n{findings}");
        assert!(findings.right(Operand::Rounded), "{name}: small numbers are lost:\n{findings}");
        assert!(findings.right(Operand::Pairs), "{name}: not as the PTX ISA says:\n{findings}");
        let attention = Attention::new(&device, shape("kivi2")).unwrap();
        assert_eq!(attention.number(), Number::Subnormal);
    }
}

#[test]
fn a_device_that_takes_them_as_zero_is_found_out() {
    let device = Kind::Flushing(0).device().unwrap();
    let findings = probe(&device).unwrap();
    assert_eq!(findings.number(), Number::Normal);
    for case in &findings.cases {
        // Products of pairs are not made by tensor cores.
        assert_eq!(case.wrong > 0, case.operand != Operand::Pairs, "{case:?}");
    }
    let text = findings.to_string();
    for line in
        ["codes of 4 bits at bit 0 times 1: 1", "e4m3 times large numbers: 1", "subnormal keys"]
    {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    for (format, number) in
        [("f16", Number::Subnormal), ("kf2", Number::Normal), ("fp8", Number::Normal)]
    {
        assert_eq!(Attention::new(&device, shape(format)).unwrap().number(), number, "{format}");
    }
}

/// Once a device, and not at all for pages of 16 bits. Without an answer there is no layer.
#[test]
fn a_device_is_asked_once() {
    for (format, lost_after, asked) in [("f16", 0, true), ("kivi2", 1, false), ("kivi2", 2, true)] {
        let options = EmulatorOptions { lost_after: Some(lost_after), ..Default::default() };
        let device = Device::emulated(options);
        let first = Attention::new(&device, shape(format)).map(drop);
        assert_eq!(first.is_ok(), asked, "{format}, {lost_after}: {first:?}");
        if let Err(error) = first {
            assert!(error.to_string().contains("the device was lost"), "{error}");
        }
    }
    let device = Device::emulated(EmulatorOptions::default());
    let changes = [(); 3].map(|()| {
        let before = device.changes();
        Attention::new(&device, shape("kf3.2")).unwrap();
        device.changes() - before
    });
    assert!(changes[0] > 0 && changes[1..] == [0, 0], "{changes:?}");
}
