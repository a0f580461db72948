//! Where in a log a client is, so that it can go on there.
//!
//! A log has no line numbers that hold from one request to the next: a `tail` cuts it anywhere, and rotation cuts it
//! at the front. So a line is known by its time, its text, and which of the equal lines of that millisecond it is.

use std::collections::HashMap;

use hwm_core::backend::LogLine;
use hwm_core::units::Timestamp;
use sha2::{Digest as _, Sha256};

/// The most lines of one millisecond that are held back while the one that the client saw last is looked for.
const MOST_HELD: usize = 10_000;

/// A line of a log, as the id of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogPosition {
    pub(crate) time: Timestamp,
    line: u64,
    nth: u32,
}

impl LogPosition {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let (millis, line, nth) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = line.len() == 16 && line.bytes().all(|b| b.is_ascii_hexdigit());
        Some(Self {
            time: Timestamp::from_millis(millis.parse().ok()?),
            line: digits.then(|| u64::from_str_radix(line, 16).ok()).flatten()?,
            nth: nth.parse().ok()?,
        })
    }

    pub(crate) fn text(self) -> String {
        format!("{}-{:016x}-{}", self.time.as_millis(), self.line, self.nth)
    }
}

/// Tells the position of each line of a stream.
#[derive(Default)]
struct Counter {
    time: Option<Timestamp>,
    equal: HashMap<u64, u32>,
}

impl Counter {
    fn position(&mut self, line: &LogLine) -> LogPosition {
        if self.time != Some(line.timestamp) {
            self.time = Some(line.timestamp);
            self.equal.clear();
        }
        let digest = digest(line);
        let nth = self.equal.entry(digest).or_default();
        *nth += 1;
        LogPosition {
            time: line.timestamp,
            line: digest,
            nth: *nth,
        }
    }
}

fn digest(line: &LogLine) -> u64 {
    let mut text = Sha256::new();
    text.update([line.stream as u8]);
    text.update(line.message.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&text.finalize()[..8]);
    u64::from_be_bytes(first)
}

/// Passes on what a client has not seen yet, each line with its position.
pub(crate) struct Resume {
    counter: Counter,
    /// What the client saw last, while it may still come.
    after: Option<LogPosition>,
    /// Lines of that millisecond before it: not sent unless it never comes, as when it was rotated away.
    held: Vec<(LogPosition, LogLine)>,
}

impl Resume {
    pub(crate) fn after(after: Option<LogPosition>) -> Self {
        Self {
            counter: Counter::default(),
            after,
            held: Vec::new(),
        }
    }

    /// Takes the next line; answers what may be sent now.
    pub(crate) fn pass(&mut self, line: LogLine) -> Vec<(LogPosition, LogLine)> {
        let position = self.counter.position(&line);
        match self.after {
            Some(after) if position == after => {
                self.after = None;
                self.held.clear();
                Vec::new()
            }
            Some(after) if position.time == after.time && self.held.len() < MOST_HELD => {
                self.held.push((position, line));
                Vec::new()
            }
            Some(after) if position.time < after.time => Vec::new(),
            _ => {
                let mut lines = self.rest();
                lines.push((position, line));
                lines
            }
        }
    }

    /// What was held back for nothing.
    pub(crate) fn rest(&mut self) -> Vec<(LogPosition, LogLine)> {
        self.after = None;
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use hwm_core::backend::{LogLevel, LogStream};
    use proptest::prelude::*;

    use super::*;

    fn line(millis: i64, message: &str) -> LogLine {
        LogLine {
            timestamp: Timestamp::from_millis(millis),
            stream: LogStream::Stdout,
            level: LogLevel::Info,
            message: message.to_owned(),
        }
    }

    fn read(resume: &mut Resume, log: &[LogLine]) -> Vec<(LogPosition, LogLine)> {
        let mut lines: Vec<_> = log.iter().flat_map(|l| resume.pass(l.clone())).collect();
        lines.extend(resume.rest());
        lines
    }

    proptest! {
        /// A client that begins anywhere and breaks off anywhere has seen each later line once.
        #[test]
        fn going_on_brings_what_is_new_and_nothing_twice(
            times in prop::collection::vec(0i64..3, 1..12), cut in 0usize..12, broke in 0usize..12,
        ) {
            let mut times = times;
            times.sort_unstable();
            let log: Vec<_> = times.iter().enumerate().map(|(n, t)| line(*t, &format!("line {n}"))).collect();
            let cut = cut.min(log.len() - 1);
            let seen = read(&mut Resume::after(None), &log[cut..]);
            let (position, last) = &seen[broke.min(seen.len() - 1)];
            prop_assert_eq!(LogPosition::parse(&position.text()), Some(*position));
            let since: Vec<_> = log.iter().filter(|l| l.timestamp >= position.time).cloned().collect();
            let more: Vec<_> = read(&mut Resume::after(Some(*position)), &since).into_iter().map(|(_, l)| l).collect();
            let next = log.iter().position(|l| l == last).map_or(0, |n| n + 1);
            prop_assert_eq!(more, &log[next..]);
        }
    }

    #[test]
    fn equal_lines_of_one_millisecond_are_told_apart() {
        let log = [line(5, "same"), line(5, "same"), line(5, "same")];
        let seen = read(&mut Resume::after(None), &log);
        let more = read(&mut Resume::after(Some(seen[1].0)), &log);
        assert_eq!(more, seen[2..]);
    }

    #[test]
    fn where_the_line_is_gone_nothing_else_is_lost() {
        let gone = Counter::default().position(&line(5, "rotated away"));
        let log = [line(5, "one"), line(5, "two"), line(6, "three")];
        let mut resume = Resume::after(Some(gone));
        assert_eq!(resume.pass(log[0].clone()), []);
        assert_eq!(resume.pass(log[1].clone()), []);
        assert_eq!(resume.pass(log[2].clone()).len(), 3);
        let mut resume = Resume::after(Some(gone));
        assert_eq!(read(&mut resume, &log[..2]).len(), 2);
    }

    #[test]
    fn what_is_no_position_is_none() {
        for bad in [
            "",
            "5",
            "5-0",
            "5-0000000000000000",
            "5-0000000000000000-",
            "x-0000000000000000-1",
            "5-+000000000000000-1",
            "5-0000000000000000-1-1",
        ] {
            assert_eq!(LogPosition::parse(bad), None, "{bad}");
        }
    }
}
