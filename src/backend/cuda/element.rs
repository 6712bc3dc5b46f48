//! The types of activations and of products.

use crate::codec::Codec;
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A 16-bit type of activations.
pub trait Element: Pod + Send + Sync + Output<Self> {
    /// Its codec.
    const CODEC: Codec;
    /// Its largest finite number.
    const LARGEST: f32;

    /// Rounds numbers to nearest, ties to even; too large ones become infinite.
    fn narrow(from: &[f32], to: &mut [Self]);

    /// The same numbers as f32.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Element for f16 {
    const CODEC: Codec = Codec::F16;
    const LARGEST: f32 = 65504.0;

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Element for bf16 {
    const CODEC: Codec = Codec::Bf16;
    const LARGEST: f32 = f32::from_bits(0x7f7f_0000);

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// A type that products of `T` are written in: `T`, or f32.
pub trait Output<T: Element>: Pod {
    /// Whether it is f32.
    const WIDE: bool;
}

impl Output<f16> for f16 {
    const WIDE: bool = false;
}

impl Output<bf16> for bf16 {
    const WIDE: bool = false;
}

impl<T: Element> Output<T> for f32 {
    const WIDE: bool = true;
}
