//! How much memory a cell takes, and how much there is.

use super::local::engine_config;
use super::row::Cell;
use super::runner::Need;
use crate::backend::WeightPolicy;
use crate::engine::{cache_bytes, resident_weights};
use crate::error::Result;
use crate::model::{Checkpoint, KeyOutlier, ModelConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Tokens of an answer, at most, as far as the estimate goes.
const ANSWER: usize = 256;

/// What has to be known of a model to place its cells.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Its file or folder.
    pub path: PathBuf,
    /// Bytes that it takes while it is loaded: file and weights.
    bytes: u64,
    config: ModelConfig,
    outlier: Option<KeyOutlier>,
}

impl ModelFacts {
    /// Opens the model without loading it.
    ///
    /// # Errors
    /// What [`Checkpoint::open`] reports.
    pub fn read(path: impl AsRef<Path>, weights: WeightPolicy) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let checkpoint = Checkpoint::open(&path)?;
        let bytes = checkpoint.file_bytes() + resident_weights(&checkpoint, weights);
        let outlier = KeyOutlier::find(&checkpoint)?;
        Ok(Self { path, bytes, config: checkpoint.config().clone(), outlier })
    }

    /// What a user should know of a cell's KV format with this model, in one line.
    pub fn warning(&self, cell: &Cell) -> Option<String> {
        // A format that cannot be read fails when it is run, and says why.
        let options = engine_config(cell).kv_options().ok()?;
        self.outlier?.warning(&options)
    }

    /// Tokens that it was trained to hold.
    pub fn context(&self) -> usize {
        self.config.context
    }

    /// An estimate from above: the weights and the mapped file; the cache at the cell's
    /// longest sequence, and the buffers of a chunk.
    pub fn need(&self, cell: &Cell) -> Need {
        let c = &self.config;
        let tokens = longest(&cell.task).map_or(c.context, |tokens| c.context.min(tokens + ANSWER));
        // A format that does not suit the model fails when it is run, and says why.
        let cache = cache_bytes(c, &engine_config(cell), tokens).unwrap_or(0);
        // Numbers a token: the residual stream, what products read and write, the logits
        // of a row in a hundred.
        let row = 8 * c.hidden + 4 * c.intermediate + 4 * c.heads * c.head_dim + c.vocab / 100;
        let buffers = (cell.chunk.min(tokens) * row * 4) as u64;
        Need { model: self.bytes, cell: cache + buffers }
    }
}

/// Tokens of a task's longest prompt, if its options tell.
fn longest(task: &Value) -> Option<usize> {
    let number = |value: &Value| value.as_u64().map(|n| n as usize);
    let lengths = task["lengths"].as_array().into_iter().flatten().filter_map(number);
    lengths.chain(["context", "length"].iter().filter_map(|&key| number(&task[key]))).max()
}

/// Bytes that this process may still take: what the system says is available, or less if
/// its control group has a limit; `None` where neither is known.
pub fn available() -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok()?.trim().parse().ok()
    };
    let group = (number("memory.max").zip(number("memory.current")))
        .map(|(max, used)| max.saturating_sub(used));
    system.into_iter().chain(group).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_longest_prompt_is_read_from_the_options() {
        for (task, want) in [
            (json!({"lengths": [512, 4096, 1024], "depths": [9000]}), Some(4096)),
            (json!({"context": 2048, "windows": 4}), Some(2048)),
            (json!({"file": "a.jsonl"}), None),
        ] {
            assert_eq!(longest(&task), want);
        }
    }
}
