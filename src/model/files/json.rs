//! JSON files, and checked access to their fields.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::complaint;
use super::mapped::open_regular;
use crate::{Error, Result};

/// Reads a whole file; a mark of UTF-8 at its start is passed over.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    serde_json::from_slice(text)
        .map_err(|e| complaint::not_a(path, "a JSON text", &bytes, format!("not valid JSON: {e}")))
}

/// A natural number, also one that was written as a float (512.0).
fn natural(value: &Value) -> Option<u64> {
    let whole = |x: &f64| x.fract() == 0.0 && (0.0..MAX_WHOLE).contains(x);
    value.as_u64().or_else(|| value.as_f64().filter(whole).map(|x| x as u64))
}

/// Up to here floats are all whole numbers, each once.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

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
        match natural(value).and_then(|n| usize::try_from(n).ok()) {
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
            let id = natural(id).and_then(|id| u32::try_from(id).ok());
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_floats_are_integers_and_others_are_named() {
        let json = json!({"a": 512.0, "b": 512.5, "c": -1.0, "d": 1e20, "e": "512", "f": [2.0, 3]});
        let fields = Fields { path: Path::new("config.json"), json: &json };
        assert_eq!(fields.required("a").unwrap(), 512);
        assert_eq!(fields.ids("f").unwrap(), [2, 3]);
        for name in ["b", "c", "d", "e"] {
            let error = fields.uint(name).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} is ")), "{error}");
        }
        assert!(fields.ids("b").is_err());
    }
}
