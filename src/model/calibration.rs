//! What was measured of the KV heads of a model: a format for each, and what its keys are
//! encoded with. A small JSON file.
//!
//! ```json
//! { "kvfold": "kv-formats-2", "model": "SmolLM2 135M", "fingerprint": "5c0f…-91d2…",
//!   "target_bits": 2.75, "bits": 2.744, "text": "notes.txt", "tokens": 8192,
//!   "layers": [["kf3.2", "kf2", "kf2"], …],
//!   "key_feedback": [["UTSxL7a5…", "HTE5LiM0…", "4TEHOEkr…"], …] }
//! ```
//!
//! `layers` has a list for each layer, with the format of each KV head; `key_feedback`
//! likewise, with the bytes of each head's [`Feedback`] in base64. The [`Fingerprint`] ties
//! both to the weights that they were measured on.

use super::files::complaint;
use super::fingerprint::Fingerprint;
use crate::codec::KvFormat;
use crate::codec::feedback::Feedback;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Those that kvfold comes with.
const SHIPPED: [&str; 1] = [include_str!("../../models/smollm2-135m-instruct.kv.json")];

/// What the files' first field says.
const KIND: &str = "kv-formats-2";

/// What it said when fingerprints were of some bytes of the weights, and so of other weights,
/// too.
const OLD_KIND: &str = "kv-formats-1";

/// Formats of all heads of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    kvfold: String,
    /// The model's name, for messages.
    pub model: String,
    /// [`Fingerprint`] of the model.
    pub fingerprint: String,
    /// Mean stored bits an element that were asked for.
    pub target_bits: f64,
    /// Mean stored bits an element of sealed pages, of all that is kept of the whole context.
    pub bits: f64,
    /// The text that was measured on.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// `[layer][KV head]`.
    #[serde(with = "names")]
    pub layers: Vec<Vec<KvFormat>>,
    /// `[layer][KV head]`, of equal shape.
    #[serde(with = "weights")]
    pub key_feedback: Vec<Vec<Arc<Feedback>>>,
}

impl Calibration {
    /// Formats and feedback, both `[layer][KV head]`, for the model of a fingerprint.
    pub fn new(
        model: &str,
        fingerprint: &str,
        layers: Vec<Vec<KvFormat>>,
        key_feedback: Vec<Vec<Arc<Feedback>>>,
    ) -> Self {
        let all = layers.iter().flatten();
        let bits = all.clone().map(|f| f.bits()).sum::<f64>() / all.count().max(1) as f64;
        Self {
            kvfold: KIND.into(),
            model: model.into(),
            fingerprint: fingerprint.into(),
            target_bits: bits,
            bits,
            text: String::new(),
            tokens: 0,
            layers,
            key_feedback,
        }
    }

    /// The one that kvfold comes with for a model. The weights are read only if there is one
    /// of such a shape.
    ///
    /// # Errors
    /// As [`Fingerprint::weights`].
    pub fn shipped(of: &Fingerprint) -> Result<Option<Self>> {
        for text in SHIPPED.iter().filter(|text| text.contains(of.shape())) {
            if let Ok(read) = serde_json::from_str::<Self>(text)
                && of.is(&read.fingerprint)?
            {
                return Ok(Some(read));
            }
        }
        Ok(None)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), or [`Error::BadFile`](crate::Error::BadFile) for
    /// one that is no calibration, or whose formats differ in their 16-bit type.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |what: String| {
            let remedy = "make one with `kvfold calibrate`";
            Error::bad_file(path, complaint::one_line(&what), remedy)
        };
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let read: Self = serde_json::from_str(&text)
            .map_err(|e| bad(format!("it is no calibration of KV formats: {e}")))?;
        if read.kvfold == OLD_KIND {
            let what = format!(
                "it is a \"{OLD_KIND}\", which does not say for certain for which weights it was \
                 made"
            );
            return Err(Error::bad_file(path, what, "make it anew with `kvfold calibrate`"));
        }
        if read.kvfold != KIND {
            let what = format!("it is a \"{}\", this version reads \"{KIND}\"", read.kvfold);
            return Err(bad(what));
        }
        let heads = read.layers.iter().map(Vec::len);
        if !heads.eq(read.key_feedback.iter().map(Vec::len)) {
            return Err(bad("layers and key_feedback are of other heads".into()));
        }
        let mut formats = read.layers.iter().flatten();
        let Some(first) = formats.next() else { return Err(bad("it names no formats".into())) };
        if let Some(other) = formats.find(|f| f.hot() != first.hot() || !f.seals()) {
            return Err(bad(format!("{first} and {other} cannot be in one cache")));
        }
        Ok(read)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let all = serde_json::to_value(self).unwrap_or_default();
        let field = |(name, value): (&String, &serde_json::Value)| match value.as_array() {
            // One line a layer.
            Some(layers) => {
                let lines: Vec<_> = layers.iter().map(|layer| format!("    {layer}")).collect();
                format!("  \"{name}\": [\n{}\n  ]", lines.join(",\n"))
            }
            None => format!("  \"{name}\": {value}"),
        };
        let fields: Vec<_> = all.as_object().into_iter().flatten().map(field).collect();
        format!("{{\n{}\n}}\n", fields.join(",\n"))
    }

    /// Whether it has a format for each head of a model.
    pub fn covers(&self, layers: usize, kv_heads: usize) -> bool {
        self.layers.len() == layers && self.layers.iter().all(|layer| layer.len() == kv_heads)
    }

    /// Checks that this was made for a model.
    ///
    /// # Errors
    /// [`Error::Config`] naming both models; as [`Fingerprint::weights`].
    pub fn check(&self, name: &str, of: &Fingerprint, layers: usize, heads: usize) -> Result<()> {
        if self.covers(layers, heads) && of.is(&self.fingerprint)? {
            return Ok(());
        }
        let (shape, weights) = self.fingerprint.split_once('-').unwrap_or_default();
        let other = match (shape == of.shape(), weights == of.weights()?) {
            (false, true) => "these weights with another rope or other numbers",
            _ => "other weights",
        };
        let what = format!(
            "the calibration was made for {other} ({}, {}) than {name} ({}): make one for this \
             model with `kvfold calibrate`",
            self.model,
            self.fingerprint,
            of.text()?
        );
        Err(Error::config("kv", what))
    }
}

/// Formats by name.
mod names {
    use super::*;
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(layers: &[Vec<KvFormat>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(layers.iter().map(|l| l.iter().map(ToString::to_string).collect::<Vec<_>>()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> std::result::Result<Vec<Vec<KvFormat>>, D::Error> {
        let layers = Vec::<Vec<String>>::deserialize(from)?;
        let format = |name: &String| name.parse().map_err(de::Error::custom);
        layers.iter().map(|layer| layer.iter().map(format).collect()).collect()
    }

    type Result<T, E> = std::result::Result<T, E>;
}

/// Feedback as base64 of its bytes.
mod weights {
    use super::*;
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(
        layers: &[Vec<Arc<Feedback>>],
        to: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let text = |head: &Arc<Feedback>| BASE64_STANDARD.encode(head.to_bytes());
        to.collect_seq(layers.iter().map(|layer| layer.iter().map(text).collect::<Vec<_>>()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> std::result::Result<Vec<Vec<Arc<Feedback>>>, D::Error> {
        let head = |text: &String| {
            let bytes = BASE64_STANDARD.decode(text).ok();
            let feedback = bytes.and_then(|bytes| Feedback::from_bytes(&bytes)).map(Arc::new);
            feedback.ok_or_else(|| de::Error::custom("key_feedback has no weights of a head"))
        };
        let layers = Vec::<Vec<String>>::deserialize(from)?;
        layers.iter().map(|layer| layer.iter().map(head).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Calibration {
        let formats = |names: [&str; 2]| names.map(|n| n.parse().unwrap()).to_vec();
        let layers = vec![formats(["kf3.2", "kf2"]), formats(["kf4", "kf2"])];
        let feedback = |scale: f64| {
            let moment: Vec<f64> = (0..64).map(|i| scale * f64::from(i % 9 == 0)).collect();
            Arc::new(Feedback::new(&moment, 8))
        };
        let feedback = vec![vec![feedback(1.0), feedback(2.0)], vec![feedback(0.0); 2]];
        Calibration::new("A model", "0123456789abcdef-00112233", layers, feedback)
    }

    fn read(text: &str) -> Result<Calibration> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("formats.json");
        std::fs::write(&path, text).unwrap();
        Calibration::read(&path)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let calibration = example();
        assert_eq!(calibration.bits, 3.125);
        let text = calibration.to_json();
        assert!(text.contains("    [\"kf3.2\",\"kf2\"],\n"), "{text}");
        assert_eq!(read(&text).unwrap(), calibration);
    }

    #[test]
    fn other_files_are_refused_by_what_is_wrong() {
        let text = example().to_json();
        for (from, to, named) in [
            ("kv-formats-2", "kv-formats-9", "kv-formats-9"),
            ("kv-formats-2", "kv-formats-1", "make it anew with `kvfold calibrate`"),
            ("kf3.2", "kf9", "kf9"),
            ("\"bits\"", "\"bit\"", "bit"),
            ("\"kf4\"", "\"bf16+kf4\"", "bf16+kf4"),
            ("\"kf4\"", "\"f16\"", "f16"),
            ("\"kf4\",", "", "key_feedback"),
            ("AAAAA", "AAA", "key_feedback"),
            ("AAAAA", "AA!AA", "key_feedback"),
            ("AAAA", "A/wA", "key_feedback"),
        ] {
            let error = read(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains('\n'), "{named}: {error}");
        }
        assert!(read("{}").unwrap_err().to_string().contains("no calibration"));
    }

    #[test]
    fn those_that_come_with_kvfold_are_found_and_good() {
        for text in SHIPPED {
            let calibration = read(text).unwrap();
            assert_eq!(calibration.to_json(), text);
            let (shape, weights) = calibration.fingerprint.split_once('-').unwrap();
            let of = |weights| Calibration::shipped(&Fingerprint::known(shape, weights)).unwrap();
            assert_eq!(of(weights), Some(calibration.clone()));
            assert_eq!(of("0011223344556677"), None, "other weights");
        }
        let other = Fingerprint::known("0123456789abcdef", "");
        assert_eq!(Calibration::shipped(&other).unwrap(), None);
    }

    #[test]
    fn another_model_is_named() {
        let calibration = example();
        let check = |shape, weights, layers| {
            calibration.check("Another", &Fingerprint::known(shape, weights), layers, 2)
        };
        assert!(check("0123456789abcdef", "00112233", 2).is_ok());
        for (shape, weights, layers, named) in [
            ("ffff456789abcdef", "ffff2233", 2, "other weights"),
            ("0123456789abcdef", "ffff2233", 2, "other weights"),
            ("ffff456789abcdef", "00112233", 2, "another rope"),
            ("0123456789abcdef", "00112233", 3, "other weights"),
        ] {
            let error = check(shape, weights, layers).unwrap_err().to_string();
            let all = ["A model", "Another", named];
            assert!(all.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
