//! Kernels on a GPU, decode and prefill attention, sealing and merging, and whole models
//! (`model.rs`), as bytes and operations a second and as fractions of what the same run
//! measures as the device's best (`roofs.rs`).
//!
//! Times of kernels are those of device events around many launches, those of attention around
//! captured steps (`attention.rs`), taken through criterion, at most a second a cell. KV memory is larger than the device's cache, or copies of it
//! take turns. Cells that do not fit the card are skipped by name. Without a usable
//! device this prints one line.
//!
//! | variable | meaning |
//! |---|---|
//! | `KVFOLD_BENCH_CELLS=quick` | the cells that the goals need, and few others |
//! | `KVFOLD_BENCH_OUT` | folder for `device.json`, `cells.txt` and `summary.txt`, written anew after each cell |
//! | `KVFOLD_COMMIT` | what `device.json` names as the commit |
//!
//! `-- --test` checks the bench itself on the emulated device (`check.rs`); `-- --info`
//! says what the device is, and fails if there is none; `-- --exchange FILE` writes what
//! scripts/gpu-peers checks (`exchange.rs`), with `--emulated` without a GPU; `-- --step`
//! repeats one captured step of the default model, for a profiler to look at; `-- --roofs`
//! measures the roofs alone; `-- --shape …` times attention of any shape (`--help`).

mod ask;
mod attention;
mod captured;
mod check;
mod check_model;
mod csv;
mod exchange;
mod goals;
mod kv;
mod model;
mod pattern;
#[path = "../../tests/kernels/common/random.rs"]
mod random;
mod report;
mod roofs;
mod room;
mod row;
mod seal;
mod shape;
mod subject;
mod work;
mod workloads;

use anyhow::{Result, bail};
use ask::Ask;
use criterion::Criterion;
use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;
use report::Report;
use row::{Outcome, Row};
use std::path::PathBuf;
use std::process::ExitCode;
use work::{Cell, Timer};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    if asked("--help") {
        print!("{}", ask::HELP);
        return Ok(());
    }
    if asked("--shape") {
        return any_shape(&Ask::parse(std::env::args().skip(1))?);
    }
    let device = Device::cuda(0);
    if asked("--info") {
        return match device {
            Ok(device) => {
                println!("{:?}, {:?}", device.info(), device.memory()?);
                Ok(())
            }
            Err(error) => bail!("no usable CUDA device: {error}"),
        };
    }
    if let Some(file) = after("--exchange") {
        let (device, tokens) = match asked("--emulated") {
            true => (emulated(), 389),
            false => (device?, 2049),
        };
        return exchange::write(&device, tokens, &PathBuf::from(file));
    }
    // As criterion does: `cargo bench` says --bench, and nothing else times.
    if asked("--test") || !asked("--bench") {
        ask::check()?;
        for device in [emulated()].into_iter().chain(device.ok()) {
            check::all(&device)?;
            check_model::all(&device)?;
            println!("the device bench's tables hold on {}", device.info().name);
        }
        return Ok(());
    }
    match device {
        Ok(device) if asked("--step") => Ok(model::step(&device)?),
        Ok(device) if asked("--roofs") => {
            let roofs = roofs::measure(&mut Timer::new(&device)?)?;
            print!("{}", report::roofs(device.info(), &roofs));
            Ok(())
        }
        Ok(device) => bench(&device),
        Err(error) => {
            println!("no usable CUDA device, nothing is measured: {error}");
            Ok(())
        }
    }
}

fn emulated() -> Device {
    Device::emulated(EmulatorOptions { host_threads: 2, ..Default::default() })
}

/// Attention of any shape.
fn any_shape(ask: &Ask) -> Result<()> {
    if ask.emulated {
        return csv::check(ask, &emulated());
    }
    match Device::cuda(0) {
        Ok(device) => csv::measure(ask, &device),
        Err(error) => bail!(
            "no usable CUDA device, nothing is measured: {error}; --emulated checks small shapes"
        ),
    }
}

/// The word of the command line after `flag`.
fn after(flag: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != flag).nth(1)
}

fn bench(device: &Device) -> Result<()> {
    let quick = std::env::var("KVFOLD_BENCH_CELLS").is_ok_and(|cells| cells == "quick");
    let mut timer = Timer::new(device)?;
    let roofs = roofs::measure(&mut timer)?;
    let mut criterion = Criterion::default().configure_from_args();
    let mut rows = Vec::new();
    for family in workloads::families(device, &timer.stream) {
        let mut group = criterion.benchmark_group(family.name);
        for cell in family.cells.iter().filter(|cell| cell.quick || !quick) {
            let outcome = match obstacle(cell, device)? {
                Some(why) => {
                    println!("{}/{}: skipped: {why}", family.name, cell.name);
                    Some(Outcome::Skipped(why))
                }
                None => work::measure(&mut group, cell, &mut timer).map(Outcome::Measured),
            };
            rows.extend(outcome.map(|outcome| Row::new(family.name, cell, outcome)));
            // So that a run which is cut off leaves what it has measured.
            let goals = goals::goals(&rows, &roofs);
            let (rows, models) = (&rows, "");
            save(
                &Report { device: device.info(), roofs: &roofs, rows, goals: &goals, models },
                quick,
            )?;
        }
        group.finish();
    }
    let mut goals = goals::goals(&rows, &roofs);
    let models = model::all(device, quick, filter().as_deref())?;
    rows.extend(models.iter().flat_map(model::Measured::rows));
    goals.extend(model::goals(&models, roofs.read));
    let report = Report {
        device: device.info(),
        roofs: &roofs,
        rows: &rows,
        goals: &goals,
        models: &model::table(&models),
    };
    println!("\n{}\n{}", report.table(), report.summary());
    save(&report, quick)
}

fn save(report: &Report<'_>, quick: bool) -> Result<()> {
    match std::env::var_os("KVFOLD_BENCH_OUT") {
        Some(folder) => Ok(report.write(&PathBuf::from(folder), quick)?),
        None => Ok(()),
    }
}

/// What names of cells must contain: the command line's word that is no flag, which is
/// criterion's filter, too.
fn filter() -> Option<String> {
    std::env::args().skip(1).find(|argument| !argument.starts_with('-'))
}

/// Why a cell cannot be measured on this card.
fn obstacle(cell: &Cell, device: &Device) -> Result<Option<String>> {
    match &cell.lacks {
        Some(why) => Ok(Some(why.clone())),
        None => room::lacking(cell.memory, device),
    }
}
