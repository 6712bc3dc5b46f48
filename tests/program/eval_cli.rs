//! `kvfold eval` as a user meets it: one line for what is wrong, a table or JSON.

use crate::command::{Place, model, refused, success};
use std::fs;

#[test]
fn what_cannot_be_evaluated_is_named() {
    let place = Place::new();
    let hay = place.write("hay.txt", "A short text. It has two sentences.");
    let stars = place.write("stars.txt", "Here is a ★ already.");
    let good = r#"{"context": "a", "question": "b", "answers": ["c"]}"#;
    let lines = place.write("q.jsonl", format!("{good}\n{{\"context\": 1}}\n"));
    // Before a model is looked for.
    for (args, parts) in [
        (&["niah", "--kind", "double"][..], ["kind: ", "double"]),
        (&["niah", "--haystack", "absent.txt"], ["absent.txt", "cannot be read"]),
        (&["niah", "--depths", "101"], ["depths: ", "101"]),
        (&["niah", "--kv", "q4_0"], ["kv: ", "q4_0"]),
        (&["counting-stars", "--language", "fr"], ["language: ", "fr"]),
        (&["counting-stars", "--kind", "guessing"], ["kind: ", "guessing"]),
        (&["counting-stars", "--stars", "0"], ["stars: ", "at least 1"]),
        (&["counting-stars", "--haystack", &stars], ["stars.txt", "★"]),
        (&["vt", "--hops", "0"], ["hops: ", "at least 1"]),
        (&["cwe", "--seeds", "0"], ["seeds: ", "at least 1"]),
        (&["perplexity", "--file", "absent.txt"], ["absent.txt", "cannot be read"]),
        (&["qa", "--file", "absent.jsonl"], ["absent.jsonl", "cannot be read"]),
        (&["qa", "--file", &lines], ["q.jsonl:2: ", "has a number as \"context\""]),
        (&["qa", "--file", &lines, "--limit", "0"], ["limit: ", "at least 1"]),
    ] {
        let args = [&["eval"], args, &["--model", "absent.gguf"]].concat();
        refused(&place.kvfold(&args), &parts);
    }
    // With the model's tokenizer and context, which is 512 tokens.
    let model = model();
    for (args, parts) in [
        (&["niah", "--lengths", "300", "--haystack", &hay][..], ["hay.txt", "too few"]),
        (&["niah", "--lengths", "500"], ["lengths: 500", "at most 488"]),
        (&["vt", "--lengths", "100"], ["lengths: 100", "too short"]),
        (&["fwe", "--lengths", "463"], ["lengths: 463", "at most 462"]),
        (&["cwe", "--lengths", "300"], ["lengths: 300", "too short"]),
        (&["perplexity", "--file", &hay, "--context", "1024"], ["context: 1024", "512"]),
        (&["qa", "--file", &lines, "--limit", "1", "--length", "10"], ["length: 10", "line 1"]),
    ] {
        let args = [&["eval"], args, &["--model", model.to_str().unwrap()]].concat();
        refused(&place.kvfold(&args), &parts);
    }
}

#[test]
fn evaluations_print_a_table_or_json() {
    let place = Place::new();
    let line = r#"{"context": "One two three.", "question": "What?", "answers": ["two", "2"]}"#;
    let lines = place.write("q.jsonl", line);
    let model = model();
    let eval = |args: &[&str]| {
        let common = ["--model", model.to_str().unwrap(), "--kv", "f16,kivi2"];
        place.kvfold(&[&["eval"], args, &common].concat())
    };
    let (table, stderr) = success(&eval(&["qa", "--file", &lines]));
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows.len() >= 6 && rows[0].ends_with("qa, 1 prompts"), "{table}");
    for title in ["score", "change", "95 % interval", "held", "ratio", "prefill", "decode"] {
        assert!(rows[2].contains(title), "{table}");
    }
    assert!(rows[4].starts_with("f16") && rows[5].starts_with("kivi2"), "{table}");
    assert!(stderr.is_empty(), "{stderr}");

    let niah = ["niah", "--lengths", "400", "--depths", "50", "--seeds", "2", "--json"];
    let (json, _) = success(&eval(&[&niah[..], &["--prompts", "prompts.jsonl"]].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["evaluation"], &json["task"]), (&"niah".into(), &"niah".into()));
    assert_eq!(json["lengths"], serde_json::json!([400]));
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    let prompts = fs::read_to_string(place.0.path().join("prompts.jsonl")).unwrap();
    for result in results {
        for field in ["value", "error", "kv_bytes", "held_bits", "ratio", "seconds"] {
            assert!(result[field].is_number(), "{field} of {result}");
        }
        assert!(result["paired"]["pairs"] == 2 && result["prompts"] == 2, "{result}");
        assert!(result["prefill_tokens_per_second"].as_f64().unwrap() > 0.0);
        for (answer, prompt) in result["answers"].as_array().unwrap().iter().zip(prompts.lines()) {
            let prompt: serde_json::Value = serde_json::from_str(prompt).unwrap();
            assert_eq!((&answer["key"], &answer["seed"]), (&prompt["key"], &prompt["seed"]));
            assert!(answer["hit"].is_boolean() && prompt["ids"].as_array().unwrap().len() <= 400);
        }
    }
}

#[test]
fn prompts_go_to_a_file_or_alone_to_stdout() {
    let place = Place::new();
    let model = model();
    let eval = |args: &[&str]| {
        let niah = ["eval", "niah", "--lengths", "300", "--depths", "50", "--seeds", "2"];
        let common = ["--kv", "f16", "--model", model.to_str().unwrap()];
        place.kvfold(&[&niah[..], args, &common].concat())
    };
    let (prompts, table) = success(&eval(&["--prompts", "-"]));
    assert_eq!(prompts.lines().count(), 2, "{prompts}");
    for line in prompts.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).unwrap()["ids"].is_array());
    }
    assert!(table.contains("score"), "{table}");
    refused(&eval(&["--prompts", "-", "--json"]), &["--prompts", "--json", "name a file"]);
    refused(&eval(&["--prompts", "absent/p.jsonl"]), &["absent: there is no such folder"]);
}

/// `auto` is measured as what it is for the model, once.
#[test]
fn auto_is_a_format_like_others() {
    let place = Place::new();
    let model = model();
    let args = ["eval", "niah", "--lengths", "300", "--depths", "50", "--seeds", "1", "--json"];
    let common = ["--model", model.to_str().unwrap(), "--kv", "f16,auto,kivi4/kivi2"];
    let (json, _) = success(&place.kvfold(&[&args[..], &common].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let results = json["results"].as_array().unwrap();
    let named: Vec<_> = results.iter().map(|r| (r["kv"].as_str(), r["bits"].as_f64())).collect();
    assert_eq!(named, [(Some("f16"), Some(16.0)), (Some("kivi4/kivi2"), Some(4.0))]);
    assert!(results[0]["load"]["cores"].as_u64() > Some(0) || results[0]["load"].is_null());
}
