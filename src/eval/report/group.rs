//! Rows that can be compared: one task on one model, in several settings.

use crate::eval::ablate::{Cell, NO_POLICY, Row};
use crate::eval::{KvMemory, Metric, Paired, Speed, Trial, paired};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// One task on one model, computed in one way.
#[derive(Debug)]
pub struct Comparison {
    /// The model, as the spec names it.
    pub model: String,
    /// The task's name.
    pub name: String,
    /// Its options.
    pub task: Value,
    /// What its values are.
    pub metric: Metric,
    /// Most stored bits first.
    pub entries: Vec<Entry>,
}

/// One setting, its seeds taken together.
#[derive(Debug)]
pub struct Entry {
    /// Format, and what else tells it from the other entries.
    pub label: String,
    /// Bits that the format stores an element in.
    pub bits: f64,
    /// Perplexity, or the mean score.
    pub value: f64,
    /// Whether the others are compared with it.
    pub is_reference: bool,
    /// Against the reference, over the trials that both have.
    pub change: Option<Paired>,
    /// Prefill and decode as multiples of the reference's tokens a second.
    pub speed: (Option<f64>, Option<f64>),
    /// The reference's own tokens a second, or this entry's.
    pub tokens: (Option<f64>, Option<f64>),
    /// Whether the machine was idle beside one of its rows, which alone count to its speed;
    /// `None`: of none it is known that it was, nor that it was not.
    pub idle: Option<bool>,
    /// The cache when it held most.
    pub memory: KvMemory,
    /// Trials of all seeds; ids are unique.
    pub trials: Vec<Trial>,
}

impl Entry {
    /// The change as people read it: percent of perplexity, or points of a score.
    pub fn percent(&self, metric: Metric) -> Option<(f64, f64, f64)> {
        let change = self.change?;
        let show = |x: f64| match metric {
            Metric::Perplexity => (x.exp() - 1.0) * 100.0,
            Metric::Score => x * 100.0,
        };
        Some((show(change.difference), show(change.low), show(change.high)))
    }
}

/// What rows must share to be compared.
fn group_key(row: &Row) -> String {
    let Cell { model, task, chunk, device, weights, .. } = &row.cell;
    format!("{model}\n{task}\n{chunk}\n{device}\n{weights}")
}

/// What rows of a group must share to be one entry.
type Setting = (String, String, Option<usize>, Option<usize>, Option<usize>);

fn setting(row: &Row) -> Setting {
    let Cell { kv, policy, budget, sinks, hot_window, .. } = &row.cell;
    (kv.clone(), policy.clone(), *budget, *sinks, *hot_window)
}

/// Groups of the rows that have an outcome, in their order. `reference` names the KV
/// format that others are compared with; without it, or where it is missing, that is the
/// setting with the most bits, every token kept.
pub fn groups(rows: &[Row], reference: Option<&str>) -> Vec<Comparison> {
    let mut order: Vec<String> = Vec::new();
    let mut parts: HashMap<String, Vec<&Row>> = HashMap::new();
    for row in rows.iter().filter(|row| row.outcome.is_some()) {
        let key = group_key(row);
        if !parts.contains_key(&key) {
            order.push(key.clone());
        }
        parts.entry(key).or_default().push(row);
    }
    let part = |key: &String| parts.remove(key);
    order.iter().filter_map(part).filter_map(|rows| group(&rows, reference)).collect()
}

fn group(rows: &[&Row], reference: Option<&str>) -> Option<Comparison> {
    let first = rows.first()?;
    let mut settings: Vec<Setting> = Vec::new();
    for row in rows {
        if !settings.contains(&setting(row)) {
            settings.push(setting(row));
        }
    }
    let of = |wanted: &Setting| -> Vec<&Row> {
        rows.iter().copied().filter(|row| setting(row) == *wanted).collect()
    };
    // Most bits first; a sort that keeps the order of equals.
    let bits = |setting: &Setting| of(setting).first().map_or(0.0, |row| row.bits);
    settings.sort_by(|a, b| bits(b).total_cmp(&bits(a)));
    let keeps_all = |setting: &&Setting| setting.1 == NO_POLICY;
    let chosen = (settings.iter().filter(keeps_all))
        .find(|setting| Some(setting.0.as_str()) == reference)
        .or_else(|| settings.iter().find(keeps_all))
        .or(settings.first())?
        .clone();
    let base = Sums::of(&of(&chosen));
    let metric = first.metric.unwrap_or(Metric::Score);
    let entries = settings.iter().map(|setting| {
        let sums = Sums::of(&of(setting));
        let value = match metric {
            Metric::Perplexity => (sums.logs / sums.rows).exp(),
            Metric::Score => sums.mean(),
        };
        let times = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
        Entry {
            label: label(setting, &settings),
            bits: bits(setting),
            value,
            is_reference: *setting == chosen,
            change: if *setting == chosen { None } else { compare(&sums.trials, &base.trials) },
            speed: (
                times(sums.speed.prefill(), base.speed.prefill()),
                times(sums.speed.decode(), base.speed.decode()),
            ),
            tokens: (sums.speed.prefill(), sums.speed.decode()),
            idle: sums.idle,
            memory: sums.memory,
            trials: sums.trials,
        }
    });
    Some(Comparison {
        model: first.cell.model.clone(),
        name: first.cell.task_name(),
        task: first.cell.task.clone(),
        metric,
        entries: entries.collect(),
    })
}

/// What the seeds of one setting add up to.
#[derive(Default)]
struct Sums {
    rows: f64,
    logs: f64,
    speed: Speed,
    idle: Option<bool>,
    memory: KvMemory,
    trials: Vec<Trial>,
}

impl Sums {
    fn of(rows: &[&Row]) -> Self {
        let mut sums = Self::default();
        for (row, outcome) in rows.iter().filter_map(|row| Some((row, row.outcome.as_ref()?))) {
            sums.rows += 1.0;
            sums.logs += outcome.value.ln();
            if outcome.idle() == Some(true) {
                let (all, one) = (&mut sums.speed, outcome.speed);
                all.prefill_tokens += one.prefill_tokens;
                all.prefill_seconds += one.prefill_seconds;
                all.decode_tokens += one.decode_tokens;
                all.decode_seconds += one.decode_seconds;
            }
            // true is more than false, which is more than nothing.
            sums.idle = sums.idle.max(outcome.idle());
            if outcome.memory.kv_bytes > sums.memory.kv_bytes {
                sums.memory = outcome.memory;
            }
            sums.trials.extend(outcome.trials.iter().map(|trial| Trial {
                id: format!("{}/{}", row.cell.seed, trial.id),
                ..trial.clone()
            }));
        }
        sums
    }

    fn mean(&self) -> f64 {
        self.trials.iter().map(|t| t.score).sum::<f64>() / self.trials.len().max(1) as f64
    }
}

/// Pairs the trials that both have.
fn compare(trials: &[Trial], reference: &[Trial]) -> Option<Paired> {
    let others: HashMap<&str, &Trial> = reference.iter().map(|t| (t.id.as_str(), t)).collect();
    let (mine, others): (Vec<Trial>, Vec<Trial>) = (trials.iter())
        .filter_map(|trial| Some((trial.clone(), (*others.get(trial.id.as_str())?).clone())))
        .unzip();
    paired(&mine, &others).ok()
}

/// The format's name and those of its other values that differ among `all`.
fn label(setting: &Setting, all: &[Setting]) -> String {
    let (kv, policy, budget, sinks, hot_window) = setting;
    let mut label = crate::eval::format::label(kv).to_owned();
    if policy != NO_POLICY {
        label += &format!(" {policy}");
    }
    let mut add = |name: &str, value: &Option<usize>, each: fn(&Setting) -> Option<usize>| {
        let values: BTreeSet<usize> = all.iter().filter_map(each).collect();
        if let (Some(value), true) = (value, values.len() > 1) {
            label += &format!(", {name} {value}");
        }
    };
    add("budget", budget, |s| s.2);
    add("sinks", sinks, |s| s.3);
    add("window", hot_window, |s| s.4);
    label
}

/// Indices of the points that no other beats in both: fewer bits, lower cost.
pub fn frontier(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (points[a], points[b]);
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut best = f64::INFINITY;
    order.retain(|&index| {
        let better = points[index].1 < best;
        best = best.min(points[index].1);
        better
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_holds_what_nothing_beats() {
        let points = [(16.0, 0.0), (5.0, 0.6), (3.0, 0.7), (3.0, 10.6), (2.5, 2.8), (4.5, 5.4)];
        assert_eq!(frontier(&points), [4, 2, 1, 0]);
        assert_eq!(frontier(&[]), Vec::<usize>::new());
        // Of two that are alike one is enough.
        assert_eq!(frontier(&[(3.0, 1.0), (3.0, 1.0)]), [0]);
    }

    #[test]
    fn labels_name_what_differs() {
        let with = |kv: &str, sinks, window| -> Setting {
            (kv.into(), NO_POLICY.into(), None, sinks, window)
        };
        let all = [
            with("f16", None, None),
            with("kivi2", Some(0), Some(128)),
            with("kivi2", Some(4), Some(128)),
        ];
        let labels: Vec<String> = all.iter().map(|setting| label(setting, &all)).collect();
        assert_eq!(labels, ["f16", "kivi2, sinks 0", "kivi2, sinks 4"]);
        assert_eq!(label(&all[1], &all[..2]), "kivi2");
    }
}
