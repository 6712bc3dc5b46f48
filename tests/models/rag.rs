//! Documents on disk to a packed context.

use kvfold::Error;
use kvfold::rag::{
    Bm25, ChunkOptions, Document, Loaded, Retriever, SkipReason, chunk, fill, load, pack,
};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// The documents' names relative to `dir`.
fn names(loaded: &Loaded, dir: &Path) -> Vec<String> {
    let relative = |d: &Document| {
        Path::new(d.source()).strip_prefix(dir).unwrap().to_str().unwrap().replace('\\', "/")
    };
    loaded.documents.iter().map(relative).collect()
}

/// About four characters a token.
fn tokens(text: &str) -> usize {
    text.chars().count().div_ceil(4)
}

/// Loading must fail as [`Error::Document`] on exactly this path; the message comes back.
fn refused(paths: &[&Path], culprit: &Path) -> String {
    let error = load(paths).unwrap_err();
    let message = error.to_string();
    let Error::Document { path, .. } = error else { panic!("{error:?}") };
    assert_eq!(path, culprit);
    assert!(message.contains("; "), "no remedy: {message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

fn prose(seed: usize, words: usize) -> String {
    let vocabulary = ["river", "stone", "winter", "market", "letter", "garden", "window", "road"];
    let mut text = String::new();
    for i in 0..words {
        text += vocabulary[(seed * 7 + i * i + i / 3) % vocabulary.len()];
        text += if i % 60 == 59 { ".\n\n" } else { " " };
    }
    text
}

#[test]
fn a_needle_is_found_in_many_files_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..200 {
        let mut text = prose(i, 800);
        if i == 137 {
            text.insert_str(text.len() / 2, "\n\nThe secret key of the vault is 4815162.\n\n");
        }
        fs::write(dir.path().join(format!("file{i:03}.txt")), text).unwrap();
    }
    let loaded = load(&[dir.path()]).unwrap();
    assert_eq!(loaded.documents.len(), 200);
    let packed =
        fill(&loaded.documents, "What is the secret key of the vault?", 600, &tokens).unwrap();
    assert!(packed.render().contains("4815162"));
    assert!(packed.tokens <= 600);
    assert_eq!(packed.tokens, tokens(&packed.render()));
    assert!(packed.pieces.iter().any(|p| p.source.ends_with("file137.txt")));
    assert!(!packed.fallback);
}

#[test]
fn folders_are_read_recursively_sorted_and_without_hidden_names() {
    let dir = folder(&[
        ("b.txt", b"b"),
        ("a/z.txt", b"z"),
        ("a/c.txt", b"c"),
        (".hidden", b"no"),
        (".git/config", b"no"),
        ("c.md", b"c"),
    ]);
    let loaded = load(&[dir.path()]).unwrap();
    assert_eq!(names(&loaded, dir.path()), ["a/c.txt", "a/z.txt", "b.txt", "c.md"]);
    assert_eq!(loaded.notice(), None);
}

#[test]
fn inputs_keep_their_order_and_nothing_is_read_twice() {
    let dir = folder(&[("x/a.txt", b"a"), ("y/b.txt", b"b")]);
    let path = |name: &str| dir.path().join(name);
    let loaded = load(&[path("y"), path("x/a.txt"), path("x"), path("y/b.txt")]).unwrap();
    assert_eq!(names(&loaded, dir.path()), ["y/b.txt", "x/a.txt"]);
}

#[test]
fn a_hidden_file_or_folder_may_be_named() {
    let dir = folder(&[(".notes/a.txt", b"a"), (".b", b"b")]);
    let loaded = load(&[dir.path().join(".notes"), dir.path().join(".b")]).unwrap();
    assert_eq!(names(&loaded, dir.path()), [".notes/a.txt", ".b"]);
}

#[test]
fn what_is_not_text_is_skipped_in_a_folder_and_counted() {
    let mut late_zero = vec![b'x'; 20_000];
    late_zero.push(0);
    let dir = folder(&[
        ("a.txt", b"text"),
        ("b.bin", b"\0\x01"),
        ("c.bin", &late_zero),
        ("d.txt", b"caf\xe9"),
        ("e.txt", b" \n"),
    ]);
    let loaded = load(&[dir.path()]).unwrap();
    assert_eq!(names(&loaded, dir.path()), ["a.txt"]);
    let reasons: Vec<_> = loaded.skipped.iter().map(|s| s.reason).collect();
    use SkipReason::{Binary, Empty, Encoding, Zeros};
    assert_eq!(reasons, [Binary, Zeros { line: 1 }, Encoding("windows-1252"), Empty]);
    let first = dir.path().join("b.bin");
    let expected = format!(
        "skipped 4 files (1 binary, 1 with zero bytes, 1 in windows-1252, 1 empty), first {}",
        first.display()
    );
    assert_eq!(loaded.notice(), Some(expected));
}

#[test]
fn a_named_file_that_is_not_text_is_an_error() {
    let dir = folder(&[
        ("good.txt", b"good"),
        ("zero.bin", b"a\0b"),
        ("latin1.txt", b"caf\xe9"),
        ("empty.txt", b""),
        ("blank.txt", b"\xef\xbb\xbf\n \n"),
    ]);
    let good = dir.path().join("good.txt");
    for (name, said) in [
        ("zero.bin", "is a binary file"),
        ("latin1.txt", "is not UTF-8 but looks like windows-1252; convert it first: iconv"),
        ("empty.txt", "holds no text"),
        ("blank.txt", "holds no text"),
        ("missing.txt", "cannot be read"),
    ] {
        let path = dir.path().join(name);
        let message = refused(&[&good, &path], &path);
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn a_folder_without_text_is_an_error() {
    let dir = folder(&[("none/.hidden", b"x"), ("binary/a.bin", b"\0"), ("deep/er/b.bin", b"\0")]);
    for (name, said) in [
        ("none", "the folder is empty"),
        ("binary", "holds no text (1 other files)"),
        ("deep", "holds no text (1 other files)"),
    ] {
        let path = dir.path().join(name);
        let message = refused(&[&path], &path);
        assert!(message.contains(said), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_never_in_circles() {
    use std::os::unix::fs::symlink;
    let dir = folder(&[("docs/a.txt", b"a"), ("elsewhere/b.txt", b"b")]);
    let docs = dir.path().join("docs");
    symlink(&docs, docs.join("loop")).unwrap();
    symlink(dir.path(), docs.join("up")).unwrap();
    symlink(docs.join("a.txt"), docs.join("same.txt")).unwrap();
    symlink("nowhere", docs.join("dangling")).unwrap();
    symlink("self", docs.join("self")).unwrap();
    let loaded = load(&[&docs]).unwrap();
    assert_eq!(names(&loaded, &docs), ["a.txt", "up/elsewhere/b.txt"]);
    let skipped: Vec<PathBuf> = loaded.skipped.iter().map(|s| s.path.clone()).collect();
    assert_eq!(skipped, [docs.join("dangling"), docs.join("self")]);
}

#[cfg(unix)]
#[test]
fn a_pipe_or_socket_in_a_folder_does_not_block() {
    let dir = folder(&[("a.txt", b"a")]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let loaded = load(&[dir.path()]).unwrap();
    assert_eq!(names(&loaded, dir.path()), ["a.txt"]);
    assert_eq!(loaded.skipped[0].reason, SkipReason::Unreadable);
}

#[test]
fn byte_order_mark_crlf_and_control_characters_are_cleaned() {
    let document = Document::new("a\nb.txt", "\u{feff}one\r\ntwo\r");
    assert_eq!(document.source(), "a?b.txt");
    assert_eq!(document.text(), "one\ntwo\r");
    // Lines of old Macs; a progress bar is no line.
    assert_eq!(Document::new("a", "one\rtwo\r\rthree").text(), "one\ntwo\n\nthree");
    assert_eq!(Document::new("a", "10 %\r20 %\nend").text(), "10 %\r20 %\nend");
}

#[test]
fn questions_full_of_syntax_and_unicode_work() {
    let documents = [
        Document::new("de.txt", prose(1, 300) + "\n\nDie Schlüsselübergabe ist am Straßenfest."),
        Document::new("zh.txt", "保险库的密钥是四八一五。\n"),
        Document::new("ru.txt", "Ключ лежит под камнем.\r\n"),
    ];
    for (query, source) in [
        ("wann: \"SCHLÜSSELÜBERGABE\" AND (NOT [x TO y])?", "de.txt"),
        ("密钥是什么?", "zh.txt"),
        ("где ключ^2 ~ *", "ru.txt"),
    ] {
        let packed = fill(&documents, query, 400, &tokens).unwrap();
        assert!(!packed.fallback, "{query}");
        assert!(packed.pieces.iter().any(|p| p.source == source), "{query}");
    }
    let packed = fill(&documents, "()\"':*", 400, &tokens).unwrap();
    assert!(packed.fallback);
    assert_eq!(packed.pieces[0].source, "de.txt");
    assert_eq!(packed.pieces[0].lines.0, 1);
}

#[test]
fn a_huge_single_line_is_searched_and_packed() {
    let mut line = prose(3, 100_000).replace('\n', " ");
    line.insert_str(300_000, " zebracode 99 ");
    let packed = fill(&[Document::new("one.txt", line)], "zebracode", 300, &tokens).unwrap();
    assert!(packed.render().contains("zebracode 99"));
    assert_eq!(packed.pieces[0].lines, (1, 1));
}

#[test]
fn the_same_input_gives_the_same_context() {
    let documents: Vec<_> =
        (0..50).map(|i| Document::new(format!("{i}.txt"), prose(i, 500))).collect();
    let context = || fill(&documents, "a letter in the winter garden", 2000, &tokens).unwrap();
    let first = context();
    assert!(first.pieces.len() > 1);
    assert_eq!(first, context());
    let order: Vec<usize> =
        first.pieces.iter().map(|p| p.source.trim_end_matches(".txt").parse().unwrap()).collect();
    assert!(order.is_sorted());
}

#[test]
fn the_parts_work_alone_behind_the_trait() {
    let mut index: Box<dyn Retriever> = Box::new(Bm25::new().unwrap());
    for (number, text) in
        ["# Pages\nA page is sealed.\n", "A letter is sealed.\n"].iter().enumerate()
    {
        let document = Document::new(format!("{number}.md"), *text);
        index.index(chunk(&document, number, &ChunkOptions::default()).unwrap()).unwrap();
    }
    let hits = index.search("sealing pages", 5).unwrap();
    assert_eq!(hits.len(), 2);
    assert!(hits[0].score > hits[1].score);
    let packed = pack(&*index, &hits[..1], 100, &tokens);
    assert_eq!(packed.render(), "[0.md:1-2]\n# Pages\nA page is sealed.");
}
