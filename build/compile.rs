//! Compiles many sources at once and keeps what has not changed.
//!
//! An output is kept while the compiler's version, its flags, and the contents of
//! the source and of every file that it includes stay the same.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A compiler with its flags.
pub struct Compiler {
    pub program: PathBuf,
    /// What changes when the compiler does: its version.
    pub version: String,
    pub flags: Vec<String>,
}

/// One source and where its output goes.
#[derive(Clone)]
pub struct Unit {
    pub source: PathBuf,
    pub output: PathBuf,
}

/// All files beneath `folder` with this extension, sorted.
pub fn sources(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut found = Vec::new();
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            found.extend(sources(&path, extension)?);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What came of a set of units.
#[derive(Default)]
pub struct Compiled {
    /// What the compiler said about each.
    pub logs: Vec<String>,
    /// All files that were read.
    pub read: BTreeSet<PathBuf>,
}

/// Compiles all units, several at once. The compiler's errors go to stderr whole.
pub fn compile(compiler: &Compiler, units: &[Unit]) -> Result<Compiled, String> {
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, units.len().max(1)) {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = compile_one(compiler, unit);
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((unit, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(unit, _)| &unit.source);

    let (mut compiled, mut failed) = (Compiled::default(), Vec::new());
    for (unit, outcome) in done {
        match outcome {
            Ok((log, files)) => {
                compiled.logs.push(log);
                compiled.read.extend(files);
            }
            Err(output) => {
                eprintln!("{output}");
                failed.push(unit.source.display().to_string());
            }
        }
    }
    match failed.is_empty() {
        true => Ok(compiled),
        false => Err(format!("does not compile (see above): {}", failed.join(", "))),
    }
}

/// Compiles one unit unless its output is still good: what the compiler said and
/// the files that it read.
fn compile_one(compiler: &Compiler, unit: &Unit) -> Result<(String, Vec<PathBuf>), String> {
    let beside = |extension: &str| unit.output.with_extension(extension);
    let (depends, key, log) = (beside("d"), beside("key"), beside("log"));
    let read = |path: &Path| std::fs::read_to_string(path).ok();

    let kept = (|| {
        let files = parse_depfile(&read(&depends)?);
        let good = unit.output.is_file() && read(&key)? == fingerprint(compiler, &files)?;
        good.then_some((read(&log)?, files))
    })();
    if let Some(kept) = kept {
        return Ok(kept);
    }

    // Without a key, a compilation that breaks off is not taken for a good one.
    let _ = std::fs::remove_file(&key);
    let mut command = Command::new(&compiler.program);
    command.args(&compiler.flags).arg("-MD").arg("-MF").arg(&depends);
    command.arg("-o").arg(&unit.output).arg(&unit.source);
    let output = command.output().map_err(|e| format!("{}: {e}", compiler.program.display()))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if !output.status.success() {
        return Err(format!("{command:?}\n{text}"));
    }
    let files = parse_depfile(&read(&depends).unwrap_or_default());
    let new_key = fingerprint(compiler, &files).unwrap_or_default();
    std::fs::write(&log, &text)
        .and_then(|()| std::fs::write(&key, new_key))
        .map_err(|e| format!("{}: {e}", key.display()))?;
    Ok((text, files))
}

/// A hash of all that the output depends on; none if a file is gone.
fn fingerprint(compiler: &Compiler, files: &[PathBuf]) -> Option<String> {
    if files.is_empty() {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    (&compiler.program, &compiler.version, &compiler.flags).hash(&mut hasher);
    for file in files {
        (file, std::fs::read(file).ok()?).hash(&mut hasher);
    }
    Some(format!("{:016x}", hasher.finish()))
}

/// The prerequisites of a makefile rule, `\`-escaped and continued over lines.
pub fn parse_depfile(text: &str) -> Vec<PathBuf> {
    let text = text.replace("\\\r\n", " ").replace("\\\n", " ");
    let rule = text.split_once(": ").map_or("", |(_, rest)| rest);
    let mut files = Vec::new();
    let mut file = String::new();
    let mut characters = rule.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if characters.peek().is_some_and(|n| matches!(n, ' ' | '#' | '\\')) => {
                file.extend(characters.next());
            }
            '$' if characters.peek() == Some(&'$') => file.extend(characters.next()),
            c if c.is_whitespace() => {
                if !file.is_empty() {
                    files.push(PathBuf::from(std::mem::take(&mut file)));
                }
            }
            c => file.push(c),
        }
    }
    if !file.is_empty() {
        files.push(PathBuf::from(file));
    }
    files
}
