//! `kvfold models`: what is here, whoever put it there, and what can be fetched by a short
//! name.

use std::io::Write;

use crate::size;
use anyhow::Result;
use clap::Args;
use kvfold::Error;
use kvfold::backend::{Geometry, Kernels};
use kvfold::fetch::{FetchOptions, Found, Manifest, catalog, here};
use kvfold::model::Checkpoint;
use kvfold::printable::printable;
use serde::Serialize;

/// List the models that are here, and those that can be had by name.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Everything that is listed.
#[derive(Serialize)]
struct Listing {
    here: Vec<Here>,
    catalogue: Vec<Available>,
}

/// A model that is here.
#[derive(Serialize)]
struct Here {
    /// What to give to -m.
    name: String,
    store: String,
    path: String,
    bytes: u64,
    /// "GGUF" or "safetensors".
    format: &'static str,
    /// The type that most bytes of its weights have.
    weights: Option<String>,
    architecture: Option<String>,
    /// Tokens of context.
    context: Option<usize>,
    /// Whether kvfold can run it.
    supported: bool,
    /// Why not.
    why_not: Option<String>,
}

/// A model that can be fetched.
#[derive(Serialize)]
struct Available {
    name: &'static str,
    description: &'static str,
    bytes: u64,
    context: u64,
    licence: &'static str,
    here: bool,
}

/// Runs the subcommand.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let options = FetchOptions::from_env()?;
    let here: Vec<Here> = here(&options).into_iter().map(look).collect();
    let available = |manifest: &'static Manifest| Available {
        name: &manifest.name,
        description: &manifest.description,
        bytes: manifest.size,
        context: manifest.context,
        licence: &manifest.licence,
        here: options.model_path(manifest).is_file(),
    };
    let listing = Listing { here, catalogue: catalog().iter().map(available).collect() };
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&listing)?)?,
        false => show(&mut out, &listing)?,
    }
    Ok(())
}

/// Reads the headers of a model. What is wrong with one keeps nobody from seeing the others.
fn look(found: Found) -> Here {
    let mut here = Here {
        name: found.name,
        store: found.store.to_string(),
        path: found.path.to_string_lossy().into_owned(),
        bytes: found.bytes,
        format: if found.path.is_dir() { "safetensors" } else { "GGUF" },
        weights: None,
        architecture: None,
        context: None,
        supported: false,
        why_not: found.incomplete.map(|what| format!("incomplete: {what}")),
    };
    if here.why_not.is_some() {
        return here;
    }
    match Checkpoint::open(&found.path) {
        Ok(checkpoint) => {
            let config = checkpoint.config();
            here.architecture = Some(config.arch.name.to_owned());
            here.context = Some(config.context);
            here.weights = checkpoint.dtypes().first().map(|count| count.dtype.to_string());
            // What no device takes, the CPU does not.
            match Geometry::gqa(config.head_dim).check(Kernels::Cpu) {
                Ok(()) => here.supported = true,
                Err(error) => here.why_not = Some(error.to_string()),
            }
        }
        Err(Error::UnknownArchitecture { name, .. }) => {
            here.why_not = Some(format!("architecture {name} is not supported"));
            here.architecture = Some(name);
        }
        Err(error) => {
            let text = error.to_string();
            // The path is shown already.
            let text = text.strip_prefix(&format!("{}: ", here.path)).unwrap_or(&text);
            here.why_not = Some(text.to_owned());
        }
    }
    here
}

fn show(out: &mut impl Write, listing: &Listing) -> Result<()> {
    let mut store = "";
    for model in &listing.here {
        if model.store != store {
            store = &model.store;
            writeln!(out, "{store}")?;
        }
        writeln!(out, "  {}", printable(&model.name))?;
        let mut facts = vec![size::show(model.bytes)];
        facts.push(
            [Some(model.format), model.weights.as_deref()].map(Option::unwrap_or_default).join(" "),
        );
        facts.extend(model.architecture.clone());
        facts.extend(model.context.map(|context| format!("{context} tokens of context")));
        if let Some(reason) = &model.why_not {
            facts.push(format!("cannot be run: {reason}"));
        }
        let facts: Vec<_> = facts.iter().map(|fact| printable(fact.trim())).collect();
        writeln!(out, "      {}", facts.join(", "))?;
        if model.path != model.name {
            writeln!(out, "      {}", printable(&model.path))?;
        }
    }
    if listing.here.is_empty() {
        writeln!(out, "no models are here yet")?;
    }
    let absent: Vec<_> = listing.catalogue.iter().filter(|model| !model.here).collect();
    if !absent.is_empty() {
        writeln!(out, "can be fetched by name (`kvfold fetch NAME`, or run with -m NAME)")?;
    }
    for model in absent {
        let Available { name, description, bytes, context, licence, .. } = model;
        writeln!(out, "  {name}\n      {description}")?;
        writeln!(out, "      {}, {context} tokens of context, {licence}", size::show(*bytes))?;
    }
    writeln!(out, "and any model of the hub whose architecture is supported: -m OWNER/NAME")?;
    Ok(())
}
