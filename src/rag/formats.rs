//! Files that are no text, known by their first bytes.

/// A kind of file whose text has to be taken out by another program, if it has any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKind {
    name: &'static str,
    remedy: &'static str,
}

impl FileKind {
    /// What it is called, such as "PDF" or "ZIP archive".
    pub fn name(self) -> &'static str {
        self.name
    }

    /// What the user can do; `FILE` stands for the path.
    pub(super) fn remedy(self) -> &'static str {
        self.remedy
    }
}

const PANDOC: &str = "convert it first: pandoc -t plain FILE -o text.txt";
const OFFICE: &str = "convert it first: libreoffice --headless --convert-to txt:Text FILE";
const SHEET: &str = "export its sheets as CSV first";
const UNPACK: &str = "unpack it and name the files in it";
const NO_TEXT: &str = "name a text file";

/// What the first 8 KiB of a file, or all of it, say that it is; `None` for text and for
/// what is not known.
pub(super) fn kind_of(start: &[u8]) -> Option<FileKind> {
    let kind = |name, remedy| Some(FileKind { name, remedy });
    let holds = |part: &[u8]| find(start, part).is_some();
    let at = |offset: usize, part: &[u8]| start.get(offset..).is_some_and(|b| b.starts_with(part));
    if is_pdf(start) {
        // Made for a screen, not for reading: its text is best taken out by a program
        // that does nothing else.
        return kind("PDF", "take its text out first: pdftotext FILE text.txt");
    }
    if at(0, b"PK\x03\x04") || at(0, b"PK\x05\x06") {
        return match () {
            () if holds(b"word/") => kind("Word document", PANDOC),
            () if holds(b"xl/") => kind("Excel workbook", SHEET),
            () if holds(b"ppt/") => kind("PowerPoint presentation", OFFICE),
            () if holds(b"application/epub+zip") => kind("EPUB book", PANDOC),
            () if holds(b"opendocument.text") => kind("OpenDocument text", PANDOC),
            () if holds(b"opendocument.") => kind("OpenDocument file", OFFICE),
            () => kind("ZIP archive", UNPACK),
        };
    }
    for (magic, name, remedy) in MAGIC {
        if start.starts_with(magic) {
            return kind(name, remedy);
        }
    }
    match () {
        () if at(257, b"ustar") => kind("tar archive", UNPACK),
        () if at(4, b"ftyp") => kind("video or image", NO_TEXT),
        () if at(0, b"RIFF") && at(8, b"WEBP") => kind("image", NO_TEXT),
        () if at(0, b"RIFF") && (at(8, b"WAVE") || at(8, b"AVI ")) => kind("recording", NO_TEXT),
        () => None,
    }
}

const MAGIC: &[(&[u8], &str, &str)] = &[
    (b"{\\rtf", "RTF document", PANDOC),
    (b"%!PS", "PostScript file", "take its text out first: ps2ascii FILE text.txt"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office document", OFFICE),
    (b"\x1f\x8b", "gzip file", "unpack it first: gzip -dk FILE"),
    (b"BZh", "bzip2 file", "unpack it first: bzip2 -dk FILE"),
    (b"\xfd7zXZ\0", "xz file", "unpack it first: xz -dk FILE"),
    (b"\x28\xb5\x2f\xfd", "Zstandard file", "unpack it first: zstd -d FILE"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip archive", UNPACK),
    (b"Rar!\x1a\x07", "RAR archive", UNPACK),
    (b"\x89PNG\r\n\x1a\n", "image", NO_TEXT),
    (b"\xff\xd8\xff", "image", NO_TEXT),
    (b"GIF87a", "image", NO_TEXT),
    (b"GIF89a", "image", NO_TEXT),
    (b"II*\0", "image", NO_TEXT),
    (b"MM\0*", "image", NO_TEXT),
    (b"ID3", "recording", NO_TEXT),
    (b"OggS", "recording", NO_TEXT),
    (b"fLaC", "recording", NO_TEXT),
    (b"SQLite format 3\0", "SQLite database", "export it first: sqlite3 FILE .dump > text.sql"),
    (b"PAR1", "Parquet file", "export it as CSV or JSON first"),
    (b"\x7fELF", "program", NO_TEXT),
    (b"MZ\x90\0", "program", NO_TEXT),
    (b"\xcf\xfa\xed\xfe", "program", NO_TEXT),
    (b"GGUF", "model", "name it with --model"),
];

/// A PDF begins with `%PDF-` and a version; readers allow up to 1 KiB of something else
/// before. A text may quote that, but has no bytes that are not UTF-8 behind it.
fn is_pdf(start: &[u8]) -> bool {
    let head = &start[..start.len().min(1024)];
    let Some(at) = find(head, b"%PDF-") else { return false };
    let white = |b: &u8| b.is_ascii_whitespace() || b"\xef\xbb\xbf".contains(b);
    let version = start.get(at + 5).is_some_and(u8::is_ascii_digit);
    let binary = || match std::str::from_utf8(&start[at..]) {
        Ok(text) => text.contains('\0'),
        Err(error) => error.error_len().is_some(),
    };
    version && (head[..at].iter().all(white) || binary())
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let mut tar = vec![b'x'; 257];
        tar.extend(b"ustar\0");
        for (bytes, name) in [
            (&b"%PDF-1.4\n1 0 obj<<>>endobj"[..], "PDF"),
            (b"\xef\xbb\xbf\r\n%PDF-2.0\n", "PDF"),
            (b"HTTP/1.1 200 OK\r\n\r\n%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "PDF"),
            (b"PK\x03\x04..[Content_Types].xml..word/document.xml", "Word document"),
            (b"PK\x03\x04..xl/workbook.xml", "Excel workbook"),
            (b"PK\x03\x04..mimetypeapplication/epub+zip", "EPUB book"),
            (b"PK\x03\x04..mimetypeapplication/vnd.oasis.opendocument.text", "OpenDocument text"),
            (b"PK\x03\x04..a.txt", "ZIP archive"),
            (b"\x1f\x8b\x08\0", "gzip file"),
            (b"\x89PNG\r\n\x1a\n\0", "image"),
            (b"RIFF....WEBPVP8 ", "image"),
            (b"SQLite format 3\0", "SQLite database"),
            (b"{\\rtf1\\ansi Hello}", "RTF document"),
            (&tar, "tar archive"),
        ] {
            assert_eq!(kind_of(bytes).unwrap().name(), name);
        }
    }

    #[test]
    fn what_only_looks_like_one_is_text() {
        for text in [
            "A PDF begins with %PDF-1.4 and ends with %%EOF.",
            "%PDF- is the mark",
            "Such as\n%PDF-1.4\n1 0 obj\nendobj\n",
            "<!doctype html><p>Hello",
            "PK is not ZIP",
            "BZ",
            "",
        ] {
            assert_eq!(kind_of(text.as_bytes()), None, "{text}");
        }
    }
}
