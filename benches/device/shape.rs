//! Models without files: shapes of known ones, with random weights made on the
//! device.

use crate::random::Random;
use kvfold::backend::Memory;
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::runner::CudaBackend;
use kvfold::backend::cuda::weights::Matrix;
use kvfold::backend::driver::{DeviceBuffer, DeviceStream};
use kvfold::model::{ModelConfig, Part, TensorSpec, Weights};
use kvfold::{Error, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A model that is measured.
#[derive(Clone, Copy, Debug)]
pub struct ModelShape {
    pub name: &'static str,
    /// Its `config.json`.
    json: &'static str,
}

/// The default model, SmolLM2-135M.
pub const DEFAULT: ModelShape = ModelShape {
    name: "default",
    json: r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": true}"#,
};

/// Llama-3.1-8B.
pub const LLAMA_8B: ModelShape = ModelShape {
    name: "llama-8b",
    json: r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "max_position_embeddings": 131072, "tie_word_embeddings": false}"#,
};

/// One that the emulated device can run.
pub const TINY: ModelShape = ModelShape {
    name: "tiny",
    json: r#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true}"#,
};

impl ModelShape {
    pub fn config(&self) -> Result<ModelConfig> {
        ModelConfig::from_json(self.json)
    }
}

/// Elements of all matrices that a token is multiplied by.
pub fn multiplied(config: &ModelConfig) -> u64 {
    let elements = |spec: TensorSpec| match spec.shape[..] {
        [rows, cols] if spec.part != Part::Embedding || config.tied => rows * cols,
        _ => 0,
    };
    config.tensors().into_iter().map(elements).sum::<usize>() as u64
}

/// Elements of all tensors.
pub fn elements(config: &ModelConfig) -> u64 {
    config.tensors().iter().map(|t| t.shape.iter().product::<usize>() as u64).sum()
}

/// A prime number of random numbers is repeated over each matrix, so that its rows
/// differ. They are normal of variance 1 / columns, so that activations stay in range.
const PERIOD: usize = 1_048_573;

fn period<T: Element>(cols: usize, stream: &DeviceStream) -> Result<DeviceBuffer<T>> {
    let mut random = Random::new(cols as u64);
    let scale = (cols as f32).powf(-0.5);
    let wide: Vec<f32> = (0..PERIOD).map(|_| scale * random.float()).collect();
    let mut narrow = vec![T::zeroed(); PERIOD];
    T::narrow(&wide, &mut narrow);
    stream.device().upload(&narrow, stream)
}

/// Gives matrices of random numbers and norms of ones.
pub struct RandomWeights<T> {
    shapes: HashMap<(Option<usize>, Part), Vec<usize>>,
    /// By columns.
    periods: HashMap<usize, DeviceBuffer<T>>,
    given: usize,
}

impl<T: Element> RandomWeights<T> {
    pub fn new(config: &ModelConfig) -> Self {
        let shapes = config.tensors().into_iter().map(|t| ((t.layer, t.part), t.shape)).collect();
        Self { shapes, periods: HashMap::new(), given: 0 }
    }

    fn shape(&self, layer: Option<usize>, part: Part) -> Result<&[usize]> {
        let shape = self.shapes.get(&(layer, part)).map(Vec::as_slice);
        shape.ok_or_else(|| Error::NotFound { what: format!("{part:?} of layer {layer:?}") })
    }
}

impl<T: Element> Weights<CudaBackend<T>> for RandomWeights<T> {
    fn matrix(
        &mut self,
        backend: &CudaBackend<T>,
        layer: Option<usize>,
        parts: &[Part],
    ) -> Result<Matrix<T>> {
        let (mut rows, mut cols) = (0, 0);
        for part in parts {
            let shape = self.shape(layer, *part)?;
            rows += shape[0];
            cols = shape[1];
        }
        let stream = backend.device().stream()?;
        let period = match self.periods.entry(cols) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(period(cols, &stream)?),
        };
        let mut data = backend.device().alloc::<T>(rows * cols)?;
        // Matrices begin at different places of the period.
        self.given += 1;
        let (mut at, mut from) = (0, self.given * 7919 % PERIOD);
        while at < data.len() {
            let n = (PERIOD - from).min(data.len() - at);
            data.copy_from(at, period, from, n, &stream)?;
            (at, from) = (at + n, 0);
        }
        stream.synchronize()?;
        Matrix::new(rows, cols, data)
    }

    fn vector(
        &mut self,
        backend: &CudaBackend<T>,
        layer: Option<usize>,
        parts: &[Part],
    ) -> Result<DeviceBuffer<f32>> {
        let mut n = 0;
        for part in parts {
            n += self.shape(layer, *part)?.iter().product::<usize>();
        }
        backend.vector(&vec![1.0; n])
    }
}
