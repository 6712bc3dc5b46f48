//! The kernels that the build embedded.

/// What `build.rs` compiled for CUDA devices.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Embedded {
    /// Fatbins by the path of their source beneath `kernels/`, without `.cu`.
    pub fatbins: &'static [(&'static str, &'static [u8])],
    /// Likewise those that are loaded when one of their kernels is launched, because hardly
    /// any device needs them; each kernel's name begins with that of its source.
    pub late: &'static [(&'static str, &'static [u8])],
    /// Architectures with machine code, as nvcc names them: `80`, `90a`.
    pub architectures: &'static [&'static str],
    /// The architecture whose PTX is embedded for later devices.
    pub ptx: Option<u32>,
    /// The CUDA version of the compiler: major, minor.
    pub toolkit: (u32, u32),
}

#[cfg(feature = "cuda")]
mod built {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}

/// The embedded kernels; none if the build has no CUDA.
pub fn embedded() -> Option<Embedded> {
    #[cfg(feature = "cuda")]
    return Some(Embedded {
        fatbins: built::FATBINS,
        late: built::LATE,
        architectures: built::ARCHITECTURES,
        ptx: built::PTX,
        toolkit: built::TOOLKIT,
    });
    #[cfg(not(feature = "cuda"))]
    None
}

impl Embedded {
    /// The late fatbin that has a kernel.
    pub fn late_with(&self, kernel: &str) -> Option<&'static (&'static str, &'static [u8])> {
        let begins = |(stem, _): &&(&str, &[u8])| {
            let file = stem.rsplit('/').next().unwrap_or(stem);
            kernel.strip_prefix(file).is_some_and(|rest| rest.starts_with('_'))
        };
        self.late.iter().filter(begins).max_by_key(|(stem, _)| stem.len())
    }

    /// Whether a device of this architecture (90 for `sm_90`) can run the kernels:
    /// machine code serves its own generation from its own version on, PTX all
    /// later devices.
    pub fn serves(&self, arch: u32) -> bool {
        let native = self.architectures.iter().any(|name| {
            let digits = name.trim_end_matches(['a', 'f']);
            let Ok(code) = digits.parse::<u32>() else { return false };
            match name.ends_with('a') {
                true => code == arch,
                false => code / 10 == arch / 10 && code <= arch,
            }
        });
        native || self.ptx.is_some_and(|ptx| ptx <= arch)
    }

    /// The architectures in words.
    pub fn describe(&self) -> String {
        let mut all: Vec<_> = self.architectures.iter().map(|a| format!("sm_{a}")).collect();
        all.extend(self.ptx.map(|a| format!("compute_{a} PTX")));
        if all.is_empty() { "no architecture".into() } else { all.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_serves_its_generation_and_ptx_what_comes_later() {
        let (architectures, toolkit) = (&["86", "90"], (13, 0));
        let e = Embedded { fatbins: &[], late: &[], architectures, ptx: None, toolkit };
        let served = |e: &Embedded| -> Vec<u32> {
            [75, 80, 86, 87, 89, 90, 100, 103, 120].into_iter().filter(|a| e.serves(*a)).collect()
        };
        assert_eq!(served(&e), [86, 87, 89, 90]);
        assert_eq!(served(&Embedded { ptx: Some(90), ..e }), [86, 87, 89, 90, 100, 103, 120]);
        // Architecture-specific code serves its own architecture only, family-specific
        // code its family.
        assert_eq!(served(&Embedded { architectures: &["100a"], ..e }), [100]);
        assert_eq!(served(&Embedded { architectures: &["100f"], ..e }), [100, 103]);
        assert_eq!(Embedded { ptx: Some(80), ..e }.describe(), "sm_86, sm_90, compute_80 PTX");
    }

    #[test]
    fn late_kernels_are_found_by_their_sources() {
        let late: &[(&str, &[u8])] = &[("x/late/add", b"1"), ("x/late/add_two", b"2")];
        let (fatbins, architectures, toolkit) = (&[][..], &["90"], (13, 0));
        let e = Embedded { fatbins, late, architectures, ptx: Some(90), toolkit };
        let found = |kernel| e.late_with(kernel).map(|(stem, _)| *stem);
        assert_eq!(found("add_one"), Some("x/late/add"));
        assert_eq!(found("add_two_f16"), Some("x/late/add_two"));
        assert_eq!([found("add"), found("addition_f16"), found("subtract_f16")], [None; 3]);
    }
}
