//! What an evaluation prints.

use crate::size;
use anyhow::Result;
use kvfold::eval::{Metric, Outcome, Paired, Setting, Task, TaskSpec, change_percent, table};
use kvfold::printable::{Printable, printable};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A task's outcome in one setting.
pub struct EvalRow {
    pub setting: Setting,
    pub outcome: Outcome,
    /// Against the first setting.
    pub paired: Paired,
    pub seconds: f64,
}

/// A task with its outcomes.
pub struct Evaluation {
    pub model: String,
    pub hot_window: usize,
    pub spec: TaskSpec,
    pub task: Box<dyn Task>,
    /// The first is what the others are compared with.
    pub rows: Vec<EvalRow>,
}

impl Evaluation {
    /// One document: what was asked for, then a result for each setting.
    pub fn json(&self) -> Result<Value> {
        let mut document = Map::new();
        let mut options = serde_json::to_value(&self.spec)?;
        let name = options.as_object_mut().and_then(|options| options.remove("task"));
        document.insert("evaluation".into(), json!(name));
        document.insert("task".into(), json!(self.spec.name()));
        document.insert("model".into(), json!(self.model));
        if let Value::Object(options) = options {
            document.extend(options);
        }
        if let TaskSpec::Perplexity(_) = self.spec {
            let windows = self.rows.first().map(|row| row.outcome.trials.len());
            document.insert("windows".into(), json!(windows));
        }
        document.insert("hot_window".into(), json!(self.hot_window));
        let results: Vec<Value> = self.rows.iter().map(|row| self.result(row)).collect();
        document.insert("results".into(), json!(results));
        Ok(Value::Object(document))
    }

    fn result(&self, row: &EvalRow) -> Value {
        let outcome = &row.outcome;
        let Setting { kv, sinks } = &row.setting;
        let mut value = json!({ "kv": kv.name, "sinks": sinks, "bits": kv.bits });
        match &self.spec {
            TaskSpec::Perplexity(spec) => {
                value["perplexity"] = json!(outcome.value);
                value["nll"] = json!(outcome.value.ln());
                let each = spec.context - 1 - spec.context / 2;
                value["predictions"] = json!(outcome.trials.len() * each);
            }
            TaskSpec::Niah(_) => {
                value["hits"] = json!(self.hits(row));
                value["prompts"] = json!(outcome.trials.len());
                value["answers"] = json!(self.answers(row));
            }
            _ => {}
        }
        value["value"] = json!(outcome.value);
        value["error"] = json!(outcome.error);
        value["kv_bytes"] = json!(outcome.memory.kv_bytes);
        value["kv_bytes_16_bit"] = json!(outcome.memory.kv_bytes_16_bit);
        value["held_bits"] = json!(outcome.memory.bits());
        value["ratio"] = json!(outcome.memory.ratio());
        value["prefill_tokens_per_second"] = json!(outcome.speed.prefill());
        value["decode_tokens_per_second"] = json!(outcome.speed.decode());
        value["idle"] = json!(outcome.idle());
        value["load"] = json!(outcome.load);
        value["change_percent"] = json!(self.change_percent(row));
        value["paired"] = json!(row.paired);
        value["trials"] = json!(outcome.trials);
        value["seconds"] = json!(row.seconds);
        value
    }

    fn change_percent(&self, row: &EvalRow) -> Option<f64> {
        change_percent(row.outcome.value, self.rows.first()?.outcome.value)
    }

    fn hits(&self, row: &EvalRow) -> usize {
        row.outcome.trials.iter().filter(|trial| trial.score == 1.0).count()
    }

    /// Whether each number was found, where one is asked for.
    fn answers(&self, row: &EvalRow) -> Vec<Value> {
        (self.task.questions().iter().zip(&row.outcome.trials))
            .filter_map(|(question, trial)| {
                let [key] = question.expected.as_slice() else { return None };
                Some(json!({
                    "length": question.length,
                    "depth": question.depth,
                    "seed": question.seed,
                    "key": key,
                    "answer": trial.answer,
                    "hit": trial.score == 1.0,
                }))
            })
            .collect()
    }

    /// A line on what was measured, then a row for each setting.
    pub fn table(&self) -> String {
        let perplexity = self.task.metric() == Metric::Perplexity;
        let lengths = self.lengths();
        let mut header: Vec<String> = ["kv", "sinks", "bits"].map(String::from).into();
        if perplexity {
            header.extend(["perplexity", "+/-", "change"].map(String::from));
        } else {
            header.extend(lengths.iter().map(|length| format!("at {length}")));
            header.extend(["score", "change"].map(String::from));
        }
        header.extend(
            ["95 % interval", "p", "KV", "held", "ratio", "prefill", "decode"].map(String::from),
        );
        let rows: Vec<Vec<String>> = (self.rows.iter().enumerate())
            .map(|(index, row)| {
                let setting = &row.setting;
                let sinks = setting.sinks.map_or("-".to_owned(), |s| s.to_string());
                let mut cells =
                    vec![printable(&setting.kv.label()), sinks, format!("{:.2}", setting.kv.bits)];
                cells.extend(match perplexity {
                    true => vec![
                        format!("{:.4}", row.outcome.value),
                        format!("{:.4}", row.outcome.error),
                    ],
                    false => self.scores(row, &lengths),
                });
                cells.extend(if index == 0 { vec!["-".into(); 3] } else { self.change(row) });
                let (memory, speed) = (row.outcome.memory, row.outcome.speed);
                let idle = row.outcome.idle();
                cells.push(size::show(memory.kv_bytes));
                cells.push(format!("{:.2} bits", memory.bits()));
                cells.push(format!("{:.2}x", memory.ratio()));
                let rate = |r: Option<f64>| match (r, idle) {
                    (None, _) => "-".to_owned(),
                    (Some(r), Some(true)) => format!("{r:.0} tok/s"),
                    (Some(_), Some(false)) => "busy".to_owned(),
                    (Some(_), None) => "?".to_owned(),
                };
                cells.extend([rate(speed.prefill()), rate(speed.decode())]);
                cells
            })
            .collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        format!("{}\n\n{}{}", self.title(), table(&header, &rows), self.hidden_speeds())
    }

    /// Why speeds are not shown, if some are not.
    fn hidden_speeds(&self) -> String {
        let mut lines = String::new();
        let busy = self.rows.iter().filter(|row| row.outcome.idle() == Some(false));
        let loads = busy.filter_map(|row| row.outcome.load);
        if let Some(load) = loads.max_by(|a, b| a.others.total_cmp(&b.others)) {
            lines += &format!(
                "\nbusy: other programs took up to {:.1} of {} cores; --json has the speeds\n",
                load.others, load.cores
            );
        }
        if self.rows.iter().any(|row| row.outcome.idle().is_none()) {
            lines += "\n?: too short to know whether the machine was idle; --json has the speeds\n";
        }
        lines
    }

    fn title(&self) -> String {
        let trials = self.rows.first().map_or(0, |row| row.outcome.trials.len());
        match &self.spec {
            TaskSpec::Perplexity(spec) => format!(
                "{}, {}: {trials} x {} tokens, {} predictions",
                Printable(&self.model),
                Printable(spec.file.display()),
                spec.context,
                trials * (spec.context - 1 - spec.context / 2)
            ),
            spec => format!("{}: {}, {trials} prompts", Printable(&self.model), spec.name()),
        }
    }

    /// The lengths that prompts were made to.
    fn lengths(&self) -> Vec<usize> {
        match self.spec {
            TaskSpec::Qa(_) | TaskSpec::Perplexity(_) => Vec::new(),
            _ => {
                let lengths = self.task.questions().iter().map(|question| question.length);
                lengths.collect::<BTreeSet<_>>().into_iter().collect()
            }
        }
    }

    /// The score at each length and over all: hits where each answer is right or wrong,
    /// otherwise percent.
    fn scores(&self, row: &EvalRow, lengths: &[usize]) -> Vec<String> {
        let share = |scores: Vec<f64>| match row.paired.p {
            Some(_) => format!("{}/{}", scores.iter().sum::<f64>(), scores.len()),
            None => format!("{:.1}", 100.0 * scores.iter().sum::<f64>() / scores.len() as f64),
        };
        let trials = &row.outcome.trials;
        let at = |length: usize| trials.iter().filter(move |t| t.length == length).map(|t| t.score);
        let mut cells: Vec<String> =
            lengths.iter().map(|&length| share(at(length).collect())).collect();
        cells.push(share(trials.iter().map(|t| t.score).collect()));
        cells
    }

    /// Mean change, its interval and McNemar's p: in percent of a perplexity, in points of
    /// a score.
    fn change(&self, row: &EvalRow) -> Vec<String> {
        let paired = &row.paired;
        let (percent, unit): (fn(f64) -> f64, &str) = match self.task.metric() {
            Metric::Perplexity => (|nats| 100.0 * (nats.exp() - 1.0), " %"),
            Metric::Score => (|share| 100.0 * share, ""),
        };
        let show = |value: f64| format!("{:+.2}", percent(value));
        let interval = match paired.pairs {
            0 | 1 => "-".into(),
            _ => format!("{} to {}{unit}", show(paired.low), show(paired.high)),
        };
        let p = paired.p.map_or("-".to_owned(), |p| format!("{p:.3}"));
        vec![show(paired.difference) + unit, interval, p]
    }
}
