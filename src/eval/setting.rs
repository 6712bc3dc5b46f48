//! One way to store the cache, and all of them that are to be measured.

use super::format::Format;
use crate::engine::EngineConfig;
use crate::error::{Error, Result};

/// One way to store the cache that is to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The format of sealed pages.
    pub kv: Format,
    /// S; `None` for a format that never seals, where it makes no difference.
    pub sinks: Option<usize>,
}

impl Setting {
    /// Every format with every number of sinks, in the order given; formats that
    /// never seal appear once, and so does what is listed twice.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown format or an empty list.
    pub fn grid<S: AsRef<str>>(formats: &[S], sinks: &[usize]) -> Result<Vec<Self>> {
        for (field, empty) in [("kv", formats.is_empty()), ("sinks", sinks.is_empty())] {
            if empty {
                return Err(Error::config(field, "the list is empty; name at least one"));
            }
        }
        let mut grid = Vec::new();
        for format in formats {
            let kv = Format::find(format.as_ref())?;
            let each = sinks.iter().map(|&s| Self { kv: kv.clone(), sinks: kv.seals.then_some(s) });
            for setting in each {
                if !grid.contains(&setting) {
                    grid.push(setting);
                }
            }
        }
        Ok(grid)
    }

    /// `config` with this setting in it.
    pub fn apply(&self, config: EngineConfig) -> EngineConfig {
        let config = config.with_kv(&self.kv.name);
        match self.sinks {
            Some(sinks) => config.with_sinks(sinks),
            None => config,
        }
    }
}
