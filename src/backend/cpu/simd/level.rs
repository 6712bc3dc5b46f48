//! Which instruction sets there are, and which this processor has.

use crate::error::{Error, Result};
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that kernels are compiled for, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No more than the target's baseline.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// Every level, whether or not this processor has it.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// Whether this processor runs the level.
    pub fn available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The highest level of this processor.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            Level::ALL.into_iter().rev().find(|l| l.available()).unwrap_or(Level::Portable)
        })
    }

    /// The name used on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let level = Level::ALL.into_iter().find(|l| l.name() == s);
        match level {
            Some(l) if l.available() => Ok(l),
            Some(_) => Err(Error::config("simd", format!("this processor has no {s}"))),
            None => Err(Error::config("simd", format!("\"{s}\" is not portable, avx2 or avx512"))),
        }
    }
}

/// Whether this thread multiplies subnormal numbers at `level` exactly and as fast as
/// others. AMD's processors with AVX-512 do, while Intel's take a hundred cycles more;
/// and a host may have told the processor to take them for 0.
pub(crate) fn fast_subnormals(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::{asm, x86_64::__cpuid};
        static AMD: OnceLock<bool> = OnceLock::new();
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let amd = || {
            let vendor = __cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        };
        let mut control = 0u32;
        // SAFETY: SSE is part of the architecture; four bytes are written to `control`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack, preserves_flags)) }
        level == Level::Avx512 && control & DENORMALS_ARE_ZERO == 0 && *AMD.get_or_init(amd)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = level;
        false
    }
}
