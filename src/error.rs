//! The one error type of the library (floor 0).
//!
//! Every message is one line that names what went wrong and how to mend it, whatever the
//! names in it hold.

use crate::printable::Printable;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything that can go wrong in kvfold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write `path`.
    #[error("{}: {source}", Printable(path.display()))]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// `path` exists but its content is not what its format promises.
    #[error("{}: {}; {}", Printable(path.display()), Printable(what), Printable(remedy))]
    BadFile {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong, with the field or offset.
        what: String,
        /// What the user can do.
        remedy: String,
    },

    /// The checkpoint's architecture is not one that kvfold implements.
    #[error("{}: architecture \"{}\" is not supported; supported: {supported}", Printable(path.display()), Printable(name))]
    UnknownArchitecture {
        /// The checkpoint.
        path: PathBuf,
        /// The name found in it.
        name: String,
        /// The names that are implemented.
        supported: String,
    },

    /// A tensor is stored in a number format that kvfold cannot read.
    #[error("{}: tensor \"{}\" has unsupported type {}; convert the file to one of: {supported}", Printable(path.display()), Printable(tensor), Printable(dtype))]
    UnsupportedWeights {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its type, by name or number.
        dtype: String,
        /// The types that can be read.
        supported: &'static str,
    },

    /// The downloaded or local file does not have the checksum that it should have.
    #[error("{}: SHA-256 is {found}, it should be {}; delete the file and run `kvfold fetch` again", Printable(path.display()), Printable(expected))]
    Checksum {
        /// The file concerned.
        path: PathBuf,
        /// The checksum it should have.
        expected: String,
        /// The checksum it has.
        found: String,
    },

    /// Every source of a model's manifest failed.
    #[error("could not fetch \"{}\": {}", Printable(model), Printable(reasons))]
    Fetch {
        /// The model's name.
        model: String,
        /// One reason per source, joined by "; ".
        reasons: String,
    },

    /// The request holds more tokens than the model was trained for.
    #[error(
        "the prompt has {tokens} tokens but the model's context holds {limit}, {reserved} of which are kept for the answer; shorten the prompt or lower --max-tokens"
    )]
    ContextTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// The model's context in tokens.
        limit: usize,
        /// Tokens kept free for the answer.
        reserved: usize,
    },

    /// The KV memory budget cannot hold what was asked for.
    #[error(
        "the KV budget of {budget} bytes is too small: {needed} bytes are needed ({held} held); raise --kv-budget or choose a smaller --kv format"
    )]
    KvBudget {
        /// Bytes that would be held if the request were granted.
        needed: u64,
        /// Bytes held now.
        held: u64,
        /// The budget.
        budget: u64,
    },

    /// A configuration value is out of range.
    #[error("{field}: {}", Printable(what))]
    Config {
        /// The option or field.
        field: &'static str,
        /// What is wrong with it and what is allowed.
        what: String,
    },

    /// A call that contradicts itself or what was called before: a mistake of the program
    /// that calls kvfold, which no option mends.
    #[error("{argument}: {what}")]
    Misuse {
        /// The argument.
        argument: &'static str,
        /// What is wrong with it and what is allowed.
        what: String,
    },

    /// A combination that this build, device or codec cannot do.
    #[error("{} is not supported; {}", Printable(what), Printable(remedy))]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        remedy: String,
    },

    /// A rewind, compaction or mask touches tokens whose 16-bit form is gone.
    #[error("{0}")]
    Sealed(String),

    /// An identifier (sequence, block, model) that is not known, or no longer.
    #[error("{} does not exist (already freed, or never created)", Printable(what))]
    NotFound {
        /// What was looked for.
        what: String,
    },

    /// No text could be read where documents were expected.
    #[error("{}: {}; {}", Printable(path.display()), Printable(what), Printable(remedy))]
    Document {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What the user can do.
        remedy: String,
    },

    /// A chat template failed to compile or to render.
    #[error("chat template: {}", Printable(.0))]
    ChatTemplate(String),

    /// The tokenizer could not be built or refused its input.
    #[error("tokenizer: {}", Printable(.0))]
    Tokenizer(String),

    /// The dense layers' library reported an error.
    #[error("dense layers: {}", Printable(first_line(.0)))]
    Dense(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// The full-text index reported an error.
    #[error("document index: {}", Printable(.0))]
    Index(String),

    /// The request was not done in the time that it was given.
    #[error("not done {} s after the request came, its deadline: set a later one, or ask for less", .deadline.as_secs_f64())]
    DeadlineExceeded {
        /// The time that it had, from its coming on.
        deadline: std::time::Duration,
    },

    /// The work was cancelled by its owner.
    #[error("cancelled")]
    Cancelled,

    /// The engine's thread has ended; the text says why.
    #[error("the engine has stopped: {0}")]
    EngineStopped(String),

    /// A sequence of the KV cache has a step in flight.
    #[error("sequence {seq} has a step in flight; commit or abort it first")]
    Busy {
        /// The sequence's number.
        seq: u64,
    },

    /// The folder that models are kept in cannot be used.
    #[error("{}: cannot keep models here: {source}; make it writable or set KVFOLD_CACHE to another folder", Printable(folder.display()))]
    CacheFolder {
        /// The folder, or the file in it that was refused.
        folder: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The disk (or the user's quota) is full.
    #[error("{}: the disk is full; {needed} bytes are needed; free some space or set KVFOLD_CACHE to a folder on another disk", Printable(folder.display()))]
    DiskFull {
        /// The folder that was written to.
        folder: PathBuf,
        /// Free bytes that the work needs in all.
        needed: u64,
    },

    /// The machine has no NVIDIA driver.
    #[error(
        "no NVIDIA driver was found ({reason}); install one (580 or later for kernels compiled by CUDA 13, 525 for CUDA 12), or use the CPU"
    )]
    NoDriver {
        /// What the operating system said.
        reason: String,
    },

    /// The NVIDIA driver is older than the kernels of this binary need.
    #[error(
        "the NVIDIA driver supports CUDA {found}, but the kernels of this binary need CUDA {needed}; update the driver, or build kvfold with an older nvcc"
    )]
    DriverTooOld {
        /// The CUDA version that the driver supports.
        found: String,
        /// The CUDA version that is needed.
        needed: String,
    },

    /// The binary holds no code that the device can run.
    #[error(
        "this binary has no kernels for {arch}, only for {embedded}; build kvfold with this architecture in KVFOLD_CUDA_ARCHS (80 or later)"
    )]
    NoKernelForArch {
        /// The device's architecture, as in `sm_90`.
        arch: String,
        /// The architectures that the binary has code for.
        embedded: String,
    },

    /// The machine has no cuBLASLt that works, which CUDA devices multiply matrices by.
    #[error(
        "no usable cuBLASLt was found ({reason}); install cuBLAS 12 or 13 (part of the CUDA toolkit; as a Python wheel nvidia-cublas or nvidia-cublas-cu12) and name libcublasLt or its folder in KVFOLD_CUBLASLT if the linker does not find it"
    )]
    NoCublasLt {
        /// What was tried and what came of it.
        reason: String,
    },

    /// The device's memory cannot hold what was asked for.
    #[error(
        "the device's memory is full: {needed} bytes are needed, {free} are free, {} are missing; lower --kv-budget or choose a smaller model or --kv format",
        needed.saturating_sub(*free)
    )]
    DeviceOutOfMemory {
        /// Bytes asked for.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },

    /// The device or its driver refused an operation.
    #[error("device: {operation}: {what}")]
    Device {
        /// What was being done.
        operation: String,
        /// What the driver said.
        what: String,
    },

    /// No token could be chosen from the model's logits.
    #[error("sampling: {0}")]
    Sampling(String),

    /// What a model computed is no number: its weights or activations have overflowed.
    #[error(
        "{what}: the model's logits are NaN or infinite; if they overflowed, choose another 16-bit type (--dtype bf16), and the file's own weights (--weights keep)"
    )]
    NotFinite {
        /// Of which part of the work.
        what: String,
    },

    /// An error that concerns several requests: that of a step that they shared.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Some libraries append where in their code an error arose.
fn first_line(error: impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Error {
    /// An I/O error with the path that it concerns.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// A file whose content is wrong, with the remedy.
    pub fn bad_file(
        path: impl AsRef<Path>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::BadFile { path: path.as_ref().to_owned(), what: what.into(), remedy: remedy.into() }
    }

    /// An operation that the device refused.
    pub fn device(operation: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Device { operation: operation.into(), what: what.into() }
    }

    /// A configuration value that is out of range.
    pub fn config(field: &'static str, what: impl Into<String>) -> Self {
        Self::Config { field, what: what.into() }
    }

    /// A call that contradicts itself or what was called before.
    pub fn misuse(argument: &'static str, what: impl Into<String>) -> Self {
        Self::Misuse { argument, what: what.into() }
    }
}
