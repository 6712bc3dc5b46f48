//! The command line as a user meets it: every wrong input gives one line that
//! says what to do, every right one an answer on stdout and nothing else there.

use crate::command::{Place, error, model, refused, success};
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[test]
fn models_that_are_none_are_named() {
    let place = Place::new();
    fs::create_dir(place.0.path().join("empty")).unwrap();
    let whole = fs::read(model()).unwrap();
    let text = place.write("text.gguf", "once upon a time");
    let none = place.write("none.gguf", "");
    for (model, parts) in [
        ("absent.gguf", ["absent.gguf: no such file", "kvfold models"]),
        ("folder/absent", ["folder/absent: no such file", "HF_HUB_OFFLINE"]),
        ("folder/in/absent", ["folder/in/absent: no such file", "kvfold models"]),
        ("absent:1b", ["\"absent:1b\" is not in Ollama's store", "ollama pull"]),
        ("some-name", ["some-name", "smollm2-135m-instruct"]),
        ("absent.toml", ["absent.toml: ", "No such file"]),
        ("empty", ["empty: ", "config.json"]),
        (&text, ["text.gguf: it is a short text", "not a GGUF file"]),
        (&none, ["none.gguf: it is an empty file", "download it again"]),
    ] {
        refused(&place.kvfold(&["run", "--model", model, "Why?"]), &parts);
    }
    // Cuts in the header, in the metadata, in the tensors.
    for kept in [3, 20, 5_000, whole.len() / 2, whole.len() - 1] {
        let cut = place.write("cut.gguf", &whole[..kept]);
        refused(&place.kvfold(&["run", "--model", &cut, "Why?"]), &["cut.gguf: ", "; "]);
        let output = place.kvfold(&["info", "--model", &cut]);
        assert_eq!(output.status.code(), Some(1), "info with {kept} bytes");
    }
    assert!(!place.0.path().join(".cache").exists(), "nothing is written for a wrong name");
}

#[test]
fn words_that_cannot_be_read_get_a_usage_line() {
    let place = Place::new();
    for (args, part) in [
        (&["run", "--kv-budget", "5 parsecs", "Why?"][..], "unknown unit \"parsecs\""),
        (&["run", "--kv-budget=-5", "Why?"], "\"-5\" is not a number of bytes"),
        (&["run", "--threads", "0", "Why?"], "--threads"),
        (&["run", "--threads", "65535", "Why?"], "65535 is not in 1..=1024"),
        (&["bench", "--threads", "65535"], "65535 is not in 1..=1024"),
        (&["run", "--weights", "q3", "Why?"], "keep"),
        (&["run", "--device", "gpu", "Why?"], "cuda:N"),
        (&["run", "--dtype", "f64", "Why?"], "bf16"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = place.kvfold(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

/// A device that is asked for and cannot be used is an error before a model is fetched;
/// `auto` takes the CPU then, and the summary says so.
#[test]
fn devices_that_cannot_be_used_are_named() {
    let place = Place::new();
    // A number that no machine has, so that it fails with a driver, too.
    refused(&place.kvfold(&["run", "--device", "cuda:4000", "Why?"]), &[""]);
    assert!(!place.0.path().join(".cache").exists());
    let answer = place.run(&["--device", "cpu", "-n", "2", "Why?"]);
    success(&answer);
    let summary = String::from_utf8(answer.stderr).unwrap();
    assert!(summary.contains("device      cpu"), "{summary}");
    if kvfold::backend::driver::Device::cuda(0).is_err() {
        let answer = place.run(&["--device", "auto", "-n", "2", "Why?"]);
        success(&answer);
        assert!(String::from_utf8(answer.stderr).unwrap().contains("device      cpu"));
    }
}

#[test]
fn what_does_not_fit_says_how_much_it_needs() {
    let place = Place::new();
    refused(&place.run(&["--kv-budget", "1kB", "Why?"]), &["1000 bytes", "--kv-budget", "--kv"]);

    let long = place.write("long.txt", "The river is long. ".repeat(2000));
    let parts = ["the files have ", " fit (the model's context holds 512)", "--docs", "shorten"];
    refused(&place.run(&["-n", "8", "--file", &long, "Why?"]), &parts);
    let short = place.write("short.txt", "The river is short.");
    refused(&place.run(&["-n", "8", "--file", &long, "--docs", &short, "Why?"]), &parts);
    let question = "Why is the river long? ".repeat(200);
    refused(&place.run(&[&question]), &["the question has ", "512", "shorten it"]);
    let tiny = ["-n", "8", "--docs", &short, "--context-budget", "1", "Why?"];
    refused(&place.run(&tiny), &["1 tokens", "--context-budget"]);
    // Passages of a long document are chosen to fit, however long the answer may be.
    success(&place.run(&["-n", "8", "--docs", &long, "Why?"]));
    for tokens in ["600", "18446744073709551615"] {
        let args = ["-n", tokens, "--docs", &short, "--stop", "a", "--stop", "e", "Why?"];
        success(&place.run(&args));
    }
}

/// `-n` is a limit: the model's context is another, which is named if it cuts an answer off.
#[test]
fn an_answer_is_as_long_as_fits() {
    let place = Place::new();
    let run = |tokens: &str| {
        let args = ["--raw", "--repetition-penalty", "1", "--context", "64", "-n", tokens, "Why"];
        success(&place.run(&args)).1
    };
    for tokens in ["600", "18446744073709551615"] {
        let stderr = run(tokens);
        assert!(stderr.contains("fill the model's context of 64 tokens"), "{stderr}");
    }
    let stderr = run("20");
    assert!(stderr.contains("cut off by --max-tokens") && !stderr.contains("note: "), "{stderr}");
    // Ended by itself: nothing was cut.
    let args = ["--raw", "-n", "600", "--stop", "a", "--stop", "e", "--stop", "o", "The river"];
    assert!(!success(&place.run(&args)).1.contains("note: "));
}

#[test]
fn documents_that_are_no_text_are_named_before_a_model_is_fetched() {
    let place = Place::new();
    fs::create_dir(place.0.path().join("empty")).unwrap();
    fs::create_dir(place.0.path().join("pictures")).unwrap();
    place.write("pictures/a.png", b"\x89PNG\r\n\x1a\n\0\0\0");
    let binary = place.write("program", b"\x7fELF\0\0\0\0");
    let latin = place.write("latin.txt", b"caf\xe9 au lait");
    let blank = place.write("blank.txt", " \n\n");
    // Without --model: if the model came first, this would fail on fetching it.
    for option in ["--docs", "--file"] {
        for (path, part) in [
            (binary.as_str(), "is no text (program)"),
            (&latin, "is not UTF-8 but looks like windows-1252; convert it"),
            (&blank, "holds no text"),
            ("absent.txt", "cannot be read"),
        ] {
            refused(&place.kvfold(&["run", option, path, "Why?"]), &[path, part]);
        }
    }
    for (folder, part) in [("empty", "is empty"), ("pictures", "holds no text (1 other file")] {
        refused(&place.kvfold(&["run", "--docs", folder, "Why?"]), &[folder, part]);
    }
    assert!(!place.0.path().join(".cache").exists());
}

#[cfg(unix)]
#[test]
fn a_cache_folder_that_cannot_be_written_is_named() {
    let place = Place::new();
    let file = place.write("file", "not a folder");
    let output = place.command(&["fetch"]).env("KVFOLD_CACHE", &file).output().unwrap();
    refused(&output, &["file/models", "KVFOLD_CACHE"]);
    let line = error(&output);
    assert_eq!(line.matches("os error").count(), 1, "a cause is said once: {line}");
}

#[test]
fn an_answer_streams_to_stdout_and_its_summary_to_stderr() {
    let place = Place::new();
    let (answer, summary) = success(&place.run(&["--raw", "--max-tokens", "40", "The river"]));
    assert!(!answer.trim().is_empty());
    for part in ["prompt ", "answer ", "tokens/s", "first token ", "as kivi4/kivi2", "at 16 bits"] {
        assert!(summary.contains(part), "no {part:?} in {summary}");
    }
    // Greedy answers do not depend on what is printed beside them.
    let (quiet, nothing) = success(&place.run(&["--raw", "--quiet", "-n", "40", "The river"]));
    assert_eq!((quiet, nothing.as_str()), (answer.clone(), ""));

    // Stopping at a text that the answer contains cuts it there.
    let answer = answer.trim_end_matches('\n');
    let (at, stop) =
        answer.char_indices().find(|&(at, c)| at > 0 && c.is_ascii_alphanumeric()).unwrap();
    let (cut, summary) =
        success(&place.run(&["--raw", "-n", "40", "--stop", &stop.to_string(), "The river"]));
    assert!(cut.trim_end_matches('\n').len() <= at, "{cut:?} of {answer:?}");
    assert!(!cut.contains(stop) && answer.starts_with(cut.trim_end_matches('\n')), "{cut:?}");
    assert!(summary.contains("stopped by --stop"), "{summary}");
}

#[test]
fn sampling_follows_its_seed() {
    let place = Place::new();
    let sample = |seed| {
        let options = ["--raw", "-q", "-n", "40", "--temperature", "1.5", "--top-k", "200"];
        success(&place.run(&[&options[..], &["--top-p", "0.99", "--seed", seed, "The"]].concat())).0
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn every_format_answers_and_long_texts_fold() {
    let place = Place::new();
    let text = place.write("text.txt", "The river is long. ".repeat(20));
    for kv in ["f16", "bf16", "fp8", "kivi4", "kivi2", "kivi4/kivi2"] {
        let args = ["-n", "64", "--kv", kv, "--hot-window", "0", "--sinks", "4", "--file", &text];
        let (answer, summary) = success(&place.run(&[&args[..], &["Why?"]].concat()));
        assert!(!answer.trim().is_empty(), "{kv}");
        assert!(summary.contains(&format!("as {kv} ")), "{summary}");
        let folds = !matches!(kv, "f16" | "bf16");
        assert_eq!(summary.contains("x smaller"), folds, "{kv}: {summary}");
    }
}

#[test]
fn documents_come_from_stdin_and_folders() {
    let place = Place::new();
    for option in ["--file", "--docs"] {
        let args = [option, "-", "--show-context", "-n", "4", "Where is the river?"];
        let (answer, stderr) = success(&place.with_input(&args, b"The river is in the valley."));
        assert!(!answer.is_empty() && stderr.contains("The river is in the valley."), "{stderr}");
        assert!(stderr.contains("[input"), "{stderr}");
    }
    refused(&place.with_input(&["--file", "-", "Why?"], b"\xff\xff"), &["-: ", "UTF-8"]);
    refused(&place.with_input(&["--docs", "-", "Why?"], b""), &["-: ", "no text"]);

    fs::create_dir(place.0.path().join("notes")).unwrap();
    place.write("notes/a.md", "# Water\n\nThe river is in the valley.");
    place.write("notes/b.png", b"\x89PNG\0\0");
    // Without a question, what would be chosen is shown and nothing is computed.
    let (answer, stderr) = success(&place.run(&["--docs", "notes", "--show-context"]));
    assert!(answer.is_empty(), "{answer}");
    assert!(stderr.contains("[notes/a.md:1-3]\n# Water"), "{stderr}");
    assert!(stderr.contains("skipped 1 file (1 binary)"), "{stderr}");
}

#[test]
fn info_and_help_describe() {
    let place = Place::new();
    let (text, stderr) = success(&place.kvfold(&["info", "--model", model().to_str().unwrap()]));
    for part in ["threads", "2 layers", "context 512 tokens", "kivi2", "3.0"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(stderr.is_empty(), "{stderr}");
    // The default model is not here, and info does not fetch it.
    let (text, _) = success(&place.kvfold(&["info"]));
    assert!(text.contains("kvfold fetch"), "{text}");
    let (text, _) = success(&place.kvfold(&["fetch", "--list"]));
    assert!(text.contains("smollm2-135m-instruct") && text.contains("not here"), "{text}");
    assert!(!place.0.path().join(".cache").exists());

    let (help, _) = success(&place.kvfold(&["--help"]));
    let named = |line: &str| line.strip_prefix("  ")?.split_whitespace().next().map(str::to_owned);
    let commands: Vec<String> = (help.lines().skip_while(|l| *l != "Commands:").skip(1))
        .take_while(|l| !l.is_empty())
        .filter_map(named)
        .collect();
    assert!(["run", "fetch", "info"].iter().all(|c| commands.iter().any(|d| d == c)), "{help}");
    for command in commands.iter().filter(|c| *c != "help") {
        let (help, _) = success(&place.kvfold(&[command, "--help"]));
        assert!(help.contains(&format!("Usage: kvfold {command}")), "{help}");
    }
}

#[test]
fn bench_times_each_test_in_every_format() {
    let place = Place::new();
    let model = model();
    let bench = |args: &[&str]| {
        let common = ["bench", "--model", model.to_str().unwrap(), "--gen", "2", "--repeat", "2"];
        place.kvfold(&[&common, args].concat())
    };
    let formats = ["--kv", "kivi2,f16", "--json"];
    let sizes = ["--depth", "200,0,200", "--prefill-chunk", "64"];
    let (json, _) = success(&bench(&[formats.as_slice(), &sizes].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let results = json["results"].as_array().unwrap();
    let tests: Vec<_> = ["kivi2", "f16"]
        .into_iter()
        .flat_map(|kv| [("prefill", 0), ("decode", 0), ("decode", 200)].map(|test| (kv, test)))
        .collect();
    assert_eq!(results.len(), tests.len(), "{json}");
    for (result, (kv, (test, depth))) in results.iter().zip(tests) {
        assert!(result["kv"] == kv && result["test"] == test && result["depth"] == depth, "{json}");
        let rates = result["tokens_per_second"].as_array().unwrap();
        assert!(rates.len() == 2 && rates.iter().all(|r| r.as_f64().unwrap() > 0.0), "{json}");
    }
    // Each format's own books.
    let held = |i: usize| json["memory"][i]["kv_peak_bytes"].as_u64().unwrap();
    assert!(0 < held(0) && held(0) < held(1), "{json}");

    let (table, _) = success(&bench(&["--kv", "f16", "--prompt", "0", "--depth", "10"]));
    assert!(table.contains("decode 2 at 10") && table.contains("peak memory"), "{table}");
    assert!(!table.contains("prefill"), "{table}");
    refused(&bench(&["--depth", "600"]), &["602 tokens", "context is 512"]);
    refused(&bench(&["--kv", "f16,absent.json"]), &["absent.json"]);

    let table = success(&bench(&["--kv", "auto", "--depth", "10", "--busy"])).0;
    assert!(table.contains("auto: kivi4/kivi2"), "{table}");
    assert!(!table.contains("not shown"), "{table}");
    // Over before the clock has ticked.
    let table = success(&bench(&["--kv", "f16", "--prompt", "8", "--depth", "0"])).0;
    assert!(table.contains("not shown: ") || table.contains("machine busy: not shown"), "{table}");
}

/// A reader that goes away ends the answer quietly.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let model = model();
    let run = ["run", "--model", model.to_str().unwrap(), "--raw", "-n", "400", "The river"];
    for args in [&run[..], &["fetch", "--list"], &["info"]] {
        let mut child =
            place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(success(&output).1, "", "{args:?}");
    }
    // The same for what is written to stderr.
    let mut child =
        place.command(&run).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let mut answer = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut answer).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(String::from_utf8(answer).unwrap().ends_with('\n'));
}

#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn an_interruption_while_waiting_for_input_ends_the_process() {
    let place = Place::new();
    let mut child = place
        .command(&["run", "--file", "-", "Why?"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds: once it is written, the process is reading.
    let mut input = child.stdin.take().unwrap();
    input.write_all(&vec![b'a'; 1 << 20]).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "interrupted\n");
}

/// The default model, if it is on this machine: the small ones are done before
/// a signal arrives.
#[cfg(unix)]
#[test]
fn an_interruption_in_a_prefill_or_an_answer_ends_the_process() {
    let manifest = kvfold::fetch::find(kvfold::fetch::DEFAULT_MODEL).unwrap();
    let cached = kvfold::fetch::FetchOptions::from_env().map(|o| o.model_path(manifest));
    let given = std::env::var_os("KVFOLD_TEST_MODEL").map(PathBuf::from);
    let Some(model) = given.or_else(|| cached.ok()).filter(|path| path.exists()) else {
        eprintln!("skipped: no default model; run `kvfold fetch` or set KVFOLD_TEST_MODEL");
        return;
    };
    let place = Place::new();
    let text = place.write("long.txt", "The river is long. ".repeat(1200));
    let model = model.to_str().unwrap();
    let start = |args: &[&str]| {
        place
            .command(&[&["run", "--model", model, "-n", "1000"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let ended = |child: std::process::Child| {
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(stderr.ends_with("interrupted\n") && !stderr.contains("tokens/s"), "{stderr}");
    };

    // The context is shown just before it is computed.
    let mut child = start(&["--file", &text, "--show-context", "What is long?"]);
    child.stderr.as_mut().unwrap().read_exact(&mut [0; 10_000]).unwrap();
    interrupt(&child);
    ended(child);

    let mut child = start(&["Tell a long story about a river."]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    interrupt(&child);
    ended(child);
}
