//! scripts/gpu-report and scripts/gpu-peers, as far as they go without a GPU: ratios,
//! verdicts, the idle share of a made-up profile, and a picture that holds every series; and
//! what scripts/gpu-predict makes of tables of machine code.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs a script with nothing but Python's own modules.
fn python(arguments: &[&str], script: &str, folder: &Path) -> Output {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let mut command = Command::new("python3");
    command.args(["-I", "-S"]).arg(script).args(arguments).current_dir(folder);
    command.output().unwrap()
}

const DECODE: &str = "decode/gqa32-8/d128/f16/b16";

/// Two 16-bit cells and one of KIVI-2, measured, and one that was skipped.
fn bench() -> Value {
    json!({
        "device": {"name": "<a card>"},
        "roofs": {"read_bytes_per_second": 3e12},
        "cells": [
            {"name": format!("{DECODE}/1k"), "seconds": 2e-5, "bytes_per_second": 2e12},
            {"name": format!("{DECODE}/4k"), "seconds": 1e-4, "bytes_per_second": 2.9e12},
            {"name": "decode/gqa32-8/d128/kivi2/b16/4k", "seconds": 2e-5, "bytes_per_second": 2e12},
            {"name": format!("{DECODE}/32k"), "skipped": "no room"},
        ],
    })
}

fn peers(slower: f64) -> Value {
    let cell = |context: &str, peer: &str, ours: f64| {
        let (of, seconds) = (format!("{DECODE}/{context}"), slower * ours);
        let name = format!("{of}/{peer}");
        json!({"name": name, "of": of, "peer": peer, "seconds": seconds, "bytes_per_second": 1e12})
    };
    let of = format!("{DECODE}/1k");
    json!({"torch": "2", "cells": [
        cell("1k", "flashinfer", 2e-5),
        cell("4k", "flashinfer", 1.2e-4),
        cell("4k", "torch-flash", 2e-4),
        cell("32k", "torch-flash", 1.0),
        {"name": format!("{of}/torch-cudnn"), "of": of, "peer": "torch-cudnn", "skipped": "too old"},
    ]})
}

#[test]
fn ratios_verdicts_and_a_picture() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    for (slower, verdict) in [(1.1, "reached "), (0.9, "NOT REACHED ")] {
        fs::write(path.join("device.json"), bench().to_string()).unwrap();
        fs::write(path.join("peers.json"), peers(slower).to_string()).unwrap();
        let output =
            python(&["device.json", "--peers", "peers.json", "--out", "o"], "gpu-report", path);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = fs::read_to_string(path.join("o/ratios.txt")).unwrap();
        assert_eq!(text, String::from_utf8_lossy(&output.stdout));
        let goal = text.lines().find(|line| line.contains("FlashInfer")).unwrap();
        assert!(goal.starts_with(verdict), "{goal}");
        // The worst shape counts.
        assert!(goal.contains(&format!("{slower:.2} x ({DECODE}/1k)")), "{goal}");
        assert!(text.contains("torch-cudnn: too old"), "{text}");

        let report = fs::read_to_string(path.join("o/report.json")).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let ratio = report["ratios"][1]["peers"]["flashinfer"]["ratio"].as_f64().unwrap();
        assert!((ratio - 1.2 * slower).abs() < 1e-9, "{report}");
        assert_eq!(report["ratios"].as_array().unwrap().len(), 2, "skipped cells have no ratio");
    }
    let picture = fs::read_to_string(path.join("o/roofline.svg")).unwrap();
    for words in ["kvfold 16-bit", "kvfold KIVI-2", "FlashInfer", "&lt;a card&gt;", "3.00 TB/s"] {
        assert!(picture.contains(words), "no {words} in the picture");
    }
    assert!(!picture.contains("cuDNN"), "what was not measured has no name");
    // Points of 16-bit, KIVI-2, FlashInfer and PyTorch's flash.
    assert_eq!(picture.matches("<circle").count(), 2 + 1 + 2 + 2);
}

#[test]
fn the_idle_share_comes_from_kernels_of_graphs() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("device.json"), bench().to_string()).unwrap();
    let profile = |name: &str, rows: &str| {
        let make = format!(
            "import sqlite3; c = sqlite3.connect('{name}'); \
             c.execute('create table CUPTI_ACTIVITY_KIND_KERNEL(start, end, graphNodeId)'); \
             c.executemany('insert into CUPTI_ACTIVITY_KIND_KERNEL values (?, ?, ?)', {rows}); \
             c.commit()"
        );
        let made = Command::new("python3").args(["-c", &make]).current_dir(path).status();
        assert!(made.unwrap().success());
        python(&["device.json", "--profile", name], "gpu-report", path)
    };
    // Between 100 and 300 nothing runs from 195 to 225; what is before was no graph's.
    let output =
        profile("good", "[(0, 50, 0), (225, 300, 7), (100, 190, 5), (150, 195, 6)]").stdout;
    let said = String::from_utf8(output).unwrap();
    assert!(said.starts_with("NOT REACHED") && said.contains(": 15.0 %"), "{said}");
    for bad in [profile("bad", "[(0, 50, 0)]"), profile("empty", "[]")] {
        let said = String::from_utf8(bad.stderr).unwrap();
        assert!(!bad.status.success() && said.contains("--cuda-graph-trace=node"), "{said}");
    }
}

/// Columns of the first row of gpu-predict that begins with `cell`.
fn predicted(text: &str, cell: &str) -> Vec<String> {
    let row = text.lines().find(|line| line.starts_with(&format!("| {cell} |"))).unwrap();
    row.split('|').map(|column| column.trim().to_owned()).collect()
}

#[test]
fn predictions_follow_the_tables() {
    let folder = TempDir::new().unwrap();
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let products = "sass_products.tsv";
    fs::copy(kernels.join(products), folder.path().join(products)).unwrap();
    let table = fs::read_to_string(kernels.join("sass.tsv")).unwrap();
    let predict = |table: &str| {
        fs::write(folder.path().join("sass.tsv"), table).unwrap();
        let output = python(&["--device", "h200", "."], "gpu-predict", folder.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = predict(&table);
    // 16 · 32,768 tokens, 8 KV heads, keys and values of 128 channels in 16 bits; and 16 rows
    // of 32 heads in and out.
    let half = predicted(&text, "32/8 d128, 16 x 32k | half");
    let bytes = 16u64 * 32_768 * 8 * 2 * 128 * 2 + 16 * 32 * 128 * 2 * 2;
    assert_eq!(half[3], format!("{:.1}", bytes as f64 / 1e6), "{text}");
    // 16 rows of 32 heads in 512 / 16 parts of 129 numbers, if 512 pages have splits of 16.
    if half[5].starts_with("16,") {
        assert_eq!(half[4], format!("{:.1}", f64::from(16 * 32 * 32 * 129 * 4) / 1e6), "{text}");
    }
    // Dearer items, so that their instructions bind wherever today's do: nothing else of kf2's
    // row changes but its times.
    let fields: Vec<_> = table.lines().nth(1).unwrap().split('\t').collect();
    let at = |name| fields.iter().position(|field| *field == name).unwrap();
    let dearer: String = (table.lines())
        .map(|line| {
            let mut row: Vec<_> = line.split('\t').collect();
            if row[0].starts_with("decode_kf2_") {
                row[at("outside")] = "100000";
            }
            row.join("\t") + "\n"
        })
        .collect();
    let cell = "32/8 d128, 64 x 16k | kf2";
    let (before, after) = (predicted(&text, cell), predicted(&predict(&dearer), cell));
    assert_eq!(before[..6], after[..6]);
    let number =
        |row: &[String], i: usize| -> f64 { row[i].trim_end_matches(" %").parse().unwrap() };
    let columns = before.len();
    let (share, time) = (columns - 3, columns - 4);
    assert!(number(&after, share) < number(&before, share), "{before:?}, {after:?}");
    assert!(number(&after, time) > number(&before, time), "{before:?}, {after:?}");
    // Tables of before these figures were counted.
    let old: String = table
        .lines()
        .map(|l| l.split('\t').take(9).collect::<Vec<_>>().join("\t") + "\n")
        .collect();
    fs::write(folder.path().join("sass.tsv"), old).unwrap();
    let output = python(&["."], "gpu-predict", folder.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.lines().count() == 1, "{said}");
    assert!(said.contains("scripts/sass-check --update"), "{said}");
}

#[test]
fn what_cannot_be_done_is_one_line() {
    let folder = TempDir::new().unwrap();
    let output = python(&["--check", "x"], "gpu-peers", folder.path());
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stderr, b"gpu-peers: this Python has no PyTorch\n");
    assert_eq!(python(&[], "gpu-peers", folder.path()).status.code(), Some(64));
    let output = python(&["."], "gpu-predict", folder.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("gpu-predict: sass.tsv is not there"), "{said}");
    let output = python(&["nowhere.json"], "gpu-report", folder.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.lines().count() == 1, "{said}");
}
