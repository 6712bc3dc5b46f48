//! What is piped into `run`: a question, or a part of the context; and pipes to which nobody
//! writes.

use crate::command::{Place, model, refused, success};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn what_is_piped_in_is_part_of_the_context() {
    let place = Place::new();
    let args = ["--show-context", "-n", "1", "What is the code?"];
    let (_, stderr) = success(&place.with_input(&args, b"The code is 4711.\n"));
    assert!(stderr.contains("[input]\nThe code is 4711."), "{stderr}");
    assert!(stderr.contains("note: standard input (18 bytes) is part of the context"), "{stderr}");
    // Beside files, and without a word if it is to be quiet.
    place.write("more.txt", "The river is long.");
    let args = ["-q", "--file", "more.txt", "--show-context", "-n", "1", "Why?"];
    let (_, stderr) = success(&place.with_input(&args, b"The code is 4711.\n"));
    assert!(stderr.contains("4711") && stderr.contains("river"), "{stderr}");
    assert!(!stderr.contains("note"), "{stderr}");
    // Nothing, or nothing but space, is no context.
    for input in [&b""[..], b"\n"] {
        let output = place.with_input(&["-n", "1", "Why?"], input);
        if input.is_empty() {
            assert!(!success(&output).1.contains("note"));
        } else {
            refused(&output, &["-: holds no text"]);
        }
    }
    refused(&place.with_input(&["Why?"], b"\x7fELF\0\0"), &["-: ", "no text (program)"]);
}

#[test]
fn without_a_question_what_is_piped_in_is_it() {
    let place = Place::new();
    let given = success(&place.run(&["-q", "-n", "8", "Why is the sky blue?"])).0;
    let piped = place.with_input(&["-q", "-n", "8"], b"  Why is the sky blue?\n");
    assert_eq!(success(&piped), (given.clone(), String::new()));
    // From a file, too.
    let file = place.write("question.txt", "Why is the sky blue?\n");
    let model = model();
    let mut command = place.command(&["run", "-m", model.to_str().unwrap(), "-q", "-n", "8"]);
    command.stdin(fs::File::open(place.0.path().join(&file)).unwrap());
    assert_eq!(success(&command.output().unwrap()).0, given);
    // A context is no question.
    refused(&place.with_input(&["--file", "-"], b"The code is 4711."), &["there is no question"]);
    refused(&place.with_input(&[], b""), &["there is no question"]);
    assert_eq!(
        success(&place.with_input(&["-q", "-n", "8", "-"], b"Why is the sky blue?")).0,
        given
    );
    // By another name it is not taken twice.
    let args = ["--file", "/dev/stdin", "--show-context", "-n", "1", "Why?"];
    let (_, stderr) = success(&place.with_input(&args, b"The code is 4711."));
    assert!(
        stderr.contains("[/dev/stdin]\nThe code is 4711.") && !stderr.contains("note"),
        "{stderr}"
    );
    let twice = ["--file", "-", "--docs", "-", "Why?"];
    refused(&place.with_input(&twice, b"once"), &["only once"]);
}

/// A service, or a program that starts others, often leaves a pipe open.
#[test]
fn a_pipe_to_which_nobody_writes_is_given_up() {
    let place = Place::new();
    let model = model();
    let mut child = place
        .command(&["run", "-m", model.to_str().unwrap(), "-q", "-n", "1", "Why?"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take();
    let start = Instant::now();
    let output = child.wait_with_output().unwrap();
    drop(input);
    let (answer, stderr) = success(&output);
    assert!(!answer.is_empty() && start.elapsed() > Duration::from_secs(5));
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("waiting up to 10 s"), "{stderr}");
    assert!(lines[1].starts_with("note: nothing came"), "{stderr}");
}

/// What begins late is waited for where it was asked for.
#[test]
fn a_slow_writer_is_waited_for() {
    let place = Place::new();
    let model = model();
    for args in [&["--file", "-", "Why?"][..], &[]] {
        let common = ["run", "-m", model.to_str().unwrap(), "-q", "-n", "1"];
        let mut child = place
            .command(&[&common[..], args].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        child.stdin.take().unwrap().write_all(b"Why is the sky blue?").unwrap();
        let (_, stderr) = success(&child.wait_with_output().unwrap());
        assert_eq!(stderr, "waiting for standard input\n");
    }
}
