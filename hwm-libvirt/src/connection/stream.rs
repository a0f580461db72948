//! Bytes to and from libvirt: volumes and consoles.

use virt::stream::Stream;

use super::error::Fault;
use super::ffi;
use super::host::Host;

/// The most that goes into one message.
const CHUNK: usize = 256 * 1024 - 1024;

/// Where the bytes of an upload come from.
pub(crate) trait Source: Send {
    /// Fills `buffer` as far as it can; 0 is the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault>;
}

impl Source for &[u8] {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let n = buffer.len().min(self.len());
        let (now, later) = self.split_at(n);
        buffer[..n].copy_from_slice(now);
        *self = later;
        Ok(n)
    }
}

pub(super) fn send(stream: Stream, source: &mut dyn Source) -> Result<(), Fault> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(read) => read,
            Err(fault) => {
                let _ = stream.abort();
                return Err(fault);
            }
        };
        if read == 0 {
            return Ok(stream.finish()?);
        }
        let mut sent = 0;
        while sent < read {
            match stream.send(&buffer[sent..read]) {
                Ok(n) => sent += n,
                Err(error) => {
                    let _ = stream.abort();
                    return Err(error.into());
                }
            }
        }
    }
}

pub(super) fn receive(stream: Stream, length: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; CHUNK];
    while (bytes.len() as u64) < length {
        match stream.recv(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) => {
                let _ = stream.abort();
                return Err(error.into());
            }
        }
    }
    bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    // A stream that is not read to its end can only be aborted.
    if stream.clone().finish().is_err() {
        let _ = stream.abort();
    }
    Ok(bytes)
}

/// A serial console. Nothing here blocks: libvirt frees a stream under a thread that waits in it when another ends
/// it, so one thread has it to itself and looks again and again.
pub(crate) struct ConsoleStream {
    stream: Stream,
    /// The connection that is the stream's alone; closed after it.
    _host: Option<Host>,
}

impl ConsoleStream {
    /// Takes a stream that was made not to block.
    pub(super) fn new(stream: Stream, host: Option<Host>) -> Self {
        Self { stream, _host: host }
    }

    /// What has come: none where nothing has yet, 0 at the end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Fault> {
        Ok(ffi::receive(&self.stream, buffer)?)
    }

    /// Writes as many bytes as can be taken now.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize, Fault> {
        Ok(ffi::send(&self.stream, bytes)?)
    }

    /// Ends both directions.
    pub(crate) fn close(self) {
        let _ = self.stream.abort();
    }
}
