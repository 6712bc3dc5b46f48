//! Where in a TOML text something is: errors name line, column and key.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextPlace {
    pub line: usize,
    pub column: usize,
}

/// Line and column of a byte, from 1; columns are characters.
pub(super) fn place(text: &str, offset: usize) -> TextPlace {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    TextPlace { line, column }
}

/// The path of the innermost key that, with its value, covers a byte, as `task[1].file`;
/// empty if the text is no TOML or the byte lies between the keys.
pub(super) fn key_at(text: &str, offset: usize) -> String {
    let Ok(table) = DeTable::parse(text) else { return key_on_line(text, offset) };
    let mut path = String::new();
    descend_table(table.get_ref(), offset, &mut path);
    path
}

/// Byte of the key `key` of the `index`th table of the array `array`.
pub(super) fn key_in(text: &str, array: &str, index: usize, key: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let (_, tables) = table.get_ref().iter().find(|(name, _)| name.get_ref() == array)?;
    let DeValue::Array(tables) = tables.get_ref() else { return None };
    let DeValue::Table(table) = tables.get(index)?.get_ref() else { return None };
    let (key, _) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(key.span().start)
}

fn descend_table(table: &DeTable<'_>, offset: usize, path: &mut String) {
    for (key, value) in table {
        if key.span().contains(&offset) || covers(value, offset) {
            if !path.is_empty() {
                path.push('.');
            }
            *path += key.get_ref();
            descend(value.get_ref(), offset, path);
            return;
        }
    }
}

fn descend(value: &DeValue<'_>, offset: usize, path: &mut String) {
    match value {
        DeValue::Table(table) => descend_table(table, offset, path),
        DeValue::Array(list) => {
            let tables = list.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_)));
            if let Some(index) = list.iter().position(|item| covers(item, offset)) {
                if tables {
                    *path += &format!("[{index}]");
                }
                descend(list[index].get_ref(), offset, path);
            }
        }
        _ => {}
    }
}

/// Whether a value holds a byte. The span of a table that `[table]` begins is its header
/// alone, so its keys are asked, too.
fn covers(value: &Spanned<DeValue<'_>>, offset: usize) -> bool {
    value.span().contains(&offset)
        || match value.get_ref() {
            DeValue::Table(table) => (table.iter())
                .any(|(key, value)| key.span().contains(&offset) || covers(value, offset)),
            DeValue::Array(list) => list.iter().any(|item| covers(item, offset)),
            _ => false,
        }
}

/// Where the text cannot be parsed: what stands before the first `=` of a byte's line or
/// of the next one above that has one.
fn key_on_line(text: &str, offset: usize) -> String {
    let lines: Vec<&str> = text.lines().take(place(text, offset).line).collect();
    let key = lines.iter().rev().find_map(|line| line.split_once('='));
    key.map_or("", |(key, _)| key).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"é\"\nkv = [\n  \"f16\",\n  \"kivi2\",\n]\n\n[[task]]\ntask = \"a\"\n\n[[task]]\ntask = \"b\"\nlengths = [1, 2]\n";

    fn at(what: &str) -> usize {
        TEXT.find(what).unwrap()
    }

    #[test]
    fn places_count_lines_and_characters() {
        assert_eq!(place(TEXT, 0), TextPlace { line: 1, column: 1 });
        assert_eq!(place(TEXT, at("\"\nkv")), TextPlace { line: 1, column: 10 });
        assert_eq!(place(TEXT, at("\"kivi2")), TextPlace { line: 4, column: 3 });
        assert_eq!(place(TEXT, usize::MAX).line, 13);
    }

    #[test]
    fn keys_are_found_by_their_values() {
        for (what, key) in [
            ("é", "name"),
            ("kivi2", "kv"),
            ("\"a\"", "task[0].task"),
            ("\"b\"", "task[1].task"),
            ("2]", "task[1].lengths"),
        ] {
            assert_eq!(key_at(TEXT, at(what)), key);
        }
        assert_eq!(key_at("kv = [\nsinks = = 4", 11), "sinks");
        assert_eq!(key_at("kv = [\n4 5]", 9), "kv");
        assert_eq!(key_in(TEXT, "task", 1, "lengths"), Some(at("lengths")));
        assert_eq!(key_in(TEXT, "task", 1, "depths"), None);
    }
}
