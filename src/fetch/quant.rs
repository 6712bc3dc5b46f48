//! Quantizations, as they stand in the names of GGUF files.

/// What is taken of a repository when nothing is asked for: the middle that llama.cpp and
/// Ollama take too, then what comes nearest to it, then what is larger, then smaller.
const ORDER: [&str; 22] = [
    "Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K_XL", "Q4_K", "Q4_1", "Q4_0", "Q5_K_M", "Q5_K_S", "Q5_K",
    "Q5_1", "Q5_0", "Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "Q3_K", "Q3_K_S", "Q2_K", "BF16", "F16",
    "F32",
];

/// The quantization at the end of a GGUF file's name, in capitals: `Q4_K_M` of
/// `model-q4_k_m.gguf`. None if the name ends with nothing of that form.
pub(super) fn of_file(path: &str) -> Option<String> {
    let stem = stem(path).to_ascii_uppercase();
    let starts = (stem.char_indices())
        .filter(|&(_, c)| matches!(c, '-' | '.' | '_' | ' '))
        .map(|(at, c)| at + c.len_utf8());
    // The longest that fits: Q4_K_M, not the M that it ends with.
    let rest = std::iter::once(0).chain(starts).filter_map(|at| stem.get(at..)).find(|t| is(t))?;
    Some(match rest {
        "FP16" => "F16".to_owned(),
        "FP32" => "F32".to_owned(),
        other => other.to_owned(),
    })
}

/// The name without folders, `.gguf` and the number of a part.
pub(super) fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.len().checked_sub(5).and_then(|at| name.get(..at)).unwrap_or(name);
    part_of(stem).map_or(stem, |(base, ..)| base)
}

/// Base, number and count of a stem such as `model-00001-of-00003`.
pub(super) fn part_of(stem: &str) -> Option<(&str, u32, u32)> {
    let (head, count) = stem.rsplit_once("-of-")?;
    let (base, number) = head.rsplit_once('-')?;
    let read = |digits: &str| {
        let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let (number, count) = (read(number)?, read(count)?);
    (1 <= number && number <= count).then_some((base, number, count))
}

/// Whether kvfold reads it; what has no such name may be anything.
pub(super) fn is_supported(quant: &str) -> bool {
    // IQ, TQ and MXFP4 are types that kvfold has not; Q4_0_4_4 and its like were
    // rearranged for one processor, and their tensors have no type any more.
    let family = |prefix: &str| quant == prefix || quant.starts_with(&format!("{prefix}_"));
    matches!(quant, "BF16" | "F16" | "F32" | "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q8_0")
        || ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"].into_iter().any(family)
}

/// Which of the two is taken first; less is better.
pub(super) fn rank(quant: Option<&str>) -> usize {
    let known = quant.and_then(|quant| ORDER.iter().position(|&known| known == quant));
    known.unwrap_or(match quant {
        Some(quant) if !is_supported(quant) => ORDER.len() + 2,
        Some(_) => ORDER.len(),
        None => ORDER.len() + 1,
    })
}

/// Whether `text`, in capitals, is a quantization and nothing else.
pub(super) fn is(text: &str) -> bool {
    if ["BF16", "F16", "F32", "FP16", "FP32", "MXFP4", "MXFP4_MOE"].contains(&text) {
        return true;
    }
    let rest = text.strip_prefix("IQ").or_else(|| text.strip_prefix("TQ"));
    let Some(rest) = rest.or_else(|| text.strip_prefix('Q')) else { return false };
    let mut parts = rest.split('_');
    let is_digit = |part: &str| part.len() == 1 && part.bytes().all(|b| b.is_ascii_digit());
    let is_kind = |part: &str| {
        is_digit(part) || ["K", "S", "M", "L", "XS", "XXS", "XL", "XXL", "NL"].contains(&part)
    };
    parts.next().is_some_and(is_digit) && parts.clone().next().is_some() && parts.all(is_kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_quantizations_in_many_ways() {
        for (path, quant) in [
            ("Qwen3-0.6B-Q4_K_M.gguf", Some("Q4_K_M")),
            ("gemma-3-270m-q4_k_m.gguf", Some("Q4_K_M")),
            ("llama-2-7b-chat.Q2_K.gguf", Some("Q2_K")),
            ("BF16/Model-BF16-00001-of-00002.gguf", Some("BF16")),
            ("model_Q8_0.GGUF", Some("Q8_0")),
            ("x-fp16.gguf", Some("F16")),
            ("Q4_0.gguf", Some("Q4_0")),
            ("x-IQ4_XS.gguf", Some("IQ4_XS")),
            ("x-UD-Q4_K_XL.gguf", Some("Q4_K_XL")),
            ("x-Q4_0_4_8.gguf", Some("Q4_0_4_8")),
            ("gpt-oss-20b-MXFP4.gguf", Some("MXFP4")),
            ("ggml-model.gguf", None),
            ("Qwen2.gguf", None),
            ("SQ8.gguf", None),
            (".gguf", None),
            ("é.gguf", None),
        ] {
            assert_eq!(of_file(path).as_deref(), quant, "{path}");
        }
    }

    #[test]
    fn parts_are_numbered_from_one() {
        assert_eq!(part_of("m-00002-of-00003"), Some(("m", 2, 3)));
        for bad in ["m", "m-2-of-3", "m-00000-of-00003", "m-00004-of-00003", "m-0000a-of-00003"] {
            assert_eq!(part_of(bad), None, "{bad}");
        }
        assert_eq!(stem("a/m-Q8_0-00001-of-00002.gguf"), "m-Q8_0");
    }

    #[test]
    fn what_kvfold_reads_comes_first() {
        assert!(ORDER.iter().all(|quant| is(quant) && is_supported(quant)));
        for bad in ["IQ4_XS", "IQ2_XXS", "TQ1_0", "MXFP4", "Q4_0_4_4", "Q5_2"] {
            assert!(is(bad) && !is_supported(bad), "{bad}");
            assert!(rank(Some(bad)) > rank(None));
        }
        assert!(rank(Some("Q4_K_M")) < rank(Some("Q8_0")) && rank(Some("Q2_K_L")) < rank(None));
    }
}
