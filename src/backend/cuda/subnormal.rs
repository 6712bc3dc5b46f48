//! Launches `kernels/attention/subnormal.cu`: whether a device multiplies f16 subnormals in
//! full, and so which kernels decode sealed pages there.
//!
//! Codes of 2 to 4 bits and e4m3 go to the tensor cores as f16 subnormals
//! (`kernels/attention/tile_affine.cuh`, `tile_fp8.cuh`): the fastest way, and one that the
//! devices studied so far allow, but that nothing promises. [`probe`] multiplies every code
//! at every place where kernels have it, with sums that are exact in f32, and compares. On a
//! device that gives others, [`Attention`](super::attend::Attention) launches kernels whose
//! operands are normal numbers. They give the same bits, with an instruction more for each
//! register of codes, and are embedded as PTX alone, for the driver to compile.

use super::params::SubnormalParams;
use crate::backend::driver::{Device, Launch};
use crate::error::{Error, Result};
use half::f16;
use std::fmt;

const THREADS: u32 = 128;

/// What a code is to tensor cores: `Number` of `kernels/attention/tile_affine.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// code · 2^(p − 24), as it stands at bit p of its word.
    Subnormal,
    /// code · 2^p.
    Normal,
}

/// What kernels have as the operands of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Codes or e4m3 of sealed pages: if these are lost, results are wrong.
    Codes,
    /// Rounded numbers, which are subnormal only where they are small: if these are lost,
    /// a product of matrices errs by up to 2^-14 times the other factors.
    Rounded,
    /// Pairs of `mul.f16x2`, of which the PTX ISA says that it takes subnormals.
    Pairs,
}

/// Products of one kind.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is multiplied, in words.
    pub name: String,
    /// What it stands for.
    pub operand: Operand,
    /// Results.
    pub total: usize,
    /// Results that are not what they should be.
    pub wrong: usize,
    /// The first of these, and what it should be.
    pub example: Option<(f64, f64)>,
}

/// What a device made of all cases.
#[derive(Clone, Debug)]
pub struct Findings {
    /// All of them.
    pub cases: Vec<Case>,
}

impl Findings {
    /// Whether every product of such operands is right.
    pub fn right(&self, operand: Operand) -> bool {
        self.cases.iter().all(|case| case.operand != operand || case.wrong == 0)
    }

    /// What codes have to be on this device.
    pub fn number(&self) -> Number {
        if self.right(Operand::Codes) { Number::Subnormal } else { Number::Normal }
    }
}

impl fmt::Display for Findings {
    /// A line for each case with wrong results; none if all are right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in self.cases.iter().filter(|case| case.wrong > 0) {
            let (got, want) = case.example.unwrap_or_default();
            writeln!(
                f,
                "{}: {} of {} wrong, the first {got:e} instead of {want:e}",
                case.name, case.wrong, case.total
            )?;
        }
        Ok(())
    }
}

/// The kernels that decode sealed pages on this device. The first call on a device runs the
/// probe and waits for it; what it finds is kept.
pub(super) fn number(device: &Device) -> Result<Number> {
    let kept = device.takes_subnormals();
    if let Some(&takes) = kept.get() {
        return Ok(if takes { Number::Subnormal } else { Number::Normal });
    }
    let findings = probe(device)?;
    let name = &device.info().name;
    if !findings.right(Operand::Pairs) {
        return Err(Error::Unsupported {
            what: format!(
                "{name}, which takes f16 subnormals as 0 where the PTX ISA says that it does not"
            ),
            remedy: "use another device or the CPU".into(),
        });
    }
    let number = findings.number();
    if number == Number::Normal {
        tracing::warn!(
            device = name,
            "its tensor cores take f16 subnormals as 0: sealed pages are decoded by slower kernels"
        );
    }
    // Whoever comes second has found the same.
    let _ = kept.set(number == Number::Subnormal);
    Ok(number)
}

/// Multiplies, and compares with what is exact. On a stream of its own, which it waits for:
/// no thread may capture meanwhile.
///
/// # Errors
/// [`Error::DeviceOutOfMemory`], and what the device reports.
pub fn probe(device: &Device) -> Result<Findings> {
    let (mut matrices, mut pairs) = (Vec::new(), Vec::new());
    let mut cases = Vec::new();
    for (name, operand, products) in matrix_cases() {
        cases.push((name, operand, products.len() * 16 * 8));
        matrices.extend(products);
    }
    for (name, products) in pair_cases() {
        cases.push((name, Operand::Pairs, products.len()));
        pairs.extend(products);
    }

    let stream = device.stream()?;
    let words = |fragment: fn(&Product) -> Vec<u32>| matrices.iter().flat_map(fragment);
    let operands: Vec<u32> = words(Product::a_words).chain(words(Product::b_words)).collect();
    let operands = device.upload(&operands, &stream)?;
    let before: Vec<f32> = matrices.iter().flat_map(|m| fragments(|row, n| m.c[row][n])).collect();
    let sums = device.upload(&before, &stream)?;
    let factors: Vec<u32> = pairs
        .chunks_exact(2)
        .flat_map(|two| [pack(two[0].x, two[1].x), pack(two[0].y, two[1].y)])
        .collect();
    let products = device.alloc::<u32>(factors.len() / 2)?;
    let factors = device.upload(&factors, &stream)?;
    let params = SubnormalParams {
        operands: operands.address(),
        sums: sums.address(),
        factors: factors.address(),
        products: products.address(),
        n_matrices: matrices.len() as u32,
        n_pairs: products.len() as u32,
    };
    let threads = (32 * params.n_matrices).max(params.n_pairs);
    // SAFETY: the buffers are of the shapes that the kernel's parameters state.
    unsafe {
        stream.launch("subnormal", Launch::new(threads.div_ceil(THREADS), THREADS), &params)?
    };

    let got = sums.to_vec(&stream)?.into_iter().map(f64::from);
    let halves =
        products.to_vec(&stream)?.into_iter().flat_map(|two| [two as u16, (two >> 16) as u16]);
    let mut got = got.chain(halves.map(|bits| f16::from_bits(bits).to_f64()));
    let want = matrices.iter().flat_map(|m| fragments(|row, n| m.sum(row, n)));
    let mut want = want.chain(pairs.iter().map(Pair::product));
    let cases = cases.into_iter().map(|(name, operand, total)| {
        let results: Vec<_> = got.by_ref().zip(want.by_ref()).take(total).collect();
        let mut wrong = results.into_iter().filter(|(got, want)| got != want);
        let example = wrong.next();
        let wrong = usize::from(example.is_some()) + wrong.count();
        Case { name, operand, total, wrong, example }
    });
    Ok(Findings { cases: cases.collect() })
}

/// A · B + C, of matrices of 16 × 16, 16 × 8 and 16 × 8.
struct Product {
    a: [[f16; 16]; 16],
    b: [[f16; 8]; 16],
    c: [[f32; 8]; 16],
}

impl Product {
    fn new(
        a: impl Fn(usize, usize) -> f16,
        b: impl Fn(usize, usize) -> f16,
        c: impl Fn(usize, usize) -> f32,
    ) -> Self {
        use std::array::from_fn;
        Self {
            a: from_fn(|row| from_fn(|k| a(row, k))),
            b: from_fn(|k| from_fn(|n| b(k, n))),
            c: from_fn(|row| from_fn(|n| c(row, n))),
        }
    }

    /// An element of the result: exact, for every product and sum here is, in f32 too.
    fn sum(&self, row: usize, n: usize) -> f64 {
        let products = (0..16).map(|k| self.a[row][k].to_f64() * self.b[k][n].to_f64());
        f64::from(self.c[row][n]) + products.sum::<f64>()
    }

    /// A as the lanes hold it (PTX ISA, m16n8k16).
    fn a_words(&self) -> Vec<u32> {
        let word = |row: usize, k: usize| pack(self.a[row][k], self.a[row][k + 1]);
        lanes(|g, t| [word(g, t), word(g + 8, t), word(g, t + 8), word(g + 8, t + 8)])
    }

    /// B likewise.
    fn b_words(&self) -> Vec<u32> {
        let word = |k: usize, n: usize| pack(self.b[k][n], self.b[k + 1][n]);
        lanes(|g, t| [word(t, g), word(t + 8, g)])
    }
}

/// C and the result likewise.
fn fragments<T>(element: impl Fn(usize, usize) -> T) -> Vec<T> {
    lanes(|g, t| [element(g, t), element(g, t + 1), element(g + 8, t), element(g + 8, t + 1)])
}

/// Of lane 4g + t/2, one after the other.
fn lanes<T, const N: usize>(part: impl Fn(usize, usize) -> [T; N]) -> Vec<T> {
    (0..32).flat_map(|lane| part(lane / 4, lane % 4 * 2)).collect()
}

fn pack(low: f16, high: f16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

/// A whole number times a power of two, which f16 holds.
fn scaled(number: i32, power: i32) -> f16 {
    f16::from_f64(f64::from(number) * 2f64.powi(power))
}

/// ±1 to ±8, all sorts of them.
fn sign_and_size(i: usize, j: usize) -> i32 {
    let size = (5 * i + 3 * j + i * j) % 8 + 1;
    if (i + j).is_multiple_of(3) { -(size as i32) } else { size as i32 }
}

/// Takes element k = n + first of each row.
fn picks(first: usize, power: i32) -> impl Fn(usize, usize) -> f16 {
    move |k, n| if k == n + first { scaled(1, power) } else { f16::ZERO }
}

fn matrix_cases() -> Vec<(String, Operand, Vec<Product>)> {
    let mut cases = Vec::new();
    // Whole numbers times a power of two, which add up to less than 2^12 of them.
    let others = [("1", 0), ("small numbers", -14), ("large numbers", 12), ("subnormals", -24)];
    for (bits, bit) in [2, 3, 4].into_iter().flat_map(|bits| [0, 3, 4, 6].map(|bit| (bits, bit))) {
        for (other, power) in others {
            // Sixteen neighbours in a row: all codes.
            let code =
                |row: usize, k: usize| f16::from_bits((((row + k) % (1 << bits)) << bit) as u16);
            let unit = 2f64.powi(power + bit - 24);
            let product = Product::new(
                code,
                |k, n| scaled(sign_and_size(k, n), power),
                |row, n| (f64::from(sign_and_size(row, n)) * 10.0 * unit) as f32,
            );
            let name = format!("codes of {bits} bits at bit {bit} times {other}");
            cases.push((name, Operand::Codes, vec![product]));
        }
    }
    for (other, power) in [("1", 0), ("small numbers", -14), ("large numbers", 12)] {
        let byte = |row: usize, k: usize| match 16 * row + k {
            0x7f | 0xff => f16::ZERO, // NaN
            byte => f16::from_bits(((byte & 0x80) << 8 | (byte & 0x7f) << 7) as u16),
        };
        let products = [0, 8].map(|first| Product::new(byte, picks(first, power), |_, _| 0.0));
        cases.push((format!("e4m3 times {other}"), Operand::Codes, products.into()));
    }
    let products = (0..4).flat_map(|part| {
        let number = move |row, k| f16::from_bits(256 * part + (16 * row + k) as u16);
        [0, 8].map(|first| Product::new(number, picks(first, 0), |_, _| 0.0))
    });
    cases.push(("subnormal keys and values".into(), Operand::Rounded, products.collect()));
    let product = Product::new(
        |row, k| scaled(sign_and_size(row, k), 0),
        |k, n| scaled(sign_and_size(k, n), -24),
        |_, _| 0.0,
    );
    cases.push(("subnormal queries and weights".into(), Operand::Rounded, vec![product]));
    cases
}

/// x · y.
struct Pair {
    x: f16,
    y: f16,
}

impl Pair {
    fn product(&self) -> f64 {
        self.x.to_f64() * self.y.to_f64()
    }
}

fn pair_cases() -> Vec<(String, Vec<Pair>)> {
    let case = |name: &str, x_power, y_power| {
        let pair = |number| Pair { x: scaled(number, x_power), y: scaled(1, y_power) };
        (name.to_owned(), (0..1024).map(pair).collect())
    };
    vec![
        case("pairs, subnormal times large", -24, 8),
        case("pairs, normal times subnormal", 0, -24),
        case("pairs, subnormal results", -14, -10),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a device could be right and not give them.
    #[test]
    fn all_results_are_exact_in_f32() {
        for (name, _, products) in matrix_cases() {
            for product in products {
                for sum in fragments(|row, n| product.sum(row, n)) {
                    assert_eq!(f64::from(sum as f32), sum, "{name}");
                }
                // Sums in any order, too: nothing is further than 2^20 from the least unit.
                let products =
                    (0..16).flat_map(|row| (0..8).map(move |n| (row, n))).flat_map(|(row, n)| {
                        let (a, b) = (product.a[row], product.b);
                        (0..16).map(move |k| (a[k].to_f64() * b[k][n].to_f64()).abs())
                    });
                let (least, most) = products
                    .filter(|x| *x > 0.0)
                    .fold((f64::INFINITY, 0f64), |(low, high), x| (low.min(x), high.max(x)));
                let one_each = name.starts_with("e4m3") || name.starts_with("subnormal keys");
                assert!(one_each || most / least < 2f64.powi(12), "{name}: {least:e} and {most:e}");
            }
        }
        for (name, pairs) in pair_cases() {
            assert_eq!(pairs.len() % 2, 0);
            for pair in pairs {
                assert_eq!(f16::from_f64(pair.product()).to_f64(), pair.product(), "{name}");
            }
        }
    }
}
