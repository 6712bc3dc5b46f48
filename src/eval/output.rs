//! Where results are written: files that appear only when they are complete, and what is
//! no file.
//!
//! | path | what is done |
//! |---|---|
//! | a file, or none yet | written beside it under another name, then put in its place; its permissions stay |
//! | a link | the same to what it names, which need not exist; the link stays |
//! | `-`, `/dev/stdout` | standard output |
//! | a device, a pipe, `/dev/fd/N` | opened and written to |
//!
//! A file in a folder that takes no new files, or that cannot be replaced (it is mounted), is
//! overwritten where it lies. Other names of a file (hard links) keep the old content.

use crate::error::{Error, Result};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Writes `bytes` to `path`: [`Output::at`], then [`Output::write`].
///
/// # Errors
/// Theirs.
pub fn write_whole(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    Output::at(path)?.write(bytes)
}

/// A place to write to, looked at before the work whose result is to be written there.
#[derive(Debug)]
pub struct Output {
    /// As the user named it.
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Stdout,
    /// No file: written to as it is.
    Opened(PathBuf),
    /// A file, whether or not it exists, and what is known of it; links are followed.
    File(PathBuf, Option<Metadata>),
}

impl Output {
    /// Finds out what `path` is, and that it may be written; `-` is standard output.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that may not be written, a folder that is missing or takes no
    /// files; [`Error::BadFile`] for a path that is a folder.
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let target = target(&path)?;
        Ok(Self { path, target })
    }

    /// Whether it is standard output, where nothing else may be printed then.
    pub fn is_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    /// Writes all of `bytes`: a file then has the old content or the new, never a part.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let bytes = bytes.as_ref();
        let written = match &self.target {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Target::Opened(path) => open(path).and_then(|mut file| file.write_all(bytes)),
            Target::File(path, old) => replace(path, old.as_ref(), bytes),
        };
        written.map_err(|error| Error::io(&self.path, error))
    }
}

fn target(path: &Path) -> Result<Target> {
    let io = |error| Error::io(path, error);
    if path == Path::new("-") {
        return Ok(Target::Stdout);
    }
    let is_folder = || {
        let remedy = "name a file in it";
        Err(Error::bad_file(path, "a folder, to which no file can be written", remedy))
    };
    if path.as_os_str().is_empty() {
        return Err(Error::config("output", "the path is empty; name a file, or - for stdout"));
    }
    let (end, is_handle) = follow(path).map_err(io)?;
    let known = match std::fs::metadata(&end) {
        Ok(known) => Some(known),
        Err(error) if error.kind() == ErrorKind::NotFound && !is_handle => None,
        Err(error) => return Err(io(error)),
    };
    match known {
        Some(known) if known.is_dir() => is_folder(),
        Some(known) if is_stdout(&known) => Ok(Target::Stdout),
        Some(known) if is_handle || !known.is_file() => Ok(Target::Opened(end)),
        Some(known) => {
            // What its owner has made read-only is not replaced either.
            OpenOptions::new().write(true).open(&end).map_err(io)?;
            Ok(Target::File(end, Some(known)))
        }
        None if path.as_os_str().as_encoded_bytes().ends_with(b"/") => is_folder(),
        None => {
            // What is wrong with the folder is said now.
            part(&end).map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    let remedy = "create it, or name another file to write to";
                    Error::bad_file(folder(&end), "there is no such folder", remedy)
                }
                _ => Error::io(folder(&end), error),
            })?;
            Ok(Target::File(end, None))
        }
    }
}

/// What the links of a path lead to, whether or not it exists; and whether that is an open
/// file of a process (`/dev/fd/1`), whose name is not followed: it may have none.
fn follow(path: &Path) -> io::Result<(PathBuf, bool)> {
    let mut path = path.to_owned();
    // As many as the system follows.
    for _ in 0..40 {
        if is_handle(&path) {
            return Ok((path, true));
        }
        match std::fs::read_link(&path) {
            Ok(link) => path = folder(&path).join(link),
            // No link, or nothing at all.
            Err(_) => return Ok((path, false)),
        }
    }
    // The system's own words for a link that leads to itself.
    std::fs::metadata(&path).map(|_| (path, false))
}

/// Whether a path lies in `/proc/PID/fd`, by whatever name.
fn is_handle(path: &Path) -> bool {
    let folder = folder(path).canonicalize().unwrap_or_default();
    folder.starts_with("/proc") && folder.ends_with("fd")
}

/// The folder that a path lies in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    }
}

/// Whether a file is the one that standard output goes to.
#[cfg(unix)]
fn is_stdout(known: &Metadata) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let own = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let own = own.and_then(|stdout| stdout.metadata());
    own.is_ok_and(|own| (own.dev(), own.ino()) == (known.dev(), known.ino()))
}

#[cfg(not(unix))]
fn is_stdout(_: &Metadata) -> bool {
    false
}

/// Opens what is no file; an open file that is one is written at its end, as nothing knows
/// where its owner stands in it.
fn open(path: &Path) -> io::Result<File> {
    let is_file = std::fs::metadata(path)?.is_file();
    OpenOptions::new().write(true).append(is_file).open(path)
}

/// A file of another name beside `path`, which goes when it is dropped.
fn part(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut start = std::ffi::OsString::from(".");
    // The longest name that systems take has 255 bytes.
    start.push(name.to_string_lossy().chars().take(40).collect::<String>());
    start.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&start).suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder(path)).map_err(|error| {
        // Without the name that was tried.
        error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
    })
}

/// Writes a file under another name and puts it in its place.
fn replace(path: &Path, old: Option<&Metadata>, bytes: &[u8]) -> io::Result<()> {
    let Some(old) = old else {
        let mut file = part(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        return file.persist(path).map(drop).map_err(|error| error.error);
    };
    match part(path).and_then(|file| exchange(file, path, old, bytes)) {
        Err(error) if is_fixed(&error) => std::fs::write(path, bytes),
        done => done,
    }
}

/// Puts `file` in the place of a file, of which it takes on owner and permissions.
fn exchange(
    mut file: tempfile::NamedTempFile,
    path: &Path,
    old: &Metadata,
    bytes: &[u8],
) -> io::Result<()> {
    file.write_all(bytes)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let new = file.as_file().metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
        }
    }
    // After the owner, whose change takes some of them away.
    file.as_file().set_permissions(old.permissions())?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Whether an error means that a file can be written but not replaced.
fn is_fixed(error: &io::Error) -> bool {
    use ErrorKind::{PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}
