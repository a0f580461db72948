//! The log of a machine: what its serial console said, and what hwm has to say of it.
//!
//! QEMU writes the console's output into a volume of the pool, so it is read through libvirt wherever libvirt
//! runs. That log has no times: a line's time is when hwm first saw it, and of what was written before hwm looked,
//! the moment of looking.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::backend::{LogLevel, LogLine, LogQuery, LogStream, Result, Stream};
use hwm_core::id::ResourceId;
use hwm_core::units::Timestamp;
use tokio::sync::mpsc;

use crate::backend::{Inner, lock};
use crate::domain::console_log_name;
use crate::lifecycle::Found;

/// How much of a log is read at most.
const MOST: u64 = 4 << 20;
/// How much is read at a time while following.
const CHUNK: u64 = 1 << 20;
/// How often a log that is followed is looked at.
const POLL: Duration = Duration::from_millis(500);
/// How many lines of hwm's own are kept of a machine, and of how many machines.
const NOTES: (usize, usize) = (100, 4096);

/// hwm's own lines, by machine, and when which part of a console's log was first seen.
#[derive(Default)]
pub(crate) struct Journal {
    notes: HashMap<ResourceId, VecDeque<LogLine>>,
    seen: HashMap<ResourceId, VecDeque<(u64, Timestamp)>>,
}

fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// Adds a line of hwm's own.
pub(crate) fn note(inner: &Inner, id: ResourceId, message: String) {
    let mut journal = lock(&inner.journal);
    if journal.notes.len() >= NOTES.1 && !journal.notes.contains_key(&id) {
        return;
    }
    let notes = journal.notes.entry(id).or_default();
    if notes.len() >= NOTES.0 {
        notes.pop_front();
    }
    notes.push_back(LogLine {
        timestamp: now(),
        stream: LogStream::System,
        level: LogLevel::Info,
        message,
    });
}

/// Forgets a machine.
pub(crate) fn forget(inner: &Inner, id: ResourceId) {
    let mut journal = lock(&inner.journal);
    journal.notes.remove(&id);
    journal.seen.remove(&id);
}

impl Journal {
    /// Remembers that the log was this long at this moment.
    fn saw(&mut self, id: ResourceId, length: u64, at: Timestamp) {
        let seen = self.seen.entry(id).or_default();
        match seen.back() {
            Some((known, _)) if length == *known => return,
            // It began anew.
            Some((known, _)) if length < *known => seen.clear(),
            _ => {}
        }
        if seen.len() >= 256 {
            seen.pop_front();
        }
        seen.push_back((length, at));
    }

    /// When the byte at `offset` was seen first.
    fn time(&self, id: ResourceId, offset: u64) -> Timestamp {
        let seen = self.seen.get(&id);
        seen.and_then(|s| s.iter().find(|(length, _)| offset < *length))
            .map_or_else(now, |(_, at)| *at)
    }
}

/// A console line without what moves a cursor or sets a colour.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.next() {
                // A control sequence ends with a letter or one of a few signs.
                Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
                // A title ends with a bell or an escape.
                Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                _ => {}
            },
            '\t' => plain.push(' '),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

/// Takes whole lines off the front of `pending`.
struct Splitter {
    pending: Vec<u8>,
    offset: u64,
}

impl Splitter {
    fn lines(&mut self, bytes: &[u8]) -> Vec<(u64, String)> {
        self.pending.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut begin = 0;
        while let Some(end) = self.pending[begin..].iter().position(|b| *b == b'\n') {
            lines.push((
                self.offset + begin as u64,
                plain(&self.pending[begin..begin + end]),
            ));
            begin += end + 1;
        }
        // A guest that never ends its line does not fill our memory.
        if self.pending.len() - begin > 64 * 1024 {
            lines.push((self.offset + begin as u64, plain(&self.pending[begin..])));
            begin = self.pending.len();
        }
        self.pending.drain(..begin);
        self.offset += begin as u64;
        lines
    }

    fn rest(&mut self) -> Option<(u64, String)> {
        let text = plain(&std::mem::take(&mut self.pending));
        (!text.trim().is_empty()).then_some((self.offset, text))
    }
}

impl Inner {
    /// The console's log from `offset` on, and how long it is then.
    pub(crate) async fn read_console_log(&self, id: ResourceId, offset: u64, most: u64) -> Result<Vec<u8>> {
        let (pool, name) = (self.options.pool.clone(), console_log_name(id));
        self.ask("reading the console's log", move |host| {
            match host.volume_facts(&pool, &name)? {
                Some(_) => host.download(&pool, &name, offset, most),
                None => Ok(Vec::new()),
            }
        })
        .await
    }

    async fn is_ours(&self, id: ResourceId) -> Result<bool> {
        let place = self.place(id);
        self.ask("looking for the machine", move |host| {
            Ok(matches!(place.find(host)?, Found::Domain(..)))
        })
        .await
    }
}

/// The lines that a query selects, and then, where it follows, those that come.
pub(crate) async fn lines(
    inner: Arc<Inner>,
    id: ResourceId,
    query: LogQuery,
) -> Result<Stream<Result<LogLine>>> {
    if !inner.is_ours(id).await? {
        return Ok(futures_util::stream::empty().boxed());
    }
    let bytes = inner.read_console_log(id, 0, MOST).await?;
    let mut splitter = Splitter {
        pending: Vec::new(),
        offset: 0,
    };
    let mut offset = bytes.len() as u64;
    lock(&inner.journal).saw(id, offset, now());
    let mut raw = splitter.lines(&bytes);
    if !query.follow {
        raw.extend(splitter.rest());
    }
    let mut selected: Vec<LogLine> = {
        let journal = lock(&inner.journal);
        let mut all: Vec<LogLine> = raw
            .into_iter()
            .map(|(at, message)| console_line(journal.time(id, at), message))
            .collect();
        all.extend(journal.notes.get(&id).into_iter().flatten().cloned());
        // Stable: lines of one moment keep their order.
        all.sort_by_key(|line| line.timestamp);
        all
    };
    let wanted = move |line: &LogLine| {
        query.since.is_none_or(|since| line.timestamp >= since)
            && query.until.is_none_or(|until| line.timestamp < until)
    };
    selected.retain(&wanted);
    if let Some(tail) = query.tail {
        selected.drain(..selected.len().saturating_sub(tail as usize));
    }
    let first = futures_util::stream::iter(selected.into_iter().map(Ok));
    if !query.follow {
        return Ok(first.boxed());
    }
    let (send, mut receive) = mpsc::channel::<Result<LogLine>>(256);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = send.closed() => return,
            }
            if query.until.is_some_and(|until| now() >= until) {
                return;
            }
            let read = inner.read_console_log(id, offset, CHUNK).await;
            let at = now();
            let bytes = match read {
                Ok(bytes) => bytes,
                Err(error) => {
                    let _ = send.send(Err(error)).await;
                    return;
                }
            };
            offset += bytes.len() as u64;
            if bytes.is_empty() {
                match inner.restarted(id, offset).await {
                    // The log was turned over: go on at its beginning.
                    Ok(Some(true)) => {
                        offset = 0;
                        splitter = Splitter {
                            pending: Vec::new(),
                            offset: 0,
                        };
                    }
                    Ok(Some(false)) | Err(_) => {}
                    Ok(None) => return,
                }
                continue;
            }
            lock(&inner.journal).saw(id, offset, at);
            for (_, message) in splitter.lines(&bytes) {
                let line = console_line(at, message);
                if wanted(&line) && send.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        }
    });
    let followed = futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx));
    Ok(first.chain(followed).boxed())
}

fn console_line(timestamp: Timestamp, message: String) -> LogLine {
    LogLine {
        timestamp,
        stream: LogStream::Console,
        level: LogLevel::Info,
        message,
    }
}

impl Inner {
    /// Whether the log is shorter than what was read of it; none where it is gone.
    async fn restarted(&self, id: ResourceId, read: u64) -> Result<Option<bool>> {
        if read == 0 {
            return Ok(Some(false));
        }
        let (pool, name) = (self.options.pool.clone(), console_log_name(id));
        self.ask("reading the console's log", move |host| {
            if host.volume_facts(&pool, &name)?.is_none() {
                return Ok(None);
            }
            // The last byte that was read is not there any more.
            Ok(Some(host.download(&pool, &name, read - 1, 1)?.is_empty()))
        })
        .await
    }
}

pub(crate) type JournalCell = Mutex<Journal>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_and_cursors_are_left_out() {
        assert_eq!(plain(b"\x1b[0;32m  OK  \x1b[0m] Started\r"), "  OK  ] Started");
        assert_eq!(plain(b"\x1b]0;title\x07prompt\tx\x1b[?2004h"), "prompt x");
        assert_eq!(plain(b"\x1b["), "");
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut splitter = Splitter {
            pending: Vec::new(),
            offset: 0,
        };
        assert_eq!(splitter.lines(b"one\ntw"), [(0, "one".to_owned())]);
        assert_eq!(
            splitter.lines(b"o\n\nthree"),
            [(4, "two".to_owned()), (8, String::new())]
        );
        assert_eq!(splitter.rest(), Some((9, "three".to_owned())));
    }

    #[test]
    fn the_time_of_a_line_is_when_it_was_seen_first() {
        let id = ResourceId::from_u128(1);
        let at = Timestamp::from_millis;
        let mut journal = Journal::default();
        journal.saw(id, 10, at(1));
        journal.saw(id, 10, at(2));
        journal.saw(id, 30, at(3));
        assert_eq!(journal.time(id, 0), at(1));
        assert_eq!(journal.time(id, 10), at(3));
        journal.saw(id, 5, at(4));
        assert_eq!(journal.time(id, 0), at(4));
    }

    proptest! {
        #[test]
        fn no_output_makes_it_panic(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut splitter = Splitter { pending: Vec::new(), offset: 0 };
            let mut count = 0;
            for chunk in &chunks {
                count += splitter.lines(chunk).len();
            }
            prop_assert_eq!(count, chunks.concat().iter().filter(|b| **b == b'\n').count());
        }
    }
}
