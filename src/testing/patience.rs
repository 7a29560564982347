//! How long a test waits for what must come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// In the environment: so many seconds at least, for a machine that is slow.
const VARIABLE: &str = "DOORSTEP_TEST_PATIENCE";
/// No more than this: a deadline has to be a time that a clock can show.
const LEAST_PATIENCE_MAX: Duration = Duration::from_secs(365 * 86_400);
/// How long is waited where nothing else is said.
const USUAL_PATIENCE_MS: u64 = 30_000;

/// So long, or as many seconds as `DOORSTEP_TEST_PATIENCE` says in the environment if those are more: for what a test
/// waits for by itself, so that it is patient on a slow machine, too.
///
/// ```
/// use std::time::Duration;
///
/// assert!(doorstep::testing::patience(Duration::from_secs(5)) >= Duration::from_secs(5));
/// ```
///
/// # Panics
/// If the variable is there and no number of seconds.
#[track_caller]
pub fn patience(usual: Duration) -> Duration {
    static LEAST: OnceLock<Result<Duration, String>> = OnceLock::new();
    let least = LEAST.get_or_init(|| {
        std::env::var_os(VARIABLE).map_or(Ok(Duration::ZERO), |text| seconds(&text.to_string_lossy()))
    });
    match least {
        Ok(least) => usual.max(*least),
        Err(wrong) => panic!("{wrong}"),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.trim().parse::<f64>().ok();
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let bounded = duration.map(|duration| duration.min(LEAST_PATIENCE_MAX));
    bounded.ok_or_else(|| format!("{VARIABLE} is a number of seconds, and not {text:?}"))
}

/// The patience of a server and of its users. Clones are the same.
#[derive(Clone)]
pub(super) struct Patience(Arc<AtomicU64>);

impl Default for Patience {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(USUAL_PATIENCE_MS)))
    }
}

impl Patience {
    pub(super) fn set(&self, patience: Duration) {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }

    #[track_caller]
    pub(super) fn get(&self) -> Duration {
        patience(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_whole_or_not_and_nothing_else() {
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        assert_eq!(seconds(" 0.5 "), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("1e18"), Ok(Duration::from_secs(365 * 86_400)));
        for wrong in ["", "a minute", "-1", "1e300", "NaN", "20s"] {
            let said = format!("DOORSTEP_TEST_PATIENCE is a number of seconds, and not {wrong:?}");
            assert_eq!(seconds(wrong), Err(said));
        }
    }

    #[test]
    fn what_is_set_holds_for_all_who_have_it() {
        let (server, user) = (Patience::default(), Patience::default());
        let same = server.clone();
        server.set(Duration::from_secs(7_000));
        assert_eq!(same.get(), Duration::from_secs(7_000));
        assert!(user.get() >= Duration::from_secs(30));
    }
}
