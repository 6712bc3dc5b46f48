//! The page that made-up results become.

use super::Place;
use kvfold::eval::ablate::{Cell, Machine, Row};
use kvfold::eval::report::{Options, ResultRows, page};
use kvfold::eval::write_whole;
use kvfold::eval::{KvMemory, Load, Metric, Outcome, Speed, Trial};
use serde_json::{Value, json};

/// Formats with bits and what they do to the quality.
const FORMATS: [(&str, f64, f64); 5] = [
    ("f16", 16.0, 0.0),
    ("kivi4", 5.0, 0.01),
    ("kivi4/kivi2", 4.0, 0.02),
    ("<made&up>", 3.0, 0.05),
    ("kivi2", 3.0, 0.20),
];

fn perplexity() -> Value {
    json!({"task": "perplexity", "file": "text.txt", "context": 2048})
}

fn niah() -> Value {
    json!({"task": "niah", "lengths": [1024, 4096], "depths": [10, 90], "seeds": 4})
}

fn row(model: &str, kv: &str, bits: f64, task: Value, outcome: Result<Outcome, &str>) -> Row {
    let metric = match task["task"].as_str() {
        Some("perplexity") => Metric::Perplexity,
        _ => Metric::Score,
    };
    let cell = Cell {
        model: model.into(),
        kv: kv.into(),
        policy: "none".into(),
        sinks: (bits < 16.0).then_some(4),
        task,
        ..Cell::default()
    };
    Row {
        key: format!("{model} {cell}"),
        kvfold: "0.1.0".into(),
        commit: Some("abc1234".into()),
        date: "2026-01-02T03:04:05Z".into(),
        machine: Machine { cpu: "A Processor".into(), cores: 8, jobs: 1, threads: 8 },
        spec: "made up".into(),
        cell,
        bits,
        metric: outcome.is_ok().then_some(metric),
        error: outcome.as_ref().err().map(|&error| error.to_owned()),
        outcome: outcome.ok(),
        seconds: 60.0,
    }
}

fn outcome(value: f64, trials: Vec<Trial>, bits: f64) -> Outcome {
    Outcome {
        value,
        trials,
        memory: KvMemory { kv_bytes: (bits * 1e6) as u64, kv_bytes_16_bit: 16_000_000 },
        speed: Speed {
            prefill_tokens: 4000,
            prefill_seconds: 4.0,
            decode_tokens: 100,
            decode_seconds: bits / 8.0,
        },
        load: load(0.02),
        ..Outcome::default()
    }
}

/// Others on so many cores of eight, for a minute.
fn load(others: f64) -> Option<Load> {
    Some(Load { seconds: 60.0, cores: 8, others, average: Some(8.0) })
}

/// Rows of two tasks in all formats, and one that failed.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kv, bits, worse) in FORMATS {
        let window = |n: usize| Trial {
            id: n.to_string(),
            length: 2048,
            score: 2.0 + 0.1 * n as f64 + worse,
            ..Trial::default()
        };
        let trials: Vec<Trial> = (0..6).map(window).collect();
        let mean = trials.iter().map(|t| t.score).sum::<f64>() / 6.0;
        rows.push(row("tiny", kv, bits, perplexity(), Ok(outcome(mean.exp(), trials, bits))));
        let mut trials = Vec::new();
        for (length, depth) in [(1024, 10), (1024, 90), (4096, 10), (4096, 90)] {
            for seed in 0..4 {
                // The worst format misses what is deep in long texts.
                let missed = worse > 0.1 && length == 4096 && seed < 3;
                trials.push(Trial {
                    id: format!("{length}-{depth}-{seed}"),
                    length,
                    depth: Some(depth),
                    score: if missed { 0.0 } else { 1.0 },
                    ..Trial::default()
                });
            }
        }
        let mean = trials.iter().map(|t| t.score).sum::<f64>() / 16.0;
        rows.push(row("tiny", kv, bits, niah(), Ok(outcome(mean, trials, bits))));
    }
    rows.push(row("tiny", "bf16", 16.0, niah(), Err("no <such> luck")));
    rows
}

fn made_up() -> ResultRows {
    ResultRows { rows: rows(), ..ResultRows::default() }
}

/// The parts of a page between `<svg` and `</svg>`.
fn pictures(page: &str) -> Vec<String> {
    let parts = page.split("<svg").skip(1);
    parts.map(|part| format!("<svg{}</svg>", part.split("</svg>").next().unwrap())).collect()
}

/// Checks that tags are closed in order and that nothing is left unescaped.
#[track_caller]
fn well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        assert!(!text.contains('>'), "{text}");
        for part in text.split('&').skip(1) {
            let name = part.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot", "apos"].contains(&name), "{text}");
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && !rest.contains('>'), "{open:?} {rest}");
}

#[test]
fn the_page_shows_everything_and_needs_nothing() {
    let page = page(&made_up(), &Options::default()).unwrap();
    for part in [
        "made up",
        "A Processor, 8 of 8 threads",
        "abc1234",
        "2026-01-02",
        ">niah</h2>",
        "needle in a haystack",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    for format in ["f16", "kivi4", "kivi4/kivi2", "&lt;made&amp;up&gt;", "kivi2"] {
        let times = page.replace("&#x2f;", "/").matches(&format!("<th>{format}</th>")).count();
        assert_eq!(times, 3, "{format}: the overview and two tables");
    }
    // Nothing from elsewhere, and no script.
    for part in ["http:", "https:", "<script", "<link", "@import", "url("] {
        let foreign = page.replace("http://www.w3.org/2000/svg", "").contains(part);
        assert!(!foreign, "{part}");
    }
    assert!(!page.contains("<made&up>") && !page.contains("<such>"));
    assert!(page.contains("no &lt;such&gt; luck"));
    let pictures = pictures(&page);
    assert_eq!(pictures.len(), 2 + FORMATS.len(), "a plot a task and a map a format");
    for picture in &pictures {
        well_formed(picture);
    }
}

#[test]
fn numbers_are_those_of_the_rows() {
    let page = page(&made_up(), &Options::default()).unwrap().replace("&#x2f;", "/");
    let rows: Vec<&str> = page.split("<tr>").collect();
    let line = |label: &str, nth: usize| -> Vec<String> {
        let is = |row: &&&str| row.starts_with(&format!("<th>{label}</th>"));
        let row = rows.iter().filter(is).nth(nth).unwrap();
        let cells = row.split("<td").skip(1);
        cells
            .map(|cell| cell.split('>').nth(1).unwrap().split('<').next().unwrap().into())
            .collect()
    };
    // exp(0.2) is 22.1 % more, in every window; 3.0 bits of 16; decode 16 / 3 times as fast.
    let kivi2 = line("kivi2", 1);
    assert_eq!(kivi2[..3], ["3.00", "3.00", "5.33×"]);
    assert_eq!(kivi2[4..], ["+22.1 %", "[+22.1, +22.1]", "1.00×", "5.33×"]);
    let f16 = line("f16", 1);
    assert_eq!(f16[4..], ["reference", "", "1000 tok/s", "50 tok/s"]);
    // 6 of 16 needles are lost: p = 2 / 2^6.
    let kivi2 = line("kivi2", 2);
    assert_eq!(
        (kivi2[3].as_str(), kivi2[4].as_str(), kivi2[6].as_str()),
        ("62.5", "−37.5", "0.031")
    );
    assert_eq!(line("kivi4", 2)[4], "0");
}

/// The cells of the rows of a table that begin with a format's name.
fn speeds(page: &str, label: &str) -> Vec<String> {
    let page = page.replace("&#x2f;", "/");
    let head = format!("<th>{label}</th>");
    let rows = page.split("<tr>").filter(|row| row.starts_with(&head)).skip(1);
    rows.map(|row| {
        let cells: Vec<&str> = row.split("<td").collect();
        let text =
            |cell: &str| cell.split('>').nth(1).unwrap().split('<').next().unwrap().to_owned();
        cells[cells.len() - 2..].iter().map(|cell| text(cell)).collect::<Vec<_>>().join(" ")
    })
    .collect()
}

#[test]
fn speeds_are_those_of_an_idle_machine() {
    let mut all = made_up();
    let idle = page(&all, &Options::default()).unwrap();
    assert!(!idle.contains("not shown"), "all had the machine to themselves");
    assert_eq!(speeds(&idle, "kivi4"), ["1.00× 3.20×", "1.00× 3.20×"]);

    // Another program on one core of eight; rows that do not say; one that was too short.
    let too_short = Load { seconds: 0.01, ..load(0.0).unwrap() };
    for (row, load) in [
        ("perplexity kivi4 sinks 4 seed 0", load(1.0)),
        ("perplexity kivi4/kivi2 sinks 4 seed 0", None),
        ("perplexity kivi2 sinks 4 seed 0", Some(too_short)),
        ("niah f16 seed 0", load(0.5)),
    ] {
        let row = all.rows.iter_mut().find(|r| r.cell.to_string() == row).unwrap();
        row.outcome.as_mut().unwrap().load = load;
    }
    let mixed = page(&all, &Options::default()).unwrap();
    for (label, shown) in [
        ("f16", ["1000 tok/s 50 tok/s", "busy busy"]),
        ("kivi4", ["busy busy", "1000 tok/s 160 tok/s"]),
        ("kivi4/kivi2", ["– –", "1000 tok/s 200 tok/s"]),
        ("kivi2", ["– –", "1000 tok/s 267 tok/s"]),
        ("&lt;made&amp;up&gt;", ["1.00× 5.33×", "1000 tok/s 267 tok/s"]),
    ] {
        assert_eq!(speeds(&mixed, label), shown, "{label}");
    }
    assert!(mixed.contains("<b>Machine busy: not shown</b> for 2 of 10 cells"), "{mixed}");
    assert!(mixed.contains("<b>Not known to be idle: not shown</b> for 2 of 10 cells"), "{mixed}");

    // Of several seeds those count that were alone.
    let mut again = all.rows[2].clone();
    again.cell.seed = 1;
    again.key += " again";
    again.outcome.as_mut().unwrap().load = load(0.0);
    again.outcome.as_mut().unwrap().speed.decode_seconds = 1.0;
    all.rows.push(again);
    let page = page(&all, &Options::default()).unwrap();
    assert_eq!(speeds(&page, "kivi4")[0], "1.00× 2.00×");
}

/// Rows of before the machine was looked at can still be read.
#[test]
fn old_rows_are_not_known_to_be_idle() {
    let mut row = serde_json::to_value(&rows()[0]).unwrap();
    assert!(row["outcome"].as_object_mut().unwrap().remove("load").is_some());
    let row: Row = serde_json::from_value(row).unwrap();
    assert_eq!(row.outcome.as_ref().unwrap().idle(), None);
    let page = page(&ResultRows { rows: vec![row], ..ResultRows::default() }, &Options::default());
    assert_eq!(speeds(&page.unwrap(), "f16"), ["– –"]);
}

#[test]
fn another_reference_can_be_chosen() {
    let with =
        |reference: &str| Options { reference: Some(reference.into()), ..Options::default() };
    let html = page(&made_up(), &with("kivi4")).unwrap();
    assert!(html.contains("Change against kivi4</th>"));
    let error = page(&made_up(), &with("kivi9")).unwrap_err().to_string();
    assert!(error.starts_with("reference: ") && error.contains("f16, kivi4"), "{error}");
}

#[test]
fn the_spec_is_shown_as_written_or_as_the_rows_have_it() {
    let shown = page(&made_up(), &Options::default()).unwrap();
    let grid = shown.split("<pre>").nth(1).unwrap().split("</pre>").next().unwrap();
    let grid = grid.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">");
    let grid: toml::Table =
        toml::from_str(&grid.replace("&amp;", "&").replace("&#x2f;", "/")).unwrap();
    assert_eq!(grid["kv"].as_array().unwrap().len(), 6);
    assert_eq!(grid["task"].as_array().unwrap().len(), 2);
    let options = Options {
        spec: Some("kv = [\"<x>\"]".into()),
        title: Some("Ours".into()),
        ..Options::default()
    };
    let shown = page(&made_up(), &options).unwrap();
    assert!(shown.contains("kv = [&quot;&lt;x&gt;&quot;]") && shown.contains("<h1>Ours</h1>"));
}

#[test]
fn results_are_read_or_refused_by_line() {
    let place = Place::new();
    let lines: Vec<String> = rows().iter().map(|row| serde_json::to_string(row).unwrap()).collect();
    let all = lines.join("\n");
    // The same cell in two files: the later one counts. A torn line is left out.
    let mut again = rows().remove(0);
    again.bits = 15.0;
    let again = serde_json::to_string(&again).unwrap();
    let a = place.write("a.jsonl", format!("{all}\n"));
    let b = place.write("b.jsonl", format!("{again}\n{}", &lines[1][..50]));
    let read = ResultRows::read(&[&a, &b]).unwrap();
    assert_eq!((read.rows.len(), read.rows[0].bits), (11, 15.0));
    assert_eq!(read.incomplete, std::slice::from_ref(&b));
    assert!(page(&read, &Options::default()).unwrap().contains("b.jsonl is not complete"));

    let wrong = place.write("wrong.jsonl", format!("{}\n{{\"key\": 5}}\n", lines[0]));
    let error = ResultRows::read(&[&a, &wrong]).unwrap_err().to_string();
    assert!(error.contains("wrong.jsonl: line 2: not a row") && !error.contains('\n'), "{error}");
    let text = place.write("text", "no JSON at all");
    let error = ResultRows::read(&[&text]).unwrap_err().to_string();
    assert!(error.contains("text: line 1: not a row"), "{error}");
    let empty = place.write("empty.jsonl", "");
    let error = ResultRows::read(&[&empty]).unwrap_err().to_string();
    assert!(error.contains("empty.jsonl: holds no rows"), "{error}");
    let error = ResultRows::read(&[place.path("absent")]).unwrap_err().to_string();
    assert!(error.contains("absent: "), "{error}");
}

#[test]
fn a_page_is_written_whole_or_not_at_all() {
    let place = Place::new();
    let path = place.write("page.html", "old");
    write_whole(&path, "new").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    // A folder stands in the way.
    std::fs::create_dir(place.path("folder")).unwrap();
    let error = write_whole(place.path("folder"), "new").unwrap_err().to_string();
    assert!(error.contains("folder: "), "{error}");
    let names = std::fs::read_dir(place.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().ends_with(".part")));
}
