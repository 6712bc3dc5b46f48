//! The functions, filters and tests that templates expect of transformers' Jinja2, as far as
//! minijinja has none or others.

use minijinja::formatting::{FormatStyle, format};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::filters::{filesizeformat, striptags};
use minijinja_contrib::globals::{cycler, joiner};
use time::OffsetDateTime;

use super::dumps::{MAX_DEPTH, check_depth, float_repr, tojson};
use super::methods;
use super::strftime::strftime;
use super::syntax::PERCENT;

/// The variable with the time in microseconds since 1970, for `strftime_now`.
pub(super) const NOW: &str = "__now";

/// Steps and bytes that a template may take, so that one that never ends is an error: far more
/// than any real one, and a second or two.
const FUEL: u64 = 50_000_000;

/// An environment as `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`
/// with loop controls, and what transformers adds to it.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut all = Environment::new();
    all.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    all.set_unknown_method_callback(methods::call);
    all.set_fuel(Some(FUEL));
    all.set_formatter(show);
    all.add_function("raise_exception", raise_exception);
    all.add_function("strftime_now", strftime_now);
    all.add_function(PERCENT, percent);
    all.add_function("cycler", cycler);
    all.add_function("joiner", joiner);
    all.add_filter("tojson", tojson);
    all.add_filter("format", printf);
    all.add_filter("center", center);
    all.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    all.add_filter("filesizeformat", filesizeformat);
    all.add_filter("striptags", striptags);
    all.add_filter("truncate", truncate);
    all.add_filter("forceescape", |text: String| minijinja::HtmlEscape(&text).to_string());
    all.add_test("iterable", is_iterable);
    all.add_test("sequence", is_sequence);
    all.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    Ok(all)
}

/// Prints floats as Python does; a namespace that holds itself is an error, not a crash.
fn show(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match (value.kind(), f64::try_from(value.clone())) {
        (ValueKind::Number, Ok(float)) if !value.is_integer() && float.is_finite() => {
            Ok(out.write_str(&float_repr(float))?)
        }
        (kind, _) => {
            if matches!(kind, ValueKind::Map | ValueKind::Seq) {
                check_depth(state, value, MAX_DEPTH)?;
            }
            minijinja::escape_formatter(out, state, value)
        }
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The date for templates that tell it to the model, in UTC.
fn strftime_now(state: &State, format: &str) -> String {
    let micros = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or(0);
    let now = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    strftime(format, now.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// `left % right`: what is left of a division, or a text formatted as by C's `printf`.
fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    let invalid = |what: &str| Error::new(ErrorKind::InvalidOperation, what.to_owned());
    if let Some(text) = left.as_str() {
        let arguments: Vec<Value> = match right.is_tuple() {
            true => right.try_iter()?.collect(),
            false => vec![right.clone()],
        };
        methods::check_widths(text)?;
        let formatted = format(FormatStyle::Printf, text, &arguments)?;
        // Python wants every one used, but for a single dict.
        let named = matches!(&arguments[..], [one] if one.kind() == ValueKind::Map);
        if let (Some((_, fewer)), false) = (arguments.split_last(), named)
            && format(FormatStyle::Printf, text, fewer).is_ok()
        {
            return Err(invalid("not all arguments converted during string formatting"));
        }
        return Ok(formatted.into());
    }
    let whole = |x: &Value| match x.kind() {
        ValueKind::Bool => Some(i128::from(x.is_true())),
        _ if x.is_integer() => i128::try_from(x.clone()).ok(),
        _ => None,
    };
    let float = |x: &Value| match whole(x) {
        Some(x) => Ok(x as f64),
        None if x.is_number() => f64::try_from(x.clone()),
        None => Err(invalid(&format!(
            "% cannot be used between a {} and a {}",
            left.kind(),
            right.kind()
        ))),
    };
    match (whole(left), whole(right)) {
        (Some(_), Some(0)) => Err(invalid("integer modulo by zero")),
        (Some(a), Some(b)) => {
            let rest = a.wrapping_rem(b);
            let other_sign = rest != 0 && (rest < 0) != (b < 0);
            let rest = if other_sign { rest + b } else { rest };
            // Small ones compare and print alike, whatever their width.
            Ok(i64::try_from(rest).map_or_else(|_| rest.into(), Value::from))
        }
        _ => {
            let (a, b) = (float(left)?, float(right)?);
            if b == 0.0 {
                return Err(invalid("float modulo by zero"));
            }
            let rest = a % b;
            Ok(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }.into())
        }
    }
}

/// The beginning of a text, up to a word's end unless words may be cut; texts that are
/// longer by `leeway` characters stay whole.
fn truncate(
    text: &str,
    length: Option<usize>,
    cut: Option<bool>,
    end: Option<&str>,
    named: Kwargs,
) -> Result<String, Error> {
    let length = length.or(named.get("length")?).unwrap_or(255);
    let cut = cut.or(named.get("killwords")?).unwrap_or(false);
    let end = end.or(named.get("end")?).unwrap_or("...");
    let leeway: usize = named.get::<Option<usize>>("leeway")?.unwrap_or(5);
    named.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept = length.saturating_sub(end.chars().count());
    let kept: String = text.chars().take(kept).collect();
    let kept = match kept.rfind(' ') {
        Some(space) if !cut => &kept[..space],
        _ => &kept,
    };
    Ok(kept.to_owned() + end)
}

/// The filter `format`, as `%`.
fn printf(text: &str, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    methods::check_widths(text)?;
    format(FormatStyle::Printf, text, &arguments.into_values())
}

/// `center` to 80 columns unless said otherwise.
fn center(text: &str, width: Option<usize>) -> String {
    let missing = width.unwrap_or(80).min(1 << 20).saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width.unwrap_or(80) & 1);
    " ".repeat(left) + text + &" ".repeat(missing - left)
}

/// Whether Python's `iter` takes it: undefined is an empty list, none is not.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Whether it has a length and items, as texts and dicts have.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | Seq | Map | String)
}
