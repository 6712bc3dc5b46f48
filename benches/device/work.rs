//! What is timed, and how: device events around many launches.

use criterion::{BenchmarkGroup, SamplingMode, Throughput, measurement::WallTime};
use kvfold::Result;
use kvfold::backend::driver::{Device, DeviceEvent, DeviceStream};
use std::time::Duration;

/// Something to run again and again.
pub trait Work {
    /// Enqueues run number `turn`. Successive turns use different memory where one
    /// turn's would fit the device's cache.
    fn enqueue(&mut self, turn: usize, stream: &DeviceStream) -> Result<()>;

    /// Runs that one turn makes.
    fn runs(&self) -> usize {
        1
    }
}

/// Makes the memory of a cell.
pub type Setup = dyn Fn(&Device, &DeviceStream) -> Result<Box<dyn Work>>;

/// One row of the table.
pub struct Cell {
    /// Its name within its family.
    pub name: String,
    /// Whether a quick run has it.
    pub quick: bool,
    /// The fewest bytes that it must move, and the operations that it must do.
    pub bytes: u64,
    pub flops: u64,
    /// Device memory that it needs.
    pub memory: u64,
    /// Why it cannot run on this device.
    pub lacks: Option<String>,
    pub setup: Box<Setup>,
}

/// Turns that fit the device's cache this many times over are never alike.
const ROTATION: u64 = 8;

/// How many sets of memory of `bytes` to rotate between.
pub fn rotation(device: &Device, bytes: u64) -> usize {
    let l2 = u64::from(device.info().l2_bytes);
    (ROTATION * l2).div_ceil(bytes.max(1)).clamp(1, 4096) as usize
}

/// Times a device's work by its own clock.
pub struct Timer {
    pub device: Device,
    pub stream: DeviceStream,
    start: DeviceEvent,
    end: DeviceEvent,
    turn: usize,
}

impl Timer {
    pub fn new(device: &Device) -> Result<Self> {
        let (stream, start, end) = (device.stream()?, device.timed_event()?, device.timed_event()?);
        Ok(Self { device: device.clone(), stream, start, end, turn: 0 })
    }

    /// The time that `n` runs take one after the other: a share of that of whole turns.
    pub fn time(&mut self, work: &mut dyn Work, n: u64) -> Result<Duration> {
        let turns = n.div_ceil(work.runs() as u64);
        self.stream.record(&self.start)?;
        for _ in 0..turns {
            work.enqueue(self.turn, &self.stream)?;
            self.turn += 1;
        }
        self.stream.record(&self.end)?;
        let all = self.end.elapsed_since(&self.start)?;
        Ok(all.mul_f64(n as f64 / (turns * work.runs() as u64) as f64))
    }

    /// The time of one run, from samples of 20 ms or so.
    pub fn sample(&mut self, work: &mut dyn Work) -> Result<Sampled> {
        self.time(work, 1)?;
        let first = self.time(work, 3)?.as_secs_f64() / 3.0;
        let n = (0.02 / first.max(1e-6)).clamp(1.0, 10_000.0) as u64;
        let mut samples = Vec::new();
        for _ in 0..7 {
            samples.push(self.time(work, n)?.as_secs_f64() / n as f64);
        }
        let median = median(&mut samples);
        Ok(Sampled { median, spread: (samples[6] - samples[0]) / median })
    }

    /// The median time of one run in seconds.
    pub fn median(&mut self, work: &mut dyn Work) -> Result<f64> {
        Ok(self.sample(work)?.median)
    }
}

/// Seconds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Sampled {
    pub median: f64,
    /// The slowest sample less the fastest, as a fraction of the median.
    pub spread: f64,
}

const SAMPLES: usize = 10;

/// Times a cell within a second. None if the command line's filter leaves it out.
///
/// # Panics
/// If the device fails: there is nothing left to measure then.
pub fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    cell: &Cell,
    timer: &mut Timer,
) -> Option<f64> {
    group.sample_size(SAMPLES).sampling_mode(SamplingMode::Flat).nresamples(1000);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    match (cell.bytes, cell.flops) {
        (0, 0) => &mut *group,
        (0, flops) => group.throughput(Throughput::Elements(flops)),
        (bytes, _) => group.throughput(Throughput::Bytes(bytes)),
    };
    let (mut work, mut samples) = (None, Vec::new());
    group.bench_function(&cell.name, |bencher| {
        let work = work.get_or_insert_with(|| {
            (cell.setup)(&timer.device, &timer.stream).expect("the cell's memory is free")
        });
        bencher.iter_custom(|n| {
            let time = timer.time(work.as_mut(), n).expect("the device works");
            samples.push(time.as_secs_f64() / n as f64);
            time
        })
    });
    // The first ones are criterion's warm-up.
    let measured = samples.len().checked_sub(SAMPLES)?;
    Some(median(&mut samples[measured..]))
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
