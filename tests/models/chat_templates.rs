//! Chat templates against what transformers makes of them (`scripts/golden-chat`), and what
//! becomes of damaged ones.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use kvfold::backend::WeightPolicy;
use kvfold::engine::LoadedModel;
use kvfold::model::{ChatOptions, ChatTemplate, Checkpoint, Message, TokenTexts};
use serde_json::{Value, json};

use crate::tiny_model::{self, Gguf};

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat-templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What a template gives with the variables of a case, at the fixture's time.
fn render(golden: &Value, template: &str, chat: &str, given: &Value) -> kvfold::Result<String> {
    let now = UNIX_EPOCH + Duration::from_secs_f64(golden["now"].as_f64().unwrap());
    let mut options = ChatOptions::new().with_now(now);
    options = options.with_variable("messages", golden["chats"][chat].clone());
    for (name, value) in given.as_object().unwrap() {
        options = options.with_variable(name, value.clone());
    }
    ChatTemplate::new(template, Some("<s>"), Some("</s>"))?.render_with(&[], &options)
}

/// Says all differences at once.
fn check(found: Vec<(String, kvfold::Result<String>, Option<String>)>) {
    let wrong: Vec<String> = (found.into_iter())
        .filter(|(_, text, want)| text.as_ref().ok() != want.as_ref())
        .map(|(what, text, want)| format!("{what}\n  gave {text:?}\n  want {want:?}"))
        .collect();
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[test]
fn families_agree_with_transformers() {
    let golden = fixture();
    let mut found = Vec::new();
    for family in golden["families"].as_array().unwrap() {
        let template = family["template"].as_str().unwrap();
        for case in family["cases"].as_array().unwrap() {
            let (chat, given) = (case[0].as_str().unwrap(), &case[1]);
            let what = format!("{} {chat} {given}", family["name"]);
            found.push((what, render(&golden, template, chat, given), text(&case[2])));
        }
    }
    assert!(found.len() > 100);
    check(found);
}

#[test]
fn habits_agree_with_transformers() {
    let golden = fixture();
    let snippets = golden["snippets"].as_array().unwrap();
    assert!(snippets.len() > 80);
    let found = snippets.iter().map(|snippet| {
        let template = snippet[0].as_str().unwrap();
        let rendered = render(&golden, template, "hello", &json!({}));
        (template.to_owned(), rendered, text(&snippet[1]))
    });
    check(found.collect());
}
