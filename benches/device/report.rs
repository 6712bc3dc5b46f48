//! The results: a table of all cells, the roofs and goals last, and JSON.

use crate::goals::Goal;
use crate::roofs::Roofs;
use crate::row::{Outcome, Row};
use kvfold::backend::driver::{DeviceInfo, embedded};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// A whole run.
pub struct Report<'a> {
    pub device: &'a DeviceInfo,
    pub roofs: &'a Roofs,
    pub rows: &'a [Row],
    pub goals: &'a [Goal],
    /// Whole models in words, a line each.
    pub models: &'a str,
}

/// `x` in units of 10^`power`, with `digits` behind the point; a dash for nothing.
fn scaled(x: Option<f64>, power: i32, digits: usize) -> String {
    x.map_or("-".into(), |x| format!("{:.digits$}", x / 10f64.powi(power)))
}

fn percent(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| format!("{:.1}%", 100.0 * x))
}

/// Bytes and operations a second, each with its fraction of the roof.
struct Rates {
    bytes: Option<f64>,
    flops: Option<f64>,
    of_read: Option<f64>,
    of_matrix: Option<f64>,
}

/// The device and its roofs, a line each.
pub fn roofs(device: &DeviceInfo, roofs: &Roofs) -> String {
    let DeviceInfo { name, arch, multiprocessors, .. } = device;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let mut text = format!(
        "{name}, sm_{arch}, {multiprocessors} multiprocessors, {:.0} GiB, L2 {} MiB; code: {}\n",
        gib(device.memory),
        device.l2_bytes >> 20,
        embedded().map_or_else(|| "none".into(), |e| e.describe()),
    );
    let tera = |x: f64| scaled(Some(x), 12, 2);
    let Roofs { read, mma, mma_bf16, cublaslt, call } = roofs;
    let _ = writeln!(text, "roof: read-only reduction   {} TB/s", tera(*read));
    let _ = writeln!(
        text,
        "roof: mma.sync m16n8k16     {} TFLOP/s f16, {} bf16 (not wgmma)",
        scaled(Some(*mma), 12, 1),
        scaled(Some(*mma_bf16), 12, 1)
    );
    let _ = match cublaslt {
        Ok(rate) => {
            writeln!(text, "roof: cuBLASLt f16 8192^3   {} TFLOP/s", scaled(Some(*rate), 12, 1))
        }
        Err(why) => writeln!(text, "roof: cuBLASLt              not measured: {why}"),
    };
    let _ = writeln!(text, "an attention call alone     {} us", scaled(Some(*call), -6, 1));
    text
}

impl Report<'_> {
    fn rates(&self, row: &Row, seconds: f64) -> Rates {
        let rate = |n: u64| (n > 0).then(|| n as f64 / seconds);
        let (bytes, flops) = (rate(row.bytes), rate(row.flops));
        Rates {
            bytes,
            flops,
            of_read: bytes.map(|b| b / self.roofs.read),
            of_matrix: flops.map(|f| f / self.roofs.matrix().0),
        }
    }

    /// All cells.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<46} {:>10} {:>8} {:>8} {:>8} {:>8}\n",
            "cell", "us", "GB/s", "of read", "TFLOP/s", "of mat."
        );
        for row in self.rows {
            let _ = match &row.outcome {
                Outcome::Skipped(why) => writeln!(text, "{:<46} skipped: {why}", row.name),
                Outcome::Measured(seconds) => {
                    let rates = self.rates(row, *seconds);
                    writeln!(
                        text,
                        "{:<46} {:>10} {:>8} {:>8} {:>8} {:>8}",
                        row.name,
                        scaled(Some(*seconds), -6, 1),
                        scaled(rates.bytes, 9, 0),
                        percent(rates.of_read),
                        scaled(rates.flops, 12, 1),
                        percent(rates.of_matrix),
                    )
                }
            };
        }
        text
    }

    /// The device, its roofs and the goals.
    pub fn summary(&self) -> String {
        let mut text = roofs(self.device, self.roofs);
        let _ = writeln!(text, "\"of mat.\" is the fraction of {}\n", self.roofs.matrix().1);
        if !self.models.is_empty() {
            let _ = writeln!(text, "{}", self.models);
        }
        for goal in self.goals {
            let _ = writeln!(text, "{goal}");
        }
        text
    }

    /// Everything, for machines. Times in seconds, rates a second.
    pub fn json(&self, quick: bool) -> Value {
        let cell = |row: &Row| match &row.outcome {
            Outcome::Skipped(why) => json!({"name": row.name, "skipped": why}),
            Outcome::Measured(seconds) => {
                let rates = self.rates(row, *seconds);
                json!({
                    "name": row.name,
                    "seconds": seconds,
                    "bytes": row.bytes,
                    "flops": row.flops,
                    "bytes_per_second": rates.bytes,
                    "flops_per_second": rates.flops,
                    "of_read": rates.of_read,
                    "of_matrix": rates.of_matrix,
                })
            }
        };
        let DeviceInfo { name, arch, memory, multiprocessors, l2_bytes, .. } = self.device;
        let Roofs { read, mma, mma_bf16, cublaslt, call } = self.roofs;
        json!({
            "commit": std::env::var("KVFOLD_COMMIT").ok(),
            "quick": quick,
            "device": {
                "name": name,
                "arch": arch,
                "memory": memory,
                "multiprocessors": multiprocessors,
                "l2_bytes": l2_bytes,
            },
            "roofs": {
                "read_bytes_per_second": read,
                "mma_sync_f16_flops_per_second": mma,
                "mma_sync_bf16_flops_per_second": mma_bf16,
                "cublaslt_f16_flops_per_second": cublaslt.as_ref().ok(),
                "matrix": self.roofs.matrix().1,
                "attention_call_seconds": call,
            },
            "goals": self.goals.iter().map(Goal::json).collect::<Vec<_>>(),
            "cells": self.rows.iter().map(cell).collect::<Vec<_>>(),
        })
    }

    /// Writes `device.json`, `cells.txt` and `summary.txt`, each whole or not at all.
    pub fn write(&self, folder: &Path, quick: bool) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let write = |name: &str, text: String| {
            let part = folder.join(format!("{name}.part"));
            std::fs::write(&part, text)?;
            std::fs::rename(part, folder.join(name))
        };
        write("device.json", format!("{:#}\n", self.json(quick)))?;
        write("cells.txt", self.table())?;
        write("summary.txt", self.summary())
    }
}
