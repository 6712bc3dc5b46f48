//! The feature `emulator`: the kernels and the emulated device as one archive,
//! compiled by the host's C++ compiler. For tests.
//!
//! With `KVFOLD_EMULATOR_SANITIZE=1` they are compiled under AddressSanitizer and
//! UBSan, so that the conformance suite itself runs under both.

use crate::compile::{Compiler, Unit, compile, sources};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "kernels";
const SANITIZE: &str = "KVFOLD_EMULATOR_SANITIZE";

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

    let folder = out.join("emulator");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // The emulator's own tests are a program of their own.
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
    let mut flags: Vec<_> = flags.split(' ').map(String::from).collect();
    println!("cargo::rerun-if-env-changed={SANITIZE}");
    let sanitize = std::env::var_os(SANITIZE).is_some_and(|v| v == "1");
    if sanitize {
        let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
        flags.extend(sanitizers.map(String::from));
    }
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
    if sanitize {
        // rustc links without the compiler's default libraries.
        println!("cargo::rustc-link-lib=dylib=asan\ncargo::rustc-link-lib=dylib=ubsan");
    }
    Ok(compiled.read)
}

fn tool(variable: &str, default: &str) -> PathBuf {
    println!("cargo::rerun-if-env-changed={variable}");
    std::env::var_os(variable).filter(|v| !v.is_empty()).map_or_else(|| default.into(), Into::into)
}
