//! Getting models on the command line.

use std::fs;

use serde_json::Value;

use super::made_up_hub::Fault;
use super::repository::{folder_files, folder_hub, gguf_hub};
use super::stores::{hf_repository, ollama_model, write};
use crate::command::{Place, error, model, success};
use crate::tiny_model::Gguf;

#[test]
fn a_model_of_the_hub_answers_at_once() {
    let (place, hub) = (Place::new(), folder_hub());
    write(place.0.path(), ".hf/token", "hf_secret\n");
    let run = |args: &[&str]| {
        let mut command = place.command(args);
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint);
        command.output().unwrap()
    };
    let (_, stderr) = success(&run(&["run", "-m", "o/n", "--raw", "-n", "1", "abc"]));
    assert!(stderr.contains("o/n: fetching from http://127.0.0.1"), "{stderr}");
    assert!(hub.requests().iter().any(|head| head.contains("bearer hf_secret")));
    // Now it needs no hub.
    let offline = place.kvfold(&["run", "-m", "o/n", "--raw", "-n", "1", "abc"]);
    assert!(!success(&offline).1.contains("fetching"));
    let (stdout, _) = success(&run(&["fetch", "o/n"]));
    assert!(fs::metadata(stdout.trim_end()).unwrap().is_dir(), "{stdout}");
    let (stdout, _) = success(&place.kvfold(&["models"]));
    assert!(stdout.contains("  o/n\n") && stdout.contains("safetensors F16, llama"), "{stdout}");

    hub.fail("/api/", 9, Fault::Status(401, ""));
    let line = error(&run(&["run", "-m", "o/other", "hi"]));
    assert!(line.contains("o/other: no such file or folder here"), "{line}");
    assert!(line.contains("HTTP 401") && !line.contains("hf_secret"), "{line}");
    let line = error(&run(&["fetch", "--from", "x", "o/other"]));
    assert!(line.contains("give -m the path"), "{line}");
}

#[test]
fn a_folder_of_that_name_comes_before_the_hub() {
    let (place, hub) = (Place::new(), gguf_hub());
    write(place.0.path(), "o/n/model.gguf", fs::read(model()).unwrap());
    let mut command = place.command(&["run", "-m", "o/n", "--raw", "-n", "1", "abc"]);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint);
    success(&command.output().unwrap());
    assert!(hub.requests().is_empty());
}

#[test]
fn models_of_other_programs_are_run_and_listed() {
    let place = Place::new();
    let root = place.0.path();
    let bytes = fs::read(model()).unwrap();
    let mut foreign = Gguf::model();
    foreign.str("general.architecture", "a\u{1b}[31mb\nc");
    ollama_model(&root.join(".ollama"), "registry.ollama.ai/library/tiny/1b", &bytes);
    ollama_model(&root.join(".ollama"), "registry.ollama.ai/library/odd/latest", &foreign.bytes());
    let files: Vec<_> = folder_files().into_iter().collect();
    hf_repository(&root.join(".hf/hub"), "a/folder", &files);
    hf_repository(&root.join(".hf/hub"), "a/text", &[("m-Q8_0.gguf", b"once upon".to_vec())]);
    ollama_model(
        &root.join(".ollama"),
        "registry.ollama.ai/library/wide/v1",
        &Gguf::model().bytes(),
    );
    write(root, ".llama/b_c_m-Q4_0.gguf", &bytes[..bytes.len() - 40]);
    write(root, ".llama/manifest=b=c=latest.json", "{}");
    for model in ["tiny:1b", "ollama:tiny:1b", "a/folder"] {
        success(&place.kvfold(&["run", "-m", model, "--raw", "-n", "1", "abc"]));
    }
    let (stdout, stderr) = success(&place.kvfold(&["models"]));
    assert!(stderr.is_empty(), "{stderr}");
    for part in [
        "Hugging Face's cache\n  a/folder\n",
        "safetensors F16, llama, 512 tokens of context",
        "  a/text:Q8_0\n      9 B, GGUF, cannot be run: it is a short text",
        "llama.cpp's cache\n  b/c:m-Q4_0.gguf\n",
        "cannot be run: tensor ",
        "Ollama's store\n  ollama:odd:latest\n",
        "architecture a\\u{1b}[31mb\\nc is not supported",
        "  ollama:tiny:1b\n",
        "cannot be run: head_dim 4 is not supported",
        "can be fetched by name",
        "  gemma3-270m\n",
    ] {
        assert!(stdout.contains(part), "no {part:?} in {stdout}");
    }
    assert!(stdout.chars().all(|c| c == '\n' || !c.is_control()), "{stdout:?}");

    let (stdout, _) = success(&place.kvfold(&["models", "--json"]));
    let json: Value = serde_json::from_str(&stdout).unwrap();
    let here = json["here"].as_array().unwrap();
    assert_eq!(here.len(), 6, "{stdout}");
    let named = |name: &str| here.iter().find(|model| model["name"] == name).unwrap();
    assert_eq!(named("ollama:tiny:1b")["supported"], true);
    assert_eq!(named("ollama:tiny:1b")["bytes"], bytes.len());
    assert_eq!(named("ollama:odd:latest")["supported"], false);
    assert_eq!(named("a/folder")["format"], "safetensors");
    assert_eq!(json["catalogue"][0]["here"], false);
    // Every name that is listed is one that -m takes.
    for model in here.iter().filter(|model| model["supported"] == true) {
        let name = model["name"].as_str().unwrap();
        success(&place.kvfold(&["info", "-m", name]));
    }
}
