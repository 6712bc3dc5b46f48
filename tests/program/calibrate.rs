//! `kvfold calibrate` and what it writes, as a user meets them.

use crate::command::{Place, model, refused, success};
use std::path::Path;
use std::process::Output;

/// Another of the small models.
fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    path.to_str().unwrap().to_owned()
}

/// A calibration of the small model, and where its text and it lie.
fn calibrated(what: [&str; 2]) -> (Place, Output) {
    let place = Place::new();
    let words = (0..3000).map(|i| format!("word{} ", i * 7919 % 613));
    place.write("text.txt", words.collect::<String>());
    let model = model();
    let output = place.kvfold(&[
        "calibrate",
        "-m",
        model.to_str().unwrap(),
        what[0],
        what[1],
        "--text",
        "text.txt",
        "--context",
        "456",
        "--windows",
        "2",
        "-o",
        "formats.json",
    ]);
    (place, output)
}

#[test]
fn formats_are_chosen_written_and_run() {
    let (place, output) = calibrated(["--target-bits", "3.0"]);
    let (stdout, _) = success(&output);
    assert!(stdout.contains("kf3.2") && stdout.contains("formats.json"), "{stdout}");
    let text = std::fs::read_to_string(place.0.path().join("formats.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bits = file["bits"].as_f64().unwrap();
    assert!((2.5..=3.0).contains(&bits), "{bits}");
    assert!(file["layers"][0][0].as_str().unwrap().starts_with("kf"), "{text}");

    // Far enough for sealed pages.
    let model = model();
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
        let output = place.kvfold(&args);
        let json: serde_json::Value = serde_json::from_str(&success(&output).0).unwrap();
        json["results"][0].clone()
    };
    let (mixed, kf2, kf4) = (run("formats.json"), run("kf2"), run("kf4"));
    assert_eq!(mixed["bits"].as_f64(), Some(bits));
    let held = |of: &serde_json::Value| of["kv_bytes"].as_u64().unwrap();
    assert!(held(&kf2) <= held(&mixed) && held(&mixed) < held(&kf4), "{mixed} {kf2} {kf4}");
}

#[test]
fn one_format_for_all_heads_keeps_its_feedback() {
    let (place, output) = calibrated(["--kv", "kf3.2"]);
    success(&output);
    let text = std::fs::read_to_string(place.0.path().join("formats.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((file["bits"].as_f64(), file["target_bits"].as_f64()), (Some(3.0), Some(3.0)));
    let heads = file["layers"].as_array().unwrap().iter().flat_map(|l| l.as_array().unwrap());
    assert!(heads.clone().count() > 1 && heads.clone().all(|head| head == "kf3.2"), "{text}");
    assert!(file["key_feedback"][0][0].as_str().unwrap().len() > 4 * 32 * 31 / 3, "{text}");
    refused(&calibrated(["--kv", "kivi2"]).1, &["kv", "kivi2", "kf4, kf3 and kf2"]);
}

#[test]
fn what_cannot_be_calibrated_or_used_is_named() {
    let (place, output) = calibrated(["--target-bits", "2.4"]);
    refused(&output, &["target_bits", "2.4", "2.5", "4.5"]);
    assert!(!place.0.path().join("formats.json").exists());

    let (place, output) = calibrated(["--target-bits", "2.5"]);
    assert!(output.status.success());
    let other = golden("llama3");
    let args = ["run", "-m", &other, "--kv", "formats.json", "hello"];
    refused(&place.kvfold(&args), &["kv", "other weights", "kvfold calibrate"]);

    let narrow = &golden("llama2");
    let args = ["calibrate", "-m", narrow, "--target-bits", "3", "--text", "text.txt"];
    refused(&place.kvfold(&args), &["32 channels", "kf formats"]);

    place.write("short.txt", "Few words.");
    let small = model();
    let small = small.to_str().unwrap();
    for (text, parts) in [("short.txt", ["short.txt", "tokens"]), ("no.txt", ["no.txt", "read"])] {
        let args = ["calibrate", "-m", small, "--target-bits", "3", "--text", text];
        refused(&place.kvfold(&args), &parts);
    }
    let args = ["run", "-m", small, "--kv", "text.txt", "hello"];
    refused(&place.kvfold(&args), &["text.txt", "no calibration"]);
    let args = ["run", "-m", small, "--kv", "lost.json", "hello"];
    refused(&place.kvfold(&args), &["lost.json", "kvfold calibrate"]);
}

#[test]
fn a_calibration_goes_alone_to_stdout() {
    let (place, _) = calibrated(["--target-bits", "2.4"]);
    let model = model();
    let calibrate = |output: &str| {
        let args = ["calibrate", "-m", model.to_str().unwrap(), "--target-bits", "3"];
        let text = ["--text", "text.txt", "--context", "456", "--windows", "1", "-o", output];
        place.kvfold(&[&args[..], &text].concat())
    };
    let (json, table) = success(&calibrate("-"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["layers"].is_array() && table.contains("keys of heads"), "{table}");
    // Before half a minute of work.
    refused(&calibrate("absent/formats.json"), &["absent: there is no such folder"]);
}
