//! Logs: lines with stream and time, read no faster than they are taken.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::BodyExt;
use hwm_core::backend::{LogLevel, LogLine, LogQuery, LogStream, Result, Stream};
use hwm_core::units::Timestamp;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::client::{Client, READ_DEADLINE, within};
use crate::frames::{Channel, Frames};

/// A line longer than this is handed out in pieces.
const LINE_LIMIT: usize = 1 << 20;

/// The container's lines; the engine is asked before this returns. A container that does not exist has
/// none.
pub(crate) async fn read(
    client: &Client,
    container: &str,
    query: LogQuery,
) -> Result<Stream<Result<LogLine>>> {
    let doing = format!("reading the log of {container}");
    let tail = query.tail.map_or_else(|| "all".to_owned(), |n| n.to_string());
    let moment = |t: Option<Timestamp>| t.map(seconds);
    let (since, until) = (moment(query.since), moment(query.until));
    let mut options = vec![
        ("stdout", "1"),
        ("stderr", "1"),
        ("timestamps", "1"),
        ("tail", &tail),
        ("follow", if query.follow { "1" } else { "0" }),
    ];
    options.extend(since.as_deref().map(|t| ("since", t)));
    options.extend(until.as_deref().map(|t| ("until", t)));
    let path = format!("/containers/{container}/logs");
    let open = async {
        match client.open(&path, &options).await {
            Ok(answer) => Ok(Some(answer)),
            Err(fault) if fault.is_absent() => Ok(None),
            Err(fault) => Err(fault),
        }
    };
    let Some(answer) = within(READ_DEADLINE, &doing, open).await? else {
        return Ok(stream::empty().boxed());
    };
    let body = answer
        .into_body()
        .into_data_stream()
        .map(|c| c.map_err(std::io::Error::other));
    let reader = Lines {
        frames: Frames::new(StreamReader::new(body)),
        joiner: Joiner::default(),
        query,
        ended: false,
    };
    let lines = stream::unfold((reader, doing), |(mut reader, doing)| async move {
        let line = match reader.next().await? {
            Ok(line) => Ok(line),
            Err(fault) => Err(fault.during(doing.as_str())),
        };
        Some((line, (reader, doing)))
    });
    Ok(lines.boxed())
}

/// Seconds since the epoch, as the engine takes them.
fn seconds(t: Timestamp) -> String {
    let millis = t.as_millis().max(0);
    format!("{}.{:03}000000", millis / 1000, millis % 1000)
}

struct Lines<R> {
    frames: Frames<R>,
    joiner: Joiner,
    query: LogQuery,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    async fn next(&mut self) -> Option<std::result::Result<LogLine, crate::client::Fault>> {
        while !self.ended {
            let line = match self.frames.next().await {
                Some(Ok((channel, data))) => self.joiner.take(channel, data),
                Some(Err(fault)) => {
                    self.ended = true;
                    return Some(Err(fault));
                }
                None => {
                    self.ended = true;
                    break;
                }
            };
            if let Some(line) = line.filter(|l| self.wanted(l)) {
                return Some(Ok(line));
            }
        }
        self.joiner.rest().filter(|l| self.wanted(l)).map(Ok)
    }

    /// Engines differ in whether the ends of a range belong to it.
    fn wanted(&self, line: &LogLine) -> bool {
        self.query.since.is_none_or(|t| line.timestamp >= t)
            && self.query.until.is_none_or(|t| line.timestamp < t)
    }
}

/// Joins what the engine cut: it hands long lines out in entries of 16 KB, each with its time, and only
/// the last of them ends with a line end.
#[derive(Default)]
struct Joiner {
    begun: HashMap<Channel, (Timestamp, Vec<u8>)>,
}

impl Joiner {
    fn take(&mut self, channel: Channel, entry: Bytes) -> Option<LogLine> {
        let (time, text) = split(&entry);
        let whole = text.last() == Some(&b'\n');
        match self.begun.remove(&channel) {
            None if whole => Some(line(channel, time, text)),
            None => {
                self.begun.insert(channel, (time, text.to_vec()));
                None
            }
            Some((first, mut begun)) => {
                begun.extend_from_slice(text);
                if whole || begun.len() >= LINE_LIMIT {
                    return Some(line(channel, first, &begun));
                }
                self.begun.insert(channel, (first, begun));
                None
            }
        }
    }

    /// What was begun and never ended.
    fn rest(&mut self) -> Option<LogLine> {
        let channel = *self.begun.keys().next()?;
        let (time, text) = self.begun.remove(&channel)?;
        Some(line(channel, time, &text))
    }
}

/// Splits the time from the text of an entry.
fn split(entry: &[u8]) -> (Timestamp, &[u8]) {
    let space = entry.iter().take(40).position(|b| *b == b' ');
    let parsed = space.and_then(|at| {
        let time = std::str::from_utf8(&entry[..at])
            .ok()
            .and_then(Timestamp::parse)?;
        Some((time, &entry[at + 1..]))
    });
    parsed.unwrap_or_else(|| (Timestamp::from_millis(0), entry))
}

fn line(channel: Channel, timestamp: Timestamp, text: &[u8]) -> LogLine {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let (stream, level) = match channel {
        Channel::Stdout => (LogStream::Stdout, LogLevel::Info),
        Channel::Stderr => (LogStream::Stderr, LogLevel::Warn),
    };
    LogLine {
        timestamp,
        stream,
        level,
        message: String::from_utf8_lossy(text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Bytes {
        Bytes::from(format!("2026-01-02T03:04:05.678901234Z {text}"))
    }

    #[test]
    fn an_entry_is_a_line_with_its_time() {
        let mut joiner = Joiner::default();
        let line = joiner.take(Channel::Stderr, entry("hello  world\r\n")).unwrap();
        assert_eq!(line.timestamp.to_string(), "2026-01-02T03:04:05.678Z");
        assert_eq!(line.message, "hello  world");
        assert_eq!((line.stream, line.level), (LogStream::Stderr, LogLevel::Warn));
        assert_eq!(joiner.rest(), None);
    }

    #[test]
    fn pieces_of_a_line_are_joined_per_stream() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.take(Channel::Stdout, entry("one ")), None);
        assert_eq!(
            joiner.take(Channel::Stderr, entry("err\n")).unwrap().message,
            "err"
        );
        assert_eq!(joiner.take(Channel::Stdout, entry("two ")), None);
        assert_eq!(
            joiner.take(Channel::Stdout, entry("three\n")).unwrap().message,
            "one two three"
        );
        assert_eq!(joiner.take(Channel::Stdout, entry("no end")), None);
        assert_eq!(joiner.rest().unwrap().message, "no end");
    }

    #[test]
    fn a_line_without_end_is_cut_and_bytes_that_are_no_text_are_replaced() {
        let mut joiner = Joiner::default();
        let piece = "x".repeat(16 << 10);
        let cut = (0..=64).find_map(|_| joiner.take(Channel::Stdout, entry(&piece)));
        assert_eq!(cut.unwrap().message.len(), LINE_LIMIT);
        let mut bytes = entry("").to_vec();
        bytes.extend_from_slice(b"a\xff\x00b\n");
        let line = Joiner::default().take(Channel::Stdout, bytes.into()).unwrap();
        assert_eq!(line.message, "a\u{fffd}\0b");
    }

    #[test]
    fn times_go_to_the_engine_with_their_milliseconds() {
        let t = Timestamp::parse("1970-01-01T00:00:12.034Z").unwrap();
        assert_eq!(seconds(t), "12.034000000");
    }
}
