//! Compiles `kernels/`: with nvcc for the feature `cuda`, with the host's C++
//! compiler for the feature `emulator` (tests). Without them it does nothing.
//!
//! | variable | meaning |
//! |---|---|
//! | `KVFOLD_CUDA_ARCHS` | architectures to compile for, as in `80,90` |
//! | `KVFOLD_NVCC`, `NVCC` | the nvcc to use; else see `build/nvcc.rs` |
//! | `CXX`, `AR` | the host's compiler and archiver, for the emulator |

#[path = "build/archs.rs"]
mod archs;
#[path = "build/compile.rs"]
mod compile;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let enabled = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or("cargo sets OUT_DIR")?;
    let docs = std::env::var_os("DOCS_RS").is_some();
    let mut read = BTreeSet::new();
    if enabled("CUDA") {
        match docs {
            true => cuda::write_table(&out, &cuda::Table::default())?,
            false => read.extend(cuda::build(&out)?),
        }
    }
    if enabled("EMULATOR") && !docs {
        read.extend(emulator::build(&out)?);
    }
    // Last, so that nobody has to look for an error among hundreds of headers.
    read.iter().for_each(|file| println!("cargo::rerun-if-changed={}", file.display()));
    Ok(())
}
