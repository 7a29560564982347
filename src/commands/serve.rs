//! `doorstep serve`: a homeserver until SIGTERM or SIGINT.

use doorstep::clock::Clock;
use doorstep::config::{Config, Data, Registration, Settings, reachable};
use doorstep::launch::Launched;
use doorstep::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, notify, say, with_pinned_name};

/// Serves until told to stop.
pub fn run(settings: Settings) -> Result<(), Failure> {
    let check = format!("doorstep check {}", settings.command_line());
    let config = settings.with_file().map(with_pinned_name).and_then(Config::from_settings).map_err(|e| {
        Failure::Misuse(format!("{}\nRun `doorstep serve --help` for every setting.", e.for_people()))
    })?;
    // Before anything else, so that an early signal (we may be PID 1) stops us cleanly instead of being lost.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::internal)?;
    let launched = Launched::start(config, Clock::new())?;
    notify::tell(notify::READY);
    greet(&launched, check.trim_end())?;
    for signal in signals.forever() {
        if signal == SIGHUP {
            launched.reload_certificates();
        } else {
            log::info!("stopping");
            notify::tell(notify::STOPPING);
            break;
        }
    }
    launched.stop();
    Ok(())
}

/// The first screen: where it listens, and what a newcomer does next.
fn greet(launched: &Launched, check: &str) -> Result<()> {
    let config = &launched.homeserver.config;
    say(&format!("Doorstep {} is {}", env!("CARGO_PKG_VERSION"), config.server_name));
    for (number, address) in launched.addresses().iter().enumerate() {
        let scheme = if number < config.listen.len() { "http" } else { "https" };
        // What is shown can be pasted into a client.
        let shown = reachable(*address);
        let others = if shown == *address { "" } else { " and every other address of this machine" };
        say(&format!("  {scheme}://{shown}{others}"));
    }
    for address in launched.metrics_addresses() {
        say(&format!("  http://{}/metrics for Prometheus", reachable(*address)));
    }
    if !config.has_local_name() {
        say(&format!("  {} for everybody else", config.public_url));
    }
    match &config.data {
        Data::Folder(folder) => say(&format!("  data in {}", folder.display())),
        Data::Memory => say("  data in memory: gone when this stops"),
    }
    if let Some(missing) = missing(launched, check) {
        say(&missing);
    }
    match launched.homeserver.accounts().ensure_first_token()? {
        Some(token) => greet_first(launched, &token),
        None => say("Log in with any Matrix client, or in a browser: at the address above."),
    }
    Ok(())
}

/// How the first account is made: in a browser, with a link that is good once; where registrations ask for tokens, in any
/// client too.
fn greet_first(launched: &Launched, token: &str) {
    let config = &launched.homeserver.config;
    say("No account yet. Make the first one, the admin's, in a browser:");
    let here = launched.addresses().first().map(|address| {
        let scheme = if config.listen.is_empty() { "https" } else { "http" };
        format!("{scheme}://{}", reachable(*address))
    });
    let public = (!config.has_local_name()).then(|| config.public_url.clone());
    for url in public.into_iter().chain(here) {
        say(&format!("  {url}/?first={token}"));
    }
    match config.registration {
        Registration::Open => {
            say("Or in a Matrix client: anybody may register here, the first becomes the admin.")
        }
        Registration::Token => {
            say(&format!("Or in a Matrix client, with this registration token (good once): {token}"));
        }
        Registration::Closed => {}
    }
}

/// What a server that others are to reach lacks, as far as it can be known here: a line, or nothing.
fn missing(launched: &Launched, check: &str) -> Option<String> {
    let config = &launched.homeserver.config;
    let has_tls = launched.addresses().len() > config.listen.len();
    if config.has_local_name() || has_tls || !config.public_url.starts_with("https:") {
        return None;
    }
    let url = &config.public_url;
    Some(format!(
        "No HTTPS here: a reverse proxy has to lead {url} to it. This says whether one does: {check}"
    ))
}
