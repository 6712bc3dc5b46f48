//! Weights on the device are those of the file, rounded once.

use super::product::{emulated, number, shape};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device as CandleDevice, Tensor};
use half::{bf16, f16};
use kvfold::Error;
use kvfold::backend::MatrixBytes;
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::gemm::Gemm;
use kvfold::backend::cuda::weights::{Matrix, Uploader};
use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::codec::WeightType;

/// The type in candle's words.
fn ggml(dtype: WeightType) -> GgmlDType {
    match dtype {
        WeightType::F32 => GgmlDType::F32,
        WeightType::F16 => GgmlDType::F16,
        WeightType::BF16 => GgmlDType::BF16,
        WeightType::Q4_0 => GgmlDType::Q4_0,
        WeightType::Q4_1 => GgmlDType::Q4_1,
        WeightType::Q5_0 => GgmlDType::Q5_0,
        WeightType::Q5_1 => GgmlDType::Q5_1,
        WeightType::Q8_0 => GgmlDType::Q8_0,
        WeightType::Q2K => GgmlDType::Q2K,
        WeightType::Q3K => GgmlDType::Q3K,
        WeightType::Q4K => GgmlDType::Q4K,
        WeightType::Q5K => GgmlDType::Q5K,
        WeightType::Q6K => GgmlDType::Q6K,
        other => panic!("{other} in candle's words"),
    }
}

/// A matrix of a file: its type, its rows, its bytes, and what they mean.
struct Stored {
    dtype: WeightType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

impl Stored {
    fn new(dtype: WeightType, rows: usize, cols: usize, seed: usize) -> Self {
        let floats: Vec<f32> = (0..rows * cols).map(|i| number(seed, i)).collect();
        let tensor = Tensor::from_vec(floats, (rows, cols), &CandleDevice::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, ggml(dtype)).unwrap();
        let bytes = tensor.data().unwrap().into_owned();
        let numbers = tensor.dequantize(&CandleDevice::Cpu).unwrap();
        let numbers = numbers.flatten_all().unwrap().to_vec1().unwrap();
        Self { dtype, rows, cols, bytes, numbers }
    }

    fn part(&self) -> MatrixBytes<'_> {
        let Self { dtype, rows, cols, .. } = *self;
        MatrixBytes { dtype, rows, cols, bytes: &self.bytes }
    }
}

/// Uploads parts and compares every number.
fn check<T: Element + PartialEq + std::fmt::Debug>(
    uploader: &mut Uploader<T>,
    parts: &[&Stored],
    device: &Device,
    round: fn(f32) -> T,
) -> Matrix<T> {
    let stream = device.stream().unwrap();
    let bytes: Vec<_> = parts.iter().map(|part| part.part()).collect();
    let matrix = uploader.matrix(&bytes, &stream).unwrap();
    let (rows, cols) = (parts.iter().map(|part| part.rows).sum::<usize>(), parts[0].cols);
    assert_eq!((matrix.rows(), matrix.cols()), (rows, cols.next_multiple_of(8)));
    let found = matrix.data().to_vec(&stream).unwrap();
    let expected = parts.iter().flat_map(|part| part.numbers.chunks_exact(cols));
    for (row, want) in found.chunks_exact(matrix.cols()).zip(expected) {
        let (numbers, padding) = row.split_at(cols);
        assert!(numbers.iter().zip(want).all(|(x, want)| *x == round(*want)));
        assert!(padding.iter().all(|x| *x == T::zeroed()));
    }
    assert_eq!(found.len(), rows * matrix.cols());
    matrix
}

#[test]
fn every_type_is_dequantised_and_rounded_once() {
    use WeightType::*;
    let device = emulated(0);
    let (mut halves, mut brains) = (Uploader::default(), Uploader::default());
    for (seed, dtype) in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K]
        .into_iter()
        .enumerate()
    {
        let stored = Stored::new(dtype, 37, 512, seed);
        check::<f16>(&mut halves, &[&stored], &device, f16::from_f32);
        check::<bf16>(&mut brains, &[&stored], &device, bf16::from_f32);
    }
}

#[test]
fn parts_of_different_types_are_stacked() {
    let device = emulated(0);
    let parts = [(WeightType::Q4_1, 40), (WeightType::F32, 1), (WeightType::Q8_0, 23)];
    let parts: Vec<_> =
        parts.iter().map(|(dtype, rows)| Stored::new(*dtype, *rows, 96, *rows)).collect();
    check(&mut Uploader::default(), &parts.iter().collect::<Vec<_>>(), &device, bf16::from_f32);
}

#[test]
fn odd_columns_are_padded_with_zeros_that_products_ignore() {
    let device = emulated(0);
    let stored = Stored::new(WeightType::F16, 5, 21, 3);
    let matrix = check(&mut Uploader::default(), &[&stored], &device, f16::from_f32);
    let stream = device.stream().unwrap();
    let x = device.upload(&[f16::ONE; 24], &stream).unwrap();
    let mut y = device.alloc::<f32>(5).unwrap();
    let shape = shape(1, matrix.rows(), matrix.cols());
    Gemm::new(&device).unwrap().matmul(&x, matrix.data(), &mut y, shape, &stream).unwrap();
    let sums = stored.numbers.chunks_exact(21).map(|row| row.iter().map(|x| f64::from(*x)).sum());
    for (y, want) in y.to_vec(&stream).unwrap().into_iter().zip(sums) {
        let want: f64 = want;
        assert!((f64::from(y) - want).abs() < 1e-5, "{y}, not {want}");
    }
}

#[test]
fn large_matrices_go_through_the_buffer_in_turns() {
    // More than twice what the uploader prepares at a time.
    let (rows, cols) = (35 << 10, 1024);
    let bytes: Vec<u8> = (0..rows * cols)
        .flat_map(|i| {
            f16::from_bits((i as u32).wrapping_mul(0x9e37_79b9).to_le_bytes()[3].into())
                .to_le_bytes()
        })
        .collect();
    let device = emulated(0);
    let stream = device.stream().unwrap();
    let part = MatrixBytes { dtype: WeightType::F16, rows, cols, bytes: &bytes };
    let matrix = Uploader::<f16>::default().matrix(&[part], &stream).unwrap();
    let found = matrix.data().to_vec(&stream).unwrap();
    assert!(bytemuck::cast_slice::<f16, u8>(&found) == bytes);
}

#[test]
fn what_cannot_be_uploaded_is_told() {
    let device = Device::emulated(EmulatorOptions { memory: 1000, ..Default::default() });
    let stream = device.stream().unwrap();
    let told = |parts: &[MatrixBytes<'_>]| match Uploader::<f16>::default().matrix(parts, &stream) {
        Ok(_) => panic!("it was uploaded"),
        Err(error) => error,
    };
    let large = Stored::new(WeightType::Q8_0, 20, 32, 1);
    let error = told(&[large.part()]);
    assert!(matches!(error, Error::DeviceOutOfMemory { needed: 1280, free: 1000 }), "{error}");
    assert!(error.to_string().contains("280 are missing"), "{error}");

    assert!(told(&[]).to_string().contains("no parts"));
    let other = Stored::new(WeightType::Q8_0, 1, 64, 1);
    assert!(told(&[large.part(), other.part()]).to_string().contains("different columns"));
    let short = MatrixBytes { rows: 21, ..large.part() };
    assert!(told(&[short]).to_string().contains("21×32 Q8_0 in 680 bytes"));
    let broken = MatrixBytes { cols: 31, ..large.part() };
    assert!(told(&[broken]).to_string().contains("Q8_0"));

    let wide: Vec<u8> = [1f32, -70000.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let part = MatrixBytes { dtype: WeightType::F32, rows: 1, cols: 2, bytes: &wide };
    let error = told(&[part]).to_string();
    assert!(error.contains("-7e4 as f16") && error.contains("bf16"), "{error}");
    assert!(Uploader::<bf16>::default().matrix(&[part], &stream).is_ok());
}
