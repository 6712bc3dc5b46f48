//! Parts of a split GGUF file, as llama.cpp's `gguf-split` names them:
//! `model-00001-of-00003.gguf`.

use super::complaint;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Files that a model may be split into.
const MAX_PARTS: u64 = 99_999;

/// What comes before the number of a part, that number, and how many there are.
fn parse(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| match digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())
    {
        true => digits.parse().ok(),
        false => None,
    };
    Some((prefix, five(number)?, five(count)?))
}

fn name(prefix: &str, number: u64, count: u64) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// What is wrong with a part whose name does not say where the others are.
pub(super) fn no_name(count: u64) -> String {
    format!(
        "it says that it is the first of {count} parts, but its name does not end in \
         -00001-of-{count:05}.gguf, by which the others would be found"
    )
}

/// The parts after the first of `count`, if the path of the first has such a name.
/// `number` is what the file itself says, from 0.
///
/// # Errors
/// [`Error::BadFile`] for another part than the first, for a name that contradicts the
/// file, and for a part that is not there.
pub(super) fn others(path: &Path, number: u64, count: u64) -> Result<Option<Vec<PathBuf>>> {
    let found = path.file_name().and_then(|name| name.to_str()).and_then(parse);
    if number != 0 {
        let first = match found {
            Some((prefix, ..)) => path.with_file_name(name(prefix, 1, count)).display().to_string(),
            None => "the one that ends in -00001-of-…".to_owned(),
        };
        let what = format!("it is part {} of {count}", number.saturating_add(1));
        return Err(Error::bad_file(path, what, format!("give the first part: {first}")));
    }
    let Some((prefix, named, named_count)) = found else { return Ok(None) };
    if (named, named_count) != (1, count) || count > MAX_PARTS {
        let what = format!(
            "it is part 1 of {count}, but its name says {named} of {named_count}; give the parts \
             their names back"
        );
        return Err(complaint::bad_file(path, what));
    }
    let paths: Vec<_> = (2..=count).map(|n| path.with_file_name(name(prefix, n, count))).collect();
    match paths.iter().find(|path| !path.exists()) {
        None => Ok(Some(paths)),
        Some(missing) => Err(Error::bad_file(
            missing,
            format!("this part is missing, of the {count} that the model is split into"),
            "download all parts into one folder",
        )),
    }
}

/// The first part, if these files are the parts of one model.
pub(super) fn first_of(paths: &[PathBuf]) -> Option<PathBuf> {
    let mut parts = paths.iter().map(|path| {
        let (prefix, number, count) = parse(path.file_name()?.to_str()?)?;
        Some((prefix, number, count, path))
    });
    let (prefix, _, count, path) = parts.next()??;
    let same = |part: Option<(&str, u64, u64, &PathBuf)>| {
        part.is_some_and(|(other, _, of, _)| (other, of) == (prefix, count))
    };
    parts.all(same).then(|| path.with_file_name(name(prefix, 1, count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        assert_eq!(parse("a-of-b-00002-of-00010.gguf"), Some(("a-of-b", 2, 10)));
        for other in ["a.gguf", "a-1-of-2.gguf", "a-00001-of-0000x.gguf", "a-00001-of-00002.bin"] {
            assert_eq!(parse(other), None, "{other}");
        }
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let parts = paths(&["m/a-00002-of-00002.gguf", "m/a-00001-of-00002.gguf"]);
        assert_eq!(first_of(&parts), Some(PathBuf::from("m/a-00001-of-00002.gguf")));
        assert_eq!(first_of(&paths(&["a-00001-of-00002.gguf", "b-00002-of-00002.gguf"])), None);
        assert_eq!(first_of(&paths(&["a.gguf", "a-00001-of-00002.gguf"])), None);
    }
}
