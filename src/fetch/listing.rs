//! What the hub says of a repository: its commit, and sizes and sums of its files.
//!
//! `GET /api/models/OWNER/NAME/revision/REVISION?blobs=true` answers, as far as it is read:
//!
//! ```text
//! { "sha": COMMIT, "gguf": { "architecture": … }, "siblings": [
//!     { "rfilename": PATH, "size": BYTES, "blobId": GIT_BLOB_SUM,
//!       "lfs": { "sha256": SHA256, "size": BYTES } },          only where a file is in LFS
//! … ] }
//! ```

use serde::Deserialize;

use super::fail::Fail;
use super::http::{Answer, Much, read};
use super::hub::escape;
use super::options::FetchOptions;
use super::repository::{Repository, is_safe_path};
use super::wanted::{Sum, is_hex};

/// The largest answer that is read. Repositories with thousands of files have some 1 MB.
const LIMIT: u64 = 32 << 20;

/// A repository at one commit.
pub(super) struct Listing {
    /// The commit: 40 digits.
    pub(super) commit: String,
    /// Its files, as far as their names can be used.
    pub(super) files: Vec<Listed>,
    /// The architecture of its GGUF files, as the hub has read it.
    pub(super) gguf_architecture: Option<String>,
}

/// A file of a repository.
pub(super) struct Listed {
    /// Its path in the repository.
    pub(super) path: String,
    /// Its size in bytes, if the hub says so.
    pub(super) size: Option<u64>,
    /// Its sum, if the hub says so.
    pub(super) sum: Option<Sum>,
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    gguf: Option<GgufInfo>,
}

#[derive(Deserialize)]
struct GgufInfo {
    architecture: Option<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

/// Asks the hub.
pub(super) fn ask(repository: &Repository, options: &FetchOptions) -> Result<Listing, Fail> {
    let endpoint = options.hub_endpoint.trim_end_matches('/');
    let (id, revision) = (repository.id(), repository.revision());
    // A slash in a revision is a part of its name here.
    let revision_part = escape(revision).to_string().replace('/', "%2F");
    let url = format!("{endpoint}/api/models/{id}/revision/{revision_part}?blobs=true");
    let answer = read(&url, Much::All(LIMIT), options)?;
    if answer.status != 200 {
        return Err(Fail::Source(format!("{url}: {}", refused(&answer, repository, options))));
    }
    parse(&answer.body).map_err(|reason| Fail::Source(format!("{url}: {reason}")))
}

/// What a refusal of the hub means for a repository. It answers 401, not 404, where nothing
/// is, if it does not know who asks.
pub(super) fn refused(answer: &Answer, repository: &Repository, options: &FetchOptions) -> String {
    let status = answer.status;
    let page = format!("{}/{}", options.hub_endpoint.trim_end_matches('/'), repository.id());
    let gated = answer.code.as_deref() == Some("GatedRepo");
    let token = match (&options.hub_token, gated || status == 403) {
        (None, _) => "set HF_TOKEN to a token of your account",
        (Some(_), true) => "the account of HF_TOKEN has no access (yet)",
        (Some(_), false) => "HF_TOKEN may be wrong or without access to it",
    };
    match (status, answer.code.as_deref()) {
        (_, Some("RevisionNotFound")) => {
            format!("HTTP {status}: it has no revision {:?}", repository.revision())
        }
        (401 | 403, _) if gated || status == 403 => format!(
            "HTTP {status}: access is refused: accept the licence at {page} if it is gated; {token}"
        ),
        (401, _) => format!(
            "HTTP 401: it does not exist, or is private or gated: check the spelling, accept the \
             licence at {page} if there is one; {token}"
        ),
        (404, _) => {
            format!("HTTP 404: it does not exist, or is private: check the spelling; {token}")
        }
        (429, _) => "HTTP 429: too many requests; try again later, or set HF_TOKEN".into(),
        (500.., _) => format!("HTTP {status}: the hub failed; try again later"),
        _ => format!("HTTP {status}: an unexpected answer; is HF_ENDPOINT a hub?"),
    }
}

fn parse(body: &[u8]) -> Result<Listing, String> {
    let info: Info = serde_json::from_slice(body).map_err(|error| {
        if body.trim_ascii_start().starts_with(b"<") {
            "a web page came instead of the hub's answer (of a proxy, or to log in?)".to_owned()
        } else {
            format!("not an answer of the hub: {error}")
        }
    })?;
    let commit = info.sha.filter(|sha| is_hex(sha, 40));
    let commit = commit.ok_or("the hub's answer names no commit")?;
    // What cannot be a file's name here (`..`, control characters) is as if it were not
    // there; if it is needed, that is what the message says.
    let safe = info.siblings.into_iter().filter(|file| is_safe_path(&file.rfilename));
    let files = safe.map(Listed::from).collect();
    let gguf_architecture = info.gguf.and_then(|gguf| gguf.architecture);
    Ok(Listing { commit, files, gguf_architecture })
}

impl From<Sibling> for Listed {
    fn from(file: Sibling) -> Self {
        let (size, sum) = match file.lfs {
            Some(lfs) => (lfs.size.or(file.size), lfs.sha256.map(Sum::Sha256)),
            None => (file.size, file.blob_id.map(Sum::GitBlob)),
        };
        Self { path: file.rfilename, size, sum: sum.filter(Sum::is_valid) }
    }
}

impl Listing {
    /// The file's size and sum.
    ///
    /// # Errors
    /// One line, if the file is not there or the hub says too little of it.
    pub(super) fn file(&self, path: &str) -> Result<(u64, &Sum), String> {
        let file = self.files.iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| format!("it has no {path}"))?;
        match (file.size, &file.sum) {
            (Some(size @ 1..), Some(sum)) => Ok((size, sum)),
            (Some(0), _) => Err(format!("{path} is empty")),
            _ => Err(format!("the hub gives no size or sum of {path}, so it cannot be checked")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_the_hub_is_read() {
        let (sha, git) = ("a".repeat(64), "b".repeat(40));
        let text = format!(
            r#"{{"id": "o/n", "sha": "{git}", "gated": false, "gguf": {{"total": 1, "architecture": "llama"}},
            "siblings": [
              {{"rfilename": "m.gguf", "size": 9, "blobId": "{git}", "lfs": {{"sha256": "{sha}", "size": 9, "pointerSize": 1}}}},
              {{"rfilename": "config.json", "size": 3, "blobId": "{git}"}},
              {{"rfilename": "bare"}},
              {{"rfilename": "short", "size": 3, "blobId": "bb"}},
              {{"rfilename": "empty", "size": 0, "blobId": "{git}"}},
              {{"rfilename": "../../up.gguf", "size": 3, "blobId": "{git}"}},
              {{"rfilename": "/abs.gguf", "size": 3, "blobId": "{git}"}},
              {{"rfilename": "a\u001b[2Jb.gguf", "size": 3, "blobId": "{git}"}}]}}"#
        );
        let listing = parse(text.as_bytes()).unwrap();
        assert_eq!(listing.commit, git);
        assert_eq!(listing.gguf_architecture.as_deref(), Some("llama"));
        assert_eq!(listing.file("m.gguf").unwrap(), (9, &Sum::Sha256(sha)));
        assert_eq!(listing.file("config.json").unwrap(), (3, &Sum::GitBlob(git)));
        assert_eq!(listing.files.len(), 5, "unsafe names are left out");
        for (path, reason) in [
            ("bare", "no size or sum"),
            ("short", "no size or sum"),
            ("empty", "is empty"),
            ("x", "has no x"),
        ] {
            assert!(listing.file(path).unwrap_err().contains(reason), "{path}");
        }
    }

    #[test]
    fn other_answers_are_named() {
        let deep = "[".repeat(100_000);
        for (text, reason) in [
            ("", "not an answer"),
            ("<!doctype html><p>Log in", "a web page"),
            ("[]", "not an answer"),
            (r#"{"sha": 7}"#, "not an answer"),
            (r#"{"siblings": []}"#, "no commit"),
            (r#"{"sha": "main", "siblings": []}"#, "no commit"),
            (
                r#"{"sha": "../../x", "siblings": [{"rfilename": "a", "size": -1}]}"#,
                "not an answer",
            ),
            (&deep, "not an answer"),
        ] {
            let error = parse(text.as_bytes()).err().unwrap();
            assert!(error.contains(reason) && !error.contains('\n'), "{text:.20}: {error}");
        }
    }
}
