//! The page: what `page.html` says, in words and numbers.

use super::facts::{about, facts, grid, unique};
use super::group::{Comparison, Entry, groups};
use super::heat::heat;
use super::pareto::{Axis, Point, pareto};
use super::read::ResultRows;
use crate::error::{Error, Result};
use crate::eval::ablate::Row;
use crate::eval::{KvMemory, Metric};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use serde_json::{Value, json};

/// What a page is to show.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The heading; the spec's name without one.
    pub title: Option<String>,
    /// The KV format that others are compared with; the one with the most bits without.
    pub reference: Option<String>,
    /// The text of the spec, to be shown as it is.
    pub spec: Option<String>,
}

/// One model's settings against all of its tasks.
#[derive(Serialize)]
struct Overview {
    model: String,
    tasks: Vec<String>,
    rows: Vec<OverviewRow>,
}

#[derive(Serialize)]
struct OverviewRow {
    label: String,
    bits: String,
    cells: Vec<Quality>,
}

/// A value and its change; empty where there is none.
#[derive(Clone, Default, Serialize)]
struct Quality {
    value: String,
    change: String,
    /// "worse" or "better" if the interval says so.
    verdict: &'static str,
}

#[derive(Serialize)]
struct Section {
    id: String,
    title: String,
    about: &'static str,
    options: String,
    value: &'static str,
    reference: String,
    trials: usize,
    /// Whether any row has a p.
    has_p: bool,
    rows: Vec<SectionRow>,
    plot: Option<String>,
    maps: Vec<Map>,
}

#[derive(Serialize)]
struct SectionRow {
    label: String,
    bits: String,
    held: String,
    ratio: String,
    quality: Quality,
    interval: String,
    p: String,
    prefill: String,
    decode: String,
}

#[derive(Serialize)]
struct Map {
    label: String,
    svg: String,
}

#[derive(Serialize)]
struct Failed {
    model: String,
    cell: String,
    error: String,
}

/// Makes the page.
///
/// # Errors
/// [`Error::Config`] if no row has the reference; [`Error::Unsupported`] if a picture
/// cannot be drawn.
pub fn page(rows: &ResultRows, options: &Options) -> Result<String> {
    let all = &rows.rows;
    if let Some(reference) = &options.reference
        && !all.iter().any(|row| row.cell.kv == *reference)
    {
        let formats = unique(all, |row| row.cell.kv.clone()).join(", ");
        let what = format!("no row has the format \"{reference}\"; there are {formats}");
        return Err(Error::config("reference", what));
    }
    let groups = groups(all, options.reference.as_deref());
    let sections = (groups.iter().enumerate())
        .map(|(index, group)| section(index, group, &groups))
        .collect::<Result<Vec<_>>>()?;
    let failed: Vec<Failed> = (all.iter())
        .filter_map(|row| {
            let error = row.error.clone()?;
            Some(Failed { model: row.cell.model.clone(), cell: row.cell.to_string(), error })
        })
        .collect();
    let specs = unique(all, |row| row.spec.clone()).join(", ");
    let context = json!({
        "title": options.title.as_ref().unwrap_or(&specs),
        "style": include_str!("style.css"),
        "facts": facts(all),
        "incomplete": rows.incomplete.iter().map(|p| p.display().to_string()).collect::<Vec<_>>(),
        "overviews": overviews(&groups),
        "sections": sections,
        "failed": failed,
        "speeds": speeds(all),
        "spec": options.spec,
        "grid": grid(all),
        "version": env!("CARGO_PKG_VERSION"),
    });
    render(&context).map_err(|error| Error::Unsupported {
        what: format!("a page ({error:#})"),
        remedy: "report this with the results".into(),
    })
}

/// Of how many rows speeds are left out, and why; nothing if of none.
fn speeds(rows: &[Row]) -> Option<Value> {
    let measured: Vec<Option<bool>> =
        rows.iter().filter_map(|row| Some(row.outcome.as_ref()?.idle())).collect();
    let count = |idle| measured.iter().filter(|&&other| other == idle).count();
    let (busy, unknown) = (count(Some(false)), count(None));
    let jobs = rows.iter().map(|row| row.machine.jobs).max();
    let left_out = busy + unknown > 0;
    left_out
        .then(|| json!({ "cells": measured.len(), "busy": busy, "unknown": unknown, "jobs": jobs }))
}

fn render(context: &Value) -> std::result::Result<String, minijinja::Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.add_template("page.html", include_str!("page.html"))?;
    env.get_template("page.html")?.render(Serde(context))
}

/// A table of all tasks for each model.
fn overviews(groups: &[Comparison]) -> Vec<Overview> {
    let mut models: Vec<&str> = Vec::new();
    for group in groups {
        if !models.contains(&group.model.as_str()) {
            models.push(&group.model);
        }
    }
    models.iter().map(|model| overview(model, groups)).collect()
}

fn overview(model: &str, groups: &[Comparison]) -> Overview {
    let mine: Vec<&Comparison> = groups.iter().filter(|group| group.model == model).collect();
    let mut labels: Vec<(&str, f64)> = Vec::new();
    for entry in mine.iter().flat_map(|group| &group.entries) {
        if !labels.iter().any(|(label, _)| *label == entry.label) {
            labels.push((&entry.label, entry.bits));
        }
    }
    labels.sort_by(|a, b| b.1.total_cmp(&a.1));
    let row = |(label, bits): &(&str, f64)| {
        let cell = |group: &&Comparison| {
            let entry = group.entries.iter().find(|entry| entry.label == *label);
            entry.map(|entry| quality(entry, group.metric)).unwrap_or_default()
        };
        OverviewRow {
            label: (*label).to_owned(),
            bits: number(*bits, 2),
            cells: mine.iter().map(cell).collect(),
        }
    };
    Overview {
        model: model.to_owned(),
        tasks: mine.iter().map(|group| title(group, groups)).collect(),
        rows: labels.iter().map(row).collect(),
    }
}

/// A task's name, with what tells it from others of this name.
fn title(group: &Comparison, groups: &[Comparison]) -> String {
    let alike = groups.iter().filter(|g| g.name == group.name && g.model == group.model);
    let tasks: Vec<&Value> = alike.map(|g| &g.task).collect();
    let mut title = group.name.clone();
    if let (Some(options), true) = (group.task.as_object(), tasks.len() > 1) {
        let differs = |key: &str| tasks.iter().any(|task| task.get(key) != group.task.get(key));
        let parts: Vec<String> = (options.iter())
            .filter(|(key, _)| differs(key))
            .map(|(key, value)| format!("{key} {}", plain(value)))
            .collect();
        if !parts.is_empty() {
            title += &format!(" ({})", parts.join(", "));
        }
    }
    title
}

/// A value of an option without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// All options of a task in one line; which batch of prompts follows from the seeds.
fn options(task: &Value) -> String {
    let fields = task.as_object().into_iter().flatten();
    let shown = fields
        .filter(|(key, value)| !["task", "batch"].contains(&key.as_str()) && !value.is_null());
    shown.map(|(key, value)| format!("{key} {}", plain(value))).collect::<Vec<_>>().join(" · ")
}

fn section(index: usize, group: &Comparison, groups: &[Comparison]) -> Result<Section> {
    let title = match groups.iter().any(|other| other.model != group.model) {
        true => format!("{}: {}", group.model, title(group, groups)),
        false => title(group, groups),
    };
    let reference = group.entries.iter().find(|entry| entry.is_reference);
    let reference = reference.map_or(String::new(), |entry| entry.label.clone());
    let mut maps = Vec::new();
    for entry in &group.entries {
        let name = format!("{}, {}: score by length and depth", title, entry.label);
        if let Some(svg) = heat(&name, &entry.trials)? {
            maps.push(Map { label: entry.label.clone(), svg });
        }
    }
    let (value, axis) = match group.metric {
        Metric::Perplexity => ("Perplexity", "% above the reference, square-root scale"),
        Metric::Score => ("Score", "mean score, %"),
    };
    let low_is_better = group.metric == Metric::Perplexity;
    // Lines of a file may say anything.
    let can_be_drawn = |p: &Point| p.bits > 0.0 && p.bits.is_finite() && p.y.is_finite();
    let points = group.entries.iter().map(|entry| point(entry, group.metric));
    let points: Vec<Point> = points.filter(can_be_drawn).collect();
    let plot = match points.len() {
        0 | 1 => None,
        _ => Some(pareto(
            &format!("{title}: quality against stored bits"),
            &points,
            Axis { name: axis, low_is_better },
        )?),
    };
    let rows: Vec<SectionRow> =
        group.entries.iter().map(|entry| section_row(entry, group.metric)).collect();
    Ok(Section {
        id: format!("task-{}", index + 1),
        about: about(&group.task),
        options: options(&group.task),
        value,
        reference,
        trials: group.entries.iter().map(|entry| entry.trials.len()).max().unwrap_or(0),
        has_p: rows.iter().any(|row| !row.p.is_empty()),
        rows,
        title,
        plot,
        maps,
    })
}

/// Where a setting lies in the plot; the interval is that of its change.
fn point(entry: &Entry, metric: Metric) -> Point {
    let change = entry.percent(metric);
    let (y, range) = match metric {
        Metric::Perplexity => {
            (change.map_or(0.0, |c| c.0), change.map(|(_, low, high)| (low, high)))
        }
        Metric::Score => {
            let y = entry.value * 100.0;
            (y, change.map(|(change, low, high)| (y - change + low, y - change + high)))
        }
    };
    Point { label: entry.label.clone(), bits: entry.bits, y, range }
}

fn section_row(entry: &Entry, metric: Metric) -> SectionRow {
    let KvMemory { kv_bytes, .. } = entry.memory;
    let held = kv_bytes > 0;
    let interval = entry
        .percent(metric)
        .map_or(String::new(), |(_, low, high)| format!("[{}, {}]", signed(low), signed(high)));
    let p = entry.change.and_then(|change| change.p);
    // The reference shows its own speed, which the multiples are of.
    let speed = |times: Option<f64>, tokens: Option<f64>| match (entry.is_reference, times, tokens)
    {
        _ if entry.idle == Some(false) => "busy".to_owned(),
        (true, _, Some(tokens)) => format!("{tokens:.0} tok/s"),
        (false, Some(times), _) => format!("{times:.2}×"),
        // Beside a reference that has none.
        (false, None, Some(tokens)) => format!("{tokens:.0} tok/s"),
        _ => "–".to_owned(),
    };
    SectionRow {
        label: entry.label.clone(),
        bits: number(entry.bits, 2),
        held: if held { number(16.0 / entry.memory.ratio(), 2) } else { "–".into() },
        ratio: if held { format!("{:.2}×", entry.memory.ratio()) } else { "–".into() },
        quality: quality(entry, metric),
        interval,
        p: p.map_or(String::new(), |p| if p < 0.001 { "< 0.001".into() } else { number(p, 3) }),
        prefill: speed(entry.speed.0, entry.tokens.0),
        decode: speed(entry.speed.1, entry.tokens.1),
    }
}

fn quality(entry: &Entry, metric: Metric) -> Quality {
    let value = match metric {
        Metric::Perplexity => number(entry.value, 3),
        Metric::Score => number(entry.value * 100.0, 1),
    };
    if entry.is_reference {
        return Quality { value, change: "reference".into(), verdict: "" };
    }
    let Some((change, low, high)) = entry.percent(metric) else {
        return Quality { value, ..Quality::default() };
    };
    let unit = if metric == Metric::Perplexity { " %" } else { "" };
    let rises = low > 0.0;
    let verdict = match rises || high < 0.0 {
        false => "",
        true if rises == (metric == Metric::Score) => "better",
        true => "worse",
    };
    Quality { value, change: signed(change) + unit, verdict }
}

fn number(value: f64, digits: usize) -> String {
    format!("{value:.digits$}")
}

fn signed(value: f64) -> String {
    let digits = if value.abs() < 10.0 { 2 } else { 1 };
    // A proper minus sign; and no sign of nothing.
    match format!("{value:+.digits$}") {
        zero if zero.trim_start_matches(['+', '-']).parse() == Ok(0.0) => "0".into(),
        text => text.replace('-', "−"),
    }
}
