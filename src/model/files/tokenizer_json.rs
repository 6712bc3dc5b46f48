//! What must be known about a `tokenizer.json` before the `tokenizers` crate
//! may build it, and how its tokens are spelled.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::complaint::{bad_file, unsupported};
use crate::Result;

/// More ids than any vocabulary has: an absurd id is refused by name.
const MAX_IDS: u64 = 1 << 22;

/// Steps that are known to behave on any input.
const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Strip", "Lowercase"];
const PRE_TOKENIZERS: &[&str] = &[
    "Sequence",
    "ByteLevel",
    "Split",
    "Digits",
    "Metaspace",
    "Whitespace",
    "WhitespaceSplit",
    "Punctuation",
];
const POST_PROCESSORS: &[&str] =
    &["Sequence", "ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"];

/// A token that is matched as text before byte-pair encoding.
#[derive(Debug)]
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) text: String,
    pub(crate) special: bool,
}

/// What the file says beyond what the `tokenizers` crate keeps.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) added: Vec<Added>,
    pub(crate) spelling: Spelling,
    pub(crate) strips_leading_space: bool,
    pub(crate) unknown: Option<u32>,
    /// Tokens that the post-processor puts before and after a text.
    pub(crate) affixes: (Vec<u32>, Vec<u32>),
    /// One more than the largest id.
    pub(crate) ids: usize,
}

/// How bytes are written in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// GPT-2: each byte is one printable character ("Ġ" is a space).
    ByteLevel,
    /// SentencePiece: text with "▁" for a space, and `<0x0A>` for a byte.
    SentencePiece,
}

/// Checks a `tokenizer.json` and makes it canonical: added tokens match the
/// text as it is, and nothing is truncated, padded or dropped.
pub(crate) fn prepare(path: &Path, json: &mut Value) -> Result<Facts> {
    let bad = |what: String| bad_file(path, format!("the tokenizer: {what}"));
    if !json.is_object() {
        return Err(bad("it is not a JSON object".into()));
    }
    for (part, known) in [
        ("normalizer", NORMALIZERS),
        ("pre_tokenizer", PRE_TOKENIZERS),
        ("post_processor", POST_PROCESSORS),
    ] {
        if let Some(other) = unknown_step(&json[part], known) {
            return Err(unsupported(path, format!("the tokenizer's {part} \"{other}\"")));
        }
    }
    let (spelling, strips_leading_space) = read_decoder(path, &json["decoder"])?;
    let model = json["model"].as_object_mut().ok_or_else(|| bad("model is missing".into()))?;
    let (unknown, ids) = check_model(path, model)?;
    let (added, added_ids) = read_added(&mut json["added_tokens"]).map_err(bad)?;
    let mut affixes = (Vec::new(), Vec::new());
    read_affixes(&json["post_processor"], &mut affixes).map_err(bad)?;
    json["post_processor"] = Value::Null;
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json["decoder"] = Value::Null;
    Ok(Facts { added, spelling, strips_leading_space, unknown, affixes, ids: ids.max(added_ids) })
}

/// The first step of a pipeline that is not among the known ones.
fn unknown_step(step: &Value, known: &[&str]) -> Option<String> {
    if step.is_null() {
        return None;
    }
    let kind = step["type"].as_str().unwrap_or("of no type");
    if !known.contains(&kind) {
        return Some(kind.to_owned());
    }
    let lists = ["normalizers", "pretokenizers", "processors"];
    let steps = lists.iter().filter_map(|name| step[*name].as_array()).flatten();
    steps.into_iter().find_map(|step| unknown_step(step, known))
}

fn read_decoder(path: &Path, decoder: &Value) -> Result<(Spelling, bool)> {
    let steps = match decoder["decoders"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(decoder),
    };
    let find = |kind: &str| steps.iter().find(|step| step["type"] == kind);
    if find("ByteLevel").is_some() {
        return Ok((Spelling::ByteLevel, false));
    }
    let strip = find("Strip").is_some_and(|s| s["content"] == " " && s["start"] == 1);
    if let Some(metaspace) = find("Metaspace") {
        let never = metaspace["prepend_scheme"] == "never"
            || metaspace["add_prefix_space"] == Value::Bool(false);
        return Ok((Spelling::SentencePiece, strip || !never));
    }
    if find("ByteFallback").is_some() {
        return Ok((Spelling::SentencePiece, strip));
    }
    let kind = decoder["type"].as_str().unwrap_or("none");
    Err(unsupported(path, format!("the tokenizer's decoder \"{kind}\"")))
}

/// Checks the byte-pair model; gives the unknown token and the number of ids.
/// The `tokenizers` crate trusts that merges join tokens of the vocabulary.
fn check_model(path: &Path, model: &mut Map<String, Value>) -> Result<(Option<u32>, usize)> {
    let bad = |what: String| bad_file(path, format!("the tokenizer: {what}"));
    let field = |name: &str| model.get(name).unwrap_or(&Value::Null);
    // Files from before 2021 have no type.
    let kind = field("type").as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(unsupported(path, format!("the tokenizer model \"{kind}\"")));
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if field(affix).as_str().is_some_and(|s| !s.is_empty()) {
            return Err(unsupported(path, format!("the tokenizer's {affix}")));
        }
    }
    let vocab = field("vocab").as_object().ok_or_else(|| bad("vocab is missing".into()))?;
    let mut ids = 0;
    for (token, id) in vocab {
        let id = id.as_u64().filter(|&id| id < MAX_IDS);
        ids = ids.max(id.ok_or_else(|| bad(format!("\"{token}\" has no valid id")))? + 1);
    }
    let merges = field("merges").as_array().ok_or_else(|| bad("merges are missing".into()))?;
    let mut joined = String::new();
    for (rank, merge) in merges.iter().enumerate() {
        let pair = match (merge.as_str(), merge.as_array().map(Vec::as_slice)) {
            (Some(text), _) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            (_, Some([Value::String(left), Value::String(right)])) => Some((&**left, &**right)),
            _ => None,
        };
        let (left, right) = pair.ok_or_else(|| bad(format!("merge {rank} is not a pair")))?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        for part in [left, right, &joined] {
            if !vocab.contains_key(part) {
                return Err(bad(format!("merge {rank} makes \"{part}\", which has no id")));
            }
        }
    }
    let unknown = match field("unk_token").as_str() {
        None => None,
        Some(token) => match vocab.get(token).and_then(Value::as_u64) {
            Some(id) => Some(id as u32),
            None => return Err(bad(format!("unk_token \"{token}\" has no id"))),
        },
    };
    model.insert("type".into(), "BPE".into());
    model.insert("dropout".into(), Value::Null);
    model.insert("continuing_subword_prefix".into(), Value::Null);
    model.insert("end_of_word_suffix".into(), Value::Null);
    Ok((unknown, ids as usize))
}

/// Reads the added tokens; gives them and the number of ids they need.
fn read_added(list: &mut Value) -> Result<(Vec<Added>, usize), String> {
    let mut added = Vec::new();
    let mut ids = 0;
    if list.is_null() {
        *list = json!([]);
    }
    let list = list.as_array_mut().ok_or("added_tokens is not a list")?;
    for token in list.iter_mut() {
        let text = token["content"].as_str().filter(|text| !text.is_empty());
        let text = text.ok_or("an added token has no content")?.to_owned();
        let id = token["id"].as_u64().filter(|&id| id < MAX_IDS);
        let id = id.ok_or_else(|| format!("added token \"{text}\" has no valid id"))?;
        ids = ids.max(id as usize + 1);
        let special = token["special"].as_bool().unwrap_or(false);
        token["normalized"] = false.into();
        added.push(Added { id: id as u32, text, special });
    }
    // Ids beyond the vocabulary are given in the order of the list.
    list.sort_by_key(|token| token["id"].as_u64());
    Ok((added, ids))
}

/// What a template puts around a single text; steps wrap one another.
fn read_affixes(step: &Value, around: &mut (Vec<u32>, Vec<u32>)) -> Result<(), String> {
    for inner in step["processors"].as_array().into_iter().flatten() {
        read_affixes(inner, around)?;
    }
    let (mut before, mut after, mut passed) = (Vec::new(), Vec::new(), false);
    for piece in step["single"].as_array().into_iter().flatten() {
        let Some(token) = piece.get("SpecialToken") else {
            passed = true;
            continue;
        };
        let name = token["id"].as_str().ok_or("the post-processor names no token")?;
        let ids = step["special_tokens"][name]["ids"].as_array();
        for id in ids.ok_or_else(|| format!("the post-processor's \"{name}\" has no ids"))? {
            let id = id.as_u64().filter(|&id| id < MAX_IDS);
            let id = id.ok_or_else(|| format!("the post-processor's \"{name}\" has no id"))?;
            if passed { &mut after } else { &mut before }.push(id as u32);
        }
    }
    // Of BERT's kind: `[text, id]` of one token before a text and of one behind it.
    for (name, ids) in [("cls", &mut before), ("sep", &mut after)] {
        if step[name].is_null() {
            continue;
        }
        let id = step[name][1].as_u64().filter(|&id| id < MAX_IDS);
        ids.push(id.ok_or_else(|| format!("the post-processor's \"{name}\" has no id"))? as u32);
    }
    before.append(&mut around.0);
    around.1.append(&mut after);
    around.0 = before;
    Ok(())
}

impl Spelling {
    /// The bytes of ids 0 to `ids`: all in one buffer, and where each starts.
    pub(crate) fn table(
        self,
        bpe: &tokenizers::Tokenizer,
        added: &[Added],
        ids: usize,
    ) -> (Vec<u8>, Vec<usize>) {
        let added: HashMap<u32, &Added> = added.iter().map(|t| (t.id, t)).collect();
        let byte_of = gpt2_bytes();
        let mut bytes = Vec::new();
        let mut starts = vec![0];
        for id in 0..ids as u32 {
            if let Some(Added { text, special, .. }) = added.get(&id) {
                // Only ordinary ones are spelled as pieces are.
                match self {
                    Self::SentencePiece if !special => {
                        bytes.extend(text.replace('▁', " ").into_bytes());
                    }
                    _ => bytes.extend_from_slice(text.as_bytes()),
                }
            } else if let Some(token) = bpe.id_to_token(id) {
                match self {
                    Self::ByteLevel => {
                        let decoded: Option<Vec<u8>> =
                            token.chars().map(|c| byte_of.get(&c).copied()).collect();
                        bytes.extend(decoded.unwrap_or_else(|| token.into_bytes()));
                    }
                    Self::SentencePiece => match byte_token(&token) {
                        Some(byte) => bytes.push(byte),
                        None => bytes.extend(token.replace('▁', " ").into_bytes()),
                    },
                }
            }
            starts.push(bytes.len());
        }
        (bytes, starts)
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the
/// other bytes for the characters from U+0100 on, in order.
fn gpt2_bytes() -> HashMap<char, u8> {
    let mut table = HashMap::new();
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { u32::from(byte) } else { next };
        next += u32::from(!printable);
        table.extend(char::from_u32(code).map(|c| (c, byte)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn gpt2_alphabet_is_a_bijection() {
        let table = gpt2_bytes();
        assert_eq!(table.len(), 256);
        assert_eq!(table.get(&'Ġ'), Some(&b' '));
        assert_eq!(table.get(&'Ċ'), Some(&b'\n'));
        assert_eq!(table.get(&'a'), Some(&b'a'));
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0x0>"), None);
    }

    #[test]
    fn templates_wrap_texts() {
        let template = |before: u32, after: u32| {
            json!({"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}},
                    {"SpecialToken": {"id": "y"}}],
                "special_tokens": {"x": {"ids": [before, 9]}, "y": {"ids": [after]}}})
        };
        let steps = json!({"processors": [{"type": "ByteLevel"}, template(1, 2), template(3, 4)]});
        let mut around = (Vec::new(), Vec::new());
        read_affixes(&steps, &mut around).unwrap();
        assert_eq!(around, (vec![3, 9, 1, 9], vec![2, 4]));
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]});
        let mut around = (Vec::new(), Vec::new());
        read_affixes(&roberta, &mut around).unwrap();
        assert_eq!(around, (vec![1], vec![2]));
        let nameless = json!({"single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}});
        assert!(read_affixes(&nameless, &mut around).unwrap_err().contains("\"x\" has no ids"));
        for bad in [json!({"cls": ["<s>", -1]}), json!({"sep": 3}), json!({"cls": ["<s>"]})] {
            assert!(read_affixes(&bad, &mut around).unwrap_err().contains("has no id"), "{bad}");
        }
    }

    #[test]
    fn merges_must_join_tokens() {
        let check = |merges: Value| {
            let vocab = json!({"a": 0, "b": 1, "ab": 2});
            let mut model = json!({"type": "BPE", "vocab": vocab, "merges": merges});
            let model = model.as_object_mut().unwrap();
            check_model(Path::new("tokenizer.json"), model).map(|(_, ids)| ids)
        };
        assert_eq!(check(json!(["a b"])).unwrap(), 3);
        assert_eq!(check(json!([["a", "b"]])).unwrap(), 3);
        for bad in
            [json!(["ab"]), json!(["a b b"]), json!([["b", "a"]]), json!([["a"]]), json!([7])]
        {
            assert!(matches!(check(bad.clone()), Err(Error::BadFile { .. })), "{bad}");
        }
    }
}
