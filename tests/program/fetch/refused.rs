//! What a hub refuses, and what kvfold refuses of it: one line each, before weights are
//! fetched.

use std::fs;

use kvfold::Error;
use kvfold::fetch::{Repository, Silent, fetch_repository};
use serde_json::{Value, json};

use super::made_up_hub::{Fault, Hub};
use super::repository::{folder_files, folder_hub, gguf_hub, named};
use crate::tiny_model::{Gguf, hf_files};

#[track_caller]
fn refused(hub: &Hub, name: &Repository, token: bool, parts: &[&str]) -> Error {
    let cache = tempfile::tempdir().unwrap();
    let mut options = hub.options(&cache);
    options.retries = 0;
    options.hub_token = token.then(|| "secret".to_owned());
    let error = fetch_repository(name, &options, &mut Silent).unwrap_err();
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    assert!(!message.contains("secret"), "{message}");
    assert!(message.chars().all(|c| !c.is_control()) && message.len() < 1500, "{message:?}");
    // No weights: at most the head of a GGUF file.
    for head in hub.requests() {
        let weights = head.contains("/cdn/") && !head.contains("range: bytes=0-");
        assert!(!weights, "{message}: {head}");
    }
    error
}

#[test]
fn refusals_say_what_to_do() {
    let many = "Retry-After: 3600";
    for (status, header, token, parts) in [
        (401, "", false, ["HTTP 401: it does not exist, or is private or gated", "set HF_TOKEN"]),
        (401, "", true, ["HTTP 401", "HF_TOKEN may be wrong"]),
        (401, "X-Error-Code: GatedRepo", false, ["accept the licence at http://127.", "/o/n"]),
        (403, "X-Error-Code: GatedRepo", true, ["the account of HF_TOKEN has no access", "/o/n"]),
        (403, "", false, ["accept the licence", "set HF_TOKEN"]),
        (404, "X-Error-Code: RepoNotFound", false, ["does not exist, or is private", "HF_TOKEN"]),
        (404, "X-Error-Code: RevisionNotFound", false, ["has no revision \"main\"", "HTTP 404"]),
        (429, many, false, ["HTTP 429: too many requests", "HF_TOKEN"]),
        (500, "", false, ["HTTP 500: the hub failed", "try again later"]),
        (418, "", false, ["HTTP 418", "is HF_ENDPOINT a hub?"]),
    ] {
        let hub = gguf_hub();
        hub.fail("/api/", 9, Fault::Status(status, header));
        refused(&hub, &named("o/n"), token, &parts);
    }
    // The API tells of a gated repository; only its files are refused.
    for (hub, file) in [(gguf_hub(), "m-Q4_K_M"), (folder_hub(), "/config.json")] {
        hub.fail(file, 9, Fault::Status(403, "X-Error-Code: GatedRepo"));
        refused(&hub, &named("o/n"), false, &["accept the licence", "HF_TOKEN"]);
    }
}

#[test]
fn answers_that_are_none_are_named() {
    let commit = "\"sha\": \"0123456789abcdef0123456789abcdef01234567\"";
    let huge = format!("{{{commit}, \"siblings\": [], \"x\": \"{}\"}}", "x".repeat(33 << 20));
    for (kind, body, part) in [
        ("text/html", "<!doctype html><title>Log in</title>".to_owned(), "a web page came"),
        ("application/json", String::new(), "not an answer of the hub"),
        ("application/json", "{\"error\": \"\u{1b}[2J\"}".to_owned(), "not an answer of the hub"),
        ("application/json", "{\"siblings\": []}".to_owned(), "names no commit"),
        ("application/json", format!("{{{commit}}}"), "neither GGUF nor safetensors"),
        ("application/json", format!("{{{commit}, \"siblings\": 7}}"), "not an answer of the hub"),
        ("application/json", "[".repeat(1 << 20), "not an answer of the hub"),
        ("application/json", huge, "more than 33554432 bytes"),
    ] {
        let hub = gguf_hub();
        hub.fail("/api/", 9, Fault::Body(kind, body.into_bytes()));
        refused(&hub, &named("o/n"), false, &[part]);
    }
}

/// Changes what the API says of the file that ends with `.gguf`.
fn of_file(info: &mut Value, change: impl Fn(&mut Value)) {
    for file in info["siblings"].as_array_mut().unwrap() {
        if file["rfilename"].as_str().unwrap().ends_with(".gguf") {
            change(file);
        }
    }
}

#[test]
fn files_that_cannot_be_checked_or_named_are_refused() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 9] = [
        (|info| of_file(info, |f| f["rfilename"] = json!("../m-Q4_K_M.gguf")), "neither GGUF"),
        (|info| of_file(info, |f| f["rfilename"] = json!("/tmp/m-Q4_K_M.gguf")), "neither GGUF"),
        (|info| of_file(info, |f| f["rfilename"] = json!("a/../../m.gguf")), "neither GGUF"),
        (|info| of_file(info, |f| f["rfilename"] = json!("m\u{1b}[2J.gguf")), "neither GGUF"),
        (|info| of_file(info, |f| f["lfs"] = json!({})), "gives no size or sum of m.gguf"),
        (|info| of_file(info, |f| f["lfs"]["sha256"] = json!("../x")), "no size or sum"),
        (|info| of_file(info, |f| f["lfs"]["size"] = json!(0)), "m.gguf is empty"),
        (|info| of_file(info, |f| f["lfs"]["size"] = json!(-5)), "not an answer of the hub"),
        (|info| info["sha"] = json!("../../../etc"), "names no commit"),
    ];
    for (change, part) in changes {
        let hub = Hub::start([("m.gguf", Gguf::model().bytes())]);
        hub.say(change);
        refused(&hub, &named("o/n"), false, &[part]);
    }
}

#[test]
fn a_disk_without_room_is_named_before_anything_is_fetched() {
    for hub in [gguf_hub(), folder_hub()] {
        hub.say(|info| {
            for file in info["siblings"].as_array_mut().unwrap() {
                let large = file["lfs"].is_object();
                if large {
                    file["lfs"]["size"] = json!(1_u64 << 61);
                }
            }
        });
        let error = refused(&hub, &named("o/n"), false, &["the disk is full", "KVFOLD_CACHE"]);
        assert!(matches!(error, Error::DiskFull { needed, .. } if needed >= 1 << 61), "{error}");
    }
}

#[test]
fn what_kvfold_cannot_run_is_refused_before_its_weights() {
    let gguf = |architecture: &str| {
        let mut file = Gguf::model();
        file.str("general.architecture", architecture);
        file.bytes()
    };
    // By the head of the file, whatever the hub says.
    let hub = Hub::start([("m.gguf", gguf("mamba"))]);
    let error = refused(&hub, &named("o/n"), false, &["o/n/m.gguf: ", "\"mamba\"", "llama, "]);
    assert!(matches!(error, Error::UnknownArchitecture { .. }));
    hub.say(|info| info["gguf"] = json!({"architecture": "mamba"}));
    refused(&hub, &named("o/n"), false, &["\"mamba\" is not supported"]);
    let hub = Hub::start([("m.gguf", gguf("a\u{1b}[31m\nb"))]);
    refused(&hub, &named("o/n"), false, &["a\\u{1b}[31m\\nb"]);
    // Not GGUF at all: a pointer to LFS, committed as it is; a page.
    for text in ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "<html>", "GGU"] {
        let hub = Hub::start([("m.gguf", text.as_bytes().to_vec())]);
        refused(&hub, &named("o/n"), false, &["/m.gguf: "]);
    }
    let hub = Hub::start([("m-IQ2_XXS.gguf", gguf("llama")), ("m-Q8_0.gguf", gguf("llama"))]);
    refused(&hub, &named("o/n:IQ2_XXS"), false, &["IQ2_XXS are not supported", "Q8_0 (m-Q8_0"]);
    refused(&hub, &named("o/n:Q4_K_M"), false, &["it has no Q4_K_M", "m-Q8_0.gguf"]);

    let with_config = |change: fn(&mut Value)| {
        let mut files = folder_files();
        let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
        change(&mut config);
        files.insert("config.json", config.to_string().into_bytes());
        Hub::start(files)
    };
    let hub = with_config(|config| config["model_type"] = json!("rwkv7"));
    let error = refused(&hub, &named("o/n"), false, &["o/n/config.json", "\"rwkv7\"", "gemma3"]);
    assert!(matches!(error, Error::UnknownArchitecture { .. }));
    let hub = with_config(|config| config["quantization_config"] = json!({"quant_method": "awq"}));
    refused(&hub, &named("o/n"), false, &["quantization_config"]);
    refused(&Hub::start(hf_files()), &named("o/n"), false, &["head_dim 4 is not supported"]);
    let hub = with_config(|config| config["num_hidden_layers"] = json!(0));
    refused(&hub, &named("o/n"), false, &["number of layers is 0"]);

    let mut files = folder_files();
    files.insert("model.safetensors.index.json", br#"{"weight_map": {"a": "../x"}}"#.to_vec());
    refused(&Hub::start(files), &named("o/n"), false, &["names a shard that cannot be one"]);
    let mut files = folder_files();
    files.remove("two.safetensors");
    refused(&Hub::start(files), &named("o/n"), false, &["it has no two.safetensors"]);
    let mut files = folder_files();
    files.remove("tokenizer.json");
    refused(&Hub::start(files), &named("o/n"), false, &["no tokenizer.json"]);
    let hub = Hub::start([("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![1; 9])]);
    refused(&hub, &named("o/n"), false, &["other formats"]);
}

#[test]
fn without_a_hub_it_is_said_how_to_go_on() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = gguf_hub().options(&cache);
    options.offline = true;
    let offline = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap_err();
    options.offline = false;
    options.hub_endpoint = "http://127.0.0.1:9".into();
    let refused = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap_err();
    options.hub_endpoint = "no endpoint".into();
    let none = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap_err();
    for (error, part) in
        [(offline, "HF_HUB_OFFLINE"), (refused, "http://127.0.0.1:9/api/"), (none, "no endpoint")]
    {
        let message = error.to_string();
        for part in [part, "KVFOLD_MODEL_DIR/o/n", "HF_ENDPOINT"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains('\n'), "{message}");
    }
    assert!(fs::read_dir(cache.path()).unwrap().next().is_none(), "nothing is left");
}
