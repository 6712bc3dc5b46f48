//! The architectures that kernels are compiled for.

/// What `KVFOLD_CUDA_ARCHS` stands for if it is not set.
pub const DEFAULT: &str = "80,86,89,90,100,120";

/// The oldest one: the kernels use cp.async and bf16 products.
const OLDEST: u32 = 80;

/// Architectures by nvcc's names without their prefix: `80`, `90a`, `100f`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archs {
    /// Those that get machine code, in ascending order.
    pub native: Vec<String>,
    /// The one whose PTX is kept for later devices: the lowest without a suffix,
    /// since code with a suffix is not for later devices.
    pub ptx: Option<u32>,
}

/// Reads a list like `80,90`.
pub fn parse(list: &str) -> Result<Archs, String> {
    let mut all = Vec::new();
    for name in list.split(',').map(str::trim) {
        let digits = name.strip_suffix(['a', 'f']).unwrap_or(name);
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok());
        match number.flatten() {
            Some(number) if (OLDEST..1000).contains(&number) => {
                all.push((number, name.to_owned()));
            }
            Some(number) if number < OLDEST && digits.len() == 2 => {
                return Err(format!(
                    "KVFOLD_CUDA_ARCHS={list}: the kernels need architecture {OLDEST} or later, not {name}"
                ));
            }
            _ => {
                return Err(format!(
                    "KVFOLD_CUDA_ARCHS={list}: \"{name}\" is no architecture; give numbers as in {DEFAULT}"
                ));
            }
        }
    }
    all.sort();
    all.dedup();
    let ptx = all.iter().find(|(number, name)| *name == number.to_string()).map(|(n, _)| *n);
    Ok(Archs { native: all.into_iter().map(|(_, name)| name).collect(), ptx })
}

impl Archs {
    /// Splits off what a compiler cannot compile for; `known` is what it lists
    /// with `--list-gpu-code`.
    pub fn retain_known(&self, known: &str) -> (Archs, Vec<String>) {
        let is_known =
            |arch: &str| known.lines().any(|l| l.trim().strip_prefix("sm_") == Some(arch));
        let (native, unknown) = self.native.iter().cloned().partition(|a| is_known(a));
        (Archs { native, ptx: self.ptx.filter(|p| is_known(&p.to_string())) }, unknown)
    }

    /// nvcc's arguments for one fatbin.
    pub fn flags(&self) -> Vec<String> {
        let native = self.native.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}"));
        let ptx = self.ptx.map(|a| format!("-gencode=arch=compute_{a},code=compute_{a}"));
        native.chain(ptx).collect()
    }

    /// The same for code that the driver compiles if it is ever needed: PTX alone, if there
    /// is any.
    pub fn late_flags(&self) -> Vec<String> {
        match self.ptx {
            Some(_) => Archs { native: Vec::new(), ..*self }.flags(),
            None => self.flags(),
        }
    }
}
