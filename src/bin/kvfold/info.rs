//! `kvfold info`: the machine, the formats, and a model if one is given.

use crate::model_args::{ContextArgs, ModelArgs};
use crate::size;
use crate::terminal::print;
use anyhow::Result;
use clap::Args;
use kvfold::backend::cpu::{Level, threads};
use kvfold::backend::driver::embedded;
use kvfold::codec::KvFormat;
use kvfold::codec::formats::NAMED_FORMATS;
use kvfold::fetch::{DEFAULT_MODEL, FetchOptions, cache_dir, find};
use kvfold::model::{Checkpoint, ModelConfig};
use kvfold::printable::Printable;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Show the machine, the KV formats and a model.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The model to describe; the default one only if it is already here
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub context: ContextArgs,
}

/// Runs the subcommand.
pub fn run(args: &InfoArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    let mut out = Vec::new();
    writeln!(out, "kvfold {}", env!("CARGO_PKG_VERSION"))?;
    let levels: Vec<_> =
        Level::ALL.into_iter().filter(|l| l.available()).map(Level::name).collect();
    writeln!(
        out,
        "cpu     {} threads; {} (of {})",
        threads(),
        Level::best().name(),
        levels.join(", ")
    )?;
    cuda(&mut out)?;
    writeln!(out, "models  {}", Printable(cache_dir()?.display()))?;

    let absent = args.model.model == DEFAULT_MODEL && !default_is_here()?;
    let checkpoint = match absent {
        true => None,
        false => Some(args.model.checkpoint(args.context.context, cancel)?),
    };
    match &checkpoint {
        None => writeln!(out, "\n{DEFAULT_MODEL} is not here yet; `kvfold fetch` gets it")?,
        Some(checkpoint) => describe(&mut out, checkpoint)?,
    }
    formats(&mut out, checkpoint.as_ref().map(Checkpoint::config))?;
    print(&String::from_utf8_lossy(&out))
}

/// What the build has for CUDA devices, and the devices.
fn cuda(out: &mut impl Write) -> Result<()> {
    let Some(kernels) = embedded() else {
        writeln!(out, "cuda    not built in (--features cuda)")?;
        return Ok(());
    };
    let (major, minor) = kernels.toolkit;
    writeln!(out, "cuda    kernels for {}, by CUDA {major}.{minor}", kernels.describe())?;
    #[cfg(feature = "cuda")]
    {
        devices(out)?;
        match kvfold::backend::cuda::gemm::describe_cublaslt() {
            Ok(name) => writeln!(out, "        cuBLASLt {name}")?,
            Err(error) => writeln!(out, "        {error}")?,
        }
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn devices(out: &mut impl Write) -> Result<()> {
    use kvfold::backend::driver::cuda;
    match cuda::driver_version() {
        Ok((major, minor)) => writeln!(out, "        the driver supports CUDA {major}.{minor}")?,
        Err(error) => return Ok(writeln!(out, "        {error}")?),
    }
    let devices = match cuda::devices() {
        Ok(devices) => devices,
        Err(error) => return Ok(writeln!(out, "        {error}")?),
    };
    for (ordinal, (info, usable)) in devices.iter().enumerate() {
        write!(
            out,
            "        device {ordinal}: {}, sm_{}, {} multiprocessors, {}",
            info.name,
            info.arch,
            info.multiprocessors,
            size::show(info.memory)
        )?;
        match usable {
            Ok(()) => writeln!(out)?,
            Err(error) => writeln!(out, "; cannot be used: {error}")?,
        }
    }
    Ok(())
}

fn default_is_here() -> Result<bool> {
    let options = FetchOptions::from_env()?;
    Ok(find(DEFAULT_MODEL).is_some_and(|m| options.model_path(m).is_file()))
}

fn describe(out: &mut impl Write, checkpoint: &Checkpoint) -> Result<()> {
    let c = checkpoint.config();
    let (name, path) = (Printable(checkpoint.name()), Printable(checkpoint.path().display()));
    writeln!(out, "\n{name} ({path})")?;
    writeln!(
        out,
        "  {}: {} layers, width {}, {} query and {} KV heads of {}, MLP {}, vocabulary {}",
        c.arch.name, c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.intermediate, c.vocab
    )?;
    writeln!(out, "  context {} tokens, rope theta {}", c.context, c.rope.theta)?;
    if let Some(window) = c.sliding_window {
        let layers = c.sliding_layers.iter().filter(|s| **s).count();
        writeln!(out, "  sliding window {window} on {layers} of {} layers", c.layers)?;
    }
    let types: Vec<_> = (checkpoint.dtypes().iter())
        .map(|t| format!("{} {} ({})", t.tensors, t.dtype, size::show(t.bytes)))
        .collect();
    writeln!(out, "  {}; tensors: {}", size::show(checkpoint.file_bytes()), types.join(", "))?;
    Ok(())
}

fn formats(out: &mut impl Write, config: Option<&ModelConfig>) -> Result<()> {
    writeln!(
        out,
        "\nKV format    bits an element{}",
        if config.is_some() { "  whole context" } else { "" }
    )?;
    for named in NAMED_FORMATS {
        let format = KvFormat::new(named.key, named.value);
        write!(out, "{:<11}  {:>15.1}", named.name, format.bits())?;
        if let Some(c) = config {
            let window = c.sliding_window.unwrap_or(c.context).min(c.context);
            let kept =
                c.sliding_layers.iter().map(|&slides| if slides { window } else { c.context });
            let tokens: usize = kept.sum();
            let bytes = (2 * tokens * c.kv_width()) as f64 * format.bits() / 8.0;
            write!(out, "  {:>13}", size::show(bytes as u64))?;
        }
        writeln!(out, "  {}", named.what)?;
    }
    Ok(())
}
