//! Chat templates against what transformers makes of them (`scripts/golden-chat`), and what
//! becomes of damaged ones.

use std::path::Path;
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
    let micros = (golden["now"].as_f64().unwrap() * 1e6).round();
    let now = UNIX_EPOCH + Duration::from_micros(micros as u64);
    let mut options = ChatOptions::new().with_now(now);
    options = options.with_variable("messages", golden["chats"][chat].clone());
    for (name, value) in given.as_object().unwrap() {
        options = options.with_variable(name, value.clone());
    }
    ChatTemplate::new(template, Some("<s>"), Some("</s>"))?.render_with(&[], &options)
}

/// What minijinja does otherwise, and cannot be taught: see `chat/mod.rs`.
const DIFFERENT: [(&str, Option<&str>); 2] = [
    ("{{ '{0} {1:>4} {2:.1f} {name!r}'.format('a', 'b', 2.25, name='n') }}", None),
    ("{% for x in none %}{{ x }}{% endfor %}", Some("")),
];

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
        let known = DIFFERENT.iter().find(|(known, _)| *known == template);
        let want = known.map_or_else(|| text(&snippet[1]), |(_, text)| text.map(str::to_owned));
        (template.to_owned(), rendered, want)
    });
    check(found.collect());
}

/// The golden folder of a family, with other files.
fn folder(family: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family);
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden.join(name), place.path().join(name)).unwrap();
    }
    for (name, text) in files {
        std::fs::write(place.path().join(name), text).unwrap();
    }
    place
}

#[test]
fn a_damaged_template_fails_where_it_is_used() {
    for (files, why) in [
        (vec![("chat_template.jinja", "a\n{% nope %}")], "nope (line 2"),
        (vec![("chat_template.jinja", "{{ 'a' ")], "line 1"),
        (vec![("chat_template.jinja", "{% for m in messages %}")], "end of input"),
        (vec![("chat_template.json", "{\"chat_template\": ")], "chat_template.json"),
        (
            vec![(
                "chat_template.json",
                r#"{"chat_template": [{"name": "tools", "template": "x"}]}"#,
            )],
            "(tools) none is called",
        ),
        (vec![("chat_template.jinja", "{{ messages[0].content.nope() }}")], "nope"),
    ] {
        let place = folder("smollm2", &files);
        let model = LoadedModel::open(place.path(), WeightPolicy::Keep).unwrap();
        let template = model.template.as_ref().expect("there is a template");
        let error = template.render(&[Message::new("user", "hi")], true).unwrap_err();
        assert!(matches!(error, kvfold::Error::ChatTemplate(_)), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{files:?}: {error}");
        assert_eq!(model.tokenizer.encode_prompt("hi").unwrap().len(), 2);
    }
    // A blank one is none.
    let blank = folder("smollm2", &[("tokenizer_config.json", r#"{"chat_template": " \n"}"#)]);
    assert!(Checkpoint::open(blank.path()).unwrap().chat_template().unwrap().is_none());
    let mut file = Gguf::model();
    file.str("tokenizer.chat_template", "");
    let path = blank.path().join("tiny.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    assert!(Checkpoint::open(&path).unwrap().chat_template().unwrap().is_none());
}

#[test]
fn templates_that_ask_for_too_much_are_refused() {
    for (template, why) in [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit"),
        (
            "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "too long",
        ),
        ("{{ '%999999999d' % 1 }}", "absurd"),
        ("{{ '%99999999999999999999999d' % 1 }}", "absurd"),
        ("{{ '%999999999d'|format(1) }}", "absurd"),
        ("{{ '{:>999999999}'.format(1) }}", "absurd"),
        ("{{ 'x' * 99999999999 }}", "too much"),
        ("{{ 'x'.rjust(99999999999) }}", "absurd"),
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|tojson }}", "holds itself"),
        (
            "{% set ns = namespace(x=1) %}{% for i in range(140) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
            "too long",
        ),
        ("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}", "holds itself"),
    ] {
        // What is constant may be refused when it is compiled.
        let rendered = ChatTemplate::new(template, None, None).and_then(|t| t.render(&[], true));
        let what = rendered.map(|text| text.len());
        let error = what.expect_err(template).to_string();
        assert!(error.contains(why), "{error}");
    }
    let nested = format!("{}1{}", "{{ ".to_owned() + &"(".repeat(3000), ")".repeat(3000) + " }}");
    assert!(ChatTemplate::new(&nested, None, None).is_err());
    let wide = ChatTemplate::new(
        "{{ strftime_now('%9999999999Y') }}{{ [1]|tojson(indent=9999999999) }}",
        None,
        None,
    );
    assert!(wide.unwrap().render(&[], true).unwrap().len() < 4000);
}

#[test]
fn tokens_have_the_names_that_templates_use() {
    let files = [
        (
            "chat_template.jinja",
            "\u{feff}{{ bos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token is defined }}\r\n",
        ),
        (
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<b>"}, "unk_token": "<u>", "pad_token": null, "eos_token": 7}"#,
        ),
    ];
    let place = folder("smollm2", &files);
    let template = Checkpoint::open(place.path()).unwrap().chat_template().unwrap().unwrap();
    assert_eq!(template.render(&[], true).unwrap(), "<b><u>False");
    let path = place.path().join("tiny.gguf");
    let mut file = Gguf::model();
    file.str("tokenizer.chat_template", "{{ bos_token }}{{ eos_token }}{{ pad_token }}");
    file.u32("tokenizer.ggml.padding_token_id", 4_000_000);
    std::fs::write(&path, file.bytes()).unwrap();
    let template = Checkpoint::open(&path).unwrap().chat_template().unwrap().unwrap();
    let [bos, eos] = [tiny_model::TOKENS[14], tiny_model::TOKENS[15]];
    assert_eq!(template.render(&[], true).unwrap(), format!("{bos}{eos}"));
}

#[test]
fn templates_are_read_from_files_of_their_own() {
    let place = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8]| {
        let path = place.path().join("template");
        std::fs::write(&path, bytes).unwrap();
        let tokens = TokenTexts::from([("bos_token", "<s>".to_owned())]);
        ChatTemplate::read(&path)?.with_token_texts(tokens).render(&[], true)
    };
    for (bytes, want) in [
        (&b"{{ bos_token }}x"[..], "<s>x"),
        (br#"{"chat_template": "{{ bos_token }}y", "eos_token": "</s>"}"#, "<s>y"),
        (br#"{"chat_template": {"tool_use": "t", "default": "o"}}"#, "o"),
        (br#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#, "d"),
        ("\u{feff}{\"chat_template\": \"z\"}".as_bytes(), "z"),
        (b"{# {\"chat_template\": 1} #}ok", "ok"),
    ] {
        assert_eq!(read(bytes).unwrap(), want);
    }
    for (bytes, why) in [
        (&b""[..], "it is empty"),
        (b" \n", "it is empty"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"{\"a\": 1}", "no \"chat_template\""),
        (b"[1]", "no \"chat_template\""),
        (b"{\"chat_template\": 3}", "no \"chat_template\""),
        (b"{% if %}", "line 1"),
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }
    assert!(matches!(ChatTemplate::read(place.path().join("none")), Err(kvfold::Error::Io { .. })));
}

#[test]
fn the_thinking_switch_reaches_the_template() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let template =
        |family| Checkpoint::open(golden.join(family)).unwrap().chat_template().unwrap().unwrap();
    let qwen3 = template("qwen3");
    assert!(qwen3.reads("enable_thinking") && !qwen3.reads("thinking"));
    assert!(!template("qwen2").reads("enable_thinking"));
    let render =
        |options: ChatOptions| qwen3.render_with(&[Message::new("user", "a")], &options).unwrap();
    let plain = render(ChatOptions::new());
    assert_eq!(plain, render(ChatOptions::new().with_variable("enable_thinking", true)));
    let off = render(ChatOptions::new().with_variable("enable_thinking", false));
    assert_eq!(off, plain + "<think>\n\n</think>\n\n");
}
