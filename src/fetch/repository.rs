//! The name of a model on the hub, as users write it.

use std::fmt;

/// A repository of the hub, and what is wanted of it: `owner/name[@revision][:selection]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repository {
    /// Who owns it.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Branch, tag or commit; `main` if not given.
    pub revision: Option<String>,
    /// A file, or the quantization of a GGUF file (`Q4_K_M`).
    pub selection: Option<String>,
}

impl Repository {
    /// Reads `owner/name[@revision][:selection]`, or the address of such a page. None if
    /// it is a path or any other name.
    pub fn parse(text: &str) -> Option<Self> {
        let hosts = ["https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/"];
        if let Some(rest) = hosts.iter().find_map(|host| text.strip_prefix(host)) {
            return Self::of_page(rest);
        }
        let (head, selection) = match text.split_once(':') {
            Some((head, selection)) => (head, Some(selection)),
            None => (text, None),
        };
        let (id, revision) = match head.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (head, None),
        };
        Self::new(id, revision, selection)
    }

    /// What follows the host in an address: `owner/name`, `owner/name/tree/REVISION`,
    /// `owner/name/blob/REVISION/FILE`.
    fn of_page(rest: &str) -> Option<Self> {
        let rest = rest.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let mut parts = rest.splitn(5, '/');
        let (owner, name) = (parts.next()?, parts.next()?);
        match (parts.next(), parts.next(), parts.next()) {
            // `hf.co/owner/name:Q4_K_M`, as Ollama's users write.
            (None, ..) => Self::parse(&format!("{owner}/{name}")),
            (Some("tree"), revision, None) => Self::new(&format!("{owner}/{name}"), revision, None),
            (Some("blob" | "resolve"), revision, file @ Some(_)) => {
                Self::new(&format!("{owner}/{name}"), revision, file)
            }
            _ => None,
        }
    }

    fn new(id: &str, revision: Option<&str>, selection: Option<&str>) -> Option<Self> {
        let (owner, name) = id.split_once('/')?;
        let is_file = [".gguf", ".toml", ".json", ".safetensors"]
            .iter()
            .any(|suffix| name.to_ascii_lowercase().ends_with(suffix));
        let is_name = |text: &str| is_plain(text) && text.len() <= 96;
        let valid = is_name(owner)
            && is_name(name)
            && !is_file
            && revision.is_none_or(is_revision)
            && selection.is_none_or(is_safe_path);
        valid.then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
            selection: selection.map(str::to_owned),
        })
    }

    /// `owner/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The revision that is meant.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.selection {
            Some(selection) => write!(f, ":{selection}"),
            None => Ok(()),
        }
    }
}

/// The hub's rule for names.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !text.contains("..")
}

/// A branch, tag or commit; `refs/pr/1` too.
fn is_revision(text: &str) -> bool {
    text.len() <= 200 && text.split('/').all(is_plain)
}

/// Whether a path of a repository stays in the folder that it is put into, and can be
/// printed and stored as it is.
pub(super) fn is_safe_path(path: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |c: char| !c.is_control() && !['\\', ':', '\u{202e}', '\u{2028}'].contains(&c);
        !part.is_empty() && part.len() <= 200 && !part.starts_with('.') && part.chars().all(plain)
    };
    path.len() <= 1024 && path.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_users_write_them() {
        let read = |text: &str| Repository::parse(text).map(|r| r.to_string());
        for (text, expected) in [
            ("o/n", "o/n"),
            ("o/n:Q4_K_M", "o/n:Q4_K_M"),
            ("o/n@v1.0:a/b c.gguf", "o/n@v1.0:a/b c.gguf"),
            ("o/n@refs/pr/1", "o/n@refs/pr/1"),
            ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
            ("https://huggingface.co/o/n", "o/n"),
            ("https://huggingface.co/o/n/", "o/n"),
            ("hf.co/o/n:Q8_0", "o/n:Q8_0"),
            ("https://huggingface.co/o/n/tree/main", "o/n@main"),
            ("https://huggingface.co/o/n/blob/main/a/b.gguf?download=true", "o/n@main:a/b.gguf"),
            ("https://hf.co/o/n/resolve/abc/m.gguf", "o/n@abc:m.gguf"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "n",
            "o/",
            "/n",
            "./n",
            "../n",
            "~/n",
            "o/n/x",
            "o/n.gguf",
            "o/M.GGUF",
            "o/n.toml",
            "o/..",
            "o/a..b",
            ".o/n",
            "-o/n",
            "o/n:",
            "o/n@",
            "o/n:../x",
            "o/n:/etc/passwd",
            "o/n:a//b",
            "o/n:a\u{1b}b",
            "o/n@../x",
            "o\\n/x",
            "o n/x",
            "hf.co/o",
            "https://example.com/o/n",
            "https://huggingface.co/datasets/o/n",
            "ö/n",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(read(&format!("o/{}", "n".repeat(97))), None);
    }

    #[test]
    fn unsafe_paths_are_known() {
        assert!(["a", "a/b.gguf", "Q4 K/ü.gguf"].into_iter().all(is_safe_path));
        let bad = ["", "/a", "a/", "a//b", "..", "a/../b", "./a", ".git/x", "a\nb", "a\\b", "C:x"];
        assert!(!bad.into_iter().any(is_safe_path));
        assert!(!is_safe_path(&"a".repeat(201)) && !is_safe_path(&"a/".repeat(600)));
    }
}
