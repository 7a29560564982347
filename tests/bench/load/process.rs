//! Other processes: starting one, and reading what one has used.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;

/// A started process, ended with this value.
pub struct Started(Child);

impl Started {
    /// Starts it with its output thrown away.
    pub fn new(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().ok_or("no command")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn end(&mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id())?;
        // SAFETY: kill has no memory effects; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processor time that a process has used so far, in user and system mode together.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: it writes nothing but the variable that it is given.
    let error = unsafe { libc::clock_getcpuclockid(i32::try_from(pid)?, &raw mut clock) };
    // SAFETY: the same.
    if error != 0 || unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(format!("no processor time of process {pid}").into());
    }
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// Memory that a process has resident, in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    of_status(pid, "VmRSS:")
}

/// The most memory that a process ever had resident, in KiB.
pub fn peak_kib(pid: u32) -> Result<u64> {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: u32, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).ok_or("an unknown form of status")?;
    Ok(line.split_whitespace().next().ok_or("a line without a number")?.parse()?)
}
