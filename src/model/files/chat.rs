//! Chat templates: Jinja, rendered as transformers renders them.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context, syntax::SyntaxConfig};

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

/// A compiled chat template. `Send + Sync`.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line that does not compile.
    pub fn new(template: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| error(&e))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, template.to_owned()).map_err(|e| error(&e))?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { environment, bos: owned(bos), eos: owned(eos) })
    }

    /// The conversation as the model was trained to read it. With
    /// `add_generation_prompt` the text ends where the assistant's turn begins.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with what the template says, for example that
    /// it knows no system role.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|e| error(&e))?;
        // A token that the model lacks is undefined, not none, as in transformers.
        let token = |text: &Option<String>| match text {
            Some(text) => Value::from(text.as_str()),
            None => Value::UNDEFINED,
        };
        let rendered = template.render(context! {
            messages => messages.iter().map(turn).collect::<Vec<_>>(),
            add_generation_prompt => add_generation_prompt,
            bos_token => token(&self.bos),
            eos_token => token(&self.eos),
            tools => Value::from(()),
            documents => Value::from(()),
        });
        rendered.map_err(|e| error(&e))
    }
}

fn turn(message: &Message) -> Value {
    context! { role => message.role.as_str(), content => message.content.as_str() }
}

/// One line: what is wrong, and in which line of the template.
fn error(e: &minijinja::Error) -> Error {
    let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    let what = one_line(&what.split_whitespace().collect::<Vec<_>>().join(" "));
    Error::ChatTemplate(match e.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    })
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// As Python's `json.dumps(value, ensure_ascii=False)`: minijinja's own filter,
/// less its escapes for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<Value> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let none = std::iter::empty::<(&str, Value)>();
    let escaped = minijinja::filters::tojson(value, indent, none.collect())?;
    Ok(Value::from_safe_string(undo_html(&escaped.to_string())))
}

/// Replaces the escapes `\u003c`, `\u003e`, `\u0026` and `\u0027` of a JSON text
/// by their characters.
fn undo_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // An escape is read whole, so that an escaped backslash hides nothing.
        let (text, length) = match rest.get(..6) {
            Some(r"\u003c") => ("<", 6),
            Some(r"\u003e") => (">", 6),
            Some(r"\u0026") => ("&", 6),
            Some(r"\u0027") => ("'", 6),
            _ => (rest.get(..2).unwrap_or(rest), rest.len().min(2)),
        };
        out.push_str(text);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The date for templates that tell it to the model, in UTC.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(&format, now).map_err(|directive| {
        let what = format!("strftime_now does not know %{directive}");
        minijinja::Error::new(ErrorKind::InvalidOperation, what)
    })
}

/// Formats a time in seconds since 1970 (UTC); an unknown directive is an error.
fn strftime(format: &str, seconds: u64) -> Result<String, char> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next().unwrap_or('%') {
            'Y' => out += &year.to_string(),
            'y' => out += &format!("{:02}", year % 100),
            'm' => out += &format!("{month:02}"),
            'd' => out += &format!("{day:02}"),
            'B' => out += month_name,
            'b' => out += &month_name[..3],
            'A' => out += day_name,
            'a' => out += &day_name[..3],
            'H' => out += &format!("{:02}", rest / 3600),
            'M' => out += &format!("{:02}", rest / 60 % 60),
            'S' => out += &format!("{:02}", rest % 60),
            '%' => out.push('%'),
            other => return Err(other),
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar,
/// by eras of 400 years that begin on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
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
    fn json_is_pythons() {
        let text = render(r"{{ {'a': [1, 'é<&\\u003c'], 'b': none} | tojson }}").unwrap();
        assert_eq!(text, r#"{"a": [1, "é<&\\u003c"], "b": null}"#);
        let text = render("{{ {'a': [1]} | tojson(indent=4) }}").unwrap();
        assert_eq!(text, "{\n    \"a\": [\n        1\n    ]\n}");
    }

    #[test]
    fn errors_are_one_line() {
        let text = render("{{ raise_exception('no\n system role') }}").unwrap_err().to_string();
        assert!(text.starts_with("chat template: no system role (line 1"), "{text}");
        let text = render("\n{% if %}").unwrap_err().to_string();
        assert!(text.contains("line 2") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn dates() {
        let format = "%d %b %Y %B %m %y %A %a %H:%M:%S 100%%";
        let text = strftime(format, 951_782_400 + 3_661).unwrap();
        assert_eq!(text, "29 Feb 2000 February 02 00 Tuesday Tue 01:01:01 100%");
        assert_eq!(strftime("%Y-%m-%d", 0).unwrap(), "1970-01-01");
        assert_eq!(strftime("%Y-%m-%d", 1_767_225_599).unwrap(), "2025-12-31");
        assert_eq!(strftime("%Q", 0), Err('Q'));
    }
}
