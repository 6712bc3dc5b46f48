//! Options of the command line: numbers of any size, and options without effect.

use crate::command::{Place, model, refused, success};

#[test]
fn options_out_of_range_are_named() {
    let place = Place::new();
    for (args, part) in [
        (["--kv", "q4_0"], "kv: unknown format \"q4_0\"; known: f16"),
        (["--kv", "f16/kivi9"], "kivi9"),
        (["--sinks", "65"], "sinks: 65 is more than 64"),
        (["--hot-window", "100"], "hot_window: 100 is not a multiple of 64"),
        (["--context", "99999999"], "--rope-scaling yarn"),
        (["--rope-factor", "4"], "give --rope-scaling yarn"),
        (["--prefill-chunk", "0"], "prefill_chunk: 0"),
        (["--max-tokens", "0"], "max_tokens: must be at least 1"),
        (["--top-p", "1.5"], "top_p: 1.5"),
        (["--top-p", "nan"], "top_p: NaN"),
        (["--min-p", "2"], "min_p: 2"),
        (["--temperature=-1", "--quiet"], "temperature: -1"),
        (["--repetition-penalty", "0"], "repetition_penalty: 0"),
        (["--stop", ""], "stop: a stop string is empty"),
    ] {
        refused(&place.run(&[&args[..], &["Why?"]].concat()), &[part]);
    }
    refused(&place.run(&[""]), &["there is no question"]);
    refused(&place.run(&[]), &["there is no question", "pipe it in"]);
}

/// No number that can be written ends in a panic, an abort or a wrong sum.
#[test]
fn numbers_of_any_size_are_taken_or_named() {
    const HUGE: &str = "18446744073709551615";
    let place = Place::new();
    let text = place.write("text.txt", "The river is long. ".repeat(400));
    let short = place.write("short.txt", "The river is long.");
    for (option, number, part) in [
        ("--context-budget", HUGE, None),
        ("--context-budget", "0", Some("0 tokens")),
        ("--kv-budget", HUGE, None),
        ("--kv-budget", "99999999999GB", None),
        ("--kv-budget", "0", Some("0 bytes")),
        ("--sinks", HUGE, Some("sinks: 18446744073709551615 is more than 64")),
        ("--hot-window", "18446744073709551552", Some("hot_window: ")),
        ("--hot-window", "1048576", None),
        ("--prefill-chunk", HUGE, Some("prefill_chunk: ")),
        ("--prefill-chunk", "65536", None),
        ("--top-k", HUGE, None),
        ("--seed", HUGE, None),
        ("--temperature", "1e38", None),
        ("--temperature", "1e-38", None),
        ("--temperature", "inf", Some("temperature: inf")),
        ("--repetition-penalty", "1e-38", None),
        ("--threads", "1024", None),
    ] {
        let args = ["--docs", &short, "-n", "2", option, number, "Is the river long?"];
        let output = place.run(&args);
        match part {
            None => drop(success(&output)),
            Some(part) => refused(&output, &[part]),
        }
    }
    for (option, number) in [
        ("-n", "18446744073709551616"),
        ("-n", "-1"),
        ("--sinks", "-1"),
        ("--seed", "1e3"),
        ("--context-budget", "4k"),
        ("--kv-budget", "1e400"),
        ("--threads", "1025"),
    ] {
        let output = place.run(&[&format!("{option}={number}"), "Why?"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{option} {number}: {stderr}");
        assert!(stderr.starts_with("error: invalid value"), "{stderr}");
    }
    let model = model();
    let model = ["--model", model.to_str().unwrap()];
    for (args, part) in [
        (&["bench", "--prompt", HUGE][..], "tokens, but the model's context is 512"),
        (&["bench", "--gen", HUGE, "--verify", "7"], "tokens, but the model's context is 512"),
        (&["bench", "--depth", HUGE], "tokens, but the model's context is 512"),
        (&["bench", "--prompt", "0", "--gen", "0"], "nothing to time"),
        (&["eval", "perplexity", "--file", &text, "--context", HUGE], "context: "),
        (
            &["eval", "perplexity", "--file", &text, "--context", "64", "--windows", "0"],
            "windows: ",
        ),
        (&["eval", "niah", "--lengths", HUGE], "lengths: "),
        (&["eval", "niah", "--lengths", "300", "--depths", HUGE], "depths: "),
        (&["eval", "counting-stars", "--lengths", "400", "--stars", HUGE], "stars: "),
        (&["eval", "vt", "--lengths", "400", "--hops", HUGE], "hops: "),
        (&["eval", "niah", "--lengths", "300", "--seeds", HUGE], "seeds: "),
        (&["eval", "fwe", "--lengths", "300", "--seeds", HUGE], "seeds: "),
        (&["eval", "niah", "--lengths", "300", "--batch", HUGE], "batch: "),
        (&["eval", "niah", "--lengths", "300", "--hot-window", HUGE], "hot_window: "),
        (&["calibrate", "--target-bits", "3", "--text", &text, "--context", HUGE], "context"),
        (&["calibrate", "--target-bits", "3", "--text", &text, "--windows", HUGE], ""),
        (&["calibrate", "--target-bits", "1e308", "--text", &text], "target_bits: "),
    ] {
        refused(&place.kvfold(&[args, &model].concat()), &[part]);
    }
}

/// Options that do nothing beside the others are said to do nothing.
#[test]
fn options_without_effect_are_named() {
    let place = Place::new();
    for (args, part) in [
        (&["--top-k", "5"][..], "note: --top-k is without effect: at temperature 0"),
        (
            &["--top-p", "0.5", "--min-p", "0.1", "--seed", "1"],
            "note: --top-p, --min-p and --seed are without effect",
        ),
        (&["--seed", "0"], "add --temperature 0.7"),
        (&["--context-budget", "9"], "note: --context-budget is without effect"),
        (&["--raw", "--system", "Be kind."], "note: --system is without effect: --raw"),
        (&["--kv", "f16", "--sinks", "4"], "note: --sinks is without effect: f16"),
        (&["--dtype", "bf16", "--device", "cpu"], "note: --dtype is without effect"),
        (&["--show-context"], "note: there is no context"),
    ] {
        let (_, stderr) = success(&place.run(&[args, &["-q", "-n", "1", "Why?"]].concat()));
        assert_eq!(stderr.matches("note: ").count(), 1, "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
    for args in [
        &["--temperature", "1", "--top-k", "5", "--seed", "3"][..],
        &["--temp", "0.5", "--min-p", "0.1"],
        &["--system", "Be kind."],
        &["--kv", "kivi2", "--sinks", "0", "--hot-window", "64"],
    ] {
        let (_, stderr) = success(&place.run(&[args, &["-q", "-n", "1", "Why?"]].concat()));
        assert_eq!(stderr, "", "{args:?}");
    }
}
