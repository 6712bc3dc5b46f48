//! How wide the rows of a KV head are.

use crate::codec::KvFormat;
use crate::error::{Error, Result};

/// The widest head that any kernel takes.
pub const MAX_HEAD_DIM: usize = 256;

/// The rows of a KV head: how many channels they have, and which of them are stored and
/// rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Channels of a key.
    pub key_dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// Whether a value is the first `value_dim` channels of its token's key, so that pages
    /// hold keys only.
    pub value_in_key: bool,
    /// Channels of a key that rotate: 0 if none does.
    pub rope_dims: usize,
}

/// Whose kernels are asked to take a geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// The CPU's.
    Cpu,
    /// Those of CUDA devices that write pages.
    CudaPages,
    /// Those, and the ones that attend to pages.
    CudaAttention,
}

impl Geometry {
    /// Keys and values of `head_dim` channels, all of which rotate in keys: multi-head and
    /// grouped-query attention.
    pub const fn gqa(head_dim: usize) -> Self {
        Self { key_dim: head_dim, value_dim: head_dim, value_in_key: false, rope_dims: head_dim }
    }

    /// Multi-head latent attention (DeepSeek-V2, §2.1): what a token keeps is its latent of
    /// `latent_dim` channels, which is the value of every head, and behind it `rope_dims`
    /// rotated channels of the key that all heads share.
    pub const fn mla(latent_dim: usize, rope_dims: usize) -> Self {
        let key_dim = latent_dim + rope_dims;
        Self { key_dim, value_dim: latent_dim, value_in_key: true, rope_dims }
    }

    /// Channels of a row in the key half of a page and in the value half, which has none
    /// where values are parts of keys.
    pub const fn stored(&self) -> [usize; 2] {
        [self.key_dim, if self.value_in_key { 0 } else { self.value_dim }]
    }

    /// Bytes of the stored channels of one token in 16 bits.
    pub fn row_bytes(&self) -> usize {
        2 * self.stored().iter().sum::<usize>()
    }

    /// Bytes of a page of one head.
    pub fn page_bytes(&self, format: KvFormat) -> usize {
        format.page_bytes(self.stored())
    }

    /// An error unless the kernels take it. They take keys and values of one width, stored
    /// apart, and rotate all channels or none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names what they do not take.
    pub fn check(&self, kernels: Kernels) -> Result<()> {
        let Self { key_dim, value_dim, value_in_key, rope_dims } = *self;
        let (what, remedy) = if value_in_key {
            let what = format!("values that are {value_dim} of the {key_dim} channels of keys");
            (what, "they must be stored apart".to_owned())
        } else if key_dim != value_dim {
            let what = format!("keys of {key_dim} and values of {value_dim} channels");
            (what, "both must have as many".to_owned())
        } else if ![0, key_dim].contains(&rope_dims) {
            let what = format!("keys of {key_dim} channels of which {rope_dims} rotate");
            (what, "all must rotate, or none".to_owned())
        } else {
            return check_width(key_dim, kernels);
        };
        Err(Error::Unsupported { what, remedy })
    }
}

fn check_width(head_dim: usize, kernels: Kernels) -> Result<()> {
    let blocks = head_dim.is_multiple_of(32) && (32..=MAX_HEAD_DIM).contains(&head_dim);
    let (takes, what, remedy) = match kernels {
        Kernels::Cpu | Kernels::CudaPages => {
            let remedy = format!("it must be a multiple of 32, at most {MAX_HEAD_DIM}");
            (blocks, format!("head_dim {head_dim}"), remedy)
        }
        Kernels::CudaAttention => {
            let remedy = "it must be 64, 128 or 256; the CPU takes others".to_owned();
            let what = format!("head_dim {head_dim} on this device");
            ([64, 128, 256].contains(&head_dim), what, remedy)
        }
    };
    if takes { Ok(()) } else { Err(Error::Unsupported { what, remedy }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kernels; 3] = [Kernels::Cpu, Kernels::CudaPages, Kernels::CudaAttention];

    #[track_caller]
    fn refused(geometry: Geometry, kernels: &[Kernels], words: &[&str]) {
        for &kernels in kernels {
            let error = geometry.check(kernels).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
            let error = error.to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn pages_hold_what_is_stored() {
        let bytes = |geometry: Geometry, format: &str| geometry.page_bytes(format.parse().unwrap());
        // 64 tokens, 2 bytes, keys and values.
        assert_eq!(bytes(Geometry::gqa(128), "f16"), 64 * 2 * (128 + 128));
        assert_eq!(bytes(Geometry::gqa(128), "kivi4/kivi2"), 64 * 128 * (5 + 3) / 8);
        // DeepSeek-V2's latent: 576 channels a token and layer, and no values.
        let mla = Geometry::mla(512, 64);
        assert_eq!((mla.key_dim, mla.value_dim, mla.rope_dims), (576, 512, 64));
        assert_eq!(bytes(mla, "f16"), 64 * 2 * 576);
        assert_eq!(bytes(mla, "kivi4/kivi2"), 64 * 576 * 5 / 8);
        // The same without the latent: 128 + 64 channels of keys, 128 of values.
        let uneven = Geometry { key_dim: 192, ..Geometry::gqa(128) };
        assert_eq!(bytes(uneven, "bf16"), 64 * 2 * (192 + 128));
        assert_eq!(bytes(uneven, "kivi4/kivi2"), 64 * (192 * 5 + 128 * 3) / 8);
    }

    #[test]
    fn what_kernels_lack_is_named() {
        refused(Geometry::mla(512, 64), &ALL, &["512 of the 576 channels"]);
        let uneven = Geometry { key_dim: 192, ..Geometry::gqa(128) };
        refused(uneven, &ALL, &["keys of 192 and values of 128 channels"]);
        let part = Geometry { rope_dims: 32, ..Geometry::gqa(128) };
        refused(part, &ALL, &["128 channels of which 32 rotate"]);
        for d in [0, 48, 288, 512] {
            refused(Geometry::gqa(d), &ALL, &[&format!("head_dim {d}")]);
        }
        refused(Geometry::gqa(96), &[Kernels::CudaAttention], &["head_dim 96", "CPU"]);
    }

    #[test]
    fn what_kernels_take_passes() {
        for kernels in ALL {
            for d in [64, 128, 256] {
                assert!(Geometry::gqa(d).check(kernels).is_ok());
                assert!(Geometry { rope_dims: 0, ..Geometry::gqa(d) }.check(kernels).is_ok());
            }
        }
        for kernels in [Kernels::Cpu, Kernels::CudaPages] {
            assert!(Geometry::gqa(96).check(kernels).is_ok());
        }
    }
}
