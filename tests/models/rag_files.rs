//! Files that are not plain UTF-8, as documents and as texts of evaluations.

use kvfold::eval::{NeedleSpec, PerplexitySpec, QaSpec, TaskSpec};
use kvfold::rag::{load, read_document};
use std::fs;
use std::path::Path;

const TEXT: &str = "The comet was found by Anna in 1912.\r\nÉté, 密钥.\r\n";

fn utf16(text: &str, big: bool) -> Vec<u8> {
    let unit = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
    text.encode_utf16().flat_map(unit).collect()
}

/// Files whose encoding is certain.
fn certain() -> Vec<(&'static str, Vec<u8>)> {
    let marked = format!("\u{feff}{TEXT}");
    let utf32 = |big: bool| {
        let unit = |c: char| {
            if big { u32::from(c).to_be_bytes() } else { u32::from(c).to_le_bytes() }
        };
        marked.chars().flat_map(unit).collect()
    };
    vec![
        ("utf8", TEXT.into()),
        ("utf8-mark", marked.clone().into_bytes()),
        ("utf16le", utf16(&marked, false)),
        ("utf16be", utf16(&marked, true)),
        ("utf32le", utf32(false)),
        ("utf32be", utf32(true)),
    ]
}

#[test]
fn a_certain_encoding_is_read_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in certain() {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(read_document(&path).unwrap().text(), TEXT.replace('\r', ""), "{name}");
        let niah = NeedleSpec { haystack: Some(path.clone()), ..NeedleSpec::default() };
        TaskSpec::Niah(niah).validate().unwrap();
        TaskSpec::Perplexity(PerplexitySpec::new(&path)).validate().unwrap();
    }
    assert_eq!(load(&[folder.path()]).unwrap().documents.len(), 6);
    let question = "{\"context\": \"密钥\", \"question\": \"q\", \"answers\": [\"密\"]}\r\n";
    for big in [false, true] {
        let path = folder.path().join("q.jsonl");
        fs::write(&path, utf16(&format!("\u{feff}{question}"), big)).unwrap();
        TaskSpec::Qa(QaSpec::new(&path)).validate().unwrap();
    }
}

/// Files that are refused: with what is said of them, and what a folder's notice calls them.
fn refused() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let mut half = utf16("\u{feff}one\ntwo", false);
    half.pop();
    vec![
        (
            "a.pdf",
            b"%PDF-1.4\n1 0 obj<<>>".into(),
            "(PDF); take its text out first: pdftotext",
            "PDF",
        ),
        ("junk.pdf", b"\n--part\n%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj".into(), "(PDF)", "PDF"),
        ("b.docx", b"PK\x03\x04..word/document.xml\0".into(), "pandoc -t plain", "Word document"),
        ("c.zip", b"PK\x03\x04\0..a.txt".into(), "unpack it", "ZIP archive"),
        ("d.gz", b"\x1f\x8b\x08\0".into(), "gzip -dk", "gzip file"),
        ("e.db", b"SQLite format 3\0\x10".into(), "sqlite3", "SQLite database"),
        ("f.png", b"\x89PNG\r\n\x1a\n\0".into(), "name a text file", "image"),
        (
            "g.txt",
            utf16(TEXT, false),
            "looks like UTF-16LE; convert it first: iconv",
            "in UTF-16LE",
        ),
        ("h.txt", utf16(TEXT, true), "looks like UTF-16BE", "in UTF-16BE"),
        ("i.txt", b"caf\xe9 ferm\xe9".into(), "looks like windows-1252", "in windows-1252"),
        ("j.txt", half, "is UTF-16, but not in line 2", "invalid UTF-16"),
        (
            "k.txt",
            b"\xc3\xa9t\xc3\xa9\n\xc3\xa0 \xe9\n".into(),
            "is UTF-8, but not in line 2",
            "invalid UTF-8",
        ),
        (
            "l.log",
            [b"one line\n".repeat(9), b"\0\0".into()].concat(),
            "the first in line 10; take them out first: tr -d",
            "with zero bytes",
        ),
    ]
}

#[test]
fn what_is_refused_is_named_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, said, _) in refused() {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let spec = TaskSpec::Perplexity(PerplexitySpec::new(&path));
        for error in [read_document(&path).map(drop).unwrap_err(), spec.validate().unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(said) && error.contains(name), "{error}");
            assert!(!error.contains('\n') && error.contains("; "), "{error}");
        }
    }
}

#[test]
fn a_folder_leaves_them_out_and_says_so() {
    for (name, bytes, _, called) in refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
        fs::write(folder.path().join("z.txt"), "The rest is used.").unwrap();
        let loaded = load(&[folder.path()]).unwrap();
        assert_eq!(loaded.documents.len(), 1, "{name}");
        let notice = loaded.notice().unwrap();
        assert!(notice.starts_with(&format!("skipped 1 file (1 {called}), first")), "{notice}");
    }
}

#[test]
fn commands_in_messages_can_be_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Anna's paper.pdf");
    fs::write(&path, "%PDF-1.4\n").unwrap();
    let error = read_document(&path).map(drop).unwrap_err().to_string();
    assert!(error.ends_with(r"Anna'\''s paper.pdf' text.txt"), "{error}");
}

#[test]
fn html_and_texts_about_files_are_texts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.html", "<!doctype html><p>Hello"),
        ("b.md", "A PDF begins with %PDF-1.4, then 1 0 obj.\n"),
        ("c.md", "```\n%PDF-1.4\n1 0 obj\nendobj\n```\n"),
        ("d.txt", "PK is what ZIP begins with."),
        ("e.txt", "\u{1b}[31mred\u{1b}[0m"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        assert_eq!(read_document(Path::new(&path)).unwrap().text(), text);
    }
}
