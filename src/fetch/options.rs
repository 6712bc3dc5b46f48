//! Where models are kept and how sources are reached.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::manifest::Manifest;
use super::surroundings::{self as around, variable};
use super::wanted::{Sum, Wanted};
use crate::error::{Error, Result};

/// How [`fetch`](super::fetch) works. [`from_env`](Self::from_env) fills it
/// from the environment; the fields may be changed afterwards.
#[derive(Clone)]
#[non_exhaustive]
pub struct FetchOptions {
    /// The cache folder; models go into `models/NAME/FILE` below it.
    pub cache_dir: PathBuf,
    /// Where relative `path` sources are looked up (`KVFOLD_MODEL_DIR`).
    pub model_dir: Option<PathBuf>,
    /// Base URL of the hub (`HF_ENDPOINT`).
    pub hub_endpoint: String,
    /// Bearer token for the hub (`HF_TOKEN`, or the file that `hf auth login` writes);
    /// never sent on to a host that the hub redirects to.
    pub hub_token: Option<String>,
    /// Ask the hub for nothing (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Ask the hub for a repository's newest commit although an older one is here.
    pub refresh: bool,
    /// Caches in Hugging Face's layout, which are searched and never changed.
    pub hf_caches: Vec<PathBuf>,
    /// Caches in llama.cpp's older, flat layout, which are searched and never changed.
    pub llama_caches: Vec<PathBuf>,
    /// Ollama's stores, which are searched and never changed.
    pub ollama_stores: Vec<PathBuf>,
    /// The Python interpreter that runs pip (`KVFOLD_PYTHON`).
    pub python: OsString,
    /// Hash a file that is already there although its stamp agrees.
    pub verify: bool,
    /// Take the file from here (a file, or a folder that holds it), not from
    /// the manifest's sources.
    pub from: Option<PathBuf>,
    /// How often a transfer that broke off is resumed within one fetch.
    pub retries: u32,
    /// Set to true from another thread (or a signal handler) to stop.
    pub cancel: Arc<AtomicBool>,
}

impl FetchOptions {
    /// Options with every default, whatever the environment says: no cache of another
    /// program is searched.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            model_dir: None,
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
            offline: false,
            refresh: false,
            hf_caches: Vec::new(),
            llama_caches: Vec::new(),
            ollama_stores: Vec::new(),
            python: "python3".into(),
            verify: false,
            from: None,
            retries: 4,
            cancel: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Options from `KVFOLD_CACHE`, `KVFOLD_MODEL_DIR`, `KVFOLD_PYTHON`, and from what
    /// tells huggingface_hub, llama.cpp and Ollama where things are: `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
    /// `LLAMA_CACHE`, `OLLAMA_MODELS`. An empty variable counts as unset.
    ///
    /// # Errors
    /// Those of [`cache_dir`].
    pub fn from_env() -> Result<Self> {
        let mut options = Self::new(cache_dir()?);
        options.model_dir = variable("KVFOLD_MODEL_DIR").map(PathBuf::from);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            options.hub_endpoint = endpoint.to_string_lossy().into_owned();
        }
        options.hub_token = around::hub_token();
        options.offline = around::is_offline();
        options.hf_caches = around::hf_caches();
        options.llama_caches = around::llama_caches();
        options.ollama_stores = around::ollama_stores();
        if let Some(python) = variable("KVFOLD_PYTHON") {
            options.python = python;
        }
        Ok(options)
    }

    /// Where the manifest's file is kept in the cache, fetched or not.
    pub fn model_path(&self, manifest: &Manifest) -> PathBuf {
        self.cache_dir.join("models").join(&manifest.name).join(&manifest.file)
    }

    /// What the manifest wants.
    pub(super) fn wanted(&self, manifest: &Manifest) -> Wanted {
        Wanted {
            path: self.model_path(manifest),
            size: manifest.size,
            sum: Sum::Sha256(manifest.sha256.clone()),
            says: "the manifest",
        }
    }

    /// [`Error::Cancelled`] once the cancel flag is set.
    pub(super) fn check_cancel(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// The cache folder: `KVFOLD_CACHE`, else `XDG_CACHE_HOME/kvfold`, else
/// `~/.cache/kvfold`. It need not exist.
///
/// # Errors
/// [`Error::Config`] if none of these is known.
pub fn cache_dir() -> Result<PathBuf> {
    choose_cache_dir(variable("KVFOLD_CACHE"), variable("XDG_CACHE_HOME"), env::home_dir())
}

fn choose_cache_dir(
    own: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<PathBuf>,
) -> Result<PathBuf> {
    // The XDG specification has relative paths ignored.
    let xdg = xdg.map(PathBuf::from).filter(|path| path.is_absolute());
    own.map(PathBuf::from)
        .or_else(|| xdg.map(|path| path.join("kvfold")))
        .or_else(|| {
            home.filter(|path| !path.as_os_str().is_empty()).map(|path| path.join(".cache/kvfold"))
        })
        .ok_or_else(|| {
            Error::config("KVFOLD_CACHE", "no home folder is known; set it to a writable folder")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_is_the_first_that_is_known() {
        let all = |own: Option<&str>, xdg: Option<&str>, home: Option<&str>| {
            choose_cache_dir(own.map(Into::into), xdg.map(Into::into), home.map(Into::into))
        };
        assert_eq!(all(Some("/a"), Some("/b"), Some("/c")).unwrap(), PathBuf::from("/a"));
        assert_eq!(all(None, Some("/b"), Some("/c")).unwrap(), PathBuf::from("/b/kvfold"));
        assert_eq!(all(None, Some("b"), Some("/c")).unwrap(), PathBuf::from("/c/.cache/kvfold"));
        assert_eq!(all(None, None, Some("/c")).unwrap(), PathBuf::from("/c/.cache/kvfold"));
        assert!(matches!(all(None, None, Some("")), Err(Error::Config { .. })));
        assert!(matches!(all(None, None, None), Err(Error::Config { .. })));
    }
}
