//! Where other programs keep models and what they are told by the environment: the rules
//! of huggingface_hub, llama.cpp and Ollama, as far as they concern finding a model.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

/// An environment variable, if set and not empty.
pub(super) fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The token: `HF_TOKEN` (`HUGGING_FACE_HUB_TOKEN` in old scripts), else the file that
/// `hf auth login` writes: `HF_TOKEN_PATH`, else `token` in Hugging Face's folder.
pub(super) fn hub_token() -> Option<String> {
    let given = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let text = match given {
        Some(token) => token.to_string_lossy().into_owned(),
        None => {
            let file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home()?.join("token")))?;
            fs::read_to_string(file).ok()?
        }
    };
    // What cannot stand in a header is no token.
    let token = text.trim();
    let usable = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    usable.then(|| token.to_owned())
}

/// Whether the hub must not be asked.
pub(super) fn is_offline() -> bool {
    let given = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE"));
    given.is_some_and(|value| is_yes(&value.to_string_lossy()))
}

/// As huggingface_hub reads its switches.
fn is_yes(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// Caches in Hugging Face's layout: its own, and what newer versions of llama.cpp keep
/// below `LLAMA_CACHE`.
pub(super) fn hf_caches() -> Vec<PathBuf> {
    let own = path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(hf_home()?.join("hub")));
    own.into_iter().chain(path("LLAMA_CACHE")).collect()
}

/// Caches in the flat layout of older versions of llama.cpp.
pub(super) fn llama_caches() -> Vec<PathBuf> {
    path("LLAMA_CACHE").or_else(|| Some(cache_home()?.join("llama.cpp"))).into_iter().collect()
}

/// Ollama's stores: the user's, and that of the service which its installer sets up.
pub(super) fn ollama_stores() -> Vec<PathBuf> {
    match path("OLLAMA_MODELS") {
        Some(folder) => vec![folder],
        None => {
            let own = home().map(|home| home.join(".ollama/models"));
            own.into_iter().chain([PathBuf::from("/usr/share/ollama/.ollama/models")]).collect()
        }
    }
}

fn hf_home() -> Option<PathBuf> {
    path("HF_HOME").or_else(|| Some(cache_home()?.join("huggingface")))
}

/// `XDG_CACHE_HOME`, else `~/.cache`.
fn cache_home() -> Option<PathBuf> {
    path("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")))
}

/// A variable that holds a path; `~/` is the home folder, as in huggingface_hub.
fn path(name: &str) -> Option<PathBuf> {
    let value = PathBuf::from(variable(name)?);
    match (value.strip_prefix("~"), home()) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(value),
    }
}

fn home() -> Option<PathBuf> {
    env::home_dir().filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_on_as_in_huggingface_hub() {
        assert!(["1", "ON", "yes", "True", " true "].into_iter().all(is_yes));
        assert!(!["0", "off", "no", "false", "2", ""].into_iter().any(is_yes));
    }
}
