//! The feature `cuda`: one fatbin for each `.cu`, embedded in the binary.

use crate::archs::{self, Archs};
use crate::compile::{Compiler, Unit, compile, sources};
use crate::nvcc::{self, Nvcc};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "kernels";

/// What goes into `fatbins.rs`.
#[derive(Default)]
pub struct Table {
    /// Stems and files.
    pub fatbins: Vec<(String, PathBuf)>,
    pub archs: Archs,
    pub toolkit: (u32, u32),
}

/// Compiles all kernels and writes the table. Returns the files that were read.
pub fn build(out: &Path) -> Result<BTreeSet<PathBuf>, String> {
    println!("cargo::rerun-if-changed={KERNELS}");
    let list = variable("KVFOLD_CUDA_ARCHS");
    let wanted = archs::parse(list.as_deref().unwrap_or(archs::DEFAULT))?;
    let nvcc = nvcc::find()?;
    let archs = known(&nvcc, wanted, list.is_some())?;

    let folder = out.join("cuda");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let (mut units, mut fatbins) = (Vec::new(), Vec::new());
    for source in sources(Path::new(KERNELS), "cu")? {
        if source.starts_with(Path::new(KERNELS).join("emulator")) {
            continue;
        }
        let stem = stem(&source);
        let output = folder.join(stem.replace('/', "-")).with_extension("fatbin");
        fatbins.push((stem, output.clone()));
        units.push(Unit { source, output });
    }
    forget_others(&folder, &fatbins);
    let mut flags: Vec<String> = "--fatbin -std=c++17 -O3 --fmad=true -lineinfo -Xptxas -v -I"
        .split(' ')
        .chain([KERNELS])
        .map(String::from)
        .collect();
    flags.extend(archs.flags());
    // A sixth of the size. Drivers before CUDA 12.4 cannot read it, but those before
    // the compiler's own generation are refused anyway.
    if nvcc.toolkit >= (13, 0) {
        flags.push("--compress-mode=size".into());
    }
    let compiler = Compiler { program: nvcc.path, version: nvcc.version, flags };
    let compiled = compile(&compiler, &units)?;
    for log in &compiled.logs {
        remarks(log).iter().for_each(|line| println!("cargo::warning={line}"));
    }
    write_table(out, &Table { fatbins, archs, toolkit: nvcc.toolkit })?;
    Ok(compiled.read)
}

/// Removes the fatbins of sources that are gone: scripts/sass-check reads the folder.
fn forget_others(folder: &Path, fatbins: &[(String, PathBuf)]) {
    for old in sources(folder, "fatbin").unwrap_or_default() {
        if !fatbins.iter().any(|(_, output)| *output == old) {
            let _ = std::fs::remove_file(old);
        }
    }
}

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|v| !v.trim().is_empty())
}

/// `attention/decode` of `kernels/attention/decode.cu`.
fn stem(source: &Path) -> String {
    let inside = source.strip_prefix(KERNELS).unwrap_or(source).with_extension("");
    inside.to_string_lossy().replace('\\', "/")
}

/// Leaves out default architectures that an older compiler does not know; one
/// that the user named must be known.
fn known(nvcc: &Nvcc, wanted: Archs, named: bool) -> Result<Archs, String> {
    let output = Command::new(&nvcc.path)
        .arg("--list-gpu-code")
        .output()
        .map_err(|e| format!("{}: {e}", nvcc.path.display()))?;
    let (archs, unknown) = wanted.retain_known(&String::from_utf8_lossy(&output.stdout));
    let (major, minor) = nvcc.toolkit;
    let compiler = format!("nvcc {major}.{minor} cannot compile for {}", unknown.join(", "));
    if (named && !unknown.is_empty()) || archs.native.is_empty() {
        return Err(format!("{compiler}; change KVFOLD_CUDA_ARCHS or the compiler (KVFOLD_NVCC)"));
    }
    if !unknown.is_empty() {
        println!("cargo::warning={compiler}; these devices are left to PTX");
    }
    Ok(archs)
}

/// What is worth showing of a successful compilation: all but the assembler's
/// statistics, of which only spills are.
pub fn remarks(log: &str) -> Vec<String> {
    let mut function = "";
    let mut shown = Vec::new();
    for line in log.lines().map(str::trim_end).filter(|l| !l.is_empty()) {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name;
        } else if line.contains("bytes spill stores") {
            if !line.contains(" 0 bytes spill stores, 0 bytes spill loads") {
                shown.push(format!("{function}: {}", line.trim_start()));
            }
        } else if !line.starts_with("ptxas info") {
            shown.push(line.to_owned());
        }
    }
    shown
}

/// Writes `fatbins.rs`, which `src/backend/driver/embedded.rs` includes.
pub fn write_table(out: &Path, table: &Table) -> Result<(), String> {
    let mut text = String::from("// Written by build.rs.\n");
    let names = &table.archs.native;
    if !table.fatbins.is_empty() {
        // Images start at aligned addresses, like those that the driver reads from files.
        text += "#[repr(C, align(64))]\nstruct Aligned<T: ?Sized>(T);\n";
    }
    text += "pub static FATBINS: &[(&str, &[u8])] = &[\n";
    for (stem, file) in &table.fatbins {
        let file = file.to_string_lossy();
        let _ = writeln!(
            text,
            "    ({stem:?}, {{ static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!({file:?})); &IMAGE.0 }}),"
        );
    }
    let _ = writeln!(text, "];\npub static ARCHITECTURES: &[&str] = &{names:?};");
    let _ = writeln!(text, "pub static PTX: Option<u32> = {:?};", table.archs.ptx);
    let _ = writeln!(text, "pub static TOOLKIT: (u32, u32) = {:?};", table.toolkit);
    let path = out.join("fatbins.rs");
    std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}
