//! Chat templates: Jinja, rendered as transformers renders them.
//!
//! | file | what it knows |
//! |---|---|
//! | `syntax.rs` | Jinja2's syntax that minijinja lacks |
//! | `environment.rs` | functions, filters, tests |
//! | `methods.rs` | methods of Python's strings, lists and dicts |
//! | `dumps.rs`, `strftime.rs` | Python's JSON and dates |
//!
//! What stays different: `strftime_now` tells the time in UTC; a loop over none is empty
//! instead of an error; `{!r}` in `str.format` and `%r` are errors; `loop` and `namespace`
//! values print otherwise; a template may look at a key of a dict that Python hides behind a
//! method of the same name; `{% do %}`, which transformers lacks, works; `urlize`,
//! `wordwrap`, `xmlattr` and `random` do not.

mod dumps;
mod environment;
mod methods;
mod strftime;
mod syntax;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};

use super::complaint::one_line;
use crate::{Error, Result};

/// The name under which the one template is kept; no auto-escaping.
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Texts of special tokens by the names that templates have for them, such as `bos_token`.
pub type TokenTexts = BTreeMap<&'static str, String>;

/// What a template is told besides the conversation.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ChatOptions {
    /// Whether the text ends where the assistant's turn begins.
    pub add_generation_prompt: bool,
    /// Variables by name, such as `enable_thinking`, `date_string` or `tools`. They hide
    /// kvfold's own of the same name.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` formats, in UTC; `None`: now.
    pub now: Option<SystemTime>,
}

impl ChatOptions {
    /// For a text that ends where the assistant's turn begins.
    pub fn new() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }

    /// Sets whether the text ends where the assistant's turn begins.
    pub fn with_generation_prompt(mut self, yes: bool) -> Self {
        self.add_generation_prompt = yes;
        self
    }

    /// Sets a variable.
    pub fn with_variable(
        mut self,
        name: impl Into<String>,
        value: impl Into<serde_json::Value>,
    ) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Sets the time.
    pub fn with_now(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }
}

/// A chat template. `Send + Sync`.
#[derive(Debug)]
pub struct ChatTemplate {
    /// The template, or why it cannot be used.
    compiled: std::result::Result<Environment<'static>, String>,
    tokens: TokenTexts,
    reads: HashSet<String>,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line that does not compile.
    pub fn new(template: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let given = [("bos_token", bos), ("eos_token", eos)];
        let given = given.into_iter().filter_map(|(name, text)| Some((name, text?.to_owned())));
        let tokens = given.collect();
        let compile = || {
            let mut all = environment::environment()?;
            all.add_template_owned(NAME, syntax::rewrite(template))?;
            let reads = all.get_template(NAME)?.undeclared_variables(false);
            Ok((all, reads))
        };
        let (all, reads) = compile().map_err(|e| error(&e))?;
        Ok(Self { compiled: Ok(all), tokens, reads })
    }

    /// Reads a template from a file: Jinja, or JSON with a `chat_template`, such as a
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`] for what is neither, and as [`new`](Self::new).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let remedy = "a chat template is Jinja, or JSON with a \"chat_template\"";
        let bad = |what: &str| Error::bad_file(path, what, remedy);
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8 text"))?;
        let json = serde_json::from_str::<serde_json::Value>(text.trim_start_matches('\u{feff}'));
        let template = match json {
            Ok(json) => {
                let what = "it is JSON, and has no \"chat_template\"";
                default_template(&json["chat_template"])?.ok_or_else(|| bad(what))?
            }
            Err(_) if text.trim().is_empty() => return Err(bad("it is empty")),
            Err(_) => text,
        };
        Self::new(&template, None, None)
    }

    /// Sets the texts of the special tokens.
    pub fn with_token_texts(mut self, tokens: TokenTexts) -> Self {
        self.tokens = tokens;
        self
    }

    /// One that cannot be used, and why: a model whose template is damaged serves all the
    /// same what needs none.
    pub(crate) fn unusable(why: &Error) -> Self {
        let why = match why {
            Error::ChatTemplate(what) => what.clone(),
            other => one_line(&other.to_string()),
        };
        Self { compiled: Err(why), tokens: TokenTexts::new(), reads: HashSet::new() }
    }

    /// Whether the template looks at a variable of this name.
    pub fn reads(&self, variable: &str) -> bool {
        self.reads.contains(variable)
    }

    /// The conversation as the model was trained to read it. With
    /// `add_generation_prompt` the text ends where the assistant's turn begins.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with what the template says, for example that
    /// it knows no system role, or why it cannot be used at all.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let options = ChatOptions::new().with_generation_prompt(add_generation_prompt);
        self.render_with(messages, &options)
    }

    /// As [`render`](Self::render), with variables.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_with(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let all = self.compiled.as_ref().map_err(|why| Error::ChatTemplate(why.clone()))?;
        let now = options.now.unwrap_or_else(SystemTime::now);
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        // A token that the model lacks is undefined, not none, as in transformers.
        let tokens = self.tokens.iter().map(|(name, text)| (*name, Value::from(text.as_str())));
        let own = [
            ("messages", messages.iter().map(turn).collect()),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            ("tools", ().into()),
            ("documents", ().into()),
            (environment::NOW, i64::try_from(now).unwrap_or(i64::MAX).into()),
        ];
        let given = options.variables.iter().map(|(k, v)| (k.as_str(), Value::from(Serde(v))));
        let variables: BTreeMap<&str, Value> = tokens.chain(own).chain(given).collect();
        let template = all.get_template(NAME).map_err(|e| error(&e))?;
        template.render(Value::from(variables)).map_err(|e| error(&e))
    }
}

/// A template is a string, or a list or an object of named ones of which "default" is meant;
/// none is blank.
///
/// # Errors
/// [`Error::ChatTemplate`] if several are named and none is the default.
pub(super) fn default_template(value: &serde_json::Value) -> Result<Option<String>> {
    let name = |template: &serde_json::Value| template["name"].as_str().map(str::to_owned);
    let template = match value.as_array() {
        _ if value.is_object() => &value["default"],
        Some(list) => match list.iter().find(|t| name(t).as_deref() == Some("default")) {
            Some(default) => &default["template"],
            None if list.is_empty() => return Ok(None),
            None => {
                let names: Vec<String> = list.iter().filter_map(name).collect();
                let names = one_line(&names.join(", "));
                return Err(Error::ChatTemplate(format!(
                    "of the model's templates ({names}) none is called \"default\""
                )));
            }
        },
        None => value,
    };
    Ok(template.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned))
}

fn turn(message: &Message) -> Value {
    minijinja::context! { role => message.role.as_str(), content => message.content.as_str() }
}

/// One line: what is wrong, and in which line of the template.
fn error(e: &minijinja::Error) -> Error {
    let what = match e.kind() {
        ErrorKind::OutOfFuel => "it takes too long or makes too much text".to_owned(),
        kind => e.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    let what = one_line(&what.split_whitespace().collect::<Vec<_>>().join(" "));
    Error::ChatTemplate(match e.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String> {
        let messages = [Message::new("user", " <Hi> \"there\" ")];
        ChatTemplate::new(template, Some("<s>"), None)?.render(&messages, true)
    }

    #[test]
    fn blocks_are_trimmed_as_in_transformers() {
        let template = "{{ bos_token }}\n{% for m in messages %}\n  {% if true %}\n[{{ m['role'] }}]{{ m.content.strip() }}\n  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n>{% endif %}\n";
        assert_eq!(render(template).unwrap(), "<s>\n[user]<Hi> \"there\"\n>");
        let template =
            "{% if eos_token is defined %}eos{% endif %}{% if not tools %}none{% endif %}";
        assert_eq!(render(template).unwrap(), "none");
    }

    #[test]
    fn errors_are_one_line() {
        let text = render("{{ raise_exception('no\n system role') }}").unwrap_err().to_string();
        assert!(text.starts_with("chat template: no system role (line 1"), "{text}");
        let text = render("\n{% if %}").unwrap_err().to_string();
        assert!(text.contains("line 2") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn templates_say_what_they_read() {
        let template = "{% set mine = 1 %}{{ mine }}{% if enable_thinking is defined and not enable_thinking %}{% endif %}";
        let template = ChatTemplate::new(template, None, None).unwrap();
        assert!(template.reads("enable_thinking"));
        assert!(!template.reads("mine") && !template.reads("thinking"));
    }
}
