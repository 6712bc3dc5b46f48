//! Devices, random rows, and what rounding allows.

pub use crate::common::random::Random;
use half::{bf16, f16};
use kvfold::backend::cuda::element::Element;
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream};
use std::fmt::Debug;

/// A 16-bit type with its arithmetic.
pub trait Half: Element + Debug + PartialEq {
    fn round(x: f64) -> Self;
    fn widen(self) -> f64;
    /// Bits of the mantissa, and the exponent of the smallest normal number.
    const FORMAT: (i32, i32);

    /// Half a unit in the last place of `x`.
    fn half_unit(x: f64) -> f64 {
        let (bits, least) = Self::FORMAT;
        let exponent = if x == 0.0 { least } else { (x.abs().log2().floor() as i32).max(least) };
        2f64.powi(exponent - bits - 1)
    }
}

impl Half for f16 {
    fn round(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn widen(self) -> f64 {
        self.to_f64()
    }
    const FORMAT: (i32, i32) = (10, -14);
}

impl Half for bf16 {
    fn round(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn widen(self) -> f64 {
        self.to_f64()
    }
    const FORMAT: (i32, i32) = (7, -126);
}

/// Rows of random numbers.
impl Random {
    pub fn floats(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| self.float() * size).collect()
    }

    pub fn halves<T: Half>(&mut self, n: usize, size: f32) -> Vec<T> {
        (0..n).map(|_| T::round((self.float() * size).into())).collect()
    }
}

/// A device and a stream of it.
pub struct World {
    pub device: Device,
    pub stream: DeviceStream,
}

impl World {
    fn new(device: Device) -> Self {
        let stream = device.stream().unwrap();
        Self { device, stream }
    }

    /// The emulated device.
    pub fn emulated(seed: u64) -> Self {
        let options = EmulatorOptions { seed, host_threads: 2, ..EmulatorOptions::default() };
        Self::new(Device::emulated(options))
    }

    pub fn upload<T: bytemuck::Pod>(&self, from: &[T]) -> DeviceBuffer<T> {
        self.device.upload(from, &self.stream).unwrap()
    }

    /// Memory of `n` elements that are all NaN.
    pub fn nan<T: bytemuck::Pod>(&self, n: usize) -> DeviceBuffer<T> {
        let mut buffer = self.device.alloc(n).unwrap();
        buffer.fill(0xff, &self.stream).unwrap();
        buffer
    }

    pub fn read<T: bytemuck::Pod>(&self, from: &DeviceBuffer<T>) -> Vec<T> {
        from.to_vec(&self.stream).unwrap()
    }
}

/// The emulated device with three seeds, and CUDA device 0 if there is one.
pub fn worlds() -> Vec<World> {
    let list = std::env::var("KVFOLD_CONFORMANCE_KINDS").ok();
    let asked = |kind| list.as_ref().is_none_or(|l| l.split(',').any(|name| name.trim() == kind));
    let mut worlds = Vec::new();
    if asked("emulated") {
        worlds.extend((1..=3).map(World::emulated));
    }
    if asked("cuda") {
        match Device::cuda(0) {
            Ok(device) => worlds.push(World::new(device)),
            Err(error) if list.is_some() => panic!("no CUDA device: {error}"),
            Err(_) => {}
        }
    }
    worlds
}

/// Every number within one rounding to `T`, `relative` of its magnitude and `absolute`.
#[track_caller]
pub fn check_halves<T: Half>(what: &str, got: &[T], want: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got.widen() - want).abs();
        let bound = T::half_unit(*want) * 1.001 + want.abs() * relative + absolute;
        assert!(error <= bound, "{what}, {}: element {i} is {got:?}, not {want}", T::CODEC);
    }
}
