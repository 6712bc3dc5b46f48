//! The plain loop, cuBLASLt where there is a GPU, and what neither takes.

use super::product::{Case, check_all, emulated, number, shape};
use half::{bf16, f16};
use kvfold::Error;
use kvfold::backend::cuda::gemm::Gemm;
use kvfold::backend::driver::{Device, DeviceBuffer};

#[test]
fn products_equal_float64() {
    for seed in 0..3 {
        let device = emulated(seed);
        let mut gemm = Gemm::new(&device).unwrap();
        assert_eq!(gemm.name(), "a plain loop");
        check_all(&mut gemm, &device.stream().unwrap());
    }
}

#[test]
fn products_equal_float64_on_a_gpu() {
    let Ok(device) = Device::cuda(0) else { return };
    let stream = device.stream().unwrap();
    check_all(&mut Gemm::plain(&device), &stream);
    match Gemm::new(&device) {
        Ok(mut gemm) => {
            check_all(&mut gemm, &stream);
            // The same bits again.
            let case = Case::<bf16>::new(shape(33, 65, 2048));
            let first = case.product::<f32>(&mut gemm, &stream);
            assert_eq!(case.product::<f32>(&mut gemm, &stream), first);
        }
        Err(Error::NoCublasLt { reason }) => println!("not compared with cuBLASLt: {reason}"),
        Err(error) => panic!("{error}"),
    }
}

/// Of the plain loop only; cuBLASLt chooses by the number of rows.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let device = emulated(7);
    let stream = device.stream().unwrap();
    let mut gemm = Gemm::new(&device).unwrap();
    let (n, k) = (131, 200);
    let matrix = |seed, rows| -> Vec<f16> {
        (0..rows * k).map(|i| f16::from_f32(number(seed, i))).collect()
    };
    let (rows, w) = (matrix(1, 6), matrix(2, n));
    let w = device.upload(&w, &stream).unwrap();
    let mut product = |x: &[f16]| {
        let rows = x.len() / k;
        let x = device.upload(x, &stream).unwrap();
        let mut y = device.alloc::<f32>(rows * n).unwrap();
        gemm.matmul(&x, &w, &mut y, shape(rows, n, k), &stream).unwrap();
        y.to_vec(&stream).unwrap()
    };
    let all = product(&rows);
    for (row, x) in rows.chunks_exact(k).enumerate() {
        assert_eq!(product(x), all[row * n..(row + 1) * n]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = emulated(0);
    let stream = device.stream().unwrap();
    let mut gemm = Gemm::new(&device).unwrap();
    let x = device.zeroed::<f16>(64, &stream).unwrap();
    let w = device.zeroed::<f16>(64, &stream).unwrap();
    let mut y = device.zeroed::<f16>(16, &stream).unwrap();
    let mut refused = |x: &DeviceBuffer<f16>, w: &DeviceBuffer<f16>, shape, words: &str| {
        let error = gemm.matmul(x, w, &mut y, shape, &stream).unwrap_err().to_string();
        assert!(error.contains(words) && error.starts_with("gemm: "), "{error}");
    };
    refused(&x, &w, shape(2, 2, 12), "k = 12 is no multiple of 8");
    refused(&x, &w, shape(2, 2, 0), "k = 0");
    refused(&x, &w, shape(9, 1, 8), "x has 64 elements, not 9×8");
    refused(&x, &w, shape(1, 9, 8), "w has 64 elements, not 9×8");
    refused(&x, &w, shape(8, 3, 8), "y has 16 elements, not 8×3");
    refused(&x, &w, shape(1 << 31, 1, 8), "31 bits");
    refused(&x, &w, shape((1 << 31) - 1, (1 << 31) - 1, 1 << 30), "x has 64 elements");
    // SAFETY: within `w`, which is not used meanwhile.
    let odd = unsafe { DeviceBuffer::<f16>::borrow(&device, w.address() + 2, 60) };
    refused(&x, &odd, shape(2, 2, 8), "no multiple of 16");
    let elsewhere = emulated(1);
    let there = elsewhere.stream().unwrap();
    let theirs = elsewhere.zeroed::<f16>(64, &there).unwrap();
    refused(&theirs, &w, shape(2, 2, 8), "x is of another device");

    let told = |result: kvfold::Result<()>| result.unwrap_err().to_string();
    let error = told(gemm.matmul(&x, &w, &mut y, shape(2, 2, 8), &there));
    assert!(error.contains("the stream is of another device"), "{error}");
    let second = device.stream().unwrap();
    gemm.matmul(&x, &w, &mut y, shape(2, 2, 8), &stream).unwrap();
    let error = told(gemm.matmul(&x, &w, &mut y, shape(2, 2, 8), &second));
    assert!(error.contains("share a workspace"), "{error}");

    // Nothing to do is no error, wherever the matrices are.
    gemm.matmul(&x, &w, &mut y, shape(0, 1 << 20, 8), &stream).unwrap();
    gemm.matmul(&x, &w, &mut y, shape(1 << 20, 0, 8), &stream).unwrap();
    gemm.prepare::<f16, f16>(shape(0, 5, 8)).unwrap();
    assert!(gemm.prepare::<f16, f32>(shape(1, 5, 9)).is_err());
}
