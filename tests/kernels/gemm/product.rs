//! One product and its oracle.

use half::{bf16, f16};
use kvfold::backend::cuda::element::{Element, Output};
use kvfold::backend::cuda::gemm::{Gemm, GemmShape};
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::backend::driver::{Device, DeviceBuffer, DeviceStream};

/// Sizes that a kernel's tiles and a library's vectors do not divide.
pub const SHAPES: [GemmShape; 7] = [
    shape(1, 1, 8),
    shape(1, 131, 64),
    shape(3, 37, 72),
    shape(17, 129, 136),
    shape(5, 300, 576),
    shape(4, 128, 16),
    shape(1, 9, 4096),
];

pub const fn shape(rows: usize, n: usize, k: usize) -> GemmShape {
    GemmShape { rows, n, k }
}

pub fn emulated(seed: u64) -> Device {
    Device::emulated(EmulatorOptions { seed, host_threads: 2, ..Default::default() })
}

/// Numbers between −1 and 1.
pub fn number(seed: usize, i: usize) -> f32 {
    let x = (i as u32 ^ (seed as u32).wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b9);
    let x = (x ^ x >> 15).wrapping_mul(0xc2b2_ae35);
    (x >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// A number of a test.
pub trait Number: bytemuck::Pod + PartialEq + std::fmt::Debug {
    /// How far products may be off: relative, root mean square.
    const TOLERANCE: f64;
    fn wide(self) -> f64;
}

impl Number for f16 {
    const TOLERANCE: f64 = 1e-3;
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

impl Number for bf16 {
    const TOLERANCE: f64 = 6e-3;
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

impl Number for f32 {
    const TOLERANCE: f64 = 1e-5;
    fn wide(self) -> f64 {
        self.into()
    }
}

/// Elements behind `y` that must stay NaN.
const BEYOND: usize = 13;

/// A buffer that is longer than its content, with NaN behind it.
fn padded<T: Element>(values: &[T], stream: &DeviceStream) -> DeviceBuffer<T> {
    let mut buffer = stream.device().alloc(values.len() + 24).unwrap();
    buffer.fill(0xff, stream).unwrap();
    buffer.write(0, values, stream).unwrap();
    buffer
}

/// Operands of one product.
pub struct Case<T> {
    pub shape: GemmShape,
    x: Vec<T>,
    w: Vec<T>,
}

impl<T: Element + Number> Case<T> {
    pub fn new(shape: GemmShape) -> Self {
        let GemmShape { rows, n, k } = shape;
        let matrix = |seed: usize, rows: usize| {
            let floats: Vec<f32> = (0..rows * k).map(|i| number(seed, i)).collect();
            let mut matrix = vec![T::zeroed(); rows * k];
            T::narrow(&floats, &mut matrix);
            matrix
        };
        Self { shape, x: matrix(rows + 1, rows), w: matrix(n + 2, n) }
    }

    /// The device's product.
    pub fn product<Out: Output<T> + Number>(
        &self,
        gemm: &mut Gemm,
        stream: &DeviceStream,
    ) -> Vec<Out> {
        let (x, w) = (padded(&self.x, stream), padded(&self.w, stream));
        let len = self.shape.rows * self.shape.n;
        let mut y = stream.device().alloc::<Out>(len + BEYOND).unwrap();
        y.fill(0xff, stream).unwrap();
        gemm.matmul(&x, &w, &mut y, self.shape, stream).unwrap();
        let mut y = y.to_vec(stream).unwrap();
        assert!(y.split_off(len).iter().all(|x| x.wide().is_nan()), "written beyond its end");
        y
    }

    /// Compares the device's product with float64.
    pub fn check<Out: Output<T> + Number>(&self, gemm: &mut Gemm, stream: &DeviceStream) {
        let GemmShape { rows, n, k } = self.shape;
        let y = self.product::<Out>(gemm, stream);
        let (mut error, mut size) = (0f64, 0f64);
        for (i, x) in self.x.chunks_exact(k).enumerate() {
            for (j, w) in self.w.chunks_exact(k).enumerate() {
                let want: f64 = x.iter().zip(w).map(|(a, b)| a.wide() * b.wide()).sum();
                error += (y[i * n + j].wide() - want).powi(2);
                size += want.powi(2);
            }
        }
        let error = (error / size).sqrt();
        // NaN is no success.
        assert!(error <= Out::TOLERANCE, "{:?} by {}: {error:e}", (rows, n, k), gemm.name());
    }
}

/// All shapes in all types.
pub fn check_all(gemm: &mut Gemm, stream: &DeviceStream) {
    for shape in SHAPES {
        Case::<f16>::new(shape).check::<f16>(gemm, stream);
        Case::<f16>::new(shape).check::<f32>(gemm, stream);
        Case::<bf16>::new(shape).check::<bf16>(gemm, stream);
        Case::<bf16>::new(shape).check::<f32>(gemm, stream);
    }
}
