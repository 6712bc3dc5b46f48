//! Words of other programs get one line that says what kvfold's way is; and completions.

use crate::command::{Place, success};

#[test]
fn habits_get_a_tip() {
    let place = Place::new();
    for (args, part) in [
        (&["run", "-p", "Why?"][..], "no -p: the question stands by itself: kvfold run \"Why?\""),
        (&["run", "--prompt=Why?"], "no --prompt: "),
        (&["run", "-f", "a.txt"], "kvfold run --file PATH"),
        (&["run", "--num-ctx", "4096", "Why?"], "no --num-ctx: "),
        (&["run", "--max-model-len", "4096", "Why?"], "--context"),
        (&["run", "-ngl", "99", "Why?"], "no -ngl: all layers run on one device: --device cuda"),
        (&["run", "-fa", "Why?"], "no -fa: "),
        (&["bench", "-ctk", "q8_0"], "no -ctk: --kv FORMAT"),
        (&["run", "-tb", "8", "Why?"], "no -tb: --threads N"),
        (&["run", "--n-predict", "8", "Why?"], "no --n-predict: -n TOKENS"),
        (&["run", "Why", "is", "it?"], "\"is\" is a word too many; put the question in quotation"),
        (&["Why is the sky blue?"], "kvfold run \"Why is the sky blue?\""),
        (&["Why?"], "kvfold run \"Why?\""),
        (&["-m", "model.gguf", "Why?"], "-m needs a command before it: kvfold run -m"),
        (&["--temp", "0.5", "Why?"], "--temp needs a command before it"),
        (&["serve"], "there is no `kvfold serve`; kvfold has no server yet"),
        (&["chat", "-m", "model.gguf"], "`kvfold run \"Why?\"`"),
        (&["pull", "llama3"], "`kvfold fetch NAME`"),
        (&["list"], "`kvfold models`"),
        (&["generate", "Why?"], "`kvfold run"),
        (&["quantize", "a", "b"], "as they are"),
        (&["two\nlines \x1b[2J?"], "kvfold run \"two\\nlines \\u{1b}[2J?\""),
    ] {
        let output = place.kvfold(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(part), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(output.stdout.is_empty());
    }
    // A slip is no habit.
    for (args, part) in [
        (&["reprot", "a.jsonl"][..], "'report'"),
        (&["run", "--tempreature", "1", "Why?"], "'--temperature'"),
        (&["run", "--nonsense\x1b[2J", "Why?"], "'--nonsense"),
    ] {
        let stderr = String::from_utf8(place.kvfold(args).stderr).unwrap();
        assert!(stderr.contains(part) && !stderr.contains('\x1b'), "{stderr}");
    }
}

#[test]
fn shells_complete_commands_and_options() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (script, stderr) = success(&place.kvfold(&["completions", shell]));
        for word in ["calibrate", "hot-window", "repetition-penalty"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        assert_eq!(stderr, "");
    }
    let output = place.kvfold(&["completions", "csh"]);
    assert_eq!(output.status.code(), Some(2));
}
