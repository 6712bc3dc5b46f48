//! JSON files, and checked access to their fields.

use std::path::Path;

use serde_json::Value;

use super::complaint;
use crate::{Error, Result};

/// Reads a whole file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| complaint::bad_file(path, format!("not valid JSON: {e}")))
}

/// A JSON object with checked access; a null is an absent field.
pub(in crate::model) struct Fields<'a> {
    pub path: &'a Path,
    pub json: &'a Value,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|v| !v.is_null())
    }

    pub fn uint(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(self.bad(format!("{name} is {value}, not a natural number"))),
        }
    }

    pub fn required(&self, name: &str) -> Result<usize> {
        self.uint(name)?.ok_or_else(|| self.bad(format!("{name} is missing")))
    }

    pub fn float(&self, name: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) => Ok(Some(x as f32)),
            None => Err(self.bad(format!("{name} is {value}, not a number"))),
        }
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_bool() {
            Some(b) => Ok(Some(b)),
            None => Err(self.bad(format!("{name} is {value}, not true or false"))),
        }
    }

    pub fn str(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(self.bad(format!("{name} is {value}, not a string"))),
        }
    }

    /// One token id, or a list of them; without repeats.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let mut ids = Vec::new();
        for id in list {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| self.bad(format!("{name} is {value}, not token ids")))?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    pub fn bad(&self, what: impl AsRef<str>) -> Error {
        complaint::bad_file(self.path, what)
    }

    pub fn unsupported(&self, what: &str) -> Error {
        complaint::unsupported(self.path, what)
    }
}
