//! The forms of pages that attention kernels are made for.

use super::subnormal::Number;
use crate::codec::KvFormat;
use crate::codec::formats::{NAMED_FORMATS, NamedFormat};
use crate::error::{Error, Result};

/// What kernels for pages of a format are called by.
///
/// # Errors
/// [`Error::Unsupported`] for a format for which there are none.
pub(super) fn form_of(format: KvFormat) -> Result<&'static NamedFormat> {
    format.kernels().ok_or_else(|| {
        let names: Vec<_> = NAMED_FORMATS.iter().map(|format| format.name).collect();
        Error::Unsupported {
            what: format!("the KV format {format} on this device"),
            remedy: format!("it takes {}", names.join(", ")),
        }
    })
}

/// What kernels that decode such pages are called by, behind the family's name. Pages of 16
/// bits have no codes.
pub(super) fn decode_stem(form: &NamedFormat, number: Number) -> String {
    match number {
        Number::Normal if !form.key.is_16_bit() => format!("{}_normal", form.stem),
        _ => form.stem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The names of a folder's files.
    fn sources(folder: &str) -> BTreeSet<String> {
        let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        let files = files.filter(|entry| entry.path().is_file());
        files.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn each_form_has_its_sources() {
        let wanted = NAMED_FORMATS.iter().flat_map(|format| {
            let (form, keys) = (format.stem, format.key_stem());
            [format!("decode_{form}.cu"), format!("prefill_{form}.cu"), format!("score_{keys}.cu")]
        });
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/attention/instantiations");
        assert_eq!(sources(folder), wanted.collect());
        let normal = NAMED_FORMATS.iter().map(|format| decode_stem(format, Number::Normal));
        let wanted = normal.filter(|stem| stem != "half").map(|stem| format!("decode_{stem}.cu"));
        assert_eq!(sources(&format!("{folder}/normal")), wanted.collect());
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn each_form_has_its_kernels() {
        use std::ffi::{CStr, c_char, c_int};

        /// `KvfoldEmulatorKernel` of kernels/emulator/emulator.h.
        #[repr(C)]
        struct Kernel {
            name: *const c_char,
            params_bytes: u64,
            threads: u32,
            blocks: u32,
        }

        unsafe extern "C" {
            fn kvfold_emulator_kernel(index: u32, kernel: *mut Kernel) -> c_int;
        }

        let mut found = BTreeSet::new();
        for index in 0.. {
            let mut kernel =
                Kernel { name: std::ptr::null(), params_bytes: 0, threads: 0, blocks: 0 };
            // SAFETY: any index may be asked for; past the last one nothing is written.
            if unsafe { kvfold_emulator_kernel(index, &mut kernel) } != 0 {
                break;
            }
            // SAFETY: names are string literals.
            let name = unsafe { CStr::from_ptr(kernel.name) }.to_str().unwrap();
            let family = name.split('_').next().unwrap();
            if ["decode", "prefill", "score", "top"].contains(&family) && name != "score_top" {
                found.insert(name.to_owned());
            }
        }

        let mut wanted = BTreeSet::new();
        for format in NAMED_FORMATS {
            let (form, keys) = (format.stem, format.key_stem());
            for (element, d) in
                ["f16", "bf16"].into_iter().flat_map(|e| [64, 128, 256].map(|d| (e, d)))
            {
                let columns = if d < 256 { &[8, 16][..] } else { &[8] };
                for stem in [Number::Subnormal, Number::Normal].map(|n| decode_stem(&format, n)) {
                    let name = |n| format!("decode_{stem}_{element}_d{d}_n{n}");
                    wanted.extend(columns.iter().map(name));
                }
                wanted.insert(format!("prefill_{form}_{element}_d{d}"));
                wanted.extend(["score", "top"].map(|f| format!("{f}_{keys}_{element}_d{d}")));
            }
        }
        assert_eq!(found, wanted);
    }
}
