//! `kvfold calibrate` and what it writes, as a user meets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A small model with random weights and a context of 512 tokens.
fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn kvfold(place: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvfold"));
    command.args(args).current_dir(place.path()).stdin(Stdio::null());
    command.env("KVFOLD_CACHE", place.path().join(".cache"));
    command.env_remove("KVFOLD_MODEL_DIR").env_remove("KVFOLD_LOG").output().unwrap()
}

/// A calibration of the small model, and where its text and it lie.
fn calibrated(bits: &str) -> (TempDir, Output) {
    let place = tempfile::tempdir().unwrap();
    let words = (0..3000).map(|i| format!("word{} ", i * 7919 % 613));
    fs::write(place.path().join("text.txt"), words.collect::<String>()).unwrap();
    let model = model("smollm2/model.gguf");
    let output = kvfold(
        &place,
        &[
            "calibrate",
            "-m",
            model.to_str().unwrap(),
            "--target-bits",
            bits,
            "--text",
            "text.txt",
            "--context",
            "456",
            "--windows",
            "2",
            "-o",
            "formats.json",
        ],
    );
    (place, output)
}

#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let line = stderr.trim_end_matches('\n');
    assert!(line.starts_with("error: ") && !line.contains('\n'), "{stderr}");
    assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
}

#[test]
fn formats_are_chosen_written_and_run() {
    let (place, output) = calibrated("3.0");
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("kf3.2") && stdout.contains("formats.json"), "{stdout}");
    let text = fs::read_to_string(place.path().join("formats.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bits = file["bits"].as_f64().unwrap();
    assert!((2.5..=3.0).contains(&bits), "{bits}");
    assert!(file["layers"][0][0].as_str().unwrap().starts_with("kf"), "{text}");

    // Far enough for sealed pages.
    let model = model("smollm2/model.gguf");
    let model = model.to_str().unwrap();
    let run = |kv: &str| {
        let args = [
            "eval",
            "perplexity",
            "-m",
            model,
            "--file",
            "text.txt",
            "--context",
            "456",
            "--windows",
            "1",
            "--kv",
            kv,
            "--json",
        ];
        let output = kvfold(&place, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        json["results"][0].clone()
    };
    let (mixed, kf2, kf4) = (run("formats.json"), run("kf2"), run("kf4"));
    assert_eq!(mixed["bits"].as_f64(), Some(bits));
    let held = |of: &serde_json::Value| of["kv_bytes"].as_u64().unwrap();
    assert!(held(&kf2) <= held(&mixed) && held(&mixed) < held(&kf4), "{mixed} {kf2} {kf4}");
}

#[test]
fn what_cannot_be_calibrated_or_used_is_named() {
    let (place, output) = calibrated("2.4");
    refused(&output, &["target_bits", "2.4", "2.5", "4.5"]);
    assert!(!place.path().join("formats.json").exists());

    let (place, output) = calibrated("2.5");
    assert!(output.status.success());
    let other = model("llama3");
    let args = ["run", "-m", other.to_str().unwrap(), "--kv", "formats.json", "hello"];
    refused(&kvfold(&place, &args), &["kv", "other weights", "kvfold calibrate"]);

    let narrow = model("llama2");
    let narrow = narrow.to_str().unwrap();
    let args = ["calibrate", "-m", narrow, "--target-bits", "3", "--text", "text.txt"];
    refused(&kvfold(&place, &args), &["32 channels", "kf formats"]);

    fs::write(place.path().join("short.txt"), "Few words.").unwrap();
    let small = model("smollm2/model.gguf");
    let small = small.to_str().unwrap();
    for (text, parts) in [("short.txt", ["short.txt", "tokens"]), ("no.txt", ["no.txt", "read"])] {
        let args = ["calibrate", "-m", small, "--target-bits", "3", "--text", text];
        refused(&kvfold(&place, &args), &parts);
    }
    let args = ["run", "-m", small, "--kv", "text.txt", "hello"];
    refused(&kvfold(&place, &args), &["text.txt", "no calibration"]);
    let args = ["run", "-m", small, "--kv", "lost.json", "hello"];
    refused(&kvfold(&place, &args), &["lost.json", "kvfold calibrate"]);
}
