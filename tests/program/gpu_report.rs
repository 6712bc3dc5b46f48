//! scripts/gpu-report and scripts/gpu-peers, as far as they go without a GPU: ratios,
//! verdicts, the idle share of a made-up profile, and a picture that holds every series.

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

#[test]
fn what_cannot_be_done_is_one_line() {
    let folder = TempDir::new().unwrap();
    let output = python(&["--check", "x"], "gpu-peers", folder.path());
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stderr, b"gpu-peers: this Python has no PyTorch\n");
    assert_eq!(python(&[], "gpu-peers", folder.path()).status.code(), Some(64));
    let output = python(&["nowhere.json"], "gpu-report", folder.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.lines().count() == 1, "{said}");
}
