//! Waiting for something to come to pass, and holding something up until it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use doorstep::testing::patience;

/// How long a test waits for what must happen, on a machine that is not slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until it holds; panics with `what` if it never does.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < patience(PATIENCE), "it never came to pass that {what}");
        pause();
    }
}

/// Lets others wait until it is opened.
#[derive(Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Waits until the gate is open (or for as long as any test would).
    pub fn pass(&self) {
        let started = Instant::now();
        while !self.0.load(Ordering::SeqCst) && started.elapsed() < patience(PATIENCE) {
            pause();
        }
    }

    /// Opens it for good.
    pub fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[allow(clippy::disallowed_methods, reason = "between two looks at a condition, never instead of one")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
