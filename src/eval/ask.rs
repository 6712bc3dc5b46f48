//! Questions to a model and its greedy answers: what all tasks but perplexity do.

use super::perplexity::leading_bos;
use super::question::Question;
use super::task::{KvMemory, Metric, Outcome, Task, Trial};
use crate::engine::{Request, Runner, Stats, generate};
use crate::error::Result;
use crate::model::{ChatTemplate, Message, Tokenizer};
use std::sync::atomic::AtomicBool;

/// Makes prompts from texts. They depend on the tokenizer and the template only, so any
/// other runtime can be given the same ids.
#[derive(Clone, Copy)]
pub(super) struct Prompter<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: Option<&'a ChatTemplate>,
}

impl Prompter<'_> {
    /// Text and ids of the user's turn `content` and the answer's beginning `prefix`.
    pub fn build(&self, content: &str, prefix: &str) -> Result<(String, Vec<u32>)> {
        let Some(template) = self.template else {
            let text = format!("{content}\n{prefix}");
            let mut ids: Vec<u32> = leading_bos(self.tokenizer)?.into_iter().collect();
            ids.extend(self.tokenizer.encode_plain(&text)?);
            return Ok((text, ids));
        };
        let turn = |content: &str| template.render(&[Message::new("user", content)], true);
        let guarded = turn(&self.tokenizer.guard(content))? + prefix;
        Ok((turn(content)? + prefix, self.tokenizer.encode_chat(&guarded)?))
    }

    /// Tokens of a text alone.
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode_plain(text)?.len())
    }
}

/// A list of questions: a [`Task`].
#[derive(Clone, Debug)]
pub struct Questions {
    name: String,
    list: Vec<Question>,
}

impl Questions {
    /// A task called `name`.
    pub fn new(name: impl Into<String>, list: Vec<Question>) -> Self {
        Self { name: name.into(), list }
    }
}

impl Task for Questions {
    fn name(&self) -> &str {
        &self.name
    }

    fn metric(&self) -> Metric {
        Metric::Score
    }

    fn steps(&self) -> usize {
        self.list.len()
    }

    fn longest(&self) -> usize {
        self.list.iter().map(|q| q.ids.len() + q.max_tokens).max().unwrap_or(0)
    }

    fn questions(&self) -> &[Question] {
        &self.list
    }

    fn run(
        &self,
        runner: &mut Runner,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for (index, question) in self.list.iter().enumerate() {
            let request = Request::new(question.ids.clone(), question.max_tokens);
            let answered = generate(runner, request, cancel)?;
            let stats = answered.stats;
            outcome.speed.add(&stats);
            if stats.kv_bytes > outcome.memory.kv_bytes {
                let Stats { kv_bytes, kv_bytes_16_bit, .. } = stats;
                outcome.memory = KvMemory { kv_bytes, kv_bytes_16_bit };
            }
            let answer = runner.model().tokenizer.decode(&answered.ids);
            let parts = question.grade.parts(&answer, &question.expected);
            outcome.trials.push(Trial {
                id: question.id.clone(),
                length: question.length,
                depth: question.depth,
                score: parts.iter().sum::<f64>() / parts.len().max(1) as f64,
                parts: if parts.len() > 1 { parts } else { Vec::new() },
                expected: question.expected.clone(),
                answer: Some(answer),
            });
            progress(index + 1);
        }
        (outcome.value, outcome.error) = mean_and_error(&outcome.trials);
        Ok(outcome)
    }
}

/// The mean score and one standard error of it.
fn mean_and_error(trials: &[Trial]) -> (f64, f64) {
    let n = trials.len().max(1) as f64;
    let mean = trials.iter().map(|t| t.score).sum::<f64>() / n;
    let squares = trials.iter().map(|t| (t.score - mean).powi(2)).sum::<f64>();
    (mean, (squares / n / (n - 1.0).max(1.0)).sqrt())
}
