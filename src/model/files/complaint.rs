//! Errors about model files. They quote what the file says, so they make sure
//! that a damaged file cannot make them long or many-lined.

use std::path::Path;

use super::sniff::{ENOUGH, HTML, Known, LFS, sniff};
use crate::Error;

/// What to do about a damaged file.
const REMEDY: &str = "download it again, or convert it again";

/// Characters of a message that are shown.
const SHOWN: usize = 300;

/// The content of `path` is damaged.
pub(crate) fn bad_file(path: &Path, what: impl AsRef<str>) -> Error {
    Error::bad_file(path, one_line(what.as_ref()), REMEDY)
}

/// `path` is not what is `expected` there ("a JSON text"): says what it is, as far as its
/// first bytes tell, or else `otherwise`.
pub(crate) fn not_a(path: &Path, expected: &str, head: &[u8], otherwise: String) -> Error {
    let head = &head[..head.len().min(ENOUGH)];
    match sniff(head).filter(|known| known.what != expected) {
        Some(Known { what, remedy }) => {
            Error::bad_file(path, format!("it is {what}, not {expected}"), remedy)
        }
        None => bad_file(path, otherwise),
    }
}

/// Refuses a pointer or a page that was saved instead of the file; what is merely damaged
/// is for the file's reader to say.
pub(crate) fn refuse_stand_in(path: &Path, expected: &str, head: &[u8]) -> Result<(), Error> {
    match sniff(head) {
        Some(Known { what, remedy }) if what == LFS || what == HTML => {
            Err(Error::bad_file(path, format!("it is {what}, not {expected}"), remedy))
        }
        _ => Ok(()),
    }
}

/// The model in `path` needs something that is not implemented.
pub(crate) fn unsupported(path: &Path, what: impl AsRef<str>) -> Error {
    Error::Unsupported {
        what: format!("{}: {}", path.display(), one_line(what.as_ref())),
        remedy: "choose another model".into(),
    }
}

/// The model in `path` has an architecture that is not implemented.
pub(crate) fn unknown_architecture(path: &Path, name: &str, supported: &str) -> Error {
    let supported = supported.to_owned();
    Error::UnknownArchitecture { path: path.to_owned(), name: one_line(name), supported }
}

/// Text without control characters, cut where it becomes too long.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (shown, c) in text.trim().chars().enumerate() {
        if shown == SHOWN {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_stay_on_one_short_line() {
        assert_eq!(one_line("a\n\u{1b}[31mé "), "a\\n\\u{1b}[31mé");
        assert_eq!(one_line(&"x".repeat(5000)).chars().count(), SHOWN + 1);
        let text = bad_file(Path::new("m.gguf"), "no\nend").to_string();
        assert!(text.starts_with("m.gguf: no\\nend; download it again"), "{text}");
    }
    #[test]
    fn what_a_file_is_instead_is_said() {
        let told = |head: &[u8]| {
            not_a(Path::new("config.json"), "a JSON text", head, "no JSON".into()).to_string()
        };
        let page = told(b"<!doctype html><html></html>");
        assert!(page.starts_with("config.json: it is an HTML page, not a JSON text; "), "{page}");
        assert!(told(b"{\"a\":").starts_with("config.json: no JSON; "));
    }
}
