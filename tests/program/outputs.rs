//! What is written for a user goes where the user said: through links, to devices and to
//! standard output; whole or not at all.

use crate::command::{Place, refused, success};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A folder with a file of results.
fn results() -> Place {
    let place = Place::new();
    let row = json!({
        "key": "k", "kvfold": "0.1.0", "date": "2026-01-02T03:04:05Z", "spec": "made up",
        "machine": { "cpu": "A Processor", "cores": 2, "jobs": 1, "threads": 2 },
        "model": "tiny", "kv": "f16", "policy": "none", "budget": null, "sinks": null,
        "hot_window": null, "task": { "task": "niah" }, "seed": 0, "chunk": 512,
        "device": "cpu", "weights": "auto", "bits": 16.0, "metric": null, "outcome": null,
        "error": "no luck", "seconds": 1.0,
    });
    place.write("rr.jsonl", format!("{row}\n"));
    place
}

fn path(place: &Place, name: &str) -> PathBuf {
    place.0.path().join(name)
}

fn report(place: &Place, output: &str) -> Output {
    place.kvfold(&["report", "rr.jsonl", "-o", output])
}

#[track_caller]
fn is_page(bytes: impl AsRef<[u8]>) {
    let text = String::from_utf8_lossy(bytes.as_ref()).into_owned();
    assert!(text.starts_with("<!DOCTYPE html>") && text.trim_end().ends_with("</html>"), "{text}");
}

/// Names in the folder, sorted; nothing else may lie about.
fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.0.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn links_stay_and_what_they_name_is_written() {
    let place = results();
    place.write("real.html", "old");
    fs::create_dir(path(&place, "sub")).unwrap();
    for (link, to) in [
        ("link.html", "real.html"),
        ("dangling.html", "new.html"),
        ("sub/up.html", "../other.html"),
        ("chain.html", "sub/up.html"),
    ] {
        symlink(to, path(&place, link)).unwrap();
    }
    symlink("sub", path(&place, "folder")).unwrap();
    for (output, target) in [
        ("link.html", "real.html"),
        ("dangling.html", "new.html"),
        ("chain.html", "other.html"),
        ("folder/in.html", "sub/in.html"),
    ] {
        let (said, _) = success(&report(&place, output));
        assert_eq!(said, format!("{output}\n"));
        let target = path(&place, target);
        is_page(fs::read(&target).unwrap());
        assert!(!target.is_symlink());
    }
    for link in ["link.html", "dangling.html", "sub/up.html", "chain.html", "folder"] {
        assert!(path(&place, link).is_symlink(), "{link}");
    }
    let all = ["chain.html", "dangling.html", "folder", "link.html", "new.html", "other.html"];
    assert_eq!(names(&place), [&all[..], &["real.html", "rr.jsonl", "sub"]].concat());

    symlink("b", path(&place, "a")).unwrap();
    symlink("a", path(&place, "b")).unwrap();
    refused(&report(&place, "a"), &["a: ", "symbolic links"]);
}

#[test]
fn a_file_keeps_its_permissions_and_other_names_their_content() {
    let place = results();
    place.write("page.html", "old");
    let page = path(&place, "page.html");
    fs::set_permissions(&page, fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&page, path(&place, "copy.html")).unwrap();
    success(&report(&place, "page.html"));
    is_page(fs::read(&page).unwrap());
    assert_eq!(fs::metadata(&page).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read(path(&place, "copy.html")).unwrap(), b"old");
    // A new file is one like any other.
    success(&report(&place, "new.html"));
    place.write("usual", "");
    let mode = |name: &str| fs::metadata(path(&place, name)).unwrap().mode();
    assert_eq!(mode("new.html"), mode("usual"));
}

#[test]
fn standard_output_gets_the_page_alone() {
    let place = results();
    for output in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        is_page(success(&report(&place, output)).0);
    }
    // As a file whose beginning belongs to others, by all of its names.
    for (n, output) in ["-", "/dev/stdout", "/dev/fd/1", "out"].iter().enumerate() {
        let mut out = fs::File::create(path(&place, "out")).unwrap();
        out.write_all(b"before\n").unwrap();
        let mut command = place.command(&["report", "rr.jsonl", "-o", output]);
        assert!(command.stdout(out.try_clone().unwrap()).status().unwrap().success());
        out.write_all(b"after\n").unwrap();
        let text = fs::read_to_string(path(&place, "out")).unwrap();
        let page = text.strip_prefix("before\n").and_then(|text| text.strip_suffix("after\n"));
        is_page(page.unwrap_or_else(|| panic!("{n}: {text}")));
    }
    assert_eq!(names(&place), ["out", "rr.jsonl"], "no file is called -");
}

#[test]
fn devices_and_pipes_are_written_to_and_stay() {
    let place = results();
    success(&report(&place, "/dev/null"));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    refused(&report(&place, "/dev/full"), &["/dev/full: ", "No space left"]);

    let fifo = path(&place, "fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    success(&report(&place, "fifo"));
    is_page(reader.join().unwrap());
    assert!(!fs::metadata(&fifo).unwrap().is_file());

    // Another open file of the shell's.
    let script = "\"$0\" report rr.jsonl -o /dev/fd/3 3>three.html; echo first >four.html; \
                  \"$0\" report rr.jsonl -o /dev/fd/3 3>>four.html";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_kvfold")]).current_dir(place.0.path());
    assert!(shell.stdout(Stdio::null()).status().unwrap().success());
    is_page(fs::read(path(&place, "three.html")).unwrap());
    let four = fs::read_to_string(path(&place, "four.html")).unwrap();
    is_page(four.strip_prefix("first\n").unwrap());
}

#[test]
fn what_cannot_be_written_is_named() {
    let place = results();
    fs::create_dir(path(&place, "folder")).unwrap();
    place.write("file", "old");
    for (output, parts) in [
        ("folder", ["folder: a folder", "name a file in it"]),
        ("folder/", ["folder/: a folder", "name a file in it"]),
        ("absent/", ["absent/: a folder", "name a file in it"]),
        ("absent/page.html", ["absent: there is no such folder", "create it"]),
        ("file/page.html", ["file", "Not a directory"]),
        (&"n".repeat(256), ["nnn: ", "too long"]),
    ] {
        refused(&report(&place, output), &parts);
    }
    assert_eq!(names(&place), ["file", "folder", "rr.jsonl"]);
    // The results come first: a page that cannot be made replaces nothing.
    refused(&place.kvfold(&["report", "file", "-o", "file"]), &["file: line 1"]);
    assert_eq!(fs::read(path(&place, "file")).unwrap(), b"old");
}

/// Root may write everywhere, so this is seen only by others.
#[test]
fn a_file_in_a_folder_that_takes_no_new_ones_is_overwritten() {
    let place = results();
    fs::create_dir(path(&place, "locked")).unwrap();
    place.write("locked/page.html", "old");
    place.write("locked/fixed.html", "old");
    let mode = |name: &str, mode| {
        fs::set_permissions(path(&place, name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("locked/fixed.html", 0o444);
    mode("locked", 0o555);
    if fs::write(path(&place, "locked/probe"), "").is_ok() {
        eprintln!("skipped: root may write everywhere");
        return;
    }
    success(&report(&place, "locked/page.html"));
    is_page(fs::read(path(&place, "locked/page.html")).unwrap());
    refused(&report(&place, "locked/fixed.html"), &["fixed.html: ", "ermission denied"]);
    refused(&report(&place, "locked/new.html"), &["locked: ", "ermission denied"]);
    mode("locked", 0o755);
}

#[test]
fn several_writers_leave_one_whole_page() {
    let place = results();
    let start = |_| {
        let mut command = place.command(&["report", "rr.jsonl", "-o", "page.html"]);
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let writers: Vec<_> = (0..8).map(start).collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    is_page(fs::read(path(&place, "page.html")).unwrap());
    assert_eq!(names(&place), ["page.html", "rr.jsonl"]);
}

/// Results are appended and found again: that needs a file, which may be behind a link.
#[test]
fn results_are_added_to_files_only() {
    let place = results();
    let model = crate::command::model();
    let spec = format!(
        "models = [{model:?}]\nkv = [\"f16\"]\ndevice = \"cpu\"\n[[task]]\ntask = \"niah\"\n\
         lengths = [300]\ndepths = [50]\nseeds = 1\n"
    );
    place.write("spec.toml", spec);
    fs::create_dir(path(&place, "folder")).unwrap();
    for output in ["-", "/dev/null", "/dev/stdout", "folder"] {
        let refusal = place.kvfold(&["ablate", "spec.toml", "-o", output]);
        refused(&refusal, &[&format!("{output}: "), "name a file"]);
    }
    symlink("real.jsonl", path(&place, "link.jsonl")).unwrap();
    success(&place.kvfold(&["ablate", "spec.toml", "-o", "link.jsonl"]));
    let mut text = String::new();
    fs::File::open(path(&place, "real.jsonl")).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.lines().count() == 1 && path(&place, "link.jsonl").is_symlink(), "{text}");
}
