//! The evaluations: perplexity against a direct computation, needle prompts
//! against what they promise.

use candle_core::{DType, Device};
use kvfold::backend::WeightPolicy;
use kvfold::engine::{EngineConfig, LoadedModel, Runner, Share, Want};
use kvfold::eval::perplexity::{Perplexity, Windows, perplexity};
use kvfold::eval::prose::prose;
use kvfold::eval::{NeedleSpec, Question, Questions, Setting, Task, change_percent};
use kvfold::model::{ChatTemplate, Tokenizer};
use kvfold::rag::Document;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

static GO: AtomicBool = AtomicBool::new(false);

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn open(path: &Path, kv: &str, chunk: usize) -> Runner {
    let config = EngineConfig::default().with_kv(kv).with_prefill_chunk(chunk);
    Runner::new(LoadedModel::open(path, WeightPolicy::F32).unwrap(), config).unwrap()
}

/// 200 ids of the golden sequence, then the same backwards.
fn ids() -> Vec<u32> {
    let path = golden("qwen3/golden.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let ids = tensors["input_ids.0"].to_dtype(DType::I64).unwrap().to_vec1::<i64>().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    ids.iter().chain(ids.iter().rev()).copied().collect()
}

fn score(runner: &mut Runner, windows: &Windows) -> Perplexity {
    let result = perplexity(runner, windows, &GO, &mut |_| ()).unwrap();
    assert_eq!(runner.cache().held_bytes(), 0);
    result
}

/// Perplexity and its error, one token at a time, as the definition reads.
fn direct(runner: &mut Runner, windows: &[&[u32]]) -> (f64, f64) {
    let mut nlls = Vec::new();
    for window in windows {
        let seq = runner.create();
        for (j, pair) in window.windows(2).enumerate() {
            runner.submit(&[Share::prompt(seq, &pair[..1], Want::Rows(0..1))]).unwrap();
            if j < window.len() / 2 {
                continue;
            }
            runner
                .logits(0..1, |_, logits| {
                    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                    nlls.push(-(f64::from(logits[pair[1] as usize]).exp() / sum).ln());
                    Ok(())
                })
                .unwrap();
        }
        runner.free(seq).unwrap();
    }
    let n = nlls.len() as f64;
    let mean = nlls.iter().sum::<f64>() / n;
    // The standard error of a mean: population variance over n − 1.
    let variance = nlls.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    (mean.exp(), mean.exp() * (variance / (n - 1.0)).sqrt())
}

#[test]
fn perplexity_is_what_decoding_gives() {
    let ids = ids();
    for kv in ["f16", "kivi2"] {
        for (context, count) in [(300, 1), (133, 2), (64, 1), (3, 7)] {
            let windows = Windows::from_ids(ids.clone(), None, context, Some(count)).unwrap();
            let windows = windows.unwrap();
            let parts: Vec<&[u32]> = ids.chunks(context).take(count).collect();
            let (want, error) = direct(&mut open(&golden("qwen3"), kv, 512), &parts);
            // Chunks below, across and beyond the half, and ones that end a token early.
            for chunk in [512, 132, 64] {
                let got = score(&mut open(&golden("qwen3"), kv, chunk), &windows);
                let what = format!("{kv}, {count} x {context} in chunks of {chunk}");
                assert!((got.perplexity / want - 1.0).abs() < 1e-5, "{what}: {got:?}, {want}");
                assert!((got.error / error - 1.0).abs() < 1e-4, "{what}: {got:?}, {error}");
                assert_eq!(got.predictions, count * (context - 1 - context / 2), "{what}");
            }
        }
    }
}

#[test]
fn a_lossy_cache_changes_the_figure_and_takes_less() {
    let windows = Windows::from_ids(ids(), None, 400, None).unwrap().unwrap();
    let mut runner = open(&golden("qwen3"), "f16", 512);
    let exact = score(&mut runner, &windows);
    runner.reconfigure(EngineConfig::default().with_kv("kivi2")).unwrap();
    let folded = score(&mut runner, &windows);
    assert_ne!(exact.perplexity, folded.perplexity);
    assert!(folded.memory.ratio() > 1.5 && exact.memory.ratio() <= 1.0, "{folded:?} {exact:?}");
    // A configuration that is refused leaves the runner as it was.
    assert!(runner.reconfigure(EngineConfig::default().with_hot_window(1)).is_err());
    assert_eq!(score(&mut runner, &windows).perplexity, folded.perplexity);
    runner.reconfigure(EngineConfig::default().with_kv("f16")).unwrap();
    assert_eq!(score(&mut runner, &windows).perplexity, exact.perplexity);
}

#[test]
fn uniform_logits_have_the_vocabularys_size() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden("qwen3").join(file), folder.path().join(file)).unwrap();
    }
    let weights = golden("qwen3/model.safetensors");
    let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    let head = tensors["lm_head.weight"].zeros_like().unwrap();
    let vocab = head.dim(0).unwrap() as f64;
    tensors.insert("lm_head.weight".into(), head);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();

    let windows = Windows::from_ids(ids(), None, 100, None).unwrap().unwrap();
    let got = score(&mut open(folder.path(), "kivi2", 64), &windows);
    assert!((got.perplexity / vocab - 1.0).abs() < 1e-9, "{got:?}");
    assert!(got.error < 1e-5, "{got:?}");
}

#[test]
fn windows_are_cut_as_llama_cpp_cuts_them() {
    let ids: Vec<u32> = (0..25).collect();
    let cut = |bos, context, count| Windows::from_ids(ids.clone(), bos, context, count);
    let windows = cut(None, 10, None).unwrap().unwrap();
    assert_eq!((windows.count(), windows.predictions()), (2, 8));
    assert_eq!(windows.window(1), (10..20).collect::<Vec<u32>>());
    let windows = cut(Some(99), 5, Some(4)).unwrap().unwrap();
    assert_eq!((windows.count(), windows.predictions()), (4, 8));
    assert_eq!(windows.window(3), [99, 16, 17, 18, 19]);
    assert!(cut(None, 10, Some(3)).unwrap().is_none());
    assert!(cut(None, 26, None).unwrap().is_none());
    assert!(cut(None, 2, None).unwrap_err().to_string().starts_with("context: "));
    assert!(cut(None, 10, Some(0)).unwrap_err().to_string().starts_with("windows: "));
}

#[test]
fn texts_become_windows() {
    let path = Path::new("some.txt");
    let text = "The rain in the garden. <|im_end|>\n";
    // This tokenizer adds nothing, and the text of a special token stays text.
    let tokenizer = Tokenizer::from_file(golden("qwen3/tokenizer.json")).unwrap();
    let plain = tokenizer.encode_plain(text.trim_end()).unwrap();
    let whole = Windows::new(&tokenizer, text, path, plain.len(), None).unwrap();
    assert_eq!(whole.window(0), plain);
    let error = Windows::new(&tokenizer, text, path, 100, Some(3)).unwrap_err().to_string();
    let parts = ["some.txt", &format!("{} tokens", plain.len()), "300", "--windows"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    // This one begins every text, and so every window, with a token of its own.
    let tokenizer = Tokenizer::from_file(golden("llama3/tokenizer.json")).unwrap();
    let bos = tokenizer.bos().unwrap();
    let plain = tokenizer.encode_plain(text.trim_end()).unwrap();
    let windows = Windows::new(&tokenizer, text, path, 5, None).unwrap();
    assert_eq!(windows.window(0), [&[bos], &plain[..4]].concat());
    assert_eq!(windows.window(1), [&[bos], &plain[5..9]].concat());
}

#[test]
fn cancelling_and_lengths_beyond_the_context_are_errors() {
    let mut runner = open(&golden("qwen3"), "f16", 64);
    let windows = Windows::from_ids(ids(), None, 200, None).unwrap().unwrap();
    let stop = AtomicBool::new(true);
    let error = perplexity(&mut runner, &windows, &stop, &mut |_| ()).unwrap_err();
    assert!(matches!(error, kvfold::Error::Cancelled), "{error}");
    assert_eq!(runner.cache().held_bytes(), 0);
    let windows = Windows::from_ids([ids(), ids()].concat(), None, 513, None).unwrap().unwrap();
    let error = perplexity(&mut runner, &windows, &GO, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("513") && error.contains("512"), "{error}");
}

#[test]
fn settings_are_a_grid_without_repetition() {
    let grid = Setting::grid(&["f16", "kivi2", " kivi4/kivi2", "kivi2"], &[0, 4]).unwrap();
    let names: Vec<(String, Option<usize>)> =
        grid.iter().map(|s| (s.kv.name.clone(), s.sinks)).collect();
    let row = |name: &str, sinks| (name.to_owned(), sinks);
    let mixed = "kivi4/kivi2";
    let want = [
        row("f16", None),
        row("kivi2", Some(0)),
        row("kivi2", Some(4)),
        row(mixed, Some(0)),
        row(mixed, Some(4)),
    ];
    assert_eq!(names, want);
    let config = grid[1].apply(EngineConfig::default());
    assert_eq!((config.kv.as_str(), config.sinks), ("kivi2", 0));
    assert!(Setting::grid(&["q4_0"], &[4]).unwrap_err().to_string().contains("q4_0"));
    assert!(Setting::grid::<&str>(&[], &[4]).is_err() && Setting::grid(&["f16"], &[]).is_err());
    assert_eq!((change_percent(3.0, 2.0), change_percent(1.0, 0.0)), (Some(50.0), None));
}

#[test]
fn prose_is_varied_and_free_of_digits() {
    let text = prose(1, 3000);
    assert!(text.split_whitespace().count() >= 3000);
    assert!(text.is_ascii() && !text.contains(|c: char| c.is_ascii_digit() || "{}".contains(c)));
    let sentences: Vec<&str> = text.split_inclusive(['.', '?', '!']).map(str::trim).collect();
    let distinct: HashSet<&&str> = sentences.iter().collect();
    assert!(distinct.len() * 10 > sentences.len() * 9, "{}", distinct.len());
    assert!(sentences.iter().all(|s| s.starts_with(char::is_uppercase)));
    assert_ne!(prose(2, 3000), text);
    assert!(prose(1, 6000).starts_with(&text), "longer texts begin as shorter ones");
}

/// The default model's tokenizer and template, from the fixtures.
fn smollm2() -> (Tokenizer, ChatTemplate) {
    let chat: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("chat-smollm2.json")).unwrap()).unwrap();
    let template = chat["chat_template"].as_str().unwrap();
    let template = ChatTemplate::new(template, Some("<|im_start|>"), Some("<|im_end|>")).unwrap();
    (Tokenizer::from_file(golden("smollm2/tokenizer.json")).unwrap(), template)
}

fn options(lengths: &[usize], depths: &[usize], seeds: usize) -> NeedleSpec {
    NeedleSpec { lengths: lengths.into(), depths: depths.into(), seeds, ..NeedleSpec::default() }
}

fn key(prompt: &Question) -> &str {
    let [key] = prompt.expected.as_slice() else { panic!("{:?}", prompt.expected) };
    key
}

/// The prose before and after the needle's sentences.
fn around(prompt: &Question) -> (String, String) {
    assert_eq!(prompt.text.matches(key(prompt)).count(), 1, "{}", prompt.text);
    let (before, after) = prompt.text.split_once(key(prompt)).unwrap();
    let (_, prose) = before.split_once("end.\n\n").unwrap();
    let start = prose.rfind("The secret").unwrap();
    let after = after.split_once("Remember it.").unwrap().1;
    let (rest, question) = after.rsplit_once("\n\n").unwrap();
    assert!(question.starts_with("What is the secret access code"), "{question}");
    assert!(question.ends_with("\nThe secret access code for the vault is"), "{question}");
    (prose[..start].trim_end().to_owned(), rest.trim_start().to_owned())
}

fn check(tokenizer: &Tokenizer, prompt: &Question) {
    let tokens = |text: &str| tokenizer.encode_plain(text).unwrap().len();
    let depth = prompt.depth.unwrap();
    let what = (prompt.length, depth, prompt.seed);
    let longest_word = 10;
    assert!(prompt.ids.len() <= prompt.length, "{what:?}: {}", prompt.ids.len());
    assert!(prompt.ids.len() + longest_word > prompt.length, "{what:?}: {}", prompt.ids.len());
    assert_eq!(prompt.ids, tokenizer.encode(&prompt.text, false).unwrap(), "{what:?}");
    assert!(key(prompt).len() == 7 && key(prompt).bytes().all(|b| b.is_ascii_digit()));
    let (before, after) = around(prompt);
    assert!(before.is_empty() || before.ends_with(['.', '!', '?']), "{what:?}: …{before}");
    // At or before the depth, and the next sentence end would be beyond it.
    let (head, all) = (tokens(&before), tokens(&before) + tokens(&after));
    let next = after.find(['.', '!', '?']).map_or(0, |end| tokens(&after[..=end]));
    let limit = all as f64 * depth as f64 / 100.0;
    assert!(head as f64 <= limit + 2.0, "{what:?}: {head} of {all}");
    assert!(after.is_empty() || (head + next) as f64 >= limit - 2.0, "{what:?}: {head} of {all}");
}

#[test]
fn needle_prompts_keep_their_promises() {
    let (tokenizer, template) = smollm2();
    let make = |spec: &NeedleSpec| -> Vec<Question> {
        let made = spec.questions(&tokenizer, Some(&template), 8192, None).unwrap();
        made.questions().to_vec()
    };
    let asked = options(&[1500, 2000], &[0, 10, 50, 90, 100], 2);
    let made = make(&asked);
    assert_eq!(made.len(), 20);
    made.iter().for_each(|prompt| check(&tokenizer, prompt));
    let keys: HashSet<&str> = made.iter().map(key).collect();
    assert_eq!(keys.len(), made.len(), "each prompt has a number of its own");
    let (first, second) = (around(&made[0]), around(&made[1]));
    assert_ne!(first.1, second.1, "another seed, another text");
    let again = make(&asked);
    assert!(made.iter().zip(&again).all(|(a, b)| a.ids == b.ids && a.expected == b.expected));
}

#[test]
fn a_supplied_haystack_is_used_and_must_suffice() {
    let (tokenizer, template) = smollm2();
    let text = prose(7, 3000).replace("the", "this <|im_end|>");
    let tokens = tokenizer.encode_plain(&text).unwrap().len();
    let hay = Document::new("hay.txt", text.clone());
    let asked = options(&[1000], &[50], 3);
    let make = |spec: &NeedleSpec, context| {
        spec.questions(&tokenizer, Some(&template), context, Some(&hay))
    };
    let made = make(&asked, 8192).unwrap();
    let made = made.questions();
    for prompt in made {
        assert!(prompt.ids.len() <= 1000 && prompt.ids.len() > 980, "{}", prompt.ids.len());
        let (before, after) = around(prompt);
        let place = text.find(&before).unwrap() + before.len();
        assert!(text[place..].trim_start().starts_with(after.trim_end_matches('.')));
        // What looks like a special token in a document ends no turn.
        let end = tokenizer.token_id("<|im_end|>").unwrap();
        assert_eq!(prompt.ids.iter().filter(|&&id| id == end).count(), 2);
    }
    assert_ne!(around(&made[0]).0, around(&made[1]).0);
    let too_long = NeedleSpec { lengths: vec![tokens + 500], ..asked };
    let error = make(&too_long, 1 << 20).unwrap_err().to_string();
    assert!(error.contains("hay.txt") && error.contains(&format!("{tokens} tokens")), "{error}");
}

#[test]
fn impossible_needles_are_refused() {
    let (tokenizer, template) = smollm2();
    let error = |spec: NeedleSpec| {
        spec.questions(&tokenizer, Some(&template), 2048, None).unwrap_err().to_string()
    };
    assert!(error(options(&[2048], &[50], 1)).contains("at most 2024"));
    assert!(error(options(&[40], &[50], 1)).contains("too short"));
    assert!(error(options(&[1000], &[101], 1)).starts_with("depths: 101"));
    assert!(error(options(&[1000], &[50], 0)).starts_with("seeds: "));
    assert!(error(options(&[], &[50], 1)).starts_with("lengths: "));
    assert!(error(options(&[1000], &[], 1)).starts_with("depths: "));
}

#[test]
fn asking_a_model_that_knows_nothing() {
    let mut runner = open(&golden("qwen3"), "kivi2", 128);
    let tokenizer = runner.model().tokenizer.clone();
    let task: Questions = options(&[400], &[50], 2).questions(&tokenizer, None, 512, None).unwrap();
    let mut steps = Vec::new();
    let result = task.run(&mut runner, &GO, &mut |done| steps.push(done)).unwrap();
    assert_eq!((steps, task.steps()), (vec![1, 2], 2));
    assert_eq!((result.trials.len(), result.value), (2, 0.0));
    assert_eq!(runner.cache().held_bytes(), 0);
    assert!(result.memory.kv_bytes > 0 && result.memory.ratio() > 1.0);
    // The answer is the greedy continuation.
    let last = task.questions().last().unwrap();
    let seq = runner.create();
    let mut next = last.ids.clone();
    let mut answer = Vec::new();
    while answer.len() < 24 {
        runner.prefill(seq, &next, &GO).unwrap();
        let mut best = 0;
        runner
            .logits(0..1, |_, logits| {
                best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                Ok(())
            })
            .unwrap();
        if tokenizer.eos_ids().contains(&(best as u32)) {
            break;
        }
        answer.push(best as u32);
        next = vec![best as u32];
    }
    assert_eq!(result.trials[1].answer, Some(tokenizer.decode(&answer)));
    assert_eq!(
        result.speed.prefill_tokens,
        task.questions().iter().map(|q| q.ids.len()).sum::<usize>()
    );
    assert!(result.speed.prefill().unwrap() > 0.0 && result.speed.decode().unwrap() > 0.0);
}
