//! `doorstep serve`: a homeserver until SIGTERM or SIGINT.

use doorstep::clock::Clock;
use doorstep::config::{Config, Data, Registration, Settings};
use doorstep::launch::Launched;
use doorstep::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Serves until told to stop.
pub fn run(settings: Settings) -> Result<()> {
    let config = Config::from_settings(settings.with_file()?)?;
    // Before anything else, so that an early signal (we may be PID 1) stops us cleanly instead of being lost.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::internal)?;
    let launched = Launched::start(config, Clock::new())?;
    greet(&launched)?;
    for signal in signals.forever() {
        if signal == SIGHUP {
            launched.reload_certificates();
        } else {
            log::info!("stopping");
            break;
        }
    }
    launched.stop();
    Ok(())
}

/// The first screen: where it listens, and what a newcomer does next.
#[allow(clippy::print_stdout, reason = "a command line talks to its user")]
fn greet(launched: &Launched) -> Result<()> {
    let config = &launched.homeserver.config;
    println!("Doorstep {} is {}", env!("CARGO_PKG_VERSION"), config.server_name);
    for (number, address) in launched.addresses().iter().enumerate() {
        println!("  {}://{address}", if number < config.listen.len() { "http" } else { "https" });
    }
    match &config.data {
        Data::Folder(folder) => println!("  data in {}", folder.display()),
        Data::Memory => println!("  data in memory: gone when this stops"),
    }
    match (config.registration, launched.homeserver.ensure_first_token()?) {
        (Registration::Open, _) => {
            println!("Anybody may register here; the first account becomes the admin.")
        }
        (_, Some(token)) => {
            println!("No account yet. Open a Matrix client, set the homeserver to the address above, choose");
            println!(
                "\"Create account\" and enter this registration token (good for one account, the admin):"
            );
            println!("  {token}");
        }
        (_, None) => println!("Log in with any Matrix client: set the homeserver to the address above."),
    }
    Ok(())
}
