//! One spelling for what a reader takes to be the same: of index terms only, never of a
//! text that is shown.

use std::borrow::Cow;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// `text` composed and without compatibility forms (NFKC): full width, half-width kana,
/// ligatures and superscripts become plain characters. What cannot be seen is gone (soft
/// hyphens, joiners, marks of direction), hyphens and apostrophes are ASCII. Case stays.
pub(super) fn unified(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut after_digit = false;
    for c in text.chars().filter(|&c| !is_unseen(c)) {
        match c {
            // The spaces that group the digits of a number, as commas do.
            '\u{a0}' | '\u{2007}' | '\u{2009}' | '\u{202f}' if after_digit => kept.push('\''),
            // 10² is not 102, and 2½ not 21/2.
            _ if after_digit && is_small_number(c) => kept.extend([' ', c]),
            '\u{2010}' | '\u{2011}' => kept.push('-'),
            '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2bc}' => kept.push('\''),
            _ => kept.push(c),
        }
        after_digit = c.is_numeric();
    }
    Cow::Owned(kept.nfkc().collect())
}

/// `word` without case: ß as ss, ς as σ.
pub(super) fn without_case(word: &str) -> String {
    if word.is_ascii() {
        return word.to_ascii_lowercase();
    }
    let upper = word.chars().filter(|&c| !is_vocalisation(c)).flat_map(char::to_uppercase);
    upper.flat_map(char::to_lowercase).nfc().collect()
}

/// `word` as it is typed where its accents are not on the keyboard: café as cafe. Vowel
/// signs of other scripts are no accents and stay.
pub(super) fn without_accents(word: &str) -> Cow<'_, str> {
    if word.is_ascii() {
        return Cow::Borrowed(word);
    }
    let mut plain = String::with_capacity(word.len());
    for c in word.nfd().filter(|&c| !is_accent(c)) {
        match c {
            'ø' => plain.push('o'),
            'ł' => plain.push('l'),
            'đ' | 'ð' => plain.push('d'),
            'ı' => plain.push('i'),
            'æ' => plain.push_str("ae"),
            'œ' => plain.push_str("oe"),
            'þ' => plain.push_str("th"),
            _ => plain.push(c),
        }
    }
    Cow::Owned(plain.nfc().collect())
}

/// Whether it is part of a word, if not by itself.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || (!c.is_ascii() && is_combining_mark(c))
}

/// Whether it is a letter of a script that does not show where a word ends: one written
/// without spaces, or Hangul, whose particles stick to their noun.
pub(super) fn is_dense(c: char) -> bool {
    let dense = matches!(c,
        '\u{e00}'..='\u{eff}'           // Thai, Lao
        | '\u{1000}'..='\u{109f}'       // Myanmar
        | '\u{1100}'..='\u{11ff}'       // Hangul letters
        | '\u{1780}'..='\u{17ff}'       // Khmer
        | '\u{2e80}'..='\u{9fff}'       // Han, kana, bopomofo
        | '\u{a960}'..='\u{a97f}'       // Hangul letters
        | '\u{a9e0}'..='\u{a9ff}'       // Myanmar
        | '\u{aa60}'..='\u{aa7f}'       // Myanmar
        | '\u{ac00}'..='\u{d7ff}'       // Hangul
        | '\u{f900}'..='\u{faff}'       // Han
        | '\u{1aff0}'..='\u{1b16f}'     // kana
        | '\u{20000}'..='\u{3ffff}'     // Han
    );
    dense && (c.is_alphabetic() || is_combining_mark(c))
}

/// Whether it is a Chinese character, a word by itself in many languages.
pub(super) fn is_han(c: char) -> bool {
    matches!(c,
        '\u{2e80}'..='\u{2fdf}' | '\u{3005}'..='\u{3007}' | '\u{3400}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}'
    )
}

/// Whether it is a mark on the letter before it.
pub(super) fn is_mark(c: char) -> bool {
    is_combining_mark(c)
}

/// Characters without a shape of their own, most of them from Unicode's
/// Default_Ignorable_Code_Point.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{640}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Digits above and below the line, fractions, and digits in circles and brackets.
fn is_small_number(c: char) -> bool {
    matches!(c,
        '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{bc}'..='\u{be}' | '\u{2070}'..='\u{2089}'
        | '\u{2150}'..='\u{215f}' | '\u{2460}'..='\u{249b}'
    )
}

/// The optional vowels of Hebrew and Arabic, which most texts leave out.
fn is_vocalisation(c: char) -> bool {
    let range = matches!(c, '\u{591}'..='\u{5c7}' | '\u{64b}'..='\u{655}' | '\u{670}');
    range && is_combining_mark(c)
}

fn is_accent(c: char) -> bool {
    matches!(c,
        '\u{300}'..='\u{36f}' | '\u{653}'..='\u{655}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_text_become_one() {
        for (text, same) in [
            ("cafe\u{301}", "café"),
            ("ＫＶ２", "KV2"),
            ("ｶﾞｷﾞ", "ガギ"),
            ("ﬁle ﬂow oﬃce", "file flow office"),
            ("inter\u{ad}national zero\u{200b}width", "international zerowidth"),
            ("a\u{a0}b", "a b"),
            ("it\u{2019}s e\u{2011}mail", "it's e-mail"),
            ("x² H₂O 10² 2½", "x2 H2O 10 2 2 1\u{2044}2"),
            ("1\u{202f}000", "1'000"),
            ("학교", "학교"),
            ("𝐁𝐨𝐥𝐝 ℌ", "Bold H"),
            ("كـتـاب", "كتاب"),
        ] {
            assert_eq!(unified(text), same, "{text}");
        }
    }

    #[test]
    fn case_and_accents_go() {
        for (word, folded, plain) in [
            ("Straße", "strasse", "strasse"),
            ("STRASSE", "strasse", "strasse"),
            ("ΟΔΟΣ", "οδοσ", "οδοσ"),
            ("οδός", "οδόσ", "οδοσ"),
            ("İzmir", "i\u{307}zmir", "izmir"),
            ("ızgara", "izgara", "izgara"),
            ("Ærøskøbing", "ærøskøbing", "aeroskobing"),
            ("Łódź", "łódź", "lodz"),
            ("Ёлка", "ёлка", "елка"),
            ("Phở", "phở", "pho"),
            ("שָׁלוֹם", "שלום", "שלום"),
            ("हिन्दी", "हिन्दी", "हिन्दी"),
        ] {
            let found = without_case(&unified(word));
            assert_eq!((found.as_str(), &*without_accents(&found)), (folded, plain), "{word}");
        }
    }
}
