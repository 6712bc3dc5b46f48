//! What a question finds, however it and the documents are spelled.

use kvfold::rag::{Document, fill};

fn characters(text: &str) -> usize {
    text.chars().count()
}

/// The texts that a question finds among `texts`, the best first.
fn found(texts: &[&str], question: &str) -> Vec<String> {
    let documents: Vec<Document> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| Document::new(format!("{i}.txt"), *text))
        .collect();
    let packed = fill(&documents, question, 100_000, &characters).unwrap();
    let mut pieces = packed.pieces;
    pieces.sort_by(|a, b| b.score.total_cmp(&a.score));
    match packed.fallback {
        true => Vec::new(),
        false => pieces.into_iter().map(|piece| piece.text).collect(),
    }
}

/// Each question must find the first text best, among others that have to do with nothing.
fn best(cases: &[(&str, &str, &[&str])]) {
    for &(text, question, others) in cases {
        let mut texts = others.to_vec();
        texts.push(text);
        let all = found(&texts, question);
        assert_eq!(all.first().map(String::as_str), Some(text), "{question}: {all:?}");
    }
}

#[test]
fn forms_of_unicode_are_one() {
    const OTHERS: &[&str] = &["La boulangerie ferme tard.", "Le musee ouvre demain."];
    best(&[
        ("Le cafe\u{301} de la gare ouvre.", "café", OTHERS),
        ("Le café de la gare ouvre.", "cafe\u{301}", OTHERS),
        ("Le café de la gare ouvre.", "CAFÉ", OTHERS),
        ("Le café de la gare ouvre.", "cafe", OTHERS),
        ("Ｔｈｅ ＣＯＭＥＴ ｗａｓ １９１２", "comet 1912", OTHERS),
        ("The comet of 1912", "ｃｏｍｅｔ", OTHERS),
        ("ﾃﾞｰﾀを保存する", "データ", OTHERS),
        ("The of\u{fb01}ce \u{fb02}oor", "office floor", OTHERS),
        ("inter\u{ad}national com\u{200b}et", "international comet", OTHERS),
        ("ein\u{a0}Komet\u{202f}kam", "Komet", OTHERS),
        ("Die Straße war leer", "STRASSE", OTHERS),
        ("İstanbul is large", "istanbul", OTHERS),
        ("Ο δρόμος", "ΔΡΟΜΟΣ", OTHERS),
        ("It weighs 5 m² of wood", "m2", OTHERS),
        ("Anna’s comet", "Anna's", OTHERS),
        ("O\u{2019}Brien came", "O'Brien", OTHERS),
        ("a well\u{2011}known comet", "well-known", OTHERS),
        ("Łódź and Ærø", "lodz", OTHERS),
        ("𝐓𝐡𝐞 𝐜𝐨𝐦𝐞𝐭", "comet", OTHERS),
        ("שָׁלוֹם לכולם", "שלום", OTHERS),
    ]);
    // The accent counts where both are there.
    best(&[("le café", "café", &["cafe"])]);
}

#[test]
fn particles_and_missing_spaces_hide_no_word() {
    const KOREAN: &[&str] = &["바다에는 물고기가 많다.", "산에는 나무가 많다."];
    best(&[
        ("우리는 학교에서 공부한다.", "학교", KOREAN),
        ("우리는 학교는 좋다.", "학교에", KOREAN),
        ("국립도서관은 크다.", "도서관", KOREAN),
        ("그는 물을 마셨다.", "물을", &["산에는 나무가 많다."]),
        ("그는 물을 마셨다.", "물", &["산에는 나무가 많다."]),
        ("산에는 나무가 많다.", "산", &["그는 물을 마셨다."]),
        ("그는 공부했다.", "공부하다", KOREAN),
        ("새 KTX를 탔다.", "KTX", KOREAN),
        ("3월에 온다.", "3월", KOREAN),
    ]);
    best(&[
        ("保险库的密钥是四八一五。", "密钥", &["秘密的钥匙在桌上。", "天气很好。"]),
        ("東京タワーは高い。", "タワー", &["ワタシは東に行く。"]),
        ("彼は学校へ行った。", "学校", &["校長は学者だ。"]),
        ("ฉันกินข้าวที่บ้าน", "กินข้าว", &["แมวนอนหลับ"]),
        ("សៀវភៅនៅលើតុ", "សៀវភៅ", &["ឆ្កែដេក"]),
        ("ဒီစာအုပ်ကောင်းတယ်", "စာအုပ်", &["မိုးရွာတယ်"]),
    ]);
}

#[test]
fn names_of_code_are_found_by_words_and_as_they_are() {
    const CODE: &[&str] = &["def openSocket(p): pass", "def getUserName(ctx): return ctx.name"];
    best(&[
        ("def parseConfigFile(p): pass", "parse config", CODE),
        ("def parse_config_file(p): pass", "parseConfigFile", CODE),
        ("class ParseConfigFile:", "parse-config-file", CODE),
        ("const PARSE_CONFIG = 1;", "parseConfig", CODE),
        ("new HTTPServer2()", "http server", CODE),
        ("new XMLHttpRequest()", "XMLHTTPRequest", CODE),
        ("reads PDFs", "PDF", CODE),
        ("an e-mail came", "email", CODE),
        ("it has 1,000,000 rows", "1000000", CODE),
        ("it has 1 000 000 rows", "1\u{a0}000\u{a0}000", CODE),
        ("it has 1_000_000 rows", "1,000,000", CODE),
        ("needs 1.2.3 here", "version 1.2.3", &["needs 3.2.1 here"]),
        ("we write C++ here", "C++", &["we write C here", "we write C# here"]),
        ("we write C# here", "C#", &["we write C here", "we write C++ here"]),
        ("made with .NET", ".NET", &["caught in a net"]),
        ("in the U.S.A. today", "USA", CODE),
        ("write to anna@example.org", "example.org", CODE),
        ("see src/rag/bm25.rs", "bm25", CODE),
        ("see C:\\data\\notes.txt", "notes.txt", CODE),
        ("uses bm25 to rank", "BM25", CODE),
    ]);
    // Not only its words, and not only its stem.
    best(&[
        ("call getUsers()", "getUsers", &["call getUser()", "users get a call"]),
        ("call getUser()", "getUser", &["call getUsers()", "the user gets it"]),
    ]);
}

#[test]
fn what_has_nothing_in_common_is_not_found() {
    let texts = ["The comet was found.", "학교에 간다.", "parseConfigFile"];
    for question in ["zebra", "바다", "openSocket", "★ ◆", "\u{200b}\u{ad}", "\u{301}", ""] {
        assert_eq!(found(&texts, question), [""; 0], "{question}");
    }
}

#[test]
fn texts_are_shown_as_they_are() {
    for text in ["Le cafe\u{301} ﬁn", "ＫＶ２ co\u{ad}met", "학교에서 parseConfigFile C++"]
    {
        assert_eq!(found(&[text], text), [text]);
    }
}
