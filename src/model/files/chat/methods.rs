//! The methods that Python's strings, lists and dicts have, as far as minijinja-contrib lacks
//! them or gives something else.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// What a text is padded to at most.
const MAX_WIDTH: usize = 1 << 16;

type Answer = Result<Value, Error>;

/// Methods that change what they belong to; transformers' sandbox refuses them.
const CHANGING: [&str; 13] = [
    "append",
    "extend",
    "insert",
    "remove",
    "sort",
    "reverse",
    "clear",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "add",
    "discard",
];

/// Calls a method of Python's types.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Answer {
    if let ("format", Some(format)) = (method, value.as_str()) {
        check_widths(format)?;
    }
    let own = match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map | ValueKind::Seq if CHANGING.contains(&method) => {
            // An entry of a dict may have such a name.
            let entry = value.get_attr(method).unwrap_or_default();
            if !entry.is_undefined() {
                return entry.call(state, args);
            }
            return Err(error(format!(
                "access to attribute '{method}' of a {} is unsafe: templates must not change values",
                if value.kind() == ValueKind::Map { "dict" } else { "list" }
            )));
        }
        ValueKind::Map | ValueKind::Seq if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        ValueKind::Seq if method == "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            Some(
                found
                    .map(Value::from)
                    .ok_or_else(|| error(format!("{wanted:?} is not in list")))?,
            )
        }
        _ => None,
    };
    match own {
        Some(answer) => Ok(answer),
        None => unknown_method_callback(state, value, method, args),
    }
}

/// Refuses format strings whose widths ask for absurd lengths.
pub(super) fn check_widths(format: &str) -> Result<(), Error> {
    let widths = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    for width in widths {
        if width.parse().map_or(true, |width: usize| width > MAX_WIDTH) {
            return Err(error(format!("a width of {width} is absurd")));
        }
    }
    Ok(())
}

fn error(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn of_string(s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            s.strip_prefix(prefix).unwrap_or(s).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            s.strip_suffix(suffix).unwrap_or(s).into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let gone = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
            match method {
                "strip" => s.trim_matches(gone),
                "lstrip" => s.trim_start_matches(gone),
                _ => s.trim_end_matches(gone),
            }
            .into()
        }
        "split" | "rsplit" => split(s, method == "rsplit", args)?,
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            split_lines(s, keep)
        }
        "partition" | "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            if by.is_empty() {
                return Err(error("empty separator"));
            }
            let last = method == "rpartition";
            let parts = match if last { s.rsplit_once(by) } else { s.split_once(by) } {
                Some((before, after)) => [before, by, after],
                None if last => ["", "", s],
                None => [s, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "replace" => {
            let (old, new, count, named): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let count = count.or(named.get("count")?).unwrap_or(-1);
            named.assert_all_used()?;
            match usize::try_from(count) {
                Ok(count) => s.replacen(old, new, count),
                Err(_) => s.replace(old, new),
            }
            .into()
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (offset, part) = part(s, start, end);
            if method == "count" {
                return Ok(Some(part.map_or(0, |part| part.matches(what).count()).into()));
            }
            let found = part.and_then(|part| {
                let at = if method.starts_with('r') { part.rfind(what) } else { part.find(what) };
                Some(offset + part[..at?].chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(error("substring not found")),
            }
        }
        "startswith" | "endswith" => {
            let (what, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let any = match what.as_str() {
                Some(_) => vec![what.clone()],
                None if what.is_tuple() => what.try_iter()?.collect(),
                None => {
                    let kind = what.kind();
                    return Err(error(format!(
                        "{method} first arg must be str or a tuple of str, not {kind}"
                    )));
                }
            };
            let (_, part) = part(s, start, end);
            let matches = |affix: &Value| match (part, affix.as_str(), method) {
                (Some(part), Some(affix), "startswith") => part.starts_with(affix),
                (Some(part), Some(affix), _) => part.ends_with(affix),
                _ => false,
            };
            any.iter().any(matches).into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            justify(s, method, width, fill.unwrap_or(' '))?.into()
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let digits = s.trim_start_matches(['+', '-']);
            let sign = &s[..s.len() - digits.len()];
            // Only one sign counts as such.
            let sign = &sign[..sign.len().min(1)];
            let width = width - sign.len() as i64;
            (sign.to_owned() + &justify(&s[sign.len()..], "rjust", width, '0')?).into()
        }
        "title" => {
            let () = from_args(args)?;
            let mut inside = false;
            let turn = |c: char| -> String {
                let cased = c.is_lowercase() || c.is_uppercase();
                match std::mem::replace(&mut inside, cased) {
                    true => c.to_lowercase().collect(),
                    false => c.to_uppercase().collect(),
                }
            };
            s.chars().map(turn).collect::<String>().into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let turn = |c: char| -> String {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            };
            s.chars().map(turn).collect::<String>().into()
        }
        "casefold" => {
            let () = from_args(args)?;
            s.to_lowercase().replace('ß', "ss").into()
        }
        "isspace" => {
            let () = from_args(args)?;
            (!s.is_empty() && s.chars().all(is_space)).into()
        }
        "isdecimal" => {
            let () = from_args(args)?;
            (!s.is_empty() && s.chars().all(|c| c.is_ascii_digit())).into()
        }
        "isdigit" => {
            let () = from_args(args)?;
            let digit = |c: char| c.is_ascii_digit() || "²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(c);
            (!s.is_empty() && s.chars().all(digit)).into()
        }
        "isidentifier" => {
            let () = from_args(args)?;
            let inner = |c: char| c == '_' || c.is_alphanumeric();
            (s.chars().all(inner) && s.starts_with(|c: char| inner(c) && !c.is_numeric())).into()
        }
        "istitle" => {
            let () = from_args(args)?;
            let (mut inside, mut any) = (false, false);
            let fits = s.chars().all(|c| {
                let cased = c.is_lowercase() || c.is_uppercase();
                let fits = !cased || inside == c.is_lowercase();
                any |= cased;
                inside = cased;
                fits
            });
            (fits && any).into()
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            expand_tabs(s, size.unwrap_or(8).min(1 << 10)).into()
        }
        _ => return Ok(None),
    }))
}

/// What Python takes for white space: Unicode's, and the separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `s[start:end]`, which is none where it begins behind the end, and the characters before it.
fn part(s: &str, start: Option<i64>, end: Option<i64>) -> (usize, Option<&str>) {
    let length = s.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    if start > end {
        return (0, None);
    }
    let byte = |chars: i64| s.char_indices().nth(chars as usize).map_or(s.len(), |(at, _)| at);
    (start as usize, Some(&s[byte(start)..byte(end)]))
}

fn split(s: &str, from_the_right: bool, args: &[Value]) -> Answer {
    let (by, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let by = by.or(named.get("sep")?);
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match (by, from_the_right) {
        (Some(""), _) => return Err(error("empty separator")),
        (Some(by), false) => s.splitn(most.saturating_add(1), by).collect(),
        (Some(by), true) => {
            let mut parts: Vec<&str> = s.rsplitn(most.saturating_add(1), by).collect();
            parts.reverse();
            parts
        }
        (None, false) => {
            let mut parts = Vec::new();
            let mut rest = s.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end = if parts.len() < most { rest.find(is_space) } else { None };
                let (part, behind) = rest.split_at(end.unwrap_or(rest.len()));
                parts.push(part);
                rest = behind.trim_start_matches(is_space);
            }
            parts
        }
        (None, true) => {
            let mut parts = Vec::new();
            let mut rest = s.trim_end_matches(is_space);
            while !rest.is_empty() {
                let end = if parts.len() < most { rest.rfind(is_space) } else { None };
                let space = |at: usize| at + rest[at..].chars().next().map_or(0, char::len_utf8);
                let (before, part) = rest.split_at(end.map_or(0, space));
                parts.push(part);
                rest = before.trim_end_matches(is_space);
            }
            parts.reverse();
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_lines(s: &str, keep: bool) -> Value {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines: Vec<Value> = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let at = rest.find(ends).unwrap_or(rest.len());
        let end = match &rest[at..] {
            behind if behind.starts_with("\r\n") => at + 2,
            behind => at + behind.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(rest[..if keep { end } else { at }].into());
        rest = &rest[end..];
    }
    Value::from(lines)
}

fn justify(s: &str, how: &str, width: i64, fill: char) -> Result<String, Error> {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(s.chars().count());
    if missing > MAX_WIDTH {
        return Err(error(format!("{how}: a width of {width} is absurd")));
    }
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // Python leaves the odd one to the left where the width is odd.
        _ => missing / 2 + (missing & width as usize & 1),
    };
    let fill = |count: usize| fill.to_string().repeat(count);
    Ok(fill(left) + s + &fill(missing - left))
}

fn expand_tabs(s: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}
