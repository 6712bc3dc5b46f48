//! Python's `json.dumps` of a template's value.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Lists within lists that are written at most.
pub(super) const MAX_DEPTH: usize = 150;

/// Refuses what holds itself or is nested absurdly deep: writing it would exhaust the stack.
pub(super) fn check_depth(state: &State, value: &Value, left: usize) -> Result<(), Error> {
    state.consume_fuel(8)?;
    if !matches!(value.kind(), ValueKind::Map | ValueKind::Seq) {
        return Ok(());
    }
    if left == 0 {
        return Err(invalid("a value is nested too deep, or holds itself"));
    }
    for item in value.try_iter()? {
        let of_map = value.kind() == ValueKind::Map;
        let item = if of_map { value.get_item(&item)? } else { item };
        check_depth(state, &item, left - 1)?;
    }
    Ok(())
}

/// How `json.dumps` writes.
struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    colon: String,
    sort: bool,
}

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)` of
/// transformers, which escapes nothing for HTML.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    given: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let mut given = given.iter();
    let mut argument = |name: &str| -> Result<Value, Error> {
        let named: Option<Value> = named.get(name)?;
        Ok(named.or_else(|| given.next().cloned()).unwrap_or_default())
    };
    let ascii = argument("ensure_ascii")?.is_true();
    let indent = argument("indent")?;
    let separators = argument("separators")?;
    let sort = argument("sort_keys")?.is_true();
    named.assert_all_used()?;
    let indent = match (indent.as_str(), indent.as_i64()) {
        (Some(text), _) => Some(text.to_owned()),
        (_, Some(spaces)) => Some(" ".repeat(spaces.clamp(0, 1 << 10) as usize)),
        _ => None,
    };
    let (mut between, mut colon) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if !(separators.is_none() || separators.is_undefined()) {
        let pair: Vec<Value> = separators.try_iter()?.collect();
        match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
            [Some(first), Some(second)] => (between, colon) = (first.to_owned(), second.to_owned()),
            _ => return Err(invalid("the separators of tojson must be two strings")),
        }
    }
    check_depth(state, value, MAX_DEPTH)?;
    let mut out = String::new();
    write(value, &Style { ascii, indent, between, colon, sort }, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
            let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
            if style.sort {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            list(pairs.iter(), ['{', '}'], style, depth, out, &mut |(key, value), out| {
                match key.kind() {
                    ValueKind::String => quote(key.as_str().unwrap_or_default(), style.ascii, out),
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                        out.push('"');
                        write(key, style, depth, out)?;
                        out.push('"');
                    }
                    other => return Err(invalid(format!("a key of JSON cannot be a {other}"))),
                }
                out.push_str(&style.colon);
                write(value, style, depth + 1, out)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            list(items.iter(), ['[', ']'], style, depth, out, &mut |item, out| {
                write(item, style, depth + 1, out)
            })?;
        }
        other => return Err(invalid(format!("tojson: an {other} value is not JSON serializable"))),
    }
    Ok(())
}

/// A bracketed list of items.
fn list<T>(
    items: impl ExactSizeIterator<Item = T>,
    [open, close]: [char; 2],
    style: &Style,
    depth: usize,
    out: &mut String,
    item: &mut dyn FnMut(T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(open);
    let empty = items.len() == 0;
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent.as_ref().filter(|_| !empty) {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    for (index, next) in items.enumerate() {
        if index > 0 {
            out.push_str(&style.between);
        }
        line(depth + 1, out);
        item(next, out)?;
    }
    line(depth, out);
    out.push(close);
    Ok(())
}

/// A number as Python's `repr` writes it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => match float {
            x if x.is_nan() => "NaN".into(),
            x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
            x => float_repr(x),
        },
        _ => value.to_string(),
    }
}

/// A finite float as Python's `repr` writes it: the shortest digits, with an exponent of two
/// digits from 1e16 on and below 1e-4.
pub(super) fn float_repr(x: f64) -> String {
    let text = format!("{x:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !c.is_ascii()) || (ascii && c == '\u{7f}') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
