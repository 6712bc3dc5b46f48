//! Nothing out of a file is obeyed by a terminal: what it would obey is spelled out in every
//! message, and a name makes no second line.

use crate::command::{Place, model, success};
use crate::tiny_model::{Gguf, TOKENS};
use std::process::Output;

/// What clears a terminal, rings, begins a line and turns the direction of writing.
const EVIL: &str = "\x1b[2J\x07\nnote: all is well\u{9b}1m\u{202e}\u{2028}";

/// Checks that an output has one line of `stderr` and nothing that a terminal obeys.
#[track_caller]
fn harmless(output: &Output, lines: usize) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    for text in [&stderr, &stdout] {
        let obeyed = |c: char| !"\n\t".contains(c) && !kvfold::printable::is_printable(c);
        assert!(!text.contains(obeyed), "{text:?}");
    }
    assert_eq!(stderr.lines().count(), lines, "{stderr}");
    assert!(!stderr.contains("\nnote: all is well") && !stdout.contains("\nnote: all is well"));
    stderr + &stdout
}

/// A model that is like the small one but for what `change` does.
fn write(place: &Place, name: &str, change: impl FnOnce(&mut Gguf)) -> String {
    let mut file = Gguf::model();
    change(&mut file);
    place.write(name, file.bytes())
}

#[test]
fn names_in_a_model_are_spelled_out() {
    let place = Place::new();
    let mut tokens = TOKENS;
    tokens[3] = EVIL;
    let files = [
        write(&place, "arch.gguf", |file| file.str("general.architecture", EVIL)),
        write(&place, "tensor.gguf", |file| file.tensors[0].0 = format!("x{EVIL}")),
        write(&place, "twice.gguf", |file| file.tensors[1].0 = "token_embd.weight".into()),
        write(&place, "type.gguf", |file| {
            file.tensor("output.weight").0 = EVIL.into();
            file.tensors[2].2 = 999;
        }),
        write(&place, "key.gguf", |file| file.u32(&format!("llama.{EVIL}"), 3)),
        write(&place, "template.gguf", |file| {
            file.str("tokenizer.chat_template", &format!("{{% {EVIL} %}}"));
        }),
        write(&place, "pre.gguf", |file| file.str("tokenizer.ggml.pre", EVIL)),
        write(&place, "token.gguf", |file| file.strs("tokenizer.ggml.tokens", &tokens)),
        write(&place, "merge.gguf", |file| file.strs("tokenizer.ggml.merges", &[EVIL])),
    ];
    for file in &files {
        // No model of this size can be run.
        let said = harmless(&place.kvfold(&["run", "-m", file, "ab"]), 1);
        assert!(said.starts_with("error: "), "{said}");
        let output = place.kvfold(&["info", "-m", file]);
        harmless(&output, usize::from(!output.status.success()));
    }
    let named = write(&place, "name.gguf", |file| file.str("general.name", EVIL));
    let said = harmless(&place.kvfold(&["info", "-m", &named]), 0);
    assert!(said.contains("\\u{1b}[2J"), "{said}");
}

#[cfg(unix)]
#[test]
fn names_of_files_are_spelled_out() {
    let place = Place::new();
    let name = EVIL.replace('/', "");
    let text = place.write(&name, "The river is long.");
    let binary = place.write(&format!("{name}.bin"), b"\0\0");
    let broken = place.write(&format!("{name}.gguf"), b"GGUF");
    let model = model();
    let model = model.to_str().unwrap();
    for args in [
        &["run", "--model", &broken, "Why?"][..],
        &["run", "--model", &format!("{name}/absent"), "Why?"],
        &["run", "--model", &name, "Why?"],
        &["run", "--file", &binary, "Why?"],
        &["run", "--docs", &binary, "Why?"],
        &["run", "--kv", &name, "Why?"],
        &["report", &name],
        &["ablate", &name],
        &["fetch", &name],
        &["fetch", &format!("{name}.toml")],
        &["report", "absent", "-o", &format!("{name}/page.html")],
    ] {
        let said = harmless(&place.kvfold(args), 1);
        assert!(said.starts_with("error: "), "{args:?}: {said}");
    }
    // In references to a context, and in a summary.
    let args = ["run", "-m", model, "-n", "1", "--show-context"];
    for option in ["--file", "--docs"] {
        let output = place.kvfold(&[&args[..], &[option, &text, "Is the river long?"]].concat());
        success(&output);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        harmless(&output, stderr.lines().count());
    }
    let args = ["eval", "perplexity", "-m", model, "--context", "64", "--kv", "f16", "--file"];
    let words = place.write(&format!("{name}.txt"), "The river is long. ".repeat(40));
    let said = harmless(&place.kvfold(&[&args[..], &[&words]].concat()), 0);
    assert!(said.contains("\\u{1b}[2J"), "{said}");
}

/// What goes to a pipe is the model's text as it is; a terminal is spared.
#[cfg(target_os = "linux")]
#[test]
fn answers_are_spelled_out_on_a_terminal_alone() {
    use std::process::{Command, Stdio};
    let mut script = Command::new("script");
    if !script.arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: no `script`, which makes a terminal");
        return;
    }
    let place = Place::new();
    // Random tokens: among them are single bytes.
    let sampling = "--raw -q -n 60 --temperature 2 --seed 1";
    let (model, program) = (model(), env!("CARGO_BIN_EXE_kvfold"));
    let line = format!("'{program}' run -m '{}' {sampling} The", model.to_str().unwrap());
    let bash = |command: &mut Command| {
        let output = command.current_dir(place.0.path()).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let piped = bash(Command::new("bash").args(["-c", &line]));
    let shown = bash(Command::new("script").args(["-qec", &line, "/dev/null"]));
    assert!(piped.contains(|c: char| c.is_control() && c != '\n'), "{piped:?}");
    let shown = shown.replace("\r\n", "\n");
    assert_eq!(shown, kvfold::printable::printable_lines(&piped));
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
}
