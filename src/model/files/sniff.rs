//! What a file is that is not what its name promises, told by how it begins: pointers and
//! pages saved instead of a download, archives, other programs' models.

/// Bytes of a file that are enough to tell.
pub(super) const ENOUGH: usize = 512;

/// What a file is, and what to do about it.
pub(super) struct Known {
    pub what: &'static str,
    pub remedy: &'static str,
}

pub(super) const LFS: &str = "a Git LFS pointer";
pub(super) const HTML: &str = "an HTML page";

const AGAIN: &str = "download it again";
const UNPACK: &str = "unpack it and give what is in it";
const PYTORCH: Known = Known {
    what: "a PyTorch file (pickle)",
    remedy: "save the model as safetensors with transformers' save_pretrained, or convert it to \
             GGUF",
};

/// Magic bytes, and what begins with them.
const MAGIC: [(&[u8], Known); 22] = [
    (
        b"version https://git-lfs.github.com/",
        Known { what: LFS, remedy: "fetch it with `git lfs pull`" },
    ),
    (
        b"version https://hawser.github.com/",
        Known { what: LFS, remedy: "fetch it with `git lfs pull`" },
    ),
    (b"GGUF", Known { what: "a GGUF file", remedy: "give it by its path, named .gguf" }),
    (b"lmgg", GGML),
    (b"fmgg", GGML),
    (b"tjgg", GGML),
    (b"algg", GGML),
    (b"\x1f\x8b", Known { what: "a gzip archive", remedy: UNPACK }),
    (b"\xfd7zXZ", Known { what: "an xz archive", remedy: UNPACK }),
    (b"\x28\xb5\x2f\xfd", Known { what: "a zstd archive", remedy: UNPACK }),
    (b"BZh", Known { what: "a bzip2 archive", remedy: UNPACK }),
    (b"7z\xbc\xaf", Known { what: "a 7z archive", remedy: UNPACK }),
    (b"Rar!", Known { what: "a rar archive", remedy: UNPACK }),
    (b"\x80\x02", PYTORCH),
    (b"\x80\x03", PYTORCH),
    (b"\x80\x04", PYTORCH),
    (b"\x80\x05", PYTORCH),
    (b"\x89HDF", Known { what: "an HDF5 file (Keras)", remedy: CONVERT }),
    (b"\x93NUMPY", Known { what: "a NumPy array", remedy: CONVERT }),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (b"%PDF", Known { what: "a PDF", remedy: "give a model" }),
];

const CONVERT: &str = "give the model as safetensors or as GGUF";
const GGML: Known =
    Known { what: "a GGML file from before GGUF", remedy: "get the model as GGUF or safetensors" };
const UTF_16: Known = Known { what: "a UTF-16 text", remedy: "save it as UTF-8" };

/// What begins so, if it is known. `head` is the whole file, or [`ENOUGH`] of it.
pub(super) fn sniff(head: &[u8]) -> Option<Known> {
    let known = |what, remedy| Some(Known { what, remedy });
    if head.is_empty() {
        return known("an empty file", AGAIN);
    }
    if head.len() >= 16 && head.iter().all(|byte| *byte == 0) {
        return known("a file of zeros, as a download that broke off leaves", AGAIN);
    }
    if let Some((_, Known { what, remedy })) = MAGIC.iter().find(|(m, _)| head.starts_with(m)) {
        return known(what, remedy);
    }
    let has = |what: &[u8]| head.windows(what.len()).any(|part| part == what);
    if head.starts_with(b"PK\x03\x04") {
        if has(b"data.pkl") || has(b"/data/") || has(b".storage_alignment") {
            return Some(PYTORCH);
        }
        return known("a zip archive", UNPACK);
    }
    if head.get(4..8) == Some(b"TFL3") {
        return known("a TensorFlow Lite model", CONVERT);
    }
    if head.get(257..262) == Some(b"ustar") {
        return known("a tar archive", UNPACK);
    }
    if let [8, 1..=20, 0x12 | 0x3a | 0x42, ..] = head {
        return known("an ONNX model", CONVERT);
    }
    if head.get(8) == Some(&b'{') && head.get(5..8) == Some(&[0; 3]) {
        return known("a safetensors file", "give the folder that it and its config.json are in");
    }
    let text = head.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text).trim_ascii_start();
    let begins = |with: &str| {
        text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with.as_bytes()))
    };
    if begins("<!doctype html") || begins("<html") || begins("<head") || begins("<!--") {
        let remedy = "download the file itself; if its model is gated, log in first";
        return known(HTML, remedy);
    }
    if begins("<?xml") || begins("<error") {
        return known("an XML text, as servers send errors", AGAIN);
    }
    if begins("{") || begins("[") {
        return known("a JSON text", "give the folder that it is in, or a model's file");
    }
    // "Entry not found", "Invalid username or password."
    if head.len() < 200 && text.iter().all(|b| matches!(b, b'\n' | b'\r' | b'\t' | 32..127)) {
        return known("a short text, as servers send errors", AGAIN);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_how_they_begin() {
        let zeros = [0; 512];
        let mut tar = [b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 23] = [
            (b"", "empty"),
            (&zeros, "zeros"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "Git LFS"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"\n  <html lang=en>", "HTML"),
            (b"\xef\xbb\xbf<!doctype HTML>", "HTML"),
            (b"<?xml version='1.0'?><Error>", "XML"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"tjgg\x01\0\0\0", "before GGUF"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"PK\x03\x04\0\0archive/data.pkl", "PyTorch"),
            (b"PK\x03\x04\0\0model.gguf", "zip"),
            (b"\x80\x02\x8a\x0al\xfc", "PyTorch"),
            (b"\x08\x07\x12\x07pytorch", "ONNX"),
            (b"\x89HDF\r\n", "HDF5"),
            (b"\x10\0\0\0TFL3", "TensorFlow Lite"),
            (b"\x10\x02\0\0\0\0\0\0{\"a\":1}", "safetensors"),
            (&tar, "tar"),
            (b"{\"error\": \"Access denied\"}", "JSON"),
            (b"Entry not found", "short text"),
            (b"Invalid username or password.", "short text"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"\x28\xb5\x2f\xfd\0", "zstd"),
        ];
        for (head, what) in cases {
            let known = sniff(head).map(|known| known.what);
            assert!(known.is_some_and(|known| known.contains(what)), "{what}: {known:?}");
        }
        for head in [&b"\x01\x02\x03\x04binary\0\0\0\0\0\0"[..], &[b'x'; 512]] {
            assert!(sniff(head).is_none());
        }
    }
}
