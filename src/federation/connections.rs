//! Connections to other servers that can be cut: when this server stops, whoever waits for one to come about, or on
//! one, comes back at once. The system cannot be told to give up looking for a name or connecting, so that is done on
//! threads of their own, which hold nothing of ours and end by themselves.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::locks::{lock, wait_until};

/// Time to connect if nobody says less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const THREAD_STACK_BYTES: usize = 256 * 1024;

/// Everything under way. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Arc<CutState>);

#[derive(Debug, Default)]
struct CutState {
    state: Mutex<OpenStreams>,
    /// Something was done, or all is cut.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OpenStreams {
    cut: bool,
    streams: Vec<Weak<TcpStream>>,
}

impl Connections {
    /// Does what cannot be interrupted on a thread of its own, and waits for it, at most so long. Errors: its own;
    /// `TimedOut`; `Interrupted` once everything is cut.
    pub(super) fn wait_for<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let deadline = Instant::now() + within;
        let cut = || io::Error::new(ErrorKind::Interrupted, "this server stops");
        if lock(&self.0.state).cut {
            return Err(cut());
        }
        let result = Arc::new(Mutex::new(None));
        let (done, shared) = (result.clone(), self.0.clone());
        std::thread::Builder::new().name("reaching out".into()).stack_size(THREAD_STACK_BYTES).spawn(
            move || {
                let found = work();
                *lock(&done) = Some(found);
                // So that nobody is between looking at the result and waiting for it.
                drop(lock(&shared.state));
                shared.changed.notify_all();
            },
        )?;
        let mut state = lock(&self.0.state);
        loop {
            if let Some(found) = lock(&result).take() {
                return found;
            }
            if state.cut {
                return Err(cut());
            }
            let Ok(woken) = wait_until(&self.0.changed, state, deadline) else {
                return Err(io::Error::new(ErrorKind::TimedOut, "it took too long"));
            };
            state = woken;
        }
    }

    /// Cuts every connection, and lets nobody wait for one any more.
    pub(super) fn cut(&self) {
        let mut state = lock(&self.0.state);
        state.cut = true;
        for stream in state.streams.drain(..).filter_map(|stream| stream.upgrade()) {
            // An error: it is at its end already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.0.changed.notify_all();
    }

    fn line(&self, stream: TcpStream, buffers: LazyBuffers) -> io::Result<OutgoingConnection> {
        stream.set_nodelay(true)?;
        let stream = Arc::new(stream);
        let mut state = lock(&self.0.state);
        if state.cut {
            return Err(ErrorKind::Interrupted.into());
        }
        state.streams.retain(|stream| stream.strong_count() > 0);
        state.streams.push(Arc::downgrade(&stream));
        Ok(OutgoingConnection { stream, buffers })
    }
}

impl Connector<()> for Connections {
    type Out = OutgoingConnection;

    /// Tries the addresses in turn, each with half of the time that is left, but for the last.
    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<OutgoingConnection>, ureq::Error> {
        let within = details.timeout.not_zero().map_or(CONNECT_TIMEOUT, |timeout| *timeout);
        let deadline = Instant::now() + within.min(CONNECT_TIMEOUT);
        let mut last = io::Error::from(ErrorKind::ConnectionRefused);
        for (at, address) in details.addrs.iter().enumerate() {
            let (address, left) = (*address, deadline.saturating_duration_since(Instant::now()));
            let share = if at + 1 < details.addrs.len() { left / 2 } else { left };
            if share.is_zero() {
                break;
            }
            match self.wait_for(share, move || TcpStream::connect_timeout(&address, share)) {
                Ok(stream) => {
                    let config = details.config;
                    let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
                    return Ok(Some(self.line(stream, buffers)?));
                }
                Err(e) => last = e,
            }
        }
        Err(ureq::Error::Io(last))
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct OutgoingConnection {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
}

/// What the socket may take, or the error that it has no time left.
fn time_for(timeout: NextTimeout) -> Result<Option<Duration>, ureq::Error> {
    if timeout.after.is_zero() {
        return Err(ureq::Error::Timeout(timeout.reason));
    }
    Ok(timeout.not_zero().map(|timeout| *timeout))
}

fn failed(e: io::Error, timeout: NextTimeout) -> ureq::Error {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(e),
    }
}

impl Transport for OutgoingConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(time_for(timeout)?)?;
        let output = &self.buffers.output()[..amount];
        (&*self.stream).write_all(output).map_err(|e| failed(e, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        self.stream.set_read_timeout(time_for(timeout)?)?;
        let input = self.buffers.input_append_buf();
        let amount = loop {
            match (&*self.stream).read(input) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(|e| failed(e, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Whatever there is to read, nobody asked for it.
        let quiet = self.stream.set_nonblocking(true).is_ok()
            && matches!(self.stream.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock);
        quiet && self.stream.set_nonblocking(false).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn whoever_waits_for_something_comes_back_when_it_is_done_takes_too_long_or_all_is_cut() {
        let connections = Connections::default();
        assert_eq!(connections.wait_for(Duration::from_secs(30), || Ok(5)).expect("done"), 5);
        let refused =
            connections.wait_for(Duration::from_secs(30), || Err::<(), _>(ErrorKind::NotFound.into()));
        assert_eq!(refused.expect_err("its own error").kind(), ErrorKind::NotFound);

        let (hold, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let held = Arc::new(Mutex::new(held));
        let stuck = |begin: mpsc::Sender<()>| {
            let held = held.clone();
            move || {
                let _ = begin.send(());
                let _ = lock(&held).recv();
                Ok(())
            }
        };
        let late = connections.wait_for(Duration::from_millis(20), stuck(begin.clone()));
        assert_eq!(late.expect_err("no time").kind(), ErrorKind::TimedOut);
        begun.recv().expect("it began");
        let ended = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| connections.wait_for(Duration::from_secs(600), stuck(begin)));
            begun.recv().expect("it began");
            connections.cut();
            waiting.join().expect("no panic")
        });
        assert_eq!(ended.expect_err("cut").kind(), ErrorKind::Interrupted);
        let after = connections.wait_for(Duration::from_secs(600), || Ok(()));
        assert_eq!(after.expect_err("too late").kind(), ErrorKind::Interrupted);
        drop(hold);
    }
}
