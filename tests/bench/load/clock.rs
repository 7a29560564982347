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
    pub fn stop(self, mut times: Vec<Duration>) -> Result<Value> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let theirs = process::processor_time(self.pid)? - self.theirs;
        let ours = process::processor_time(std::process::id())? - self.ours;
        times.sort();
        let count = times.len() as f64;
        let each = |spent: Duration| (spent.as_secs_f64() * 1_000_000.0 / count).round() / 1000.0;
        Ok(json!({
            "count": times.len(),
            "a_second": (count / seconds).round(),
            "server_cpu_ms_each": each(theirs),
            "load_cpu_ms_each": each(ours),
            "p50_ms": quantile(&times, 0.5),
            "p99_ms": quantile(&times, 0.99),
        }))
    }
}
