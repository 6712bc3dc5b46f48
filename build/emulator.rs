//! The feature `emulator`: the kernels and the emulated device as one archive,
//! compiled by the host's C++ compiler. For tests. `scripts/emulator-replay` compiles
//! them once more, under sanitizers.

use crate::compile::{Compiler, Unit, compile, sources};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "kernels";

/// Compiles and links. Returns the files that were read.
pub fn build(out: &Path) -> Result<BTreeSet<PathBuf>, String> {
    println!("cargo::rerun-if-changed={KERNELS}");
    let program = tool("CXX", "c++");
    let answer = Command::new(&program).arg("--version").output().map_err(|e| {
        format!(
            "tests run the kernels on the host and need a C++ compiler: {}: {e}; install g++ or clang++, or set CXX",
            program.display()
        )
    })?;
    let version = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().into();

    let folder = objects(out);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // Its own tests and replays of traces are programs of their own.
    let emulator = Path::new(KERNELS).join("emulator");
    let mut files = sources(Path::new(KERNELS), "cu")?;
    files.retain(|f| !f.starts_with(&emulator));
    let own = sources(&emulator, "cpp")?;
    files.extend(own.into_iter().filter(|f| f.parent() == Some(&emulator)));
    let units: Vec<_> = files
        .into_iter()
        .map(|source| {
            let name = source.to_string_lossy().replace(['/', '\\', '.'], "-");
            Unit { output: folder.join(name).with_extension("o"), source }
        })
        .collect();
    let flags = "-c -std=c++17 -O2 -g1 -fPIC -pthread -Wall -ffp-contract=off -fno-strict-aliasing -DKVFOLD_EMULATED -I kernels -x c++";
    let flags = flags.split(' ').map(String::from).collect();
    let compiled = compile(&Compiler { program, version, flags }, &units)?;
    for log in &compiled.logs {
        log.lines().for_each(|line| println!("cargo::warning={line}"));
    }

    let archive = out.join("libkvfold_emulator.a");
    let _ = std::fs::remove_file(&archive);
    let mut command = Command::new(tool("AR", "ar"));
    command.arg("crs").arg(&archive).args(units.iter().map(|u| &u.output));
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("{command:?} failed"));
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    // Whole: the kernels enter themselves in a table when the program starts.
    println!("cargo::rustc-link-lib=static:+whole-archive=kvfold_emulator");
    let runtime = if cfg!(target_os = "macos") { "c++" } else { "stdc++" };
    println!("cargo::rustc-link-lib=dylib={runtime}");
    Ok(compiled.read)
}

/// Objects are the same for all sets of features and for lints, which have output folders
/// of their own beside this one: `build/kvfold-HASH/out`.
fn objects(out: &Path) -> PathBuf {
    let all = out.ancestors().nth(2).filter(|folder| folder.ends_with("build"));
    all.map_or_else(|| out.join("emulator"), |folder| folder.join("kvfold-emulator"))
}

fn tool(variable: &str, default: &str) -> PathBuf {
    println!("cargo::rerun-if-env-changed={variable}");
    std::env::var_os(variable).filter(|v| !v.is_empty()).map_or_else(|| default.into(), Into::into)
}
