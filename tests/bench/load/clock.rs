//! The figures that every question about speed answers with: how many a second, and at what cost on both sides.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Result, process, quantile};

/// Runs while the load is on.
pub struct Clock {
    pid: u32,
    theirs: Duration,
    ours: Duration,
    begun: Instant,
}

impl Clock {
    /// Starts now. `pid` is the server's process.
    pub fn start(pid: u32) -> Result<Self> {
        let (theirs, ours) = (process::processor_time(pid)?, process::processor_time(std::process::id())?);
        Ok(Self { pid, theirs, ours, begun: Instant::now() })
    }

    /// Stops now. `times`: how long each operation took.
    pub fn stop(self, times: Vec<Duration>) -> Result<Value> {
        Ok(self.spent()?.figures(times))
    }

    /// What was spent until now.
    pub fn spent(&self) -> Result<Spent> {
        Ok(Spent {
            seconds: self.begun.elapsed().as_secs_f64(),
            theirs: process::processor_time(self.pid)? - self.theirs,
            ours: process::processor_time(std::process::id())? - self.ours,
        })
    }
}

/// What one or more stretches of load took: time, and processor time of the server and of the load.
#[derive(Default)]
pub struct Spent {
    pub seconds: f64,
    theirs: Duration,
    ours: Duration,
}

impl Spent {
    /// One more stretch.
    pub fn add(&mut self, other: &Spent) {
        self.seconds += other.seconds;
        self.theirs += other.theirs;
        self.ours += other.ours;
    }

    /// `times`: how long each operation took.
    pub fn figures(&self, mut times: Vec<Duration>) -> Value {
        times.sort();
        let mut figures = self.each(times.len());
        figures["p50_ms"] = quantile(&times, 0.5).into();
        figures["p99_ms"] = quantile(&times, 0.99).into();
        figures
    }

    /// The same for operations of which it is not known how long each took.
    pub fn each(&self, count: usize) -> Value {
        let each = |spent: Duration| (spent.as_secs_f64() * 1_000_000.0 / count as f64).round() / 1000.0;
        json!({
            "count": count,
            "a_second": (count as f64 / self.seconds).round(),
            "server_cpu_ms_each": each(self.theirs),
            "load_cpu_ms_each": each(self.ours),
        })
    }
}
