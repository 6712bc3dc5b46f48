//! What to measure: a task by name with its options, as the command line and files of
//! ablations give it.

use super::niah::NeedleSpec;
use super::perplexity::PerplexitySpec;
use super::qa::{Item, QaSpec};
use super::stars::StarsSpec;
use super::task::Task;
use super::vt::VtSpec;
use super::words::WordsSpec;
use crate::error::Result;
use crate::model::{ChatTemplate, Tokenizer};
use crate::rag::{Document, read_document};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A task with its options. In TOML a table whose `task` names it:
///
/// ```
/// let toml = "task = 'niah'\nkind = 'multi-key'\nlengths = [1024, 4096]";
/// let spec: kvfold::eval::TaskSpec = toml::from_str(toml).unwrap();
/// assert_eq!(spec.name(), "niah-multi-key");
/// spec.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub enum TaskSpec {
    /// Perplexity of a text.
    Perplexity(PerplexitySpec),
    /// Needles in a haystack.
    Niah(NeedleSpec),
    /// Counting-Stars.
    CountingStars(StarsSpec),
    /// RULER's variable tracking.
    Vt(VtSpec),
    /// RULER's common words.
    Cwe(WordsSpec),
    /// RULER's frequent words.
    Fwe(WordsSpec),
    /// Questions about long documents.
    Qa(QaSpec),
}

impl TaskSpec {
    /// The task's name, its kind and language included.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Perplexity(_) => "perplexity",
            Self::Niah(spec) => spec.kind.task(),
            Self::CountingStars(spec) => spec.name(),
            Self::Vt(_) => "vt",
            Self::Cwe(_) => "cwe",
            Self::Fwe(_) => "fwe",
            Self::Qa(_) => "qa",
        }
    }

    /// The file that the task reads.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Perplexity(spec) => Some(&spec.file),
            Self::Niah(spec) => spec.haystack.as_deref(),
            Self::CountingStars(spec) => spec.haystack.as_deref(),
            Self::Vt(spec) => spec.haystack.as_deref(),
            Self::Cwe(_) | Self::Fwe(_) => None,
            Self::Qa(spec) => Some(&spec.file),
        }
    }

    /// The file that the task reads, to be changed: for paths that are relative to a
    /// folder other than the current one.
    pub fn file_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Perplexity(spec) => Some(&mut spec.file),
            Self::Niah(spec) => spec.haystack.as_mut(),
            Self::CountingStars(spec) => spec.haystack.as_mut(),
            Self::Vt(spec) => spec.haystack.as_mut(),
            Self::Cwe(_) | Self::Fwe(_) => None,
            Self::Qa(spec) => Some(&mut spec.file),
        }
    }

    /// The same with prompts of another batch, where prompts are made: batches have none
    /// in common.
    pub fn with_batch(mut self, batch: usize) -> Self {
        match &mut self {
            Self::Niah(spec) => spec.batch = batch,
            Self::CountingStars(spec) => spec.batch = batch,
            Self::Vt(spec) => spec.batch = batch,
            Self::Cwe(spec) => spec.batch = batch,
            Self::Fwe(spec) => spec.batch = batch,
            Self::Perplexity(_) | Self::Qa(_) => {}
        }
        self
    }

    /// Checks everything that needs no model, unreadable files included.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn validate(&self) -> Result<()> {
        self.load().map(drop)
    }

    /// Checks the options and reads the file.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) naming the option,
    /// [`Error::Document`](crate::Error::Document) for a file that cannot be used.
    pub fn load(&self) -> Result<LoadedTask> {
        let text = |path: Option<&Path>| path.map(read_document).transpose();
        let (mut document, mut items) = (None, Vec::new());
        match self {
            Self::Perplexity(spec) => {
                spec.validate()?;
                document = text(Some(&spec.file))?;
            }
            Self::Niah(spec) => {
                spec.validate()?;
                document = text(spec.haystack.as_deref())?;
            }
            Self::CountingStars(spec) => {
                spec.validate()?;
                document = text(spec.haystack.as_deref())?;
                spec.check(document.as_ref())?;
            }
            Self::Vt(spec) => {
                spec.validate()?;
                document = text(spec.haystack.as_deref())?;
            }
            Self::Cwe(spec) => spec.validate()?,
            Self::Fwe(spec) => spec.validate()?,
            Self::Qa(spec) => {
                spec.validate()?;
                items = spec.read()?;
            }
        }
        Ok(LoadedTask { spec: self.clone(), document, items })
    }

    /// [`load`](Self::load), then [`LoadedTask::prepare`].
    ///
    /// # Errors
    /// Theirs.
    pub fn prepare(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
    ) -> Result<Box<dyn Task>> {
        self.load()?.prepare(tokenizer, template, context)
    }
}

/// A task whose options are checked and whose file is read.
#[derive(Clone, Debug)]
pub struct LoadedTask {
    spec: TaskSpec,
    document: Option<Document>,
    items: Vec<Item>,
}

impl LoadedTask {
    /// Makes the prompts for a model's tokenizer, template and context (in tokens).
    ///
    /// # Errors
    /// [`Error::Document`](crate::Error::Document) for a text that is too short,
    /// [`Error::Config`](crate::Error::Config) for lengths that the model's context does
    /// not hold or that hold no question.
    pub fn prepare(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
    ) -> Result<Box<dyn Task>> {
        let text = self.document.as_ref();
        Ok(match &self.spec {
            TaskSpec::Perplexity(spec) => {
                Box::new(spec.windows(tokenizer, text.map_or("", Document::text), context)?)
            }
            TaskSpec::Niah(spec) => Box::new(spec.questions(tokenizer, template, context, text)?),
            TaskSpec::CountingStars(spec) => {
                Box::new(spec.questions(tokenizer, template, context, text)?)
            }
            TaskSpec::Vt(spec) => Box::new(spec.questions(tokenizer, template, context, text)?),
            TaskSpec::Cwe(spec) => Box::new(spec.common(tokenizer, template, context)?),
            TaskSpec::Fwe(spec) => Box::new(spec.frequent(tokenizer, template, context)?),
            TaskSpec::Qa(spec) => {
                Box::new(spec.questions(tokenizer, template, context, &self.items)?)
            }
        })
    }
}
