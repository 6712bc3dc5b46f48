//! A small deterministic generator: cases and cells must be the same in every run and
//! must not depend on a crate. The GPU bench (`benches/device/`) has it from here.
#![allow(dead_code)] // each user has its own part

/// Marsaglia's xorshift64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Roughly normal, of variance 1.
    pub fn float(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.below(1 << 24) as f32 / (1 << 24) as f32 - 0.5).sum();
        sum * 3f32.sqrt()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|i| items.swap(i, self.below(i + 1)));
    }

    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        self.shuffle(&mut all);
        all
    }
}
