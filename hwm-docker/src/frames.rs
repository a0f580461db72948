//! The engine's multiplexed streams: frames of standard output and standard error.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::client::Fault;

/// The longest frame that an engine may send; it sends 16 KB.
const FRAME_LIMIT: usize = 16 << 20;
const HEADER: usize = 8;
const READ_AHEAD: usize = 64 << 10;

/// Which stream a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

/// Reads frames, and no further ahead than one buffer.
pub(crate) struct Frames<R> {
    source: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            buffer: BytesMut::with_capacity(READ_AHEAD),
        }
    }

    /// The next frame; none at the end of the stream. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<(Channel, Bytes), Fault>> {
        loop {
            match self.take() {
                Ok(Some(frame)) => return Some(Ok(frame)),
                Ok(None) => {}
                Err(fault) => return Some(Err(fault)),
            }
            self.buffer.reserve(READ_AHEAD);
            match self.source.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return None,
                Ok(0) => {
                    self.buffer.clear();
                    return Some(Err(Fault::Away("the stream ended within a frame".to_owned())));
                }
                Ok(_) => {}
                Err(e) => return Some(Err(Fault::Away(e.to_string()))),
            }
        }
    }

    fn take(&mut self) -> Result<Option<(Channel, Bytes)>, Fault> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let channel = match header[0] {
            // Standard input is echoed as 0 by some engines.
            0 | 1 => Channel::Stdout,
            2 => Channel::Stderr,
            other => {
                return Err(Fault::Unreadable(format!(
                    "a frame of the unknown stream {other}"
                )));
            }
        };
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > FRAME_LIMIT {
            return Err(Fault::Unreadable(format!("a frame of {length} bytes")));
        }
        if self.buffer.len() < HEADER + length {
            self.buffer.reserve(HEADER + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        Ok(Some((channel, self.buffer.split_to(length).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (channel, data) in frames {
            out.extend_from_slice(&[*channel, 0, 0, 0]);
            out.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
            out.extend_from_slice(data);
        }
        out
    }

    async fn decode(bytes: Vec<u8>, chunk: usize) -> Vec<Result<(Channel, Bytes), Fault>> {
        let (mut near, far) = tokio::io::duplex(chunk);
        let writer =
            tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await });
        let mut frames = Frames::new(far);
        let mut all = Vec::new();
        while let Some(frame) = frames.next().await {
            let failed = frame.is_err();
            all.push(frame);
            if failed {
                break;
            }
        }
        writer.abort();
        all
    }

    proptest! {
        #[test]
        fn frames_read_back_however_they_are_cut(
            frames in prop::collection::vec((1u8..3, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            chunk in 1usize..30,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(decode(encode(&frames), chunk));
            let read: Vec<_> = read.into_iter().map(|f| f.unwrap())
                .map(|(c, d)| (if c == Channel::Stdout { 1 } else { 2 }, d.to_vec())).collect();
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn garbage_ends_in_an_error_or_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(decode(bytes, 64));
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_is_an_error() {
        let mut bytes = encode(&[(1, b"whole".to_vec()), (2, b"cut".to_vec())]);
        bytes.pop();
        let read = decode(bytes, 64).await;
        assert!(matches!(read[0], Ok((Channel::Stdout, _))));
        assert!(matches!(read[1], Err(Fault::Away(_))));
    }
}
