//! The feature `cuda`: one fatbin for each `.cu`, embedded in the binary. Those that hardly
//! any device needs ([`LATE`]) hold no machine code: small, and soon compiled.

use crate::archs::{self, Archs};
use crate::compile::{Compiler, Unit, compile, sources};
use crate::nvcc::{self, Nvcc};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "kernels";

/// Kernels that are loaded when one of them is launched, and compiled by the driver then.
/// Each one's name begins with that of its file.
const LATE: &str = "kernels/attention/instantiations/normal";

/// What goes into `fatbins.rs`.
#[derive(Default)]
pub struct Table {
    /// Stems and files.
    pub fatbins: Vec<(String, PathBuf)>,
    /// Likewise of those that are loaded late.
    pub late: Vec<(String, PathBuf)>,
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
    let late_folder = folder.join("late");
    std::fs::create_dir_all(&late_folder).map_err(|e| format!("{}: {e}", late_folder.display()))?;
    let mut all = sources(Path::new(KERNELS), "cu")?;
    all.retain(|source| !source.starts_with(Path::new(KERNELS).join("emulator")));
    let (late, early): (Vec<_>, _) = all.into_iter().partition(|source| source.starts_with(LATE));
    let (late, early) = (units(&late_folder, late), units(&folder, early));
    forget_others(&folder, &[&late[..], &early].concat());
    let mut flags: Vec<String> = "--fatbin -std=c++17 -O3 --fmad=true -lineinfo -Xptxas -v -I"
        .split(' ')
        .chain([KERNELS])
        .map(String::from)
        .collect();
    // A sixth of the size. Drivers before CUDA 12.4 cannot read it, but those before
    // the compiler's own generation are refused anyway.
    if nvcc.toolkit >= (13, 0) {
        flags.push("--compress-mode=size".into());
    }
    let mut read = BTreeSet::new();
    for (units, targets) in [(&early, archs.flags()), (&late, archs.late_flags())] {
        let flags = [&flags[..], &targets].concat();
        let (program, version) = (nvcc.path.clone(), nvcc.version.clone());
        let compiled = compile(&Compiler { program, version, flags }, units)?;
        for log in &compiled.logs {
            remarks(log).iter().for_each(|line| println!("cargo::warning={line}"));
        }
        read.extend(compiled.read);
    }
    let table = |units: Vec<Unit>| units.into_iter().map(|u| (stem(&u.source), u.output)).collect();
    let (fatbins, late) = (table(early), table(late));
    write_table(out, &Table { fatbins, late, archs, toolkit: nvcc.toolkit })?;
    Ok(read)
}

/// Where the fatbins of sources go.
fn units(folder: &Path, sources: Vec<PathBuf>) -> Vec<Unit> {
    let output = |source: &Path| folder.join(stem(source).replace('/', "-") + ".fatbin");
    sources.into_iter().map(|source| Unit { output: output(&source), source }).collect()
}

/// Removes the fatbins of sources that are gone: scripts/sass-check reads the folder.
fn forget_others(folder: &Path, units: &[Unit]) {
    for old in sources(folder, "fatbin").unwrap_or_default() {
        if !units.iter().any(|unit| unit.output == old) {
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
    if !(table.fatbins.is_empty() && table.late.is_empty()) {
        // Images start at aligned addresses, like those that the driver reads from files.
        text += "#[repr(C, align(64))]\nstruct Aligned<T: ?Sized>(T);\n";
    }
    for (name, fatbins) in [("FATBINS", &table.fatbins), ("LATE", &table.late)] {
        let _ = writeln!(text, "pub static {name}: &[(&str, &[u8])] = &[");
        for (stem, file) in fatbins {
            let file = file.to_string_lossy();
            let _ = writeln!(
                text,
                "    ({stem:?}, {{ static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!({file:?})); &IMAGE.0 }}),"
            );
        }
        text += "];\n";
    }
    let _ = writeln!(text, "pub static ARCHITECTURES: &[&str] = &{names:?};");
    let _ = writeln!(text, "pub static PTX: Option<u32> = {:?};", table.archs.ptx);
    let _ = writeln!(text, "pub static TOOLKIT: (u32, u32) = {:?};", table.toolkit);
    let path = out.join("fatbins.rs");
    std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}
