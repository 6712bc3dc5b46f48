//! `kvfold ablate` and `kvfold report` as a user meets them, on a small model.

use super::{Place, golden};
use kvfold::eval::Metric;
use kvfold::eval::ablate::Row;
use std::collections::HashSet;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvfold"));
    command.args(args).current_dir(place.0.path()).stdin(Stdio::null());
    command.env("KVFOLD_CACHE", place.path(".cache")).env_remove("KVFOLD_LOG");
    command
}

fn kvfold(place: &Place, args: &[&str]) -> Output {
    command(place, args).output().unwrap()
}

/// Standard output of a success.
#[track_caller]
fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The last line that says what is wrong.
#[track_caller]
fn error(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let line = stderr.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: "), "{stderr}");
    line.to_owned()
}

fn spec(place: &Place, more: &str) -> String {
    let text =
        format!("models = [{:?}]\nkv = [\"f16\", \"kivi2\"]\ndevice = \"cpu\"\n{more}\n", golden());
    place.write("spec.toml", text);
    "spec.toml".into()
}

fn rows(place: &Place) -> Vec<Row> {
    let text = std::fs::read_to_string(place.path("spec.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const TASKS: &str = "[[task]]\ntask = \"perplexity\"\nfile = \"text.txt\"\ncontext = 128\n\n\
                     [[task]]\ntask = \"niah\"\nlengths = [250, 300]\ndepths = [10, 90]\nseeds = 1";

#[test]
fn a_grid_becomes_lines_and_lines_a_page() {
    let place = Place::new();
    let spec = spec(&place, TASKS);
    let listed = success(&kvfold(&place, &["ablate", &spec, "--dry-run"]));
    assert!(listed.ends_with("4 cells, 4 pending\n"), "{listed}");
    let said = success(&kvfold(&place, &["ablate", &spec, "--jobs", "2"]));
    assert!(said.starts_with("4 cells: 4 measured, 0 found in spec.jsonl"), "{said}");
    let rows = rows(&place);
    assert_eq!(rows.len(), 4);
    for row in &rows {
        let outcome = row.outcome.as_ref().unwrap();
        let perplexity = row.metric == Some(Metric::Perplexity);
        assert_eq!(row.cell.task_name(), if perplexity { "perplexity" } else { "niah" });
        assert!(outcome.memory.kv_bytes > 0 && outcome.speed.prefill_tokens > 0);
        assert!(outcome.trials.len() > 1 && (perplexity || outcome.trials.len() == 4));
        assert_eq!((row.machine.jobs, row.spec.as_str()), (2, "spec"));
    }
    let said = success(&kvfold(&place, &["ablate", &spec]));
    assert!(said.starts_with("4 cells: 0 measured, 4 found"), "{said}");

    let page = success(&kvfold(&place, &["report", "spec.jsonl", "-o", "page.html"]));
    assert_eq!(page, "page.html\n");
    let page = std::fs::read_to_string(place.path("page.html")).unwrap();
    assert!(page.contains("<th>kivi2</th>") && page.contains("<svg "));
}

/// `auto` is what it is for the model, so it is no other cell than that.
#[test]
fn auto_is_measured_as_what_it_is() {
    let place = Place::new();
    let spec = spec(&place, TASKS);
    let text = std::fs::read_to_string(place.path(&spec)).unwrap();
    place.write(&spec, text.replace("\"kivi2\"", "\"auto\", \"kivi4/kivi2\""));
    let listed = success(&kvfold(&place, &["ablate", &spec, "--dry-run"]));
    assert!(listed.ends_with("4 cells, 4 pending\n"), "{listed}");
    assert!(listed.contains("kivi4/kivi2") && !listed.contains("auto"), "{listed}");
    success(&kvfold(&place, &["ablate", &spec]));
    let rows = rows(&place);
    let named = rows.iter().filter(|row| row.cell.kv == "kivi4/kivi2" && row.bits == 4.0);
    assert_eq!((rows.len(), named.count()), (4, 2));
    let looked = rows.iter().filter_map(|row| row.outcome.as_ref()?.load);
    assert!(looked.clone().all(|load| load.cores > 0 && load.seconds > 0.0));
    assert_eq!(looked.count(), if cfg!(target_os = "linux") { 4 } else { 0 });
}

#[test]
fn cells_that_fail_are_counted_at_the_end() {
    let place = Place::new();
    // The model holds 512 tokens.
    let spec = spec(&place, &TASKS.replace("[250, 300]", "[250, 900]"));
    let output = kvfold(&place, &["ablate", &spec, "--output", "spec.jsonl"]);
    let line = error(&output);
    assert!(line.contains("2 of 4 cells failed") && line.contains("--retry-errors"), "{line}");
    let rows = rows(&place);
    let errors: Vec<&str> = rows.iter().filter_map(|row| row.error.as_deref()).collect();
    assert_eq!((rows.len(), errors.len()), (4, 2));
    assert!(errors[0].starts_with("lengths: 900 tokens and an answer of "), "{errors:?}");
    let line = error(&kvfold(&place, &["ablate", &spec]));
    assert!(line.contains("2 of 4 cells failed"), "{line}");
    let page = success(&kvfold(&place, &["report", "spec.jsonl"]));
    let page = std::fs::read_to_string(place.path(page.trim())).unwrap();
    assert!(page.contains("Failed cells") && page.contains("lengths: 900 tokens"));
}

#[test]
fn wrong_input_is_one_line() {
    let place = Place::new();
    let spec = spec(&place, &TASKS.replace("context", "kontext"));
    for (args, part) in [
        (vec!["ablate", &spec], "spec.toml: line 7, column 1: task[0].kontext: unknown field"),
        (vec!["ablate", "absent.toml"], "absent.toml: "),
        (vec!["report", "absent.jsonl"], "absent.jsonl: "),
        (vec!["report", "text.txt"], "text.txt: line 1: not a row"),
    ] {
        let output = kvfold(&place, &args);
        let line = error(&output);
        assert!(line.contains(part), "{line}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
    assert!(!place.path("spec.jsonl").exists(), "a wrong spec writes nothing");
    place.write(
        "good.toml",
        std::fs::read_to_string(place.path("spec.toml")).unwrap().replace("kontext", "context"),
    );
    let line = error(&kvfold(&place, &["ablate", "good.toml", "-o", "absent/results.jsonl"]));
    assert!(line.contains("absent/results.jsonl: its folder does not exist"), "{line}");
}

/// A run of many short cells that has written three lines.
fn begun(place: &Place, spec: &str) -> Child {
    let mut run = command(place, &["ablate", spec, "--jobs", "2"]);
    let child = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let results = place.path("spec.jsonl");
    let start = Instant::now();
    while std::fs::read_to_string(&results).unwrap_or_default().lines().count() < 3 {
        assert!(start.elapsed() < Duration::from_secs(120), "no cell is done");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

const MANY: &str = "seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n\
                    [[task]]\ntask = \"niah\"\nlengths = [300]\ndepths = [50]\nseeds = 4";

/// Finishes a run and checks that nothing of `before` was lost or done twice.
fn finish(place: &Place, spec: &str, before: &str) {
    let complete = &before[..before.rfind('\n').unwrap() + 1];
    success(&kvfold(place, &["ablate", spec, "--jobs", "2"]));
    let after = std::fs::read_to_string(place.path("spec.jsonl")).unwrap();
    assert!(after.starts_with(complete));
    let rows = rows(place);
    let keys: HashSet<&str> = rows.iter().map(|row| row.key.as_str()).collect();
    assert_eq!((rows.len(), keys.len()), (20, 20));
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_is_killed_loses_nothing_and_leaves_no_worker() {
    let place = Place::new();
    let spec = spec(&place, MANY);
    let mut run = begun(&place, &spec);
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    let workers: Vec<String> = (std::fs::read_to_string(children).unwrap_or_default())
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    run.kill().unwrap();
    run.wait().unwrap();
    let before = std::fs::read_to_string(place.path("spec.jsonl")).unwrap();
    for worker in workers {
        let start = Instant::now();
        // Gone, or dead and not yet buried.
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).ok()?;
            Some(!stat.rsplit(')').next()?.trim_start().starts_with('Z'))
        };
        while lives() == Some(true) {
            assert!(start.elapsed() < Duration::from_secs(60), "worker {worker} goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    finish(&place, &spec, &before);
}

#[test]
#[cfg(unix)]
fn an_interruption_says_how_to_go_on() {
    let place = Place::new();
    let spec = spec(&place, MANY);
    let run = begun(&place, &spec);
    let second = error(&kvfold(&place, &["ablate", &spec]));
    assert!(second.contains("spec.jsonl: another process is writing to it"), "{second}");
    let signal = Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let output = run.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("of 20 cells are in spec.jsonl; the same command goes on"), "{stderr}");
    let before = std::fs::read_to_string(place.path("spec.jsonl")).unwrap();
    finish(&place, &spec, &before);
}
