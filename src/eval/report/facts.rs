//! What was run: what rows share, and the grid that they amount to.

use crate::eval::ablate::Row;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What is the same for many rows, each once, in order.
pub fn unique(rows: &[Row], of: impl Fn(&Row) -> String) -> Vec<String> {
    let mut values = Vec::new();
    for value in rows.iter().map(of) {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// What was run, name and value.
pub fn facts(rows: &[Row]) -> Vec<(&'static str, String)> {
    let list = |of: fn(&Row) -> String| unique(rows, of).join(", ");
    let some = |value: Option<usize>| value.map_or("–".to_owned(), |n| n.to_string());
    let option = |of: fn(&Row) -> Option<usize>| {
        let values: BTreeSet<usize> = rows.iter().filter_map(of).collect();
        values.iter().map(|&value| some(Some(value))).collect::<Vec<_>>().join(", ")
    };
    let dates: BTreeSet<&str> = rows.iter().map(|row| row.date.as_str()).collect();
    let dates = match (dates.first(), dates.last()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (Some(first), _) => (*first).to_owned(),
        _ => String::new(),
    };
    let failed = rows.iter().filter(|row| row.error.is_some()).count();
    let seconds: f64 = rows.iter().map(|row| row.seconds).sum();
    let mut facts = vec![
        ("Models", list(|row| row.cell.model.clone())),
        ("KV formats", list(|row| row.cell.kv.clone())),
        ("Policies", list(|row| row.cell.policy.clone())),
        ("Budgets (tokens)", option(|row| row.cell.budget)),
        ("Sinks (tokens)", option(|row| row.cell.sinks)),
        ("16-bit window (tokens)", option(|row| row.cell.hot_window)),
        ("Tasks", list(|row| row.cell.task_name())),
        ("Seeds", list(|row| row.cell.seed.to_string())),
        ("Cells", format!("{}, {failed} of them failed", rows.len())),
        ("Time", duration(seconds)),
        ("Done", dates),
        ("Device", list(|row| row.cell.device.clone())),
        (
            "Machine",
            list(|row| {
                let m = &row.machine;
                let jobs = if m.jobs > 1 {
                    format!(", {} cells at a time", m.jobs)
                } else {
                    String::new()
                };
                format!("{}, {} of {} threads a cell{jobs}", m.cpu, m.threads, m.cores)
            }),
        ),
        (
            "kvfold",
            list(|row| match &row.commit {
                Some(commit) => format!("{} ({commit})", row.kvfold),
                None => row.kvfold.clone(),
            }),
        ),
    ];
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

/// Seconds in the unit that people would use.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} seconds of measuring"),
        s if s < 6000.0 => format!("{:.0} minutes of measuring", s / 60.0),
        s => format!("{:.1} hours of measuring", s / 3600.0),
    }
}

/// A task in a sentence; nothing for one that this version does not know.
pub fn about(task: &Value) -> &'static str {
    match task["task"].as_str().unwrap_or_default() {
        "perplexity" => {
            "How well the model predicts a text: the second half of each window counts."
        }
        "niah" => {
            "Numbers are hidden in a long text and asked for at its end (a needle in a haystack); \
             the score is the share of them that the answer holds."
        }
        "counting-stars" => {
            "A long text is strewn with numbers, all of which are to be listed (Counting-Stars)."
        }
        "vt" => {
            "RULER's variable tracking: which variables got a value through a chain of assignments."
        }
        "cwe" => "RULER's common words: the ten most common words of a long list.",
        "fwe" => "RULER's frequent words: the three most frequent words of a coded text.",
        "qa" => "Questions about long documents, scored as LongBench scores them.",
        _ => "",
    }
}

/// The grid that the rows amount to, as TOML.
pub fn grid(rows: &[Row]) -> String {
    let strings = |of: fn(&Row) -> String| -> Vec<String> { unique(rows, of) };
    let numbers =
        |of: fn(&Row) -> Option<usize>| -> BTreeSet<usize> { rows.iter().filter_map(of).collect() };
    let mut tasks: Vec<Value> = Vec::new();
    for row in rows {
        let mut task = row.cell.task.clone();
        if let Some(options) = task.as_object_mut() {
            // TOML knows no null, and batches follow from the seeds.
            options.retain(|key, value| !value.is_null() && key != "batch");
        }
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    let mut spec = json!({
        "models": strings(|row| row.cell.model.clone()),
        "kv": strings(|row| row.cell.kv.clone()),
        "policy": strings(|row| row.cell.policy.clone()),
        "budget": numbers(|row| row.cell.budget),
        "sinks": numbers(|row| row.cell.sinks),
        "hot_window": numbers(|row| row.cell.hot_window),
        "seed": numbers(|row| Some(row.cell.seed)),
        "chunk": numbers(|row| Some(row.cell.chunk)),
        "device": strings(|row| row.cell.device.clone()),
        "weights": strings(|row| row.cell.weights.clone()),
        "task": tasks,
    });
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
        for key in ["chunk", "device", "weights"] {
            // One value unless rows of several specs are shown.
            if let Some([one]) = spec.get(key).and_then(Value::as_array).map(Vec::as_slice) {
                let one = one.clone();
                spec.insert(key.into(), one);
            }
        }
    }
    toml::to_string(&spec).unwrap_or_default()
}
