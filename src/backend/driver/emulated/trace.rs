//! Writes traces: what an emulated device did, and what was read from it, so that a
//! program built under sanitizers can do it again (`kernels/emulator/replay/`, whose
//! `trace.h` defines the bytes).

use crate::backend::driver::Launch;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const FOLDER: &str = "KVFOLD_EMULATOR_RECORD";

const MAGIC: &[u8; 8] = b"kvftrace";
const VERSION: u32 = 1;

/// The folder for traces, if the environment names one.
pub(super) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).filter(|f| !f.is_empty()).map(PathBuf::from)
}

/// A trace file, made when the first call is entered, ended when it is dropped. Readers
/// refuse it as torn unless all went well.
pub(super) struct Trace {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    records: u64,
    broken: bool,
}

impl Trace {
    /// A trace in a file of `folder`, named after the program and the thread: in tests,
    /// the test.
    pub fn new(folder: &Path) -> Self {
        static TRACES: AtomicU64 = AtomicU64::new(0);
        let program = std::env::current_exe().unwrap_or_default();
        let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let program = program.rsplit_once('-').map_or(&*program, |(name, _)| name);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("thread").replace(|c: char| !c.is_alphanumeric(), "_");
        let (process, number) = (std::process::id(), TRACES.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(format!("{program}-{thread}-{process}-{number}.trace"));
        Self { path, file: None, records: 0, broken: false }
    }

    /// Memory was allocated.
    pub fn alloc(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.put(1, &[&address.to_le_bytes(), &bytes.to_le_bytes()])
    }

    /// Memory is about to be freed.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.put(2, &[&address.to_le_bytes()])
    }

    /// Bytes were written.
    pub fn write(&mut self, to: u64, from: &[u8]) -> Result<()> {
        self.put(3, &[&to.to_le_bytes(), &(from.len() as u64).to_le_bytes(), from])
    }

    /// Bytes were set.
    pub fn fill(&mut self, at: u64, value: u8, bytes: u64) -> Result<()> {
        self.put(4, &[&at.to_le_bytes(), &bytes.to_le_bytes(), &[value]])
    }

    /// Bytes were copied within the device.
    pub fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<()> {
        self.put(5, &[&from.to_le_bytes(), &to.to_le_bytes(), &bytes.to_le_bytes()])
    }

    /// A kernel ran to its end.
    pub fn launch(&mut self, kernel: &str, shape: Launch, params: &[u8], seed: u64) -> Result<()> {
        let [x, y, z] = shape.grid.map(u32::to_le_bytes);
        let (threads, shared) = (shape.threads.to_le_bytes(), shape.shared_bytes.to_le_bytes());
        let name_bytes = (kernel.len() as u32).to_le_bytes();
        let params_bytes = (params.len() as u32).to_le_bytes();
        let fields: [&[u8]; 10] = [
            &x,
            &y,
            &z,
            &threads,
            &shared,
            &seed.to_le_bytes(),
            &name_bytes,
            &params_bytes,
            kernel.as_bytes(),
            params,
        ];
        self.put(6, &fields)
    }

    /// Bytes were read, and these they were.
    pub fn read(&mut self, from: u64, read: &[u8]) -> Result<()> {
        let bytes = (read.len() as u64).to_le_bytes();
        self.put(7, &[&from.to_le_bytes(), &bytes, &hash(read).to_le_bytes()])
    }

    /// Addresses were reserved.
    pub fn reserve(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.put(8, &[&address.to_le_bytes(), &bytes.to_le_bytes()])
    }

    /// A part of them got memory.
    pub fn commit(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.put(9, &[&address.to_le_bytes(), &bytes.to_le_bytes()])
    }

    /// A part of them is about to lose it.
    pub fn decommit(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.put(10, &[&address.to_le_bytes(), &bytes.to_le_bytes()])
    }

    /// They are about to be given up.
    pub fn release(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.put(11, &[&address.to_le_bytes(), &bytes.to_le_bytes()])
    }

    fn put(&mut self, kind: u8, fields: &[&[u8]]) -> Result<()> {
        let done = self.try_put(kind, fields);
        self.broken |= done.is_err();
        done.map_err(|error| Error::io(&self.path, error))
    }

    fn try_put(&mut self, kind: u8, fields: &[&[u8]]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the trace is incomplete"));
        }
        if self.file.is_none() {
            let mut file = BufWriter::new(File::create_new(&self.path)?);
            file.write_all(MAGIC)?;
            file.write_all(&VERSION.to_le_bytes())?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(&[kind])?;
        fields.iter().try_for_each(|field| file.write_all(field))?;
        self.records += 1;
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.file.is_some() {
            // If this fails, the file has no end.
            let _ = self.put(12, &[&self.records.to_le_bytes()]);
        }
    }
}

/// What stands for bytes that were read: words of 8, the last one filled up with
/// zeros, multiplied in one after the other, after their count.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    hash
}
