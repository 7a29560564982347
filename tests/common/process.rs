//! A Doorstep of its own process, for tests that kill it: the real binary, real flags, a real folder.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use doorstep::testing::{TestUser, certificates, hold_port, temporary_folder};

/// The binary as a child process. `kill` is SIGKILL: nothing of the process's memory survives.
pub struct ProcessServer {
    child: Option<Child>,
    folder: PathBuf,
    name: String,
    plain: u16,
    tls: u16,
    /// Its ports are nobody else's, from before it listens there until the end, whether it runs or not.
    _held: [Option<TcpListener>; 2],
    extra: Vec<String>,
}

impl ProcessServer {
    /// Starts the binary on free ports with an empty folder.
    pub fn start(extra: &[&str]) -> Self {
        let mut server = Self::new(temporary_folder("process"));
        server.resume_with(extra);
        server
    }

    fn new(folder: PathBuf) -> Self {
        let [(plain, held), (tls, also)] = [free_port(), free_port()];
        let (name, _held) = (format!("localhost:{tls}"), [held, also]);
        Self { child: None, folder, name, plain, tls, _held, extra: Vec::new() }
    }

    /// Starts the binary on free ports with its data in this folder, which is deleted with the server.
    pub fn start_in(folder: PathBuf) -> Self {
        let mut server = Self::new(folder);
        server.resume();
        server
    }

    /// The server name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Base URL of the client-server API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain)
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The folder of its database.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// The settings that it is started with, for commands that take them too: `--name`, `--data`, `--listen` in this order
    /// at first.
    pub fn settings(&self) -> Vec<String> {
        let files = certificates();
        let text = |path: &std::path::Path| path.to_str().expect("a path of text").to_owned();
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let settings = [
            ["--name".into(), self.name.clone()],
            ["--data".into(), text(&self.folder)],
            ["--listen".into(), listen(self.plain)],
            ["--listen-tls".into(), listen(self.tls)],
            ["--tls-cert".into(), text(&files.cert)],
            ["--tls-key".into(), text(&files.key)],
            ["--trust-ca".into(), text(&files.ca)],
            ["--registration".into(), "open".into()],
        ];
        let switches = ["--no-rate-limits", "--allow-private-addresses"].map(str::to_owned);
        settings.into_iter().flatten().chain(switches).collect()
    }

    /// Registers an account.
    pub fn user(&self, localpart: &str) -> TestUser {
        TestUser::register(&self.url(), localpart)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a running child can be killed");
            child.wait().expect("a killed child can be waited for");
        }
    }

    /// Starts the binary again with other flags.
    pub fn resume_with(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(|&e| e.to_owned()).collect();
        self.resume();
    }

    /// Whether the running process can write to files, as if the disk were full or broken.
    #[cfg(target_os = "linux")]
    pub fn let_files_grow(&self, may: bool) {
        self.limit_files(if may { libc::RLIM_INFINITY } else { 0 });
    }

    /// Beyond so many bytes the running process can write to no file: what is small is written, what is large fails.
    #[cfg(target_os = "linux")]
    pub fn limit_files(&self, bytes: u64) {
        let pid = libc::pid_t::try_from(self.pid().expect("a running process")).expect("a process id");
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the kernel reads one live `rlimit`, and is asked to write none.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }

    /// SIGTERM, which the process answers by stopping in its own time.
    pub fn terminate(&self) {
        if let Some(pid) = self.pid() {
            let pid = libc::pid_t::try_from(pid).expect("a process id");
            // SAFETY: a plain system call; the child was not waited for, so its id is still its own.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        }
    }

    /// Waits until the process ends by itself, for so long at most. Whether it did.
    pub fn wait_for_end(&mut self, within: Duration) -> bool {
        let started = Instant::now();
        while let Some(child) = &mut self.child {
            if child.try_wait().expect("a child can be asked").is_some() {
                self.child = None;
            } else if started.elapsed() > within {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Starts the binary again on the same ports and data, and waits until it answers.
    pub fn resume(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    /// Starts the binary again without waiting for it.
    pub fn spawn(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
        command.arg("serve").args(self.settings());
        command.args(&self.extra).stdin(Stdio::null()).stdout(Stdio::null());
        // So that a write beyond `let_files_grow` is an error and not a signal.
        // SAFETY: the closure makes one system call that is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                Ok(())
            });
        }
        self.child = Some(command.spawn().expect("the binary was built with the tests"));
    }

    /// Waits until a process that was spawned listens.
    pub fn wait_until_ready(&mut self) {
        let started = Instant::now();
        let listens = |port: u16| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        while !listens(self.plain) || !listens(self.tls) {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                panic!("{} did not start: {status}", self.name);
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{} does not listen", self.name);
            std::thread::yield_now();
        }
    }
}

impl Drop for ProcessServer {
    fn drop(&mut self) {
        self.kill();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A free port, and what keeps it from being given to anybody else: the binary listens there beside this socket, which does not.
/// Where there are no such sockets, a port that was free a moment ago has to do.
pub fn free_port() -> (u16, Option<TcpListener>) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let port = |bound: &TcpListener| bound.local_addr().expect("a bound socket has an address").port();
    match hold_port(any) {
        Ok(held) => (port(&held), Some(held)),
        Err(_) => (port(&TcpListener::bind(any).expect("loopback has a free port")), None),
    }
}

/// Processor time of the test's own process so far, in milliseconds.
pub fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}
