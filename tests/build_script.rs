//! The parts of the build script, without a CUDA compiler: a script stands in for it.
#![allow(dead_code)]

#[path = "../build/archs.rs"]
mod archs;
#[path = "../build/compile.rs"]
mod compile;
/// The build script's module names its siblings by `crate::`.
#[path = "../build/cuda.rs"]
mod cuda;
#[path = "../build/nvcc.rs"]
mod nvcc;

use compile::{Compiler, Unit};
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Command;

#[test]
fn architectures_are_read_sorted_and_checked() {
    let default = archs::parse(archs::DEFAULT).unwrap();
    assert_eq!(default.native, ["80", "86", "89", "90", "100", "120"]);
    assert_eq!(default.ptx, Some(80));
    let few = archs::parse(" 100f, 90a ,90,90").unwrap();
    assert_eq!(few.native, ["90", "90a", "100f"]);
    // Code with a suffix is not for later devices, so it is no source of PTX.
    assert_eq!(few.ptx, Some(90));
    assert_eq!(archs::parse("90a").unwrap().ptx, None);
    assert_eq!(
        archs::parse("80,90a").unwrap().flags(),
        [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_80,code=compute_80",
        ]
    );
    let late = |list| archs::parse(list).unwrap().late_flags();
    assert_eq!(late("80,90a"), ["-gencode=arch=compute_80,code=compute_80"]);
    assert_eq!(late("90a"), ["-gencode=arch=compute_90a,code=sm_90a"]);

    for (list, told) in [
        ("75,90", "the kernels need architecture 80 or later, not 75"),
        ("", "\"\" is no architecture"),
        ("80,", "\"\" is no architecture"),
        ("8.6", "\"8.6\" is no architecture"),
        ("sm_90", "\"sm_90\" is no architecture"),
        ("90x", "\"90x\" is no architecture"),
        ("a", "\"a\" is no architecture"),
        ("native", "\"native\" is no architecture"),
        ("+90", "\"+90\" is no architecture"),
        ("99999999999", "\"99999999999\" is no architecture"),
    ] {
        let error = archs::parse(list).unwrap_err();
        assert!(error.contains(told), "{list}: {error}");
        assert!(error.starts_with(&format!("KVFOLD_CUDA_ARCHS={list}:")), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn architectures_that_a_compiler_lacks_are_split_off() {
    let all = archs::parse("80,90,90a,100").unwrap();
    let (known, unknown) = all.retain_known("sm_75\nsm_80\nsm_90\nsm_90a\n");
    assert_eq!(known.native, ["80", "90", "90a"]);
    assert_eq!(known.ptx, Some(80));
    assert_eq!(unknown, ["100"]);
    let (known, _) = all.retain_known("sm_90\n");
    assert_eq!((known.native.len(), known.ptx), (1, None));
}

#[test]
fn a_missing_compiler_is_one_line_that_says_what_to_do() {
    let error = nvcc::first_of([PathBuf::from("/nowhere/nvcc")].into_iter()).unwrap_err();
    assert!(error.contains("scripts/setup-nvcc") && error.contains("KVFOLD_NVCC"), "{error}");
    assert_eq!(error.lines().count(), 1);
    assert!(nvcc::ask(Path::new("/nowhere/nvcc")).unwrap_err().contains("cannot run this nvcc"));

    let release = "Cuda compilation tools, release 13.0, V13.0.88";
    assert_eq!(nvcc::parse_release(release), Some((13, 0)));
    assert_eq!(nvcc::parse_release("g++ (Debian 12.2.0-14) 12.2.0"), None);
}

/// A script in place of nvcc, in the layout of the wheels.
#[cfg(unix)]
fn fake_nvcc(environment: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = environment.join("lib/python3.99/site-packages/nvidia/cu13/bin/nvcc");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
#[test]
fn a_compiler_in_a_python_environment_is_found() {
    let place = tempfile::tempdir().unwrap();
    let script = "echo 'Cuda compilation tools, release 13.0, V13.0.88'";
    let path = fake_nvcc(place.path(), script);
    let found = nvcc::first_of(nvcc::in_environment(place.path()).into_iter()).unwrap();
    assert_eq!((found.path, found.toolkit), (path, (13, 0)));

    let other = fake_nvcc(place.path(), "echo hello");
    assert!(nvcc::ask(&other).unwrap_err().contains("does not tell its version"));
}

/// Documentation needs no compiler of kernels: docs.rs has none.
#[cfg(unix)]
#[test]
fn docs_are_built_without_a_compiler() {
    let place = tempfile::tempdir().unwrap();
    let script = place.path().join("build-script");
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
    let mut compile = Command::new(rustc);
    compile.arg("--edition=2024").arg(source).arg("-o").arg(&script);
    assert!(compile.status().unwrap().success());
    let run = |docs: bool| {
        let mut command = Command::new(&script);
        command.env_clear().env("OUT_DIR", place.path()).env("KVFOLD_NVCC", "/nowhere/nvcc");
        command.env("CARGO_FEATURE_CUDA", "1").env("CARGO_FEATURE_EMULATOR", "1");
        if docs {
            command.env("DOCS_RS", "1").env("CXX", "/nowhere/c++");
        }
        command.output().unwrap()
    };
    let output = run(false);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && told.contains("cargo::error=KVFOLD_NVCC"), "{told}");
    assert!(!place.path().join("fatbins.rs").exists());
    assert!(run(true).status.success());
    let table = fs::read_to_string(place.path().join("fatbins.rs")).unwrap();
    assert!(
        table.contains("FATBINS") && table.contains("LATE") && !table.contains("include_bytes"),
        "{table}"
    );
}

/// "Compiles" by copying, counts its runs, and includes `header.h`.
#[cfg(unix)]
const COPIER: &str = r#"
while [ $# -gt 1 ]; do
  case $1 in -MF) depends=$2; shift;; -o) output=$2; shift;; esac
  shift
done
echo run >>"$(dirname "$0")/runs"
grep -q broken "$1" && { echo "line one"; echo "line two" >&2; exit 1; }
cp "$1" "$output"
echo "$output: $1 \\" >"$depends"
echo "  $(dirname "$1")/header.h" >>"$depends"
echo "a remark"
"#;

#[cfg(unix)]
#[test]
fn outputs_are_kept_until_something_that_they_depend_on_changes() {
    let place = tempfile::tempdir().unwrap();
    let program = fake_nvcc(place.path(), COPIER);
    let at = |name: &str| place.path().join(name);
    fs::write(at("header.h"), "one").unwrap();
    fs::write(at("a.cu"), "first").unwrap();
    fs::write(at("b.cu"), "second").unwrap();
    let units: Vec<_> = (["a", "b"].iter())
        .map(|s| Unit { source: at(&format!("{s}.cu")), output: at(&format!("{s}.out")) })
        .collect();
    let compiler = |version: &str, flag: &str| Compiler {
        program: program.clone(),
        version: version.into(),
        flags: vec![flag.into()],
    };
    let runs = || {
        let count = program.with_file_name("runs");
        let text = fs::read_to_string(&count).unwrap_or_default();
        let _ = fs::remove_file(count);
        text.lines().count()
    };
    let build = |compiler: &Compiler| compile::compile(compiler, &units).unwrap();

    let first = build(&compiler("1", "-x"));
    assert_eq!(runs(), 2);
    assert_eq!(first.logs, ["a remark\n", "a remark\n"]);
    assert_eq!(first.read, [at("a.cu"), at("b.cu"), at("header.h")].into_iter().collect());
    // What the compiler said is said again, though it did not run.
    assert_eq!(build(&compiler("1", "-x")).logs, first.logs);
    assert_eq!(runs(), 0);

    fs::write(at("a.cu"), "third").unwrap();
    build(&compiler("1", "-x"));
    assert_eq!((runs(), fs::read_to_string(at("a.out")).unwrap().as_str()), (1, "third"));
    fs::write(at("header.h"), "two").unwrap();
    build(&compiler("1", "-x"));
    assert_eq!(runs(), 2, "the header changed");
    build(&compiler("1", "-y"));
    assert_eq!(runs(), 2, "the flags changed");
    build(&compiler("2", "-y"));
    assert_eq!(runs(), 2, "the compiler changed");
    fs::remove_file(at("b.out")).unwrap();
    build(&compiler("2", "-y"));
    assert_eq!(runs(), 1, "an output is gone");

    // A failure names its source, and is not taken for an output later.
    fs::write(at("b.cu"), "broken").unwrap();
    let error = compile::compile(&compiler("2", "-y"), &units).err().unwrap();
    assert!(error.contains("b.cu") && !error.contains("a.cu"), "{error}");
    assert!(compile::compile(&compiler("2", "-y"), &units).is_err());
    assert_eq!(runs(), 2);
}

#[test]
fn dependencies_are_read_with_their_escapes() {
    let text = "out.o: a.cu \\\n  dir/with\\ space.h /usr/x.h \\\n c\\#d.h $$e.h\n";
    let files = compile::parse_depfile(text);
    let wanted = ["a.cu", "dir/with space.h", "/usr/x.h", "c#d.h", "$e.h"];
    assert_eq!(files, wanted.map(PathBuf::from));
    assert!(compile::parse_depfile("").is_empty());
}

#[test]
fn only_warnings_and_spills_are_shown() {
    let log = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'seal' for 'sm_80'\n\
        ptxas info    : Function properties for seal\n    \
        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 32 registers\n\
        ptxas info    : Function properties for attend\n    \
        8 bytes stack frame, 10 bytes spill stores, 0 bytes spill loads\n\
        seal.cu(3): warning #177-D: variable \"x\" was declared but never referenced\n";
    assert_eq!(
        cuda::remarks(log),
        [
            "attend: 8 bytes stack frame, 10 bytes spill stores, 0 bytes spill loads",
            "seal.cu(3): warning #177-D: variable \"x\" was declared but never referenced",
        ]
    );
}
