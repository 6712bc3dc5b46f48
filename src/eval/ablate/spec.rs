//! The spec of an ablation: a TOML file whose lists span a grid.
//!
//! ```toml
//! name = "formats on the default model"   # default: the file's name
//! models = ["smollm2-135m-instruct"]      # names, files or folders, as for --model
//! kv = ["f16", "kivi4", "kivi2"]          # formats, as for --kv
//! policy = ["none"]                       # which tokens are kept (default)
//! budget = []                             # tokens that a stream may keep
//! sinks = [4]                             # (default)
//! hot_window = [128]                      # (default)
//! seed = [0]                              # (default)
//! chunk = 512                             # tokens computed at once (default)
//! device = "auto"                         # as for --device (default)
//! weights = "auto"                        # as for --weights: auto, keep or f32 (default)
//!
//! [[task]]                                # once a task, with the options of `kvfold eval`
//! task = "niah"
//! lengths = [1024, 2048]
//! ```
//!
//! Paths are relative to the folder that kvfold runs in, as on the command line.

use super::locate;
use crate::backend::WeightPolicy;
use crate::engine::{DeviceChoice, EngineConfig};
use crate::error::{Error, Result};
use crate::eval::{Format, TaskSpec};
use serde::Deserialize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The policy that keeps every token.
pub const NO_POLICY: &str = "none";

/// The policies that are known.
pub const POLICIES: &[&str] = &[NO_POLICY];

/// A checked spec.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Spec {
    /// What the rows are marked with.
    pub name: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// As for `--model`.
    pub models: Vec<String>,
    /// KV formats; which of them seals.
    pub kv: Vec<Format>,
    /// Policies.
    pub policy: Vec<String>,
    /// Tokens that a stream may keep; for policies other than [`NO_POLICY`].
    pub budget: Vec<usize>,
    /// Numbers of sinks.
    pub sinks: Vec<usize>,
    /// Sizes of the 16-bit window.
    pub hot_window: Vec<usize>,
    /// Tasks.
    pub tasks: Vec<TaskSpec>,
    /// Seeds of the tasks.
    pub seed: Vec<usize>,
    /// Tokens of a prompt that are computed at once.
    pub chunk: usize,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Storage of the weights.
    pub weights: WeightPolicy,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    models: Spanned<Vec<Spanned<String>>>,
    kv: Spanned<Vec<Spanned<String>>>,
    policy: Option<Spanned<Vec<Spanned<String>>>>,
    budget: Option<Vec<Spanned<usize>>>,
    sinks: Option<Spanned<Vec<Spanned<usize>>>>,
    hot_window: Option<Spanned<Vec<Spanned<usize>>>>,
    seed: Option<Spanned<Vec<Spanned<usize>>>>,
    chunk: Option<Spanned<usize>>,
    device: Option<Spanned<String>>,
    weights: Option<Spanned<String>>,
    task: Spanned<Vec<Spanned<toml::Table>>>,
}

/// What is wrong, and where in the text.
struct Wrong {
    what: String,
    at: usize,
}

type Checked<T> = std::result::Result<T, Wrong>;

impl Spec {
    /// Reads a spec and checks all that can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] in one line with line, column and key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
        let bad = |what| Error::bad_file(path, what, "mend the spec");
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            bad(format!("line {line}: not UTF-8 text"))
        })?;
        parse(path, text).map_err(|Wrong { what, at }| {
            let locate::TextPlace { line, column } = locate::place(text, at);
            let key = match locate::key_at(text, at) {
                // Messages about options name them already.
                key if key.is_empty() || what.starts_with(&format!("{}: ", last(&key))) => {
                    String::new()
                }
                key => format!("{key}: "),
            };
            bad(format!("line {line}, column {column}: {key}{what}"))
        })
    }
}

/// The last part of a path of keys.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn parse(path: &Path, text: &str) -> Checked<Spec> {
    let written: Written = toml::from_str(text).map_err(|error| Wrong {
        what: error.message().replace('\n', ", "),
        at: error.span().map_or(0, |span| span.start),
    })?;
    let name = written.name.unwrap_or_else(|| {
        path.file_stem().map_or("ablation".into(), |name| name.to_string_lossy().into_owned())
    });
    let defaults = EngineConfig::default();
    let with = |config: EngineConfig| config.validate();

    let mut kv = Vec::new();
    for name in list(&written.kv)? {
        let format = check(Format::find(name.get_ref()), name.span())?;
        if !kv.contains(&format) {
            kv.push(format);
        }
    }
    let policy = optional(&written.policy, NO_POLICY.to_owned(), |policy, span| {
        if POLICIES.contains(&policy.as_str()) {
            return Ok(());
        }
        let what = format!("policy \"{policy}\" is not known; known: {}", POLICIES.join(", "));
        Err(Wrong { what, at: span.start })
    })?;
    let budget = written.budget.unwrap_or_default();
    if let (Some(first), true) = (budget.first(), policy.iter().all(|p| p == NO_POLICY)) {
        let what = "policy \"none\" keeps every token, so there is nothing that a budget could \
                    limit; leave it out";
        return Err(Wrong { what: what.into(), at: first.span().start });
    }
    let sinks = optional(&written.sinks, defaults.sinks, |&sinks, span| {
        check(with(defaults.clone().with_sinks(sinks)), span)
    })?;
    let hot_window = optional(&written.hot_window, defaults.hot_window, |&tokens, span| {
        check(with(defaults.clone().with_hot_window(tokens)), span)
    })?;
    let chunk = match written.chunk {
        Some(chunk) => {
            let config = defaults.clone().with_prefill_chunk(*chunk.get_ref());
            // The key has another name than the field.
            check(with(config).map_err(unnamed), chunk.span())?;
            chunk.into_inner()
        }
        None => defaults.prefill_chunk,
    };
    let device = match written.device {
        Some(device) => check(device.get_ref().parse(), device.span())?,
        None => DeviceChoice::Auto,
    };
    let weights = match written.weights {
        Some(weights) => check(weight_policy(weights.get_ref()), weights.span())?,
        None => WeightPolicy::Auto,
    };
    let mut models: Vec<String> = Vec::new();
    for model in list(&written.models)? {
        check(model_exists(model.get_ref()), model.span())?;
        if !models.contains(model.get_ref()) {
            models.push(model.get_ref().clone());
        }
    }
    let mut tasks = Vec::new();
    for (index, table) in list(&written.task)?.iter().enumerate() {
        let at = |key: &str| {
            locate::key_in(text, "task", index, key).unwrap_or_else(|| table.span().start)
        };
        let task: TaskSpec = task(table.get_ref()).map_err(|(what, key)| Wrong {
            what,
            at: key.map_or(table.span().start, |key| at(&key)),
        })?;
        task.validate().map_err(|error| Wrong {
            at: match &error {
                Error::Config { field, .. } => at(field),
                _ => table.span().start,
            },
            what: error.to_string(),
        })?;
        tasks.push(task);
    }
    Ok(Spec {
        name,
        path: path.to_owned(),
        models,
        kv,
        policy,
        budget: budget.into_iter().map(Spanned::into_inner).collect(),
        sinks,
        hot_window,
        tasks,
        seed: optional(&written.seed, 0, |_, _| Ok(()))?,
        chunk,
        device,
        weights,
    })
}

fn check<T>(result: Result<T>, span: Range<usize>) -> Checked<T> {
    result.map_err(|error| Wrong { what: error.to_string(), at: span.start })
}

/// The message of a configuration error without the field's name.
fn unnamed(error: Error) -> Error {
    match error {
        Error::Config { what, .. } => Error::config("chunk", what),
        other => other,
    }
}

/// A list that may not be empty.
fn list<T>(written: &Spanned<Vec<T>>) -> Checked<&[T]> {
    match written.get_ref().as_slice() {
        [] => {
            let what = "the list is empty; name at least one".into();
            Err(Wrong { what, at: written.span().start })
        }
        list => Ok(list),
    }
}

/// A list of checked values, each once; `default` if it is not written.
fn optional<T: Clone + PartialEq>(
    written: &Option<Spanned<Vec<Spanned<T>>>>,
    default: T,
    check: impl Fn(&T, Range<usize>) -> Checked<()>,
) -> Checked<Vec<T>> {
    let Some(written) = written else { return Ok(vec![default]) };
    let mut values = Vec::new();
    for value in list(written)? {
        check(value.get_ref(), value.span())?;
        if !values.contains(value.get_ref()) {
            values.push(value.get_ref().clone());
        }
    }
    Ok(values)
}

pub(super) fn weight_policy(name: &str) -> Result<WeightPolicy> {
    match name {
        "auto" => Ok(WeightPolicy::Auto),
        "keep" => Ok(WeightPolicy::Keep),
        "f32" => Ok(WeightPolicy::F32),
        other => {
            let what = format!("\"{other}\" is not known; known: auto, keep, f32");
            Err(Error::config("weights", what))
        }
    }
}

/// The name of a way to store weights.
pub(super) fn weights_name(policy: WeightPolicy) -> &'static str {
    match policy {
        WeightPolicy::Auto => "auto",
        WeightPolicy::Keep => "keep",
        WeightPolicy::F32 => "f32",
    }
}

/// A file or folder, a manifest that can be read, or a name from the catalog, of the hub or
/// in Ollama's store.
fn model_exists(model: &str) -> Result<()> {
    let path = Path::new(model);
    if path.exists() && path.extension().is_none_or(|extension| extension != "toml") {
        return Ok(());
    }
    if model.starts_with("ollama:") || crate::fetch::Repository::parse(model).is_some() {
        // What it comes to is seen when it is opened.
        return Ok(());
    }
    crate::fetch::resolve(model).map(|_| ())
}

/// A task from its table; on an error what is wrong, and the key that it is about.
fn task(table: &toml::Table) -> std::result::Result<TaskSpec, (String, Option<String>)> {
    let read = |table: &toml::Table| {
        let task: std::result::Result<TaskSpec, toml::de::Error> = table.clone().try_into();
        task.map_err(|error| error.message().replace('\n', ", "))
    };
    read(table).map_err(|what| {
        let named = what.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        // A wrong value is the one without which the message is another.
        let key = named.map(str::to_owned).or_else(|| {
            (table.keys().find(|key| {
                let mut rest = table.clone();
                rest.remove(*key);
                read(&rest).err().as_ref() != Some(&what)
            }))
            .cloned()
        });
        (what, key)
    })
}
