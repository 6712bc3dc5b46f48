//! Finds nvcc.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A CUDA compiler that answers.
#[derive(Debug)]
pub struct Nvcc {
    pub path: PathBuf,
    /// The line that tells its version.
    pub version: String,
    /// CUDA's version: major, minor.
    pub toolkit: (u32, u32),
}

const MISSING: &str = "the feature `cuda` needs the CUDA compiler, and no nvcc was found: run scripts/setup-nvcc (no GPU or root needed), or name one in KVFOLD_NVCC";

/// The compiler: `KVFOLD_NVCC`, `NVCC`, beneath `CUDA_HOME` or `CUDA_PATH`, on the
/// `PATH`, in its usual place, or in a Python environment (`VIRTUAL_ENV`, `.venv`,
/// python3's own).
pub fn find() -> Result<Nvcc, String> {
    for variable in ["KVFOLD_NVCC", "NVCC"] {
        if let Some(path) = variable_path(variable) {
            return ask(&path).map_err(|e| format!("{variable}={}: {e}", path.display()));
        }
    }
    first_of(installed().chain(in_environments()).chain(of_python()))
}

/// The first that exists.
pub fn first_of(mut candidates: impl Iterator<Item = PathBuf>) -> Result<Nvcc, String> {
    match candidates.find(|path| path.is_file()) {
        Some(path) => ask(&path).map_err(|e| format!("{}: {e}", path.display())),
        None => Err(MISSING.to_owned()),
    }
}

fn variable_path(name: &str) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn executable() -> String {
    format!("nvcc{}", std::env::consts::EXE_SUFFIX)
}

/// Toolkits installed in the usual way.
fn installed() -> impl Iterator<Item = PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable_path);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    (homes.map(|home| home.join("bin")))
        .chain(folders)
        .chain([PathBuf::from("/usr/local/cuda/bin")])
        .map(|folder| folder.join(executable()))
}

/// The wheels in the active environment, or where scripts/setup-nvcc puts them.
fn in_environments() -> impl Iterator<Item = PathBuf> {
    let environments = variable_path("VIRTUAL_ENV").into_iter().chain([PathBuf::from(".venv")]);
    environments.flat_map(|environment| in_environment(&environment))
}

/// Where the wheels of one environment have the compiler.
pub fn in_environment(environment: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    let mut sites: Vec<_> = versions.map(|v| v.path().join("site-packages")).collect();
    sites.push(environment.join("Lib/site-packages")); // Windows
    sites.iter().map(|site| wheel_nvcc(site)).collect()
}

/// The wheels where python3 itself would look.
fn of_python() -> impl Iterator<Item = PathBuf> {
    let script = "import sys; print(*sys.path, sep='\\n')";
    let output = Command::new("python3").args(["-c", script]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines()
        .filter(|l| !l.is_empty())
        .map(|l| wheel_nvcc(Path::new(l)))
        .collect::<Vec<_>>()
        .into_iter()
}

fn wheel_nvcc(site_packages: &Path) -> PathBuf {
    site_packages.join("nvidia/cu13/bin").join(executable())
}

/// Asks a compiler for its version.
pub fn ask(path: &Path) -> Result<Nvcc, String> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|e| format!("cannot run this nvcc: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find(|l| l.contains("release ")).unwrap_or_default().to_owned();
    let toolkit = parse_release(&version).ok_or("it does not tell its version like nvcc does")?;
    println!("cargo::rerun-if-changed={}", path.display());
    Ok(Nvcc { path: path.to_owned(), version, toolkit })
}

/// `13.0` of `Cuda compilation tools, release 13.0, V13.0.88`.
pub fn parse_release(line: &str) -> Option<(u32, u32)> {
    let number = line.split("release ").nth(1)?.split(',').next()?;
    let (major, minor) = number.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
