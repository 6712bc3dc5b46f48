//! The structure of a text: what should not be torn apart.

use std::ops::Range;

/// The longest part of a heading that is kept as its title, in characters.
const MAX_TITLE_CHARS: usize = 100;

/// A paragraph or code fence, with the headings directly before it and the
/// blank lines after it. The blocks of a text follow each other without gaps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it stands, in bytes.
    pub range: Range<usize>,
    /// The headings that it begins with.
    pub headings: Vec<Heading>,
}

/// A heading as in Markdown: `## Title`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heading {
    /// 1 to 6.
    pub level: usize,
    /// Without the `#`s.
    pub title: String,
}

/// Cuts `text` into blocks; `markdown` says whether headings and code fences
/// mean anything in it, else only blank lines separate.
pub(super) fn blocks(text: &str, markdown: bool) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open = Block { range: 0..0, headings: Vec::new() };
    let mut has_body = false;
    let mut body_ended = false;
    let mut fence: Option<&str> = None;

    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        let at = line_start;
        line_start += line.len();
        if let Some(opening) = fence {
            if closes(line, opening) {
                fence = None;
                body_ended = true;
            }
            continue;
        }
        if line.trim().is_empty() {
            body_ended = has_body;
            continue;
        }
        let heading = if markdown { heading(line) } else { None };
        fence = if markdown { fence_opening(line) } else { None };
        if has_body && (body_ended || heading.is_some() || fence.is_some()) {
            open.range.end = at;
            blocks.push(open);
            open = Block { range: at..at, headings: Vec::new() };
            has_body = false;
            body_ended = false;
        }
        match heading {
            Some(heading) => open.headings.push(heading),
            None => has_body = true,
        }
    }
    open.range.end = text.len();
    if !open.range.is_empty() {
        blocks.push(open);
    }
    blocks
}

/// The line without its indentation, if that is at most three spaces; four
/// would make it code.
fn unindented(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches(' ');
    (line.len() - rest.len() <= 3).then_some(rest)
}

fn heading(line: &str) -> Option<Heading> {
    let line = unindented(line)?;
    let rest = line.trim_start_matches('#');
    let level = line.len() - rest.len();
    if !(1..=6).contains(&level) || !rest.starts_with(char::is_whitespace) {
        return None;
    }
    let title = rest.trim().trim_end_matches('#').trim_end();
    Some(Heading { level, title: title.chars().take(MAX_TITLE_CHARS).collect() })
}

/// The backticks or tildes of a line that opens a code fence.
fn fence_opening(line: &str) -> Option<&str> {
    let line = unindented(line)?;
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let info = line.trim_start_matches(mark);
    let marks = &line[..line.len() - info.len()];
    // With backticks after it, it is code inside a line.
    (marks.len() >= 3 && !(mark == '`' && info.contains('`'))).then_some(marks)
}

fn closes(line: &str, opening: &str) -> bool {
    unindented(line).is_some_and(|line| {
        let line = line.trim_end();
        line.starts_with(opening) && line.chars().all(|c| opening.starts_with(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, markdown: bool) -> Vec<&str> {
        blocks(text, markdown).into_iter().map(|b| &text[b.range]).collect()
    }

    #[test]
    fn paragraphs_end_at_blank_lines() {
        assert_eq!(texts("\na\nb\n\n \nc", true), ["\na\nb\n\n \n", "c"]);
        assert_eq!(texts("", true), [""; 0]);
        assert_eq!(texts("\n\n", true), ["\n\n"]);
    }

    #[test]
    fn headings_begin_a_block_and_stay_with_what_follows() {
        let text = "intro\n# A\n\n## B ##\n\nbody\n#no heading\n    # code";
        assert_eq!(
            texts(text, true),
            ["intro\n", "# A\n\n## B ##\n\nbody\n#no heading\n    # code"]
        );
        let found = &blocks(text, true)[1].headings;
        let levels: Vec<_> = found.iter().map(|h| (h.level, h.title.as_str())).collect();
        assert_eq!(levels, [(1, "A"), (2, "B")]);
    }

    #[test]
    fn a_fence_is_one_block_whatever_is_in_it() {
        let text = "say\n````sh\n# x\n\n```\n~~~~\n````\nend\n";
        assert_eq!(texts(text, true), ["say\n", "````sh\n# x\n\n```\n~~~~\n````\n", "end\n"]);
        assert_eq!(texts("~~~\na\n\nb", true), ["~~~\na\n\nb"], "never closed");
        assert_eq!(texts("```a``` b\n\nc", true), ["```a``` b\n\n", "c"], "code inside a line");
    }

    #[test]
    fn in_code_only_blank_lines_separate() {
        assert_eq!(texts("x = 1\n# y\n```\n\nz", false), ["x = 1\n# y\n```\n\n", "z"]);
    }
}
