//! What a spec says, and what is said of a wrong one.

use super::Place;
use kvfold::eval::ablate::{ModelFiles, Planned, Spec, grid};
use std::collections::HashSet;

/// A spec with the place's model and text.
fn text(place: &Place, more: &str) -> String {
    let (model, text) = (place.path("model.gguf"), place.path("text.txt"));
    format!(
        "models = [{model:?}]\nkv = [\"f16\", \"kivi4\", \"kivi2\"]\n{more}\n\n[[task]]\n\
         task = \"perplexity\"\nfile = {text:?}\ncontext = 64\n"
    )
}

fn load(place: &Place, text: &str) -> Result<Spec, String> {
    Spec::load(place.write("spec.toml", text)).map_err(|error| error.to_string())
}

fn cells(place: &Place, text: &str) -> Vec<Planned> {
    let spec = load(place, text).unwrap();
    let files: ModelFiles = spec.models.iter().map(|model| (model.clone(), model.into())).collect();
    grid(&spec, &files).unwrap()
}

fn keys(cells: &[Planned]) -> Vec<&str> {
    cells.iter().map(|planned| planned.key.as_str()).collect()
}

#[test]
fn what_is_left_out_has_defaults() {
    let place = Place::new();
    let spec = load(&place, &text(&place, "")).unwrap();
    assert_eq!((spec.name.as_str(), spec.policy.as_slice()), ("spec", &["none".to_owned()][..]));
    assert_eq!((spec.sinks, spec.hot_window, spec.seed), (vec![4], vec![128], vec![0]));
    assert_eq!((spec.chunk, spec.device.to_string()), (512, "auto".into()));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ablate.toml");
    let example = Spec::load(example).unwrap();
    assert!(example.tasks.len() > 1 && example.kv.len() > 2);
}

#[test]
fn the_grid_is_in_order_and_has_each_cell_once() {
    let place = Place::new();
    let more = "sinks = [0, 4]\nhot_window = [64, 128, 64]\nseed = [0, 1]";
    let niah = "\n[[task]]\ntask = \"niah\"\nlengths = [256]\n";
    let cells = cells(&place, &(text(&place, more) + niah));
    // f16 never seals, so once; the perplexity of a text knows no seeds.
    let settings = 1 + 2 * 2 * 2;
    assert_eq!(cells.len(), settings + 2 * settings);
    assert_eq!(keys(&cells).into_iter().collect::<HashSet<_>>().len(), cells.len());
    let shown: Vec<String> = cells.iter().map(|planned| planned.cell.to_string()).collect();
    assert_eq!(shown[0], "perplexity f16 seed 0");
    assert_eq!(shown[1], "perplexity kivi4 sinks 0 seed 0");
    assert!(shown[settings].ends_with("f16 seed 0") && shown[2 * settings].ends_with("f16 seed 1"));
    let windows: Vec<_> = cells[1..5].iter().map(|planned| planned.cell.hot_window).collect();
    assert_eq!(windows, [Some(64), Some(128), Some(64), Some(128)]);
    assert_eq!(cells[0].cell.sinks, None);
}

#[test]
fn keys_follow_content() {
    let place = Place::new();
    let before = cells(&place, &text(&place, ""));
    // Names and order do not count, nor does a default that is spelled out.
    let moved = Place::new();
    let other = text(&moved, "name = \"x\"\nsinks = [4]\npolicy = [\"none\"]");
    let other = other.replace("\"f16\", \"kivi4\", \"kivi2\"", "\"kivi2\", \"f16\", \"kivi4\"");
    let after = cells(&moved, &other);
    let set = |cells: &[Planned]| -> HashSet<String> {
        keys(cells).into_iter().map(str::to_owned).collect()
    };
    assert_eq!(set(&before), set(&after));
    // Everything else does.
    let changes: [&dyn Fn() -> Vec<Planned>; 5] = [
        &|| cells(&place, &text(&place, "sinks = [8]").replace("\"f16\", ", "")),
        &|| cells(&place, &text(&place, "device = \"cpu\"")),
        &|| cells(&place, &text(&place, "").replace("context = 64", "context = 65")),
        &|| {
            moved.write("text.txt", "Another text altogether. ".repeat(40));
            cells(&moved, &text(&moved, ""))
        },
        &|| {
            place.write("model.gguf", "other weights");
            cells(&place, &text(&place, ""))
        },
    ];
    for (index, change) in changes.iter().enumerate() {
        let changed = set(&change());
        assert!(changed.is_disjoint(&set(&before)), "{index}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let place = Place::new();
    let good = text(&place, "");
    let replaced = |from: &str, to: &str| good.replace(from, to);
    let niah = |option: &str| good.clone() + "\n[[task]]\ntask = \"niah\"\n" + option + "\n";
    for (text, parts) in [
        (replaced("kv = [", "kv = [["), vec!["line 5, column 1: kv: missing comma"]),
        (replaced("kv = ", "kw = "), vec!["line 2, column 1: kw: unknown field `kw`"]),
        (replaced("\"kivi2\"", "\"q4_0\""), vec!["line 2, column 23: kv: unknown format \"q4_0\""]),
        (replaced("\"f16\", \"kivi4\", \"kivi2\"", ""), vec!["line 2, column 6: kv: ", "is empty"]),
        (replaced("\"kivi2\"", "2"), vec!["line 2, column 23: kv: invalid type: integer"]),
        (
            text(&place, "policy = [\"h2o\"]"),
            vec!["line 3, column 11: policy", "policy \"h2o\" is not known; known: none"],
        ),
        (text(&place, "budget = [512]"), vec!["line 3, column 11: budget: ", "leave it out"]),
        (text(&place, "sinks = [4, 65]"), vec!["line 3, column 13: sinks: 65 is more than 64"]),
        (text(&place, "hot_window = [100]"), vec!["line 3, column 15: hot_window: 100 is not"]),
        (text(&place, "seed = [-1]"), vec!["line 3, column 9: seed: "]),
        (text(&place, "chunk = 0"), vec!["line 3, column 9: chunk: 0 is not between"]),
        (text(&place, "device = \"tpu\""), vec!["line 3, column 10: device: ", "tpu"]),
        (text(&place, "weights = \"q2\""), vec!["line 3, column 11: weights: \"q2\" is not known"]),
        (replaced("model.gguf", "absent.gguf"), vec!["line 1, column 11: models: ", "absent.gguf"]),
        (
            replaced("\"perplexity\"", "\"poetry\""),
            vec!["line 6, column 1: task[0].task: ", "poetry"],
        ),
        (replaced("text.txt", "absent.txt"), vec!["line 5, column 1", "absent.txt: "]),
        (
            replaced("context = 64", "kontext = 64"),
            vec!["line 8, column 1", "unknown field `kontext`"],
        ),
        (replaced("context = 64", "context = \"64\""), vec!["line 8, column 1: task[0].context: "]),
        (niah("depths = [50, 101]"), vec!["line 12, column 1", "depths: 101 is more than 100"]),
        (niah("lengths = []"), vec!["line 12, column 1", "lengths: the list is empty"]),
        (niah("haystack = 5"), vec!["line 12, column 1: task[1].haystack: invalid type"]),
        ("kv = [\"f16\"]\n".into(), vec!["line 1, column 1: ", "missing field `models`"]),
        (good.split("\n[[task]]").next().unwrap().into(), vec!["missing field `task`"]),
        (String::new(), vec!["line 1, column 1: missing field"]),
    ] {
        let error = load(&place, &text).expect_err(&text);
        assert!(error.contains("spec.toml: line ") && !error.contains('\n'), "{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }
    let path = place.write("spec.toml", b"kv = [\n\"\xff\"]");
    let error = Spec::load(path).unwrap_err().to_string();
    assert!(error.contains("spec.toml: line 2: not UTF-8"), "{error}");
    let error = Spec::load(place.path("absent.toml")).unwrap_err().to_string();
    assert!(error.contains("absent.toml: ") && error.contains("No such file"), "{error}");
}
