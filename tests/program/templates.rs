//! Chat templates and prompts on the command line.

use crate::command::{Place, refused};
use std::process::Output;

/// Tokens of the prompt, by the summary on stderr, and what else is said there.
#[track_caller]
fn prompt_tokens(output: &Output) -> (usize, String) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let line = stderr.lines().find_map(|line| line.strip_prefix("prompt ")).unwrap();
    (line.split_whitespace().next().unwrap().parse().unwrap(), stderr)
}

#[test]
fn raw_text_gets_what_its_tokenizer_adds() {
    // Its tokenizer adds nothing, and has tokens for these letters alone.
    let place = Place::new();
    let (tokens, _) = prompt_tokens(&place.run(&["--raw", "-n", "1", "qz"]));
    assert_eq!(tokens, 2);
}

#[test]
fn a_template_of_ones_own_is_used() {
    let place = Place::new();
    let file = place.write("own.jinja", "{% for m in messages %}{{ m.content[0] }}{% endfor %}");
    let run = |args: &[&str]| place.run(&[args, &["-n", "1", "qz"]].concat());
    assert_eq!(prompt_tokens(&run(&["--chat-template", &file])).0, 2);
    let json = place.write("own.json", r#"{"chat_template": "{{ extra }}"}"#);
    let more = ["--chat-template", &json, "--chat-template-kwargs", r#"{"extra": "qzq", "b": 1}"#];
    let (tokens, said) = prompt_tokens(&run(&more));
    assert_eq!(tokens, 3);
    assert!(
        said.contains("note: the chat template does not look at \"b\"") && !said.contains("extra"),
        "{said}"
    );

    let switch = place.write(
        "think.jinja",
        "{% if thinking is defined %}{{ 'qz' if thinking else 'q' }}{% else %}qzqz{% endif %}",
    );
    for (think, tokens) in
        [(None, 4), (Some("--think"), 2), (Some("--think=on"), 2), (Some("--think=false"), 1)]
    {
        let args: Vec<&str> = ["--chat-template", &switch].into_iter().chain(think).collect();
        let (found, said) = prompt_tokens(&run(&args));
        assert_eq!(found, tokens, "{think:?}");
        assert!(!said.contains("note"), "{said}");
    }
    let (_, said) = prompt_tokens(&run(&["--think=off"]));
    assert!(said.contains("note: --think does nothing"), "{said}");
}

#[test]
fn templates_that_fail_say_what_to_do() {
    let place = Place::new();
    let hint = ["--chat-template FILE", "--raw"];
    let fails = place.write("fails.jinja", "\n{{ raise_exception('no\nwords') }}");
    let parts = [&["chat template: no words (line 2"][..], &hint].concat();
    refused(&place.run(&["--chat-template", &fails, "hi"]), &parts);
    let mute = place.write("mute.jinja", "{{ '' }}");
    refused(&place.run(&["--chat-template", &mute, "hi"]), &["makes no text", hint[0], hint[1]]);
    let broken = place.write("broken.jinja", "{% nope %}");
    refused(&place.run(&["--chat-template", &broken, "hi"]), &["unknown statement nope"]);
    let none = place.write("none.json", "{}");
    refused(&place.run(&["--chat-template", &none, "hi"]), &["none.json", "chat_template"]);
    refused(&place.run(&["--chat-template", "absent", "hi"]), &["absent: "]);
    for args in [
        ["--think=maybe", "-q"],
        ["--chat-template-kwargs", "[1]"],
        ["--chat-template-kwargs", "{"],
        ["--chat-template-kwargs", r#"{"messages": []}"#],
        ["--raw", "--think"],
    ] {
        let output = place.run(&[&args[..], &["hi"]].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
