//! From a text to the terms that an index knows it by; a question goes the same way.
//!
//! | text | terms |
//! |---|---|
//! | `Café` | café, cafe |
//! | `parseConfigFile` | parse, config, file, parseconfigfile, and the exact name |
//! | `kv_budget`, `e-mail` | kv, budget, kvbudget; e, mail, email |
//! | `HTTPServer2` | http, server, 2, httpserver2, and the exact name |
//! | `1,000,000`, `v1.2.3` | the groups and 1000000; the numbers and the exact version |
//! | `C++`, `C#`, `.NET` | c and c++, c and c#, net and .net |
//! | 학교에, 密钥是 | every two characters that stand side by side; 密, 钥, 是 alone too |
//!
//! Where words end is not written in Chinese, Japanese, Thai and the like. In Korean it is,
//! but particles and endings stick to the stem; pairs find 학교 in 학교에서 and 도서관 in
//! 국립도서관 without a dictionary. Single characters are terms where they mean something:
//! in Han, and Korean nouns of one syllable before a particle.

use super::letters::{is_dense, is_han, is_mark, is_word, unified, without_accents, without_case};

/// The ending of an exact name: no stemmer changes a term that ends so, and no word does.
const EXACT: char = '_';

/// A name of more components than this is no name: a list, or a hash in capitals and digits.
const MOST_PARTS: usize = 8;

/// Tells `term` every term of `text`, in order and as often as it is there. Words are
/// without case, and not stemmed.
pub(super) fn terms(text: &str, term: &mut dyn FnMut(String)) {
    let text = unified(text);
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        at += if is_dense(c) {
            let length = rest.find(|c| !is_dense(c)).unwrap_or(rest.len());
            characters(&rest[..length], term);
            length
        } else if is_word(c) && !is_mark(c) {
            let chain = chain(rest);
            names(&text[..at], chain, &rest[chain.len()..], term);
            chain.len()
        } else {
            c.len_utf8()
        }
    }
}

/// Every two neighbours, marks with their letters; a character alone if it stands alone,
/// if it is Han, or if it is a noun before a particle.
fn characters(run: &str, term: &mut dyn FnMut(String)) {
    let mut starts: Vec<usize> =
        run.char_indices().filter(|&(at, c)| at == 0 || !is_mark(c)).map(|(at, _)| at).collect();
    starts.push(run.len());
    for (i, two) in starts.windows(2).enumerate() {
        let character = &run[two[0]..two[1]];
        let noun = i == 0 && PARTICLES.contains(&&run[two[1]..]);
        if starts.len() == 2 || character.starts_with(is_han) || noun {
            term(character.to_owned());
        }
        if let Some(&end) = starts.get(i + 2) {
            term(run[two[0]..end].to_owned());
        }
    }
}

/// What may follow a Korean noun of one syllable; longer nouns are found by their pairs.
const PARTICLES: [&str; 36] = [
    "은",
    "는",
    "이",
    "가",
    "을",
    "를",
    "에",
    "의",
    "도",
    "로",
    "와",
    "과",
    "만",
    "나",
    "야",
    "랑",
    "에서",
    "에게",
    "에는",
    "에도",
    "으로",
    "까지",
    "부터",
    "보다",
    "처럼",
    "한테",
    "이나",
    "이랑",
    "하고",
    "마다",
    "밖에",
    "조차",
    "에서는",
    "에서도",
    "으로는",
    "으로도",
];

/// The words at the beginning of `text` that single signs join into one name.
fn chain(text: &str) -> &str {
    let word = |c: char| is_word(c) && !is_dense(c);
    let end_of_word =
        |from: usize| text[from..].find(|c| !word(c)).map_or(text.len(), |n| from + n);
    let mut end = end_of_word(0);
    while let Some(joint) = text[end..].chars().next() {
        let underscores = text[end..].len() - text[end..].trim_start_matches('_').len();
        let next = end + underscores.max(joint.len_utf8());
        let numbers = || {
            text[..end].ends_with(char::is_numeric) && text[next..].starts_with(char::is_numeric)
        };
        let joins = match joint {
            '.' | '_' => true,
            '-' => !numbers(),
            // The groups of a large number.
            ',' | '\'' => {
                numbers()
                    && text[next..].find(|c: char| !c.is_numeric()).unwrap_or(text.len() - next)
                        == 3
            }
            _ => false,
        };
        if !joins || !text[next..].starts_with(word) {
            break;
        }
        end = end_of_word(next);
    }
    &text[..end]
}

/// The terms of a chain that stands between `before` and `after`.
fn names(before: &str, chain: &str, after: &str, term: &mut dyn FnMut(String)) {
    let dotted: Vec<&str> = chain.split('.').collect();
    if (2..=MOST_PARTS).contains(&dotted.len()) {
        let all = |test: fn(&&str) -> bool| dotted.iter().all(test);
        let number = |part: &&str| part.chars().all(|c| c.is_ascii_digit());
        if all(|part| part.chars().count() == 1 && part.chars().all(char::is_alphabetic)) {
            spellings(&dotted.concat(), term);
        } else {
            if dotted.iter().all(number) && dotted[1..].iter().all(|part| part.len() == 3) {
                term(dotted.concat());
            }
            term(without_case(chain) + &EXACT.to_string());
        }
    }
    dotted.into_iter().for_each(|part| name(part, term));
    // Names that consist of a word and signs.
    let mut behind = before.chars().rev();
    if behind.next() == Some('.') && !behind.next().is_some_and(|c| is_word(c) || c == '.') {
        term(format!(".{}", without_case(chain)));
    }
    if after.starts_with("++") {
        term(without_case(chain) + "++");
    } else if after.starts_with('#') && !after[1..].starts_with(is_word) {
        term(without_case(chain) + "#");
    }
}

/// The terms of a name without dots: its words, and all of it.
fn name(name: &str, term: &mut dyn FnMut(String)) {
    let pieces: Vec<&str> =
        name.split(['_', '-', ',', '\'']).filter(|piece| !piece.is_empty()).collect();
    let mut identifier = name.contains('_');
    for piece in &pieces {
        spellings(piece, term);
        let parts = parts(piece);
        if (2..=MOST_PARTS).contains(&parts.len()) {
            parts.into_iter().for_each(|part| spellings(part, term));
            identifier = true;
        }
    }
    if pieces.len() > MOST_PARTS {
        return;
    }
    let joined = pieces.concat();
    if pieces.len() > 1 {
        spellings(&joined, term);
    }
    if identifier {
        term(without_case(&joined) + &EXACT.to_string());
    }
}

/// A word with its accents and, if it has any, without.
fn spellings(word: &str, term: &mut dyn FnMut(String)) {
    let word = without_case(word);
    let plain = without_accents(&word);
    // A stray mark may be all there is.
    if plain != word && !plain.is_empty() {
        term(plain.into_owned());
    }
    if !word.is_empty() {
        term(word);
    }
}

/// Cuts a word where its case or its kind changes: `HTTPServer2` into HTTP, Server and 2,
/// and `PDFs` into PDF and its plural s.
fn parts(word: &str) -> Vec<&str> {
    let letters: Vec<(usize, char)> = word.char_indices().filter(|&(_, c)| !is_mark(c)).collect();
    let letter = |i: usize| letters.get(i).map(|&(_, c)| c);
    let capital = |i: usize| letter(i).is_some_and(char::is_uppercase);
    let small = |i: usize| letter(i).is_some_and(char::is_lowercase);
    let plural = |i: usize| i >= 2 && i + 1 == letters.len() && letter(i) == Some('s');
    let mut cuts = vec![0];
    for (i, &(at, c)) in letters.iter().enumerate().skip(1) {
        let number = letter(i - 1).is_some_and(char::is_numeric);
        let begins = capital(i) && !capital(i - 1);
        let acronym_ends = capital(i - 1) && capital(i) && small(i + 1) && !plural(i + 1);
        let plural = plural(i) && capital(i - 1) && capital(i - 2);
        if number != c.is_numeric() || begins || acronym_ends || plural {
            cuts.push(at);
        }
    }
    cuts.push(word.len());
    cuts.windows(2).map(|two| &word[two[0]..two[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> Vec<String> {
        let mut all = Vec::new();
        terms(text, &mut |term| all.push(term));
        all
    }

    #[test]
    fn words_are_cut_where_their_case_or_kind_changes() {
        for (word, want) in [
            ("parseConfigFile", vec!["parse", "Config", "File"]),
            ("HTTPServer2", vec!["HTTP", "Server", "2"]),
            ("XMLHttpRequest", vec!["XML", "Http", "Request"]),
            ("PDFs", vec!["PDF", "s"]),
            ("As", vec!["As"]),
            ("iPhone15Pro", vec!["i", "Phone", "15", "Pro"]),
            ("BM25", vec!["BM", "25"]),
            ("Плавание", vec!["Плавание"]),
            ("мойФайл", vec!["мой", "Файл"]),
            ("हिन्दी", vec!["हिन्दी"]),
            ("SCREAMING", vec!["SCREAMING"]),
        ] {
            assert_eq!(parts(word), want);
        }
    }

    #[test]
    fn names_are_known_by_their_words_and_as_a_whole() {
        for (text, want) in [
            ("kv_budget=2", "kv budget kvbudget kvbudget_ 2"),
            ("__init__", "init"),
            ("e-mail", "e mail email"),
            ("getUser", "getuser get user getuser_"),
            ("MAX_BYTES", "max bytes maxbytes maxbytes_"),
            ("x86_64", "x86 x 86 64 x8664 x8664_"),
            ("os.path", "os.path_ os path"),
            ("U.S.A. e.g.", "usa u s a eg e g"),
            ("1,000,000 1'000 1,5", "1 000 000 1000000 1 000 1000 1 5"),
            ("1.000.000", "1000000 1.000.000_ 1 000 000"),
            ("v1.2", "v1.2_ v1 v 1 v1_ 2"),
            ("2024-01-15", "2024 01 15"),
            ("C++ C# .NET a...b", "c c++ c c# net .net a b"),
            ("a@b.org /c/d", "a b.org_ b org c d"),
            ("don't", "don t"),
            ("a3b4c5d6e7f8", "a3b4c5d6e7f8"),
        ] {
            assert_eq!(list(text).join(" "), want, "{text}");
        }
    }

    #[test]
    fn scripts_without_ends_of_words_are_taken_in_pairs() {
        for (text, want) in [
            ("密钥。", "密 密钥 钥"),
            ("학교에 물에서 바다", "학교 교에 물 물에 에서 바다"),
            ("KTX를 3월에", "ktx 를 3 월 월에"),
            ("ﾃﾞｰﾀ", "デー ータ"),
            ("น้ำ", "น้\u{e4d}า"),
        ] {
            assert_eq!(list(text).join(" "), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_terms_and_the_same_whatever_its_form(text in any::<String>()) {
            use unicode_normalization::UnicodeNormalization;
            let found = list(&text);
            prop_assert!(found.iter().all(|term| !term.is_empty()));
            prop_assert_eq!(&found, &list(&text.nfd().collect::<String>()));
            prop_assert_eq!(&found, &list(&text.nfc().collect::<String>()));
        }
    }
}
