//! What Jinja2 reads and minijinja does not: rewritten in the template's source, line by line,
//! so that the lines of errors stay those of the file.
//!
//! - `{% generation %} … {% endgeneration %}`, with which transformers marks what the
//!   assistant says, becomes `{% with %} … {% endwith %}`: a scope that only shows its content.
//! - `a % b`, which formats where `a` is a string, becomes a call of [`PERCENT`].
//! - Line ends become `\n`, and a byte order mark goes.

use std::borrow::Cow;

/// The function that `%` becomes.
pub(super) const PERCENT: &str = "__percent";

/// What ends the operand on either side of a `%`, outside of brackets.
const LOOSER: [&str; 13] = ["+", "-", "~", ",", ":", "=", "==", "!=", "<", ">", "<=", ">=", ";"];
/// The same, of words.
const WORDS: [&str; 8] = ["in", "not", "and", "or", "if", "else", "elif", "recursive"];
/// What ends the right one besides, because these are read from left to right.
const EQUAL: [&str; 4] = ["*", "/", "//", "%"];

/// The template as minijinja should read it. What is not understood stays as it is, for
/// minijinja to complain about.
pub(super) fn rewrite(source: &str) -> String {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map(|end| (rest[..end + 2].to_owned(), end + 2)),
            Some(b'%') => raw_block(rest).or_else(|| tag(rest, "%}")),
            Some(b'{') => tag(rest, "}}"),
            _ => Some(("{".to_owned(), 1)),
        };
        let Some((text, length)) = end else { break };
        out.push_str(&text);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// A `{% raw %}` block with its end, as it is, and its length.
fn raw_block(text: &str) -> Option<(String, usize)> {
    let name = |tag: &str| {
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        inner.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    };
    if name(&text[2..])? != "raw" {
        return None;
    }
    let mut at = 2;
    while let Some(found) = text[at..].find("{%") {
        at += found + 2;
        if name(&text[at..])? == "endraw" {
            let end = at + text[at..].find("%}")? + 2;
            return Some((text[..end].to_owned(), end));
        }
    }
    None
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    Literal,
    Word,
    Open,
    Close,
    Operator,
}

struct Token<'a> {
    kind: Kind,
    text: Cow<'a, str>,
}

impl<'a> Token<'a> {
    fn new(kind: Kind, text: impl Into<Cow<'a, str>>) -> Self {
        Self { kind, text: text.into() }
    }

    fn is(&self, kind: Kind, list: &[&str]) -> bool {
        self.kind == kind && list.contains(&&*self.text)
    }
}

/// One `{{ … }}` or `{% … %}` rewritten, and the length that it had.
fn tag(text: &str, end: &str) -> Option<(String, usize)> {
    let signs: &[char] = if end == "%}" { &['-', '+'] } else { &['-'] };
    let start = 2 + usize::from(text[2..].starts_with(signs));
    let (mut tokens, length) = lex(&text[start..], end, signs)?;
    let mut first = 0;
    if end == "%}" {
        let named = |t: &Token<'_>| t.kind != Kind::Space;
        first = tokens.iter().position(named)? + 1;
        let alone = !tokens[first..].iter().any(named);
        match &*tokens[first - 1].text {
            "generation" if alone => tokens[first - 1].text = "with".into(),
            "endgeneration" if alone => tokens[first - 1].text = "endwith".into(),
            _ => {}
        }
    }
    replace_percent(&mut tokens, first);
    let close = &text[start + length..];
    let close = &close[..close.find(end)? + 2];
    let inner: String = tokens.iter().map(|t| &*t.text).collect();
    Some((text[..start].to_owned() + &inner + close, start + length + close.len()))
}

/// The tokens of an expression, and where its end begins.
fn lex<'a>(text: &'a str, end: &str, signs: &[char]) -> Option<(Vec<Token<'a>>, usize)> {
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (0, 0usize);
    loop {
        let rest = &text[at..];
        let first = rest.chars().next()?;
        if depth == 0 && (rest.starts_with(end) || rest[1.min(first.len_utf8())..].starts_with(end))
        {
            // A sign belongs to the end.
            if rest.starts_with(end) || signs.contains(&first) {
                return Some((tokens, at));
            }
        }
        let run = |matches: fn(char) -> bool| rest.find(|c| !matches(c)).unwrap_or(rest.len());
        let (kind, length) = match first {
            c if c.is_whitespace() => (Kind::Space, run(char::is_whitespace)),
            c if c == '_' || c.is_alphanumeric() => {
                (Kind::Word, run(|c| c == '_' || c.is_alphanumeric()))
            }
            '"' | '\'' => (Kind::Literal, literal(rest, first)?),
            '(' | '[' | '{' => {
                depth += 1;
                (Kind::Open, 1)
            }
            ')' | ']' | '}' => {
                depth = depth.checked_sub(1)?;
                (Kind::Close, 1)
            }
            _ => {
                let two = ["**", "//", "==", "!=", "<=", ">="];
                let long = two.iter().any(|op| rest.starts_with(op));
                (Kind::Operator, if long { 2 } else { first.len_utf8() })
            }
        };
        tokens.push(Token::new(kind, &rest[..length]));
        at += length;
    }
}

/// The length of a quoted string.
fn literal(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Writes every `a % b` behind `first` as a call.
fn replace_percent(tokens: &mut Vec<Token<'_>>, first: usize) {
    let mut from = first;
    while let Some(found) = (from..tokens.len()).find(|&i| tokens[i].is(Kind::Operator, &["%"])) {
        let (left, right) = (left_end(tokens, first, found), right_end(tokens, found));
        tokens.insert(right, Token::new(Kind::Close, ")"));
        tokens[found].text = ",".into();
        tokens.insert(left, Token::new(Kind::Open, format!("{PERCENT}(")));
        from = found + 2;
    }
}

/// Where the operand before a `%` begins.
fn left_end(tokens: &[Token<'_>], first: usize, percent: usize) -> usize {
    let (mut at, mut depth) = (percent, 0);
    while at > first {
        let token = &tokens[at - 1];
        match token.kind {
            Kind::Close => depth += 1,
            Kind::Open if depth == 0 => break,
            Kind::Open => depth -= 1,
            _ if depth > 0 => {}
            Kind::Word if token.is(Kind::Word, &WORDS) => break,
            Kind::Operator
                if token.is(Kind::Operator, &["-"]) && is_unary(&tokens[first..at - 1]) => {}
            Kind::Operator if token.is(Kind::Operator, &LOOSER) => break,
            _ => {}
        }
        at -= 1;
    }
    while tokens[at].kind == Kind::Space {
        at += 1;
    }
    at
}

/// Whether a sign behind these tokens is no operator between two.
fn is_unary(before: &[Token<'_>]) -> bool {
    before.iter().rev().find(|t| t.kind != Kind::Space).is_none_or(|t| match t.kind {
        Kind::Open | Kind::Operator => true,
        Kind::Word => t.is(Kind::Word, &WORDS),
        _ => false,
    })
}

/// Where the operand behind a `%` ends.
fn right_end(tokens: &[Token<'_>], percent: usize) -> usize {
    let (mut at, mut depth) = (percent + 1, 0);
    let mut begun = false;
    let mut last: Option<&Token<'_>> = None;
    while let Some(token) = tokens.get(at) {
        let after_is = last.is_some_and(|t| t.is(Kind::Word, &["is"]));
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close if depth == 0 => break,
            Kind::Close => depth -= 1,
            Kind::Space => {}
            _ if depth > 0 => {}
            Kind::Word if token.is(Kind::Word, &WORDS) && !after_is => break,
            Kind::Operator if token.is(Kind::Operator, &EQUAL) => break,
            Kind::Operator if !begun && token.is(Kind::Operator, &["-", "+"]) => {}
            Kind::Operator if token.is(Kind::Operator, &LOOSER) => break,
            _ => {}
        }
        if token.kind != Kind::Space {
            begun |= !token.is(Kind::Operator, &["-", "+"]);
            last = Some(token);
        }
        at += 1;
    }
    while at > percent + 1 && tokens[at - 1].kind == Kind::Space {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_becomes_a_call_of_its_operands() {
        for (source, want) in [
            ("{{ a % 2 == 0 }}", "{{ __percent(a , 2) == 0 }}"),
            (
                "{{ x + a.b[1]|f * 2 % -c ** 2 - 1 }}",
                "{{ x + __percent(a.b[1]|f * 2 , -c ** 2) - 1 }}",
            ),
            ("{{ a % b % c }}", "{{ __percent(__percent(a , b) , c) }}"),
            ("{{ '%s %%}}' % (a % b, 1) }}", "{{ __percent('%s %%}}' , (__percent(a , b), 1)) }}"),
            ("{%- if not loop.index0%2 -%}", "{%- if not __percent(loop.index0,2) -%}"),
            ("{% set a = -b % c if d else e %}", "{% set a = __percent(-b , c) if d else e %}"),
            ("{{ a - b % c is not even and d }}", "{{ a - __percent(b , c is not even) and d }}"),
            ("{{ {'k': a % b} }}{% if {'a': 1}%}", "{{ {'k': __percent(a , b)} }}{% if {'a': 1}%}"),
            (
                "{# a % b #}{% raw %}{{ a % b }}{% endraw %}",
                "{# a % b #}{% raw %}{{ a % b }}{% endraw %}",
            ),
            ("100 % {{ '{{' }} {", "100 % {{ '{{' }} {"),
        ] {
            assert_eq!(rewrite(source), want);
        }
    }

    #[test]
    fn generation_is_a_scope() {
        let source =
            "{%- generation -%}x{% endgeneration %}\r\n{{ generation }}{% set generation = 1 %}";
        let want = "{%- with -%}x{% endwith %}\n{{ generation }}{% set generation = 1 %}";
        assert_eq!(rewrite(source), want);
    }

    #[test]
    fn broken_sources_stay() {
        for source in [
            "{{",
            "{%",
            "{#",
            "{{ 'a",
            "{{ a % ",
            "{% raw %}x",
            "{{ ) % }}",
            "{{ % }}",
            "{%%}",
            "ü{",
        ] {
            assert!(!rewrite(source).is_empty());
        }
        assert_eq!(rewrite("{{ 'a"), "{{ 'a");
    }
}
