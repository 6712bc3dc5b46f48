//! A KV format by its name, as evaluations list them.

use crate::engine::{AUTO, EngineConfig};
use crate::error::{Error, Result};

/// A KV format: a name that [`EngineConfig::kv`] takes, the path of a calibration
/// included.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    /// The name.
    pub name: String,
    /// Stored bits an element of sealed pages.
    pub bits: f64,
    /// Whether its pages are ever sealed; otherwise sinks and the 16-bit window make no
    /// difference.
    pub seals: bool,
}

impl Format {
    /// The format of a name.
    ///
    /// # Errors
    /// As [`EngineConfig::validate`] for an unknown name or a file that is no calibration;
    /// also for `auto`.
    pub fn find(name: &str) -> Result<Self> {
        let name = name.trim();
        if name == AUTO {
            let what = "auto depends on the model; name a format or a file of `calibrate`";
            return Err(Error::config("kv", what));
        }
        let options = EngineConfig::default().with_kv(name).kv_options()?;
        let name = match options.calibration {
            Some(_) => name.to_owned(),
            None => options.format.to_string(),
        };
        Ok(Self { name, bits: options.bits(), seals: options.format.seals() })
    }
}
