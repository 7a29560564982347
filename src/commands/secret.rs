//! Secrets that people type: asked for at the terminal, which does not show them, or read from standard input. Never from
//! the arguments, which every user of the machine can read.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;

use super::Failure;

/// Most bytes of a line that are read.
const LINE_BYTES_MAX: u64 = 4096;

/// A new password for a user: typed twice at a terminal, else the first line of standard input.
pub fn new_password(user: &str) -> Result<String, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let mut line = String::new();
        let read = io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut line);
        read.map_err(|e| Failure::Failed(format!("cannot read the password: {e}")))?;
        let password = line.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(Failure::Misuse(
                "there is no password on standard input: give one there, or ask for one with --generate"
                    .into(),
            ));
        }
        return Ok(password.to_owned());
    }
    let password = hidden_line(&format!("Password for {user}: "))?;
    if password.is_empty() {
        return Err(Failure::Failed("a password is not empty".into()));
    }
    if hidden_line("The same again: ")? != password {
        return Err(Failure::Failed("these two are not the same".into()));
    }
    Ok(password)
}

/// Asks somebody at the terminal whether they mean it. Errors: they do not, or nobody is there.
pub fn confirm(question: &str) -> Result<(), Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Misuse(format!("{question} If so, say it with --yes")));
    }
    tell(&format!("{question} [y/N] "));
    let mut line = String::new();
    let read = io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut line);
    match read {
        Ok(_) if ["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()) => Ok(()),
        _ => Err(Failure::Failed("nothing was done".into())),
    }
}

/// The terminal as it was, put back when this is dropped.
struct Hidden {
    before: libc::termios,
    fd: libc::c_int,
}

impl Hidden {
    /// Turns off that the terminal shows what is typed, and that it acts on it: each byte is ours to see.
    fn begin() -> io::Result<Self> {
        let fd = io::stdin().as_raw_fd();
        let mut before = std::mem::MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the kernel writes one `termios` to the pointer, which is to a live local, if it answers 0.
        if unsafe { libc::tcgetattr(fd, before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was written, since the call has succeeded.
        let before = unsafe { before.assume_init() };
        let mut hidden = before;
        hidden.c_lflag &= !(libc::ECHO | libc::ICANON | libc::ISIG);
        hidden.c_cc[libc::VMIN] = 1;
        hidden.c_cc[libc::VTIME] = 0;
        // SAFETY: the kernel reads one live `termios`.
        match unsafe { libc::tcsetattr(fd, libc::TCSAFLUSH, &raw const hidden) } {
            0 => Ok(Self { before, fd }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // SAFETY: the kernel reads one live `termios`.
        let _ = unsafe { libc::tcsetattr(self.fd, libc::TCSAFLUSH, &raw const self.before) };
        tell("\n");
    }
}

/// Control-C, control-D; and what deletes the last letter.
const CANCEL: u8 = 3;
const END: u8 = 4;
const DELETE: [u8; 2] = [8, 127];

/// A line of the terminal that is not shown.
fn hidden_line(prompt: &str) -> Result<String, Failure> {
    let failed = |e: io::Error| Failure::Failed(format!("cannot read from the terminal: {e}"));
    let hidden = Hidden::begin().map_err(failed)?;
    // Asked only now, so that nothing is shown of what is typed at once.
    tell(prompt);
    let (mut line, mut byte, mut stdin) = (Vec::new(), [0], io::stdin().lock());
    while stdin.read(&mut byte).map_err(failed)? == 1 {
        match byte[0] {
            CANCEL | END => return Err(Failure::Failed("nothing was done".into())),
            b'\r' | b'\n' => break,
            last if DELETE.contains(&last) => {
                // A letter may be several bytes.
                while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {}
            }
            letter if (line.len() as u64) < LINE_BYTES_MAX => line.push(letter),
            _ => {}
        }
    }
    drop(hidden);
    String::from_utf8(line).map_err(|_| Failure::Failed("this is not UTF-8".into()))
}

/// Tells whoever sits there; what is printed for programs is standard output's.
fn tell(text: &str) {
    let mut out = io::stderr();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
