//! Files of questions, in the forms in which they are passed on.

use kvfold::eval::{Grade, QaSpec, Question, TaskSpec};
use kvfold::model::Tokenizer;
use std::path::Path;

/// The prompts of a file with this text, for a model with this context.
fn prompts(text: &str, limit: Option<usize>, context: usize) -> Result<Vec<Question>, String> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2");
    let tokenizer = Tokenizer::from_file(golden.join("tokenizer.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.json");
    std::fs::write(&path, text).unwrap();
    let spec = TaskSpec::Qa(QaSpec { limit, ..QaSpec::new(&path) });
    let task = spec.prepare(&tokenizer, None, context).map_err(|error| error.to_string())?;
    Ok(task.questions().to_vec())
}

fn longbench(dataset: &str, answer: &str) -> String {
    format!(
        r#"{{"input": "Who found it?", "context": "The comet was found by Anna.",
        "answers": ["{answer}"], "length": 20, "dataset": "{dataset}", "language": "en",
        "all_classes": ["Anna", "Bert"], "_id": "1"}}"#
    )
    .replace('\n', " ")
}

#[test]
fn data_sets_of_longbench_have_their_scores_and_lengths() {
    for (dataset, answer, tokens, said, score) in [
        ("hotpotqa", "Anna", 32, "It was Anna", 0.5),
        ("qasper_e", "Anna", 128, "Anna", 1.0),
        ("gov_report", "Anna found it.", 512, "Anna found it", 1.0),
        ("samsum", "Anna found it.", 128, "\nAnna found it\nDialogue: more", 1.0),
        ("trec", "Anna", 64, "Anna\nBert", 1.0),
        ("passage_count", "5", 32, "5 or 6", 0.5),
        ("passage_retrieval_en", "Paragraph 5", 32, "5", 1.0),
        ("lcc", "Anna", 64, "Anna", 1.0),
    ] {
        let question = prompts(&longbench(dataset, answer), None, 2048).unwrap().remove(0);
        assert_eq!(question.max_tokens, tokens, "{dataset}");
        let found = question.grade.parts(said, &question.expected)[0];
        assert!((found - score).abs() < 1e-6, "{dataset}: {found}");
    }
}

#[test]
fn a_list_of_questions_is_read_like_lines() {
    let one = longbench("hotpotqa", "Anna");
    for list in [
        format!("[{one}, {one}]"),
        format!("\u{feff}[\n  {one},\n  {one}\n]\n"),
        format!("[{},{one}]", one.replace(", ", ",\r\n")),
    ] {
        let questions = prompts(&list, None, 2048).unwrap();
        assert_eq!(questions.iter().map(|q| q.id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(prompts(&list, Some(1), 2048).unwrap().len(), 1);
    }
    let broken = format!("[{one},\n{one}\n{one}]");
    assert_eq!(prompts(&broken, Some(2), 2048).unwrap().len(), 2, "not read so far");
    for (text, parts) in [
        (broken, ["q.json:3: ", "a comma should follow"]),
        (format!("[{one},\n{}]", one.replace("input", "topic")), ["q.json:2: ", "\"topic\""]),
        (format!("[\n{one},\n"), ["q.json:3: ", "not the end"]),
        ("[]".into(), ["q.json:1: ", "a question should follow"]),
        ("[1]".into(), ["q.json:1: ", "question 1 of the list is no question but a number"]),
        (format!("{one}\n{{\"a\"\n"), ["q.json:2: ", "ends within a question"]),
        (one.replace("{", "{\"data\": 1, "), ["q.json:1: ", "not known, \"data\""]),
        (format!("{one}, {one}"), ["q.json:1: ", "is no question: trailing"]),
        (one.replace("20", "1e999"), ["q.json:1: ", "out of range"]),
        (one.replace("hotpotqa", "hotpot"), ["q.json:1: ", "\"hotpot\" is not known"]),
    ] {
        let error = prompts(&text, None, 2048).map(drop).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    // A number that nobody reads may be as large as it likes.
    prompts(&one.replace("20", "99999999999999999999999"), None, 2048).unwrap();
}

#[test]
fn choices_of_longbench_v2_are_asked_for_their_letter() {
    let line = r#"{"_id": "6", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "question": "Who?", "choice_A": "Anna", "choice_B": "Bert", "choice_C": "Carl", "choice_D": "Dora", "answer": "A", "context": "Anna came."}"#;
    let question = prompts(line, None, 2048).unwrap().remove(0);
    assert!(question.text.contains("(B) Bert\n") && question.text.ends_with("answer is ("));
    for (said, score) in [("A)", 1.0), ("B) not A", 0.0), ("", 0.0)] {
        assert_eq!(question.grade.parts(said, &question.expected), [score], "{said}");
    }
    assert!(matches!(question.grade, Grade::LongBench { first_line: false, .. }));
}

#[test]
fn a_short_context_shortens_the_answer() {
    let line = longbench("gov_report", "Anna");
    for (context, tokens) in [(512, 256), (1024, 512), (4096, 512)] {
        let question = prompts(&line, None, context).unwrap().remove(0);
        assert_eq!(question.max_tokens, tokens);
        assert!(question.ids.len() + tokens <= context);
    }
    assert!(prompts(&line, None, 16).unwrap_err().contains("too short"));
}
