//! A KV format by its name, as evaluations list them.

use crate::engine::{AUTO, EngineConfig};
use crate::error::Result;
use crate::model::KvOptions;

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
    /// The format of a name; `auto` as it is for a model without a calibration, until it is
    /// [resolved](Self::resolved).
    ///
    /// # Errors
    /// As [`EngineConfig::validate`] for an unknown name or a file that is no calibration.
    pub fn find(name: &str) -> Result<Self> {
        let name = name.trim();
        let options = EngineConfig::default().with_kv(name).kv_options()?;
        let name = match options.calibration {
            None if name != AUTO => options.format.to_string(),
            _ => name.to_owned(),
        };
        Ok(Self { name, bits: options.bits(), seals: options.format.seals() })
    }

    /// This format where the cache is kept by `options`, which are what [`EngineConfig`] makes
    /// of its name for one model: so `auto` becomes a named format, or stays for the model's
    /// own calibration.
    pub fn resolved(&self, options: &KvOptions) -> Self {
        if self.name != AUTO {
            return self.clone();
        }
        let name = match options.calibration {
            Some(_) => AUTO.to_owned(),
            None => options.format.to_string(),
        };
        Self { name, bits: options.bits(), seals: options.format.seals() }
    }

    /// The name for people, once it is [resolved](Self::resolved).
    pub fn label(&self) -> String {
        label(&self.name).to_owned()
    }
}

/// A resolved format's name for people.
pub(super) fn label(name: &str) -> &str {
    if name == AUTO { "auto (calibrated)" } else { name }
}
