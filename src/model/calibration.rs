//! What was measured of the KV heads of a model: a format for each, and what its keys are
//! encoded with. A small JSON file.
//!
//! ```json
//! { "kvfold": "kv-formats-1", "model": "SmolLM2 135M", "fingerprint": "5c0f…",
//!   "target_bits": 2.75, "bits": 2.744, "text": "notes.txt", "tokens": 8192,
//!   "layers": [["kf3.2", "kf2", "kf2"], …],
//!   "key_feedback": [["UTSxL7a5…", "HTE5LiM0…", "4TEHOEkr…"], …] }
//! ```
//!
//! `layers` has a list for each layer, with the format of each KV head; `key_feedback`
//! likewise, with the bytes of each head's [`Feedback`] in base64. The fingerprint ties
//! both to the weights that they were measured on.

use super::files::{Checkpoint, complaint};
use crate::codec::KvFormat;
use crate::codec::feedback::Feedback;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Those that kvfold comes with.
const SHIPPED: [&str; 1] = [include_str!("../../models/smollm2-135m-instruct.kv.json")];

/// What the files' first field says.
const KIND: &str = "kv-formats-1";

/// Bytes of each tensor that a fingerprint looks at.
const SAMPLE: usize = 4096;

/// Formats of all heads of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    kvfold: String,
    /// The model's name, for messages.
    pub model: String,
    /// [`Checkpoint::fingerprint`] of the model.
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

    /// The one that kvfold comes with for the model of a fingerprint.
    pub fn shipped(fingerprint: &str) -> Option<Self> {
        let text = SHIPPED.iter().find(|text| text.contains(fingerprint))?;
        let read: Self = serde_json::from_str(text).ok()?;
        (read.fingerprint == fingerprint).then_some(read)
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
    /// [`Error::Config`] naming both models.
    pub fn check(&self, name: &str, fingerprint: &str, layers: usize, heads: usize) -> Result<()> {
        if self.fingerprint == fingerprint && self.covers(layers, heads) {
            return Ok(());
        }
        let what = format!(
            "the calibration was made for other weights ({}, {}) than {name} ({fingerprint}): make \
             one for this model with `kvfold calibrate`",
            self.model, self.fingerprint
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

impl Checkpoint {
    /// Sixteen hexadecimal digits that tell models apart: of the geometry and of the first
    /// 4 KiB of each key projection and of the embedding, so also of each fine-tune.
    ///
    /// # Errors
    /// [`Error::BadFile`](crate::Error::BadFile) if a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let config = self.config();
        let mut hash = Sha256::new();
        let numbers = [config.vocab, config.hidden, config.heads, config.kv_heads, config.head_dim];
        numbers.iter().for_each(|n| hash.update((*n as u64).to_le_bytes()));
        let keys = (0..config.layers).map(|i| format!("model.layers.{i}.self_attn.k_proj.weight"));
        for name in keys.chain(["model.embed_tokens.weight".to_owned()]) {
            let tensor = self.tensor(&name)?;
            hash.update(&tensor.bytes[..tensor.bytes.len().min(SAMPLE)]);
        }
        Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
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
        Calibration::new("A model", "0123456789abcdef", layers, feedback)
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
            ("kv-formats-1", "kv-formats-9", "kv-formats-9"),
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
            assert_eq!(Calibration::shipped(&calibration.fingerprint), Some(calibration));
        }
        assert_eq!(Calibration::shipped("0123456789abcdef"), None);
    }

    #[test]
    fn another_model_is_named() {
        let calibration = example();
        assert!(calibration.check("A model", "0123456789abcdef", 2, 2).is_ok());
        for (fingerprint, layers) in [("ffff456789abcdef", 2), ("0123456789abcdef", 3)] {
            let error = calibration.check("Another", fingerprint, layers, 2).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("A model") && error.contains("Another"), "{error}");
        }
    }
}
