//! Which files of a repository make a model: of the hub's list, and of what lies in a
//! folder alike. Names go in, names come out.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat;

use super::quant;

/// The files of a model, by their paths in the repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A GGUF file, or all its parts in order.
    Gguf(Vec<String>),
    /// A folder of transformers: all but the weights, and where those are named.
    Folder {
        /// Configuration and tokenizer; `config.json` comes last.
        files: Vec<String>,
        /// What the weights are in.
        weights: Weights,
    },
}

/// The weights of a folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// [`SINGLE`].
    Single,
    /// The shards that [`INDEX`] names.
    Index,
}

/// The file that all weights are in.
pub(super) const SINGLE: &str = "model.safetensors";
/// The file that names the shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The file that makes a folder a model.
pub(super) const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// What is taken besides, where it is there. Not `tokenizer.model`, `*.bin`, `*.pt`,
/// `original/`, `consolidated.*`, `onnx/`: other forms of the same.
const BESIDES: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// One GGUF model of a repository.
pub(super) struct Group {
    /// Its files that are there, in order.
    pub(super) parts: Vec<String>,
    /// What lacks, if a part does.
    pub(super) missing: Option<String>,
    /// Its quantization, if its name has one.
    pub(super) quant: Option<String>,
}

/// Chooses among `names`; `selection` is a file or a quantization.
///
/// With nothing selected, safetensors come before GGUF files, since a repository with both
/// holds the original weights; of GGUF files see [`quant::rank`].
///
/// # Errors
/// One line that says what is not there and what is.
pub(super) fn choose(names: &[&str], selection: Option<&str>) -> Result<Choice, String> {
    let groups = groups(names);
    let group = match selection.filter(|text| !text.eq_ignore_ascii_case("latest")) {
        None => match folder(names) {
            Ok(choice) => return Ok(choice),
            Err(reason) if groups.is_empty() => return Err(reason),
            Err(_) => by_default(&groups)?,
        },
        Some(_) if groups.is_empty() => {
            return Err("it has no GGUF files to choose from; leave out what follows \":\"".into());
        }
        Some(file) if file.to_ascii_lowercase().ends_with(".gguf") => by_file(&groups, file)?,
        Some(tag) => by_quant(&groups, tag)?,
    };
    if let Some(missing) = &group.missing {
        return Err(format!("{missing} is missing"));
    }
    match &group.quant {
        Some(quant) if !quant::is_supported(quant) => Err(format!(
            "weights of type {quant} are not supported{}",
            instead(&groups, |group| group.quant.as_deref().is_none_or(quant::is_supported))
        )),
        _ => Ok(Choice::Gguf(group.parts.clone())),
    }
}

/// The shards that an index names, sorted.
pub(super) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let json: serde_json::Value =
        serde_json::from_slice(index).map_err(|e| format!("{INDEX} is not JSON: {e}"))?;
    let map = json["weight_map"].as_object().ok_or(format!("{INDEX} has no weight_map"))?;
    let mut names = Vec::new();
    for value in map.values() {
        match value.as_str() {
            Some(name) if name.ends_with(".safetensors") && !name.contains(['/', '\\']) => {
                names.push(name.to_owned());
            }
            _ => return Err(format!("{INDEX} names a shard that cannot be one: {value}")),
        }
    }
    names.sort();
    names.dedup();
    if names.is_empty() { Err(format!("{INDEX} names no shards")) } else { Ok(names) }
}

/// The GGUF models among `names`, best first.
pub(super) fn groups(names: &[&str]) -> Vec<Group> {
    let names: BTreeSet<&str> = names.iter().copied().filter(|name| is_model(name)).collect();
    let mut groups = Vec::new();
    // The numbers of parts that are there, in order, by what they are parts of.
    let mut parted: BTreeMap<(&str, u32), Vec<u32>> = BTreeMap::new();
    for name in names {
        let stem = name.get(..name.len() - 5).unwrap_or(name);
        match quant::part_of(stem) {
            Some((base, number, count)) => parted.entry((base, count)).or_default().push(number),
            None => groups.push(Group {
                parts: vec![name.to_owned()],
                missing: None,
                quant: quant::of_file(name),
            }),
        }
    }
    for ((base, count), there) in parted {
        let part = |number: u32| format!("{base}-{number:05}-of-{count:05}.gguf");
        let missing = (1..=count).zip(there.iter().map(Some).chain(repeat(None)));
        let missing = missing.into_iter().find(|(number, there)| Some(number) != *there);
        groups.push(Group {
            quant: quant::of_file(&part(1)),
            missing: missing.map(|(number, _)| part(number)),
            parts: there.into_iter().map(part).collect(),
        });
    }
    groups.sort_by_key(|group| quant::rank(group.quant.as_deref()));
    groups
}

/// Not the picture tower of a model and not the statistics for quantizing it.
fn is_model(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let file = lower.rsplit('/').next().unwrap_or_default();
    file.ends_with(".gguf") && !file.contains("mmproj") && !file.contains("imatrix")
}

fn folder(names: &[&str]) -> Result<Choice, String> {
    let has = |name: &str| names.contains(&name);
    let ends = |suffixes: &[&str]| {
        names.iter().any(|name| suffixes.iter().any(|suffix| name.ends_with(suffix)))
    };
    let weights = match (has(SINGLE), has(INDEX)) {
        (true, _) => Weights::Single,
        (false, true) => Weights::Index,
        (false, false) if has("adapter_config.json") => {
            return Err("it is an adapter (LoRA), not a whole model".into());
        }
        (false, false) if has("model_index.json") => {
            return Err("it is a pipeline for pictures, not a language model".into());
        }
        (false, false) if ends(&[".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack"]) => {
            return Err("it has weights in other formats only; kvfold reads GGUF and \
                 safetensors: look for a repository with those"
                .into());
        }
        (false, false) => return Err("it has neither GGUF nor safetensors files".into()),
    };
    if let Some(missing) = [CONFIG, TOKENIZER].into_iter().find(|name| !has(name)) {
        return Err(format!("it has safetensors, but no {missing}, which kvfold needs"));
    }
    let mut files: Vec<String> =
        BESIDES.into_iter().filter(|name| has(name)).map(str::to_owned).collect();
    files.extend([TOKENIZER.to_owned(), CONFIG.to_owned()]);
    Ok(Choice::Folder { files, weights })
}

fn by_default(groups: &[Group]) -> Result<&Group, String> {
    // One that lacks a part is taken only if nothing else is there.
    let whole = groups.iter().filter(|group| group.missing.is_none());
    let Some(best) = whole.clone().next().or(groups.first()) else {
        return Err("it has no GGUF files".into());
    };
    let equals = whole.filter(|group| group.quant == best.quant);
    one_of(equals.collect(), best, "several files would do")
}

fn by_file<'a>(groups: &'a [Group], file: &str) -> Result<&'a Group, String> {
    let named = |group: &&Group| group.parts.iter().any(|part| part == file);
    if let Some(group) = groups.iter().find(named) {
        return Ok(group);
    }
    // By its name alone, where that is enough.
    let last = |part: &String| part.rsplit('/').next().is_some_and(|name| name == file);
    let found: Vec<&Group> = groups.iter().filter(|group| group.parts.iter().any(last)).collect();
    match found.first() {
        Some(first) => one_of(found.clone(), first, "several folders have it"),
        None => Err(format!("it has no {file}{}", instead(groups, |_| true))),
    }
}

fn by_quant<'a>(groups: &'a [Group], tag: &str) -> Result<&'a Group, String> {
    let tag = tag.to_ascii_uppercase();
    let exact = |group: &&Group| group.quant.as_deref() == Some(tag.as_str());
    // `UD-Q4_K_XL` and the like: more of the name than the quantization.
    let ends = |group: &&Group| {
        let stem = quant::stem(&group.parts[0]).to_ascii_uppercase();
        let rest = stem.strip_suffix(tag.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_']))
    };
    let mut found: Vec<&Group> = groups.iter().filter(exact).collect();
    if found.is_empty() {
        found = groups.iter().filter(ends).collect();
    }
    match found.first() {
        Some(first) => one_of(found.clone(), first, &format!("several files are {tag}")),
        None => Err(format!("it has no {tag}{}", instead(groups, |_| true))),
    }
}

/// `best`, if the others are in folders below it or there are none.
fn one_of<'a>(found: Vec<&'a Group>, best: &'a Group, why: &str) -> Result<&'a Group, String> {
    let depth = |group: &Group| group.parts[0].matches('/').count();
    let least = found.iter().map(|group| depth(group)).min().unwrap_or(0);
    let mut top = found.iter().copied().filter(|group| depth(group) == least);
    match (top.next(), top.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Ok(best),
        _ => Err(format!("{why}: give one as \":FILE\"; {}", list(found.iter().copied()))),
    }
}

/// "; it has …", or nothing.
fn instead(groups: &[Group], fits: impl Fn(&Group) -> bool) -> String {
    let list = list(groups.iter().filter(|group| fits(group)));
    if list.is_empty() { String::new() } else { format!("; {list}") }
}

fn list<'a>(groups: impl Iterator<Item = &'a Group>) -> String {
    const SHOWN: usize = 12;
    let names: Vec<String> = groups
        .take(SHOWN + 1)
        .map(|group| match &group.quant {
            Some(quant) => format!("{quant} ({})", group.parts[0]),
            None => group.parts[0].clone(),
        })
        .collect();
    match names.len() {
        0 => String::new(),
        n if n > SHOWN => format!("it has {} and more", names[..SHOWN].join(", ")),
        _ => format!("it has {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: [&str; 8] = [
        ".gitattributes",
        "README.md",
        "config.json",
        "qwen-Q8_0.gguf",
        "qwen-Q4_K_M.gguf",
        "qwen-IQ4_XS.gguf",
        "mmproj-qwen-F16.gguf",
        "qwen-BF16-00001-of-00002.gguf",
    ];

    fn gguf(names: &[&str], selection: Option<&str>) -> Vec<String> {
        match choose(names, selection) {
            Ok(Choice::Gguf(parts)) => parts,
            other => panic!("{selection:?}: {other:?}"),
        }
    }

    #[track_caller]
    fn refused(names: &[&str], selection: Option<&str>, parts: &[&str]) {
        let reason = choose(names, selection).unwrap_err();
        assert!(!reason.contains('\n'));
        for part in parts {
            assert!(reason.contains(part), "no {part:?} in {reason}");
        }
    }

    #[test]
    fn a_quantization_is_chosen_as_llama_cpp_would() {
        for (selection, expected) in [
            (None, "qwen-Q4_K_M.gguf"),
            (Some("latest"), "qwen-Q4_K_M.gguf"),
            (Some("q8_0"), "qwen-Q8_0.gguf"),
            (Some("qwen-Q8_0.gguf"), "qwen-Q8_0.gguf"),
        ] {
            assert_eq!(gguf(&QWEN, selection), [expected]);
        }
        assert_eq!(gguf(&["m-F16.gguf", "m-Q8_0.gguf", "m-Q2_K.gguf"], None), ["m-Q8_0.gguf"]);
        assert_eq!(gguf(&["ggml-model.gguf"], None), ["ggml-model.gguf"]);
        assert_eq!(gguf(&["a/m-Q4_0.gguf", "m-Q4_0.gguf"], None), ["m-Q4_0.gguf"]);
        assert_eq!(gguf(&["a/m-Q4_0.gguf"], Some("m-Q4_0.gguf")), ["a/m-Q4_0.gguf"]);
        let unsloth = ["x-UD-Q4_K_XL.gguf", "x-Q4_K_S.gguf"];
        assert_eq!(gguf(&unsloth, Some("UD-Q4_K_XL")), ["x-UD-Q4_K_XL.gguf"]);
        assert_eq!(gguf(&unsloth, Some("Q4_K_XL")), ["x-UD-Q4_K_XL.gguf"]);
        // By the whole word: Q4_0 is not the end of IQ4_0.
        refused(&["m-IQ4_0.gguf"], Some("Q4_0"), &["no Q4_0", "IQ4_0"]);
        refused(&QWEN, Some("Q3_K_M"), &["no Q3_K_M", "Q4_K_M (qwen-Q4_K_M.gguf)", "Q8_0"]);
        refused(&QWEN, Some("other.gguf"), &["no other.gguf"]);
        refused(&QWEN, Some("iq4_xs"), &["IQ4_XS are not supported; it has", "Q8_0"]);
        refused(&["m-IQ2_XS.gguf"], None, &["IQ2_XS are not supported"]);
        refused(&["a-Q4_0.gguf", "b-Q4_0.gguf"], None, &["several", "a-Q4_0.gguf", "b-Q4_0.gguf"]);
        refused(&["mmproj-F16.gguf"], None, &["neither GGUF nor safetensors"]);
    }

    #[test]
    fn all_parts_are_taken_or_none() {
        let (one, two) = ("B/m-BF16-00001-of-00002.gguf", "B/m-BF16-00002-of-00002.gguf");
        for selection in [None, Some("bf16"), Some(one), Some(two)] {
            assert_eq!(gguf(&[two, one], selection), [one, two]);
        }
        refused(&[two], None, &["m-BF16-00001-of-00002.gguf is missing"]);
        refused(&QWEN, Some("BF16"), &["00002-of-00002.gguf is missing"]);
        // What is whole comes before what is better and lacks a part.
        assert_eq!(gguf(&["m-Q4_K_M-00001-of-00002.gguf", "m-F32.gguf"], None), ["m-F32.gguf"]);
        refused(&["m-00001-of-99999.gguf"], None, &["00002-of-99999.gguf is missing"]);
        // Neither a list that repeats itself nor one made to be long does harm.
        assert_eq!(gguf(&[one, two, one, two], None), [one, two]);
        let many: Vec<String> = (1..20_000).map(|i| format!("m{i}-{i:05}-of-99999.gguf")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        refused(&many, None, &["-of-99999.gguf is missing"]);
    }

    #[test]
    fn a_folder_is_config_tokenizer_and_safetensors() {
        let whole = [
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "chat_template.jinja",
            "model.safetensors",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "consolidated.safetensors",
            "m-Q4_0.gguf",
        ];
        let Ok(Choice::Folder { files, weights }) = choose(&whole, None) else { panic!() };
        let expected =
            ["tokenizer_config.json", "chat_template.jinja", "tokenizer.json", "config.json"];
        assert_eq!((files.as_slice(), weights), (&expected.map(String::from)[..], Weights::Single));
        assert_eq!(gguf(&whole, Some("Q4_0")), ["m-Q4_0.gguf"]);
        refused(&whole[..10], Some("Q4_0"), &["no GGUF files"]);
        refused(&["model.safetensors", "tokenizer.json"], None, &["no config.json"]);
        refused(
            &["model.safetensors", "config.json", "tokenizer.model"],
            None,
            &["tokenizer.json"],
        );
        refused(&["config.json", "pytorch_model.bin"], None, &["other formats"]);
        refused(&["adapter_config.json", "adapter_model.safetensors"], None, &["adapter"]);
        refused(&["model_index.json", "unet/x.safetensors"], None, &["pictures"]);
        refused(&[], None, &["neither"]);
    }

    #[test]
    fn an_index_names_shards_that_are_files_of_the_folder() {
        let read = |text: &str| shards(text.as_bytes());
        let two =
            r#"{"weight_map": {"a": "y.safetensors", "b": "x.safetensors", "c": "y.safetensors"}}"#;
        assert_eq!(read(two).unwrap(), ["x.safetensors", "y.safetensors"]);
        for bad in [
            "",
            "{}",
            r#"{"weight_map": {}}"#,
            r#"{"weight_map": {"a": 1}}"#,
            r#"{"weight_map": {"a": "../x.safetensors"}}"#,
            r#"{"weight_map": {"a": "pytorch_model.bin"}}"#,
        ] {
            assert!(read(bad).unwrap_err().contains(INDEX), "{bad}");
        }
    }
}
