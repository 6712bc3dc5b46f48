//! One line of the results: what was measured, where, and what came of it.

use crate::eval::{Metric, Outcome, TaskSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt;

/// One measurement: a task on a model whose cache is kept in one way. Everything that
/// defines its outcome is here or, as content, in its [key](super::grid::Planned::key).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The model, as the spec names it.
    pub model: String,
    /// The KV format.
    pub kv: String,
    /// Which tokens are kept.
    pub policy: String,
    /// Tokens that a stream may keep; `None` for a policy that keeps all.
    pub budget: Option<usize>,
    /// S; `None` for a format that never seals, where it makes no difference.
    pub sinks: Option<usize>,
    /// R; `None` likewise.
    pub hot_window: Option<usize>,
    /// The task with all of its options.
    pub task: Value,
    /// What the task's prompts are drawn from.
    pub seed: usize,
    /// Tokens of a prompt that are computed at once.
    pub chunk: usize,
    /// Where it is computed, as the spec says.
    pub device: String,
    /// Storage of the weights in memory.
    pub weights: String,
}

impl Cell {
    /// The task's name, its kind and language included.
    pub fn task_name(&self) -> String {
        // Files of other versions may have tasks that this one does not know.
        match serde_json::from_value::<TaskSpec>(self.task.clone()) {
            Ok(task) => task.name().to_owned(),
            Err(_) => self.task["task"].as_str().unwrap_or("unknown task").to_owned(),
        }
    }
}

impl fmt::Display for Cell {
    /// What tells it from the other cells of a model, in a few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.task_name(), self.kv)?;
        if self.policy != super::spec::NO_POLICY {
            write!(f, " {}", self.policy)?;
        }
        if let Some(budget) = self.budget {
            write!(f, " budget {budget}")?;
        }
        if let Some(sinks) = self.sinks {
            write!(f, " sinks {sinks}")?;
        }
        write!(f, " seed {}", self.seed)
    }
}

/// A measured cell, one JSON object a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The same for the same measurement, whenever and wherever it is made.
    pub key: String,
    /// kvfold's version.
    pub kvfold: String,
    /// The commit that kvfold was built from (`KVFOLD_COMMIT` in the build), if it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commit: Option<String>,
    /// When it was done, RFC 3339.
    pub date: String,
    /// Where.
    pub machine: Machine,
    /// The spec's name.
    pub spec: String,
    /// What was measured.
    #[serde(flatten)]
    pub cell: Cell,
    /// Bits that the format stores an element in.
    pub bits: f64,
    /// What the outcome's values are.
    pub metric: Option<Metric>,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Why nothing did.
    pub error: Option<String>,
    /// How long it took, the model's loading not included.
    pub seconds: f64,
}

/// A machine, and how much of it one cell had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Its logical cores.
    pub cores: usize,
    /// Cells that ran side by side, at most.
    pub jobs: usize,
    /// Threads that each of them had.
    pub threads: usize,
}

impl Machine {
    /// This machine, shared by `jobs`.
    pub fn here(jobs: usize, threads: usize) -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let cpu = cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        Self { cpu, cores: cores(), jobs, threads }
    }
}

/// Logical cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The time in RFC 3339, to the second.
pub(super) fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    // Years of five digits are all that it cannot write.
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// SHA-256 of a JSON value that does not depend on the order of its objects' fields, the
/// first 32 hexadecimal digits.
pub(super) fn hash(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    hex(&Sha256::digest(text.as_bytes()))[..32].to_owned()
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (name, value) in fields {
                *out += &Value::from(name.as_str()).to_string();
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for value in list {
                canonical(value, out);
                out.push(',');
            }
            out.push(']');
        }
        other => *out += &other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_is_of_the_content_alone() {
        let value = json!({"b": [1, {"y": 2.5, "x": null}], "a": "text"});
        let other = json!({"a": "text", "b": [1, {"x": null, "y": 2.5}]});
        assert_eq!(hash(&value), hash(&other));
        assert_eq!(hash(&value).len(), 32);
        for changed in [json!({"a": "text"}), json!({"a": "text", "b": [1, 2.5]}), json!([])] {
            assert_ne!(hash(&value), hash(&changed));
        }
    }

    #[test]
    fn dates_are_rfc_3339() {
        let date = now();
        assert!(date.len() == 20 && date.ends_with('Z') && &date[10..11] == "T", "{date}");
    }
}
