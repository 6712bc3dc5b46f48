//! The evaluation tasks: what their prompts promise, and each one run on a tiny model.

use kvfold::backend::WeightPolicy;
use kvfold::engine::{EngineConfig, LoadedModel, Runner};
use kvfold::eval::prose_zh::prose_zh;
use kvfold::eval::{
    Grade, Language, Metric, NeedleKind, NeedleSpec, PerplexitySpec, QaSpec, Question, StarsKind,
    StarsSpec, Task, TaskSpec, VtSpec, WordsSpec, paired,
};
use kvfold::model::{ChatTemplate, Tokenizer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

static GO: AtomicBool = AtomicBool::new(false);

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

/// A tokenizer with few merges, so that a token is a letter or two, and the default
/// model's template.
fn smollm2() -> (Tokenizer, ChatTemplate) {
    let chat = std::fs::read(golden("chat-smollm2.json")).unwrap();
    let chat: serde_json::Value = serde_json::from_slice(&chat).unwrap();
    let template = chat["chat_template"].as_str().unwrap();
    let template = ChatTemplate::new(template, Some("<|im_start|>"), Some("<|im_end|>")).unwrap();
    (Tokenizer::from_file(golden("smollm2/tokenizer.json")).unwrap(), template)
}

/// The prompts, which must be the same each time, unlike those of another batch, and as
/// long as was asked.
fn prompts(spec: &TaskSpec, slack: usize) -> Vec<Question> {
    let (tokenizer, template) = smollm2();
    let make = |spec: &TaskSpec| {
        let task = spec.prepare(&tokenizer, Some(&template), 1 << 15).unwrap();
        assert_eq!((task.name(), task.metric()), (spec.name(), Metric::Score));
        task.questions().to_vec()
    };
    let made = make(spec);
    assert!(made.iter().zip(make(spec)).all(|(a, b)| a.ids == b.ids && a.expected == b.expected));
    let other = make(&spec.clone().with_batch(1));
    assert!(made.iter().all(|a| other.iter().all(|b| a.expected != b.expected && a.id != b.id)));
    for question in &made {
        let (length, tokens) = (question.length, question.ids.len());
        assert!(tokens <= length && tokens + slack > length, "{tokens} for {length}");
        assert_eq!(question.ids, tokenizer.encode(&question.text, false).unwrap());
        assert!(made.iter().filter(|other| other.id == question.id).count() == 1);
    }
    made
}

fn toml(text: &str) -> TaskSpec {
    toml::from_str(text).unwrap()
}

/// Byte offsets of `parts` in `text`, each of which must be there once.
fn places(text: &str, parts: &[String]) -> Vec<usize> {
    let once = |part: &String| {
        assert_eq!(text.matches(part.as_str()).count(), 1, "{part:?} in {text}");
        text.find(part.as_str()).unwrap()
    };
    parts.iter().map(once).collect()
}

#[test]
fn four_needles_are_spread_over_the_text() {
    for (kind, numbers, asked) in
        [("multi-key", 4, 1), ("multi-value", 4, 4), ("multi-query", 4, 4), ("single", 1, 1)]
    {
        let spec = toml(&format!(
            "task = 'niah'\nkind = '{kind}'\nlengths = [2500]\ndepths = [0, 60]\nseeds = 2"
        ));
        for question in prompts(&spec, 24) {
            assert_eq!(question.expected.len(), asked, "{kind}");
            let hidden: Vec<&str> = (question.text.split(|c: char| !c.is_ascii_digit()))
                .filter(|digits| digits.len() == 7)
                .collect();
            assert_eq!(hidden.len(), numbers, "{kind}: {}", question.text);
            let at = places(&question.text, &question.expected);
            assert!(at.is_sorted(), "as the text has them: {at:?}");
            assert_eq!(question.depth.is_some(), asked == 1);
            if asked == 4 {
                let apart = |two: &[usize]| two[1] - two[0] > question.text.len() / 8;
                assert!(at.windows(2).all(apart), "{kind}: {at:?}");
            }
            if kind == "multi-key" {
                let key = question.text.rsplit_once("code for the ").unwrap().1;
                let key = key.strip_suffix(" is").unwrap();
                let needle =
                    format!("The secret access code for the {key} is {}.", question.expected[0]);
                places(&question.text, &[needle]);
            }
        }
    }
}

#[test]
fn stars_lie_at_even_distances() {
    for language in ["en", "zh"] {
        for kind in ["acquisition", "reasoning"] {
            let spec = toml(&format!(
                "task = 'counting-stars'\nlanguage = '{language}'\nkind = '{kind}'\n\
                 lengths = [4000]\nstars = 5\nseeds = 2"
            ));
            assert_eq!(spec.name(), format!("counting-stars-{language}-{kind}"));
            for question in prompts(&spec, 30) {
                let (text, _) = question.text.rsplit_once("\n\n\n\n").unwrap();
                let lines: Vec<&str> = text.lines().filter(|l| l.contains('★')).collect();
                assert_eq!(lines.len(), 5, "{text}");
                let Grade::Stars { wrong, .. } = &question.grade else { panic!() };
                assert_eq!(wrong.is_empty(), kind == "acquisition");
                for (i, line) in lines.iter().enumerate() {
                    let numbers: Vec<&str> = (line.split(|c: char| !c.is_ascii_digit()))
                        .filter(|digits| !digits.is_empty())
                        .collect();
                    let mut want: Vec<String> =
                        wrong.get(i).map(u64::to_string).into_iter().collect();
                    want.push(question.expected[i].clone());
                    assert_eq!(numbers, want);
                }
                // The prose between two stars is as long everywhere.
                let prose = text.split_once("user\n").unwrap().1;
                let gaps: Vec<usize> = (prose.split('\n').collect::<Vec<_>>())
                    .split(|line| line.contains('★'))
                    .map(|part| {
                        let part = part.join(" ");
                        match language {
                            "en" => part.split_whitespace().count(),
                            _ => part.chars().filter(|c| !c.is_whitespace()).count(),
                        }
                    })
                    .collect();
                assert!(gaps[..5].iter().all(|&gap| gap == gaps[0]) && gaps[5] < 5, "{gaps:?}");
            }
        }
    }
    let spec = StarsSpec { json: true, lengths: vec![1000], seeds: 1, ..StarsSpec::default() };
    let question = prompts(&TaskSpec::CountingStars(spec), 30).remove(0);
    assert!(question.text.ends_with("{\"little_penguin\": ["));
}

#[test]
fn a_chain_is_in_the_text_in_order() {
    let spec = toml("task = 'vt'\nlengths = [1500, 3000]\nseeds = 2\nhops = 3\nzero_shot = true");
    for question in prompts(&spec, 24) {
        let names = &question.expected;
        assert_eq!(names.len(), 4);
        let value = question.text.split("VAR ").nth(1).unwrap().split_once(" = ").unwrap();
        assert_eq!(value.0, names[0]);
        let value = value.1.split_once('.').unwrap().0;
        let mut statements = vec![format!("VAR {} = {value}.", names[0])];
        statements.extend(names.windows(2).map(|two| format!("VAR {} = VAR {}.", two[1], two[0])));
        assert!(places(&question.text, &statements).is_sorted());
        assert!(question.text.contains(&format!("assigned the value {value} in the text above")));
    }
}

#[test]
fn a_worked_example_comes_before_a_chain() {
    let with = prompts(&toml("task = 'vt'\nlengths = [4000]\nseeds = 3"), 24);
    let without = prompts(&toml("task = 'vt'\nlengths = [4000]\nseeds = 3\nzero_shot = true"), 24);
    for (with, without) in with.iter().zip(&without) {
        // The chain is the same, less text around it.
        assert_eq!(with.expected, without.expected);
        let [_, example, task] = with.text.split("Memorize").collect::<Vec<_>>()[..] else {
            panic!("{}", with.text)
        };
        assert!(!without.text.contains(example) && with.ids.len() <= 4000);
        let (text, answer) = example.rsplit_once("They are: VAR ").unwrap();
        let names: Vec<&str> = answer.trim_end().trim_end_matches('.').split(", VAR ").collect();
        let (_, value) = text.rsplit_once("assigned the value ").unwrap();
        let value = value.trim_end_matches(". ");
        let mut statements = vec![format!("VAR {} = {value}.", names[0])];
        statements.extend(names.windows(2).map(|two| format!("VAR {} = VAR {}.", two[1], two[0])));
        assert!(names.len() == 5 && places(text, &statements).is_sorted());
        assert!(
            names.iter().all(|name| name.len() == 3 && !with.expected.contains(&(*name).into()))
        );
        assert!(!task.contains(value) && with.expected.iter().all(|name| !example.contains(name)));
    }
}

/// How often each word is there in the last paragraph that begins with `start`.
fn counted<'t>(text: &'t str, start: &str) -> Vec<(&'t str, usize)> {
    let list = text.rsplit_once(start).unwrap().1.split("Question:").next().unwrap();
    let list = list.split_once('\n').unwrap().1;
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let words = list.split_whitespace().filter(|w| !w.starts_with(|c: char| c.is_ascii_digit()));
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    counts
}

#[test]
fn words_are_as_frequent_as_rulers() {
    let spec = toml("task = 'cwe'\nlengths = [3000, 9000]\nseeds = 1");
    for question in prompts(&spec, 40) {
        let counts = counted(&question.text, "Below is a");
        let (many, few) = if question.length < 4096 { (6, 1) } else { (30, 3) };
        for (word, count) in &counts {
            let common = question.expected.iter().any(|w| w == word);
            assert_eq!(*count, if common { many } else { few }, "{word}");
        }
        assert!(counts.len() > 20, "{counts:?}");
        // The example has other words.
        let example = question.text.split("Below is a").nth(1).unwrap();
        assert!(question.expected.iter().all(|word| !example.contains(word.as_str())));
    }
    let spec = toml("task = 'fwe'\nlengths = [2000, 4000]\nseeds = 2");
    for question in prompts(&spec, 60) {
        let counts = counted(&question.text, "Read the following");
        assert_eq!(counts[0].0, "...");
        let asked: Vec<&str> = counts[1..4].iter().map(|&(word, _)| word).collect();
        assert_eq!(asked, question.expected);
        assert!(counts[3].1 > counts[4].1, "{counts:?}");
    }
}

#[test]
fn files_of_questions_become_prompts() {
    let (tokenizer, template) = smollm2();
    let folder = tempfile::tempdir().unwrap();
    let long: String = (0..400).map(|i| format!("Line {i} of the text. ")).collect();
    std::fs::write(folder.path().join("long.txt"), &long).unwrap();
    let lines = [
        r#"{"document": "long.txt", "question": "Which?", "answers": ["x"]}"#,
        "",
        r#"{"context": "很短。", "question": "谁？", "answers": ["我", "你"], "kind": "qa_zh"}"#,
    ];
    let path = folder.path().join("q.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let spec = QaSpec { length: Some(500), ..QaSpec::new(&path) };
    let task = TaskSpec::Qa(spec.clone()).prepare(&tokenizer, Some(&template), 8192).unwrap();
    let questions = task.questions();
    let ids: Vec<&str> = questions.iter().map(|question| question.id.as_str()).collect();
    assert_eq!(ids, ["1", "3"]);
    let cut = &questions[0];
    assert!(cut.ids.len() <= 500 && cut.ids.len() > 490, "{}", cut.ids.len());
    assert!(cut.text.contains("Line 0 of") && cut.text.contains("Line 399 of the text."));
    assert!(!cut.text.contains("Line 200 of") && cut.text.contains("Question: Which?"));
    assert!(questions[1].text.contains("很短。") && questions[1].expected == ["我", "你"]);

    let whole = TaskSpec::Qa(QaSpec::new(&path));
    let task = whole.prepare(&tokenizer, Some(&template), 1 << 20).unwrap();
    assert!(task.questions()[0].text.contains("Line 200 of"));
    let limit = TaskSpec::Qa(QaSpec { limit: Some(1), ..spec.clone() });
    assert_eq!(limit.prepare(&tokenizer, None, 8192).unwrap().questions().len(), 1);
    for (length, part) in [(20, "too short for the question of line 1"), (9000, "at most 8128")] {
        let spec = TaskSpec::Qa(QaSpec { length: Some(length), ..spec.clone() });
        let error = spec.prepare(&tokenizer, None, 8192).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("length: ") && error.contains(part), "{error}");
    }
}

#[test]
fn specifications_are_checked_without_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (stars, lines) = (write("stars.txt", "One ★ here."), write("q.jsonl", "{}\n"));
    let none = write("none.jsonl", "\n\n");
    let path = |path: &Path| format!("{:?}", path.display().to_string());
    for (text, parts) in [
        ("task = 'niah'\nlengths = []".into(), ["lengths: ", "empty"]),
        ("task = 'niah'\ndepths = [101]".into(), ["depths: ", "101"]),
        ("task = 'vt'\nseeds = 0".into(), ["seeds: ", "at least 1"]),
        ("task = 'vt'\nhops = 0".into(), ["hops: ", "at least 1"]),
        ("task = 'cwe'\nlengths = []".into(), ["lengths: ", "empty"]),
        ("task = 'fwe'\nseeds = 0".into(), ["seeds: ", "at least 1"]),
        ("task = 'counting-stars'\nstars = 0".into(), ["stars: ", "at least 1"]),
        ("task = 'niah'\nhaystack = 'absent.txt'".into(), ["absent.txt", ""]),
        ("task = 'perplexity'\nfile = 'absent.txt'".into(), ["absent.txt", ""]),
        ("task = 'perplexity'\nfile = 'x'\ncontext = 2".into(), ["context: ", "2"]),
        (
            format!("task = 'counting-stars'\nhaystack = {}", path(&stars)),
            ["stars.txt", "★ of its own"],
        ),
        (format!("task = 'qa'\nfile = {}", path(&lines)), ["q.jsonl:1: ", "answers"]),
        (format!("task = 'qa'\nfile = {}", path(&none)), ["none.jsonl: ", "holds no text"]),
        (format!("task = 'qa'\nfile = {}\nlimit = 0", path(&lines)), ["limit: ", "at least 1"]),
    ] {
        let error = toml(&text).validate().unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for (text, part) in [
        ("task = 'needle'", "needle"),
        ("task = 'niah'\nlenghts = [1]", "lenghts"),
        ("task = 'niah'\nkind = 'double'", "double"),
        ("task = 'counting-stars'\nlanguage = 'fr'", "fr"),
        ("task = 'perplexity'", "file"),
        ("task = 'cwe'\nhaystack = 'x'", "haystack"),
    ] {
        let error = toml::from_str::<TaskSpec>(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    // What is written is read back as it was.
    let spec = toml("task = 'niah'\nkind = 'multi-value'\nlengths = [512]");
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
}

#[test]
fn prompts_that_cannot_be_made_are_refused() {
    let (tokenizer, template) = smollm2();
    for (text, part) in [
        ("task = 'vt'\nlengths = [2048]", "lengths: 2048 tokens and an answer of 30"),
        ("task = 'vt'\nlengths = [30]", "too short"),
        ("task = 'cwe'\nlengths = [200]", "too short"),
        ("task = 'cwe'\nlengths = [2000]", "at most 1928"),
        ("task = 'fwe'\nlengths = [100]", "too short"),
        ("task = 'fwe'\nlengths = [2000]", "at most 1998"),
        ("task = 'counting-stars'\nlengths = [2040]", "lengths: 2040"),
        ("task = 'counting-stars'\nlengths = [400]\nstars = 60", "too short"),
        ("task = 'niah'\nkind = 'multi-query'\nlengths = [2040]", "answer of 96"),
    ] {
        let made = toml(text).prepare(&tokenizer, Some(&template), 2048);
        let error = made.map(drop).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

/// Every task on a model that knows nothing, in two settings.
#[test]
fn every_task_runs() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, prose_zh(5, 1500)).unwrap();
    let questions = folder.path().join("q.jsonl");
    let line = r#"{"context": "One two three.", "question": "What?", "answers": ["two"]}"#;
    std::fs::write(&questions, line).unwrap();
    let lengths = vec![420];
    let specs = [
        TaskSpec::Perplexity(PerplexitySpec { context: 300, ..PerplexitySpec::new(&text) }),
        TaskSpec::Niah(NeedleSpec {
            kind: NeedleKind::MultiKey,
            lengths: vec![400],
            seeds: 1,
            ..NeedleSpec::default()
        }),
        TaskSpec::CountingStars(StarsSpec {
            language: Language::Chinese,
            kind: StarsKind::Reasoning,
            stars: 2,
            lengths: lengths.clone(),
            seeds: 1,
            haystack: Some(text),
            ..StarsSpec::default()
        }),
        TaskSpec::Vt(VtSpec {
            lengths: lengths.clone(),
            seeds: 1,
            hops: 1,
            zero_shot: true,
            ..VtSpec::default()
        }),
        TaskSpec::Qa(QaSpec::new(&questions)),
    ];
    let model = LoadedModel::open(golden("smollm2"), WeightPolicy::F32).unwrap();
    let tokenizer = model.tokenizer.clone();
    let config = |kv: &str| EngineConfig::default().with_kv(kv);
    let mut runner = Runner::new(model, config("f16")).unwrap();
    for spec in specs {
        let task: Box<dyn Task> = spec.prepare(&tokenizer, None, 512).unwrap();
        let mut run = |kv| {
            runner.reconfigure(config(kv)).unwrap();
            let mut done = 0;
            let outcome = task.run(&mut runner, &GO, &mut |steps| done = steps).unwrap();
            assert_eq!(done, task.steps(), "{}", spec.name());
            assert_eq!(runner.cache().held_bytes(), 0);
            outcome
        };
        let (exact, folded) = (run("f16"), run("kivi2"));
        assert!(exact.memory.bits() >= 16.0 && exact.speed.prefill().unwrap() > 0.0);
        if task.longest() > 300 {
            assert!(folded.memory.bits() < exact.memory.bits(), "{}", spec.name());
        }
        let between = paired(&folded.trials, &exact.trials).unwrap();
        assert_eq!(between.pairs, exact.trials.len());
        if task.metric() == Metric::Perplexity {
            let ratio = folded.value / exact.value;
            assert!((between.difference.exp() / ratio - 1.0).abs() < 1e-9);
            assert_eq!(exact.speed.decode_tokens, 32);
        } else {
            let mean =
                exact.trials.iter().map(|t| t.score).sum::<f64>() / exact.trials.len() as f64;
            assert!((exact.value - mean).abs() < 1e-12 && (0.0..=1.0).contains(&mean));
            assert!(exact.trials.iter().all(|trial| trial.answer.is_some()));
        }
        // As a line of results.
        let json = serde_json::to_string(&exact).unwrap();
        let back: kvfold::eval::Outcome = serde_json::from_str(&json).unwrap();
        assert_eq!(back.trials, exact.trials);
    }
    // The word lists of the others are longer than this model's context.
    let cwe = TaskSpec::Cwe(WordsSpec { lengths: vec![390], ..WordsSpec::default() });
    let fwe = TaskSpec::Fwe(WordsSpec { lengths, ..WordsSpec::default() });
    for spec in [cwe, fwe] {
        let error = spec.prepare(&tokenizer, None, 512).map(drop).unwrap_err().to_string();
        assert!(error.contains("too short"), "{error}");
    }
}
