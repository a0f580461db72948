//! Logs: lines with stream and time, read no faster than they are taken.

use futures_util::stream::{self, StreamExt};
use http_body_util::BodyExt;
use hwm_core::backend::{LogLevel, LogLine, LogQuery, LogStream, Result, Stream};
use hwm_core::units::Timestamp;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::client::Client;
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
    let source = Source {
        client: client.clone(),
        container: container.to_owned(),
        doing: format!("reading the log of {container}"),
    };
    let tail = query.tail.map_or_else(|| "all".to_owned(), |n| n.to_string());
    let Some(frames) = source.open(&query, query.since.map(seconds), &tail).await? else {
        return Ok(stream::empty().boxed());
    };
    let reader = Lines {
        source,
        frames,
        query,
        joiner: Joiner::default(),
        handed_out: Position::default(),
        skip: None,
        ended: false,
    };
    let lines = stream::unfold(reader, |mut reader| async move {
        let line = reader.next().await?;
        Some((line, reader))
    });
    Ok(lines.boxed())
}

/// Seconds since the epoch, as the engine takes them.
fn seconds(t: Timestamp) -> String {
    let millis = t.as_millis().max(0);
    format!("{}.{:03}000000", millis / 1000, millis % 1000)
}

type Body = Box<dyn AsyncRead + Send + Unpin>;

/// Where lines come from.
struct Source {
    client: Client,
    container: String,
    doing: String,
}

impl Source {
    async fn open(
        &self,
        query: &LogQuery,
        since: Option<String>,
        tail: &str,
    ) -> Result<Option<Frames<Body>>> {
        let until = query.until.map(seconds);
        let mut options = vec![
            ("stdout", "1"),
            ("stderr", "1"),
            ("timestamps", "1"),
            ("tail", tail),
            ("follow", if query.follow { "1" } else { "0" }),
        ];
        options.extend(since.as_deref().map(|t| ("since", t)));
        options.extend(until.as_deref().map(|t| ("until", t)));
        let path = format!("/containers/{}/logs", self.container);
        let open = async {
            match self.client.open(&path, &options).await {
                Ok(answer) => Ok(Some(answer)),
                Err(fault) if fault.is_absent() => Ok(None),
                Err(fault) => Err(fault),
            }
        };
        let answer = self.client.look(&self.doing, open).await?;
        Ok(answer.map(|answer| {
            let body = answer.into_body().into_data_stream();
            let body = StreamReader::new(body.map(|c| c.map_err(std::io::Error::other)));
            Frames::new(Box::new(body) as Body)
        }))
    }
}

/// How far the log was read: the time of the last entry, and how many there were of that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Position {
    at: Option<jiff::Timestamp>,
    count: usize,
}

impl Position {
    fn pass(&mut self, at: jiff::Timestamp) {
        self.count = if self.at == Some(at) { self.count + 1 } else { 1 };
        self.at = Some(at);
    }

    /// Whether an entry of that time was there before; counts it off if so.
    fn covers(&mut self, at: jiff::Timestamp) -> bool {
        match self.at {
            Some(last) if at < last => true,
            Some(last) if at == last && self.count > 0 => {
                self.count -= 1;
                true
            }
            _ => false,
        }
    }
}

struct Lines {
    source: Source,
    frames: Frames<Body>,
    query: LogQuery,
    joiner: Joiner,
    handed_out: Position,
    /// What of the stream was handed out before.
    skip: Option<Position>,
    ended: bool,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<LogLine>> {
        while !self.ended {
            let line = match self.frames.next().await {
                Some(Ok((channel, entry))) => self.take(channel, &entry),
                Some(Err(fault)) => {
                    self.ended = true;
                    return Some(Err(fault.during(self.source.doing.as_str())));
                }
                None => match self.catch_up().await {
                    Ok(()) => None,
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                },
            };
            if let Some(line) = line.filter(|l| self.wanted(l)) {
                return Some(Ok(line));
            }
        }
        self.joiner.rest().filter(|l| self.wanted(l)).map(Ok)
    }

    fn take(&mut self, channel: Channel, entry: &[u8]) -> Option<LogLine> {
        let (at, text) = split(entry);
        if self.skip.as_mut().is_some_and(|skip| skip.covers(at)) {
            return None;
        }
        self.handed_out.pass(at);
        self.joiner.take(channel, at, text)
    }

    /// Engines cut a reader who follows and falls behind when the container ends: the rest is read
    /// without following.
    async fn catch_up(&mut self) -> Result<()> {
        if !self.query.follow {
            self.ended = true;
            return Ok(());
        }
        self.query.follow = false;
        let last = self.handed_out.at;
        let since = last.map(|t| format!("{}.{:09}", t.as_second(), t.subsec_nanosecond()));
        // Without a single line there is nothing to go on from.
        let tail = if last.is_none() {
            self.query.tail.map(|n| n.to_string())
        } else {
            None
        };
        let tail = tail.unwrap_or_else(|| "all".to_owned());
        let since = since.or_else(|| self.query.since.map(seconds));
        match self.source.open(&self.query, since, &tail).await? {
            Some(frames) => {
                self.skip = Some(self.handed_out);
                self.frames = frames;
            }
            None => self.ended = true,
        }
        Ok(())
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
    begun: [Option<(jiff::Timestamp, Vec<u8>)>; 2],
}

impl Joiner {
    fn take(&mut self, channel: Channel, at: jiff::Timestamp, text: &[u8]) -> Option<LogLine> {
        let whole = text.last() == Some(&b'\n');
        let place = &mut self.begun[channel as usize];
        match place.take() {
            None if whole => Some(line(channel, at, text)),
            None => {
                *place = Some((at, text.to_vec()));
                None
            }
            Some((first, mut begun)) => {
                begun.extend_from_slice(text);
                if whole || begun.len() >= LINE_LIMIT {
                    return Some(line(channel, first, &begun));
                }
                *place = Some((first, begun));
                None
            }
        }
    }

    /// What was begun and never ended.
    fn rest(&mut self) -> Option<LogLine> {
        [Channel::Stdout, Channel::Stderr]
            .into_iter()
            .find_map(|channel| {
                let (at, text) = self.begun[channel as usize].take()?;
                Some(line(channel, at, &text))
            })
    }
}

/// Splits the time from the text of an entry.
fn split(entry: &[u8]) -> (jiff::Timestamp, &[u8]) {
    let space = entry.iter().take(40).position(|b| *b == b' ');
    let parsed = space.and_then(|at| {
        let time = std::str::from_utf8(&entry[..at]).ok()?.parse().ok()?;
        Some((time, &entry[at + 1..]))
    });
    parsed.unwrap_or((jiff::Timestamp::UNIX_EPOCH, entry))
}

fn line(channel: Channel, at: jiff::Timestamp, text: &[u8]) -> LogLine {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let (stream, level) = match channel {
        Channel::Stdout => (LogStream::Stdout, LogLevel::Info),
        Channel::Stderr => (LogStream::Stderr, LogLevel::Warn),
    };
    LogLine {
        timestamp: Timestamp::from_millis(at.as_millisecond()),
        stream,
        level,
        message: String::from_utf8_lossy(text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "2026-01-02T03:04:05.678901234Z";

    fn take(joiner: &mut Joiner, channel: Channel, text: &[u8]) -> Option<LogLine> {
        let entry = [AT.as_bytes(), b" ", text].concat();
        let (at, text) = split(&entry);
        joiner.take(channel, at, text)
    }

    #[test]
    fn an_entry_is_a_line_with_its_time() {
        let mut joiner = Joiner::default();
        let line = take(&mut joiner, Channel::Stderr, b"hello  world\r\n").unwrap();
        assert_eq!(line.timestamp.to_string(), "2026-01-02T03:04:05.678Z");
        assert_eq!(line.message, "hello  world");
        assert_eq!((line.stream, line.level), (LogStream::Stderr, LogLevel::Warn));
        assert_eq!(joiner.rest(), None);
    }

    #[test]
    fn pieces_of_a_line_are_joined_per_stream() {
        let mut joiner = Joiner::default();
        assert_eq!(take(&mut joiner, Channel::Stdout, b"one "), None);
        assert_eq!(
            take(&mut joiner, Channel::Stderr, b"err\n").unwrap().message,
            "err"
        );
        assert_eq!(take(&mut joiner, Channel::Stdout, b"two "), None);
        let line = take(&mut joiner, Channel::Stdout, b"three\n").unwrap();
        assert_eq!(line.message, "one two three");
        assert_eq!(take(&mut joiner, Channel::Stdout, b"no end"), None);
        assert_eq!(joiner.rest().unwrap().message, "no end");
    }

    #[test]
    fn a_line_without_end_is_cut_and_bytes_that_are_no_text_are_replaced() {
        let mut joiner = Joiner::default();
        let piece = vec![b'x'; 16 << 10];
        let cut = (0..=64).find_map(|_| take(&mut joiner, Channel::Stdout, &piece));
        assert_eq!(cut.unwrap().message.len(), LINE_LIMIT);
        let line = take(&mut Joiner::default(), Channel::Stdout, b"a\xff\x00b\n").unwrap();
        assert_eq!(line.message, "a\u{fffd}\0b");
    }

    #[test]
    fn a_second_reading_goes_on_where_the_first_one_ended() {
        let at = |n| jiff::Timestamp::from_nanosecond(n).unwrap();
        let log = [1, 2, 2, 2, 3].map(at);
        for read in 0..=log.len() {
            let mut position = Position::default();
            log[..read].iter().for_each(|t| position.pass(*t));
            let rest: Vec<_> = log.into_iter().filter(|t| !position.covers(*t)).collect();
            assert_eq!(rest, log[read..], "after {read}");
        }
    }

    #[test]
    fn times_go_to_the_engine_with_their_milliseconds() {
        let t = Timestamp::parse("1970-01-01T00:00:12.034Z").unwrap();
        assert_eq!(seconds(t), "12.034000000");
    }
}
