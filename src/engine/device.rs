//! Which device a model is loaded to.

use crate::backend::driver::Device;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A choice of device: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if it has a driver, kernels in this build and cuBLASLt, else
    /// the CPU; why is logged, and [`LoadedModel::device`](super::LoadedModel::device) says
    /// which. A model that the device cannot take is an error all the same.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device; `None` is the CPU.
    ///
    /// # Errors
    /// Why the device that was asked for cannot be used. `auto` asks for none.
    pub fn open(self) -> Result<Option<Device>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => Device::cuda(ordinal).map(Some),
            Self::Auto => match usable() {
                Ok(device) => Ok(Some(device)),
                Err(error) => {
                    tracing::info!(%error, "no CUDA device can be used; the CPU is");
                    Ok(None)
                }
            },
        }
    }
}

/// The first CUDA device, if a model can run on it.
fn usable() -> Result<Device> {
    let device = Device::cuda(0)?;
    #[cfg(feature = "cuda")]
    crate::backend::cuda::gemm::describe_cublaslt()?;
    Ok(device)
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let number = |n: &str| n.parse().ok().map(Self::Cuda);
        let choice = match s {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(number),
        };
        choice.ok_or_else(|| {
            Error::config(
                "device",
                format!("unknown device \"{s}\"; known: auto, cpu, cuda, cuda:N"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_parse_and_print() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("cuda:N"), "{error}");
        }
        assert!(DeviceChoice::Cpu.open().unwrap().is_none());
    }
}
