use std::time::Duration;

use crate::lab::*;
use futures_util::StreamExt;
use hwm_core::backend::{Backend, LogLine, LogQuery, LogStream};
use hwm_core::id::ResourceId;

async fn lines(lab: &Lab, id: ResourceId, query: LogQuery) -> Vec<LogLine> {
    let stream = lab.backend.logs(id, query).await.unwrap();
    stream.map(Result::unwrap).collect().await
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|l| l.message.as_str()).collect()
}

#[tokio::test]
async fn lines_have_stream_and_time_and_can_be_chosen() {
    let lab = lab();
    let text = "echo one; sleep 0.05; echo two >&2; sleep 0.05; echo three; sleep 0.05; printf 'four'";
    let workload = script(text);
    lab.up(&workload).await;
    lab.ended(workload.id).await;
    let all = lines(&lab, workload.id, LogQuery::default()).await;
    assert_eq!(texts(&all), ["one", "two", "three", "four"]);
    assert_eq!(all[1].stream, LogStream::Stderr);
    assert!(all.windows(2).all(|w| w[0].timestamp < w[1].timestamp), "{all:?}");
    let tail = LogQuery {
        tail: Some(2),
        ..LogQuery::default()
    };
    assert_eq!(texts(&lines(&lab, workload.id, tail).await), ["three", "four"]);
    let since = LogQuery {
        since: Some(all[1].timestamp),
        ..LogQuery::default()
    };
    assert_eq!(
        texts(&lines(&lab, workload.id, since).await),
        ["two", "three", "four"]
    );
    let until = LogQuery {
        until: Some(all[2].timestamp),
        ..LogQuery::default()
    };
    assert_eq!(texts(&lines(&lab, workload.id, until).await), ["one", "two"]);
    let none = LogQuery {
        tail: Some(0),
        ..LogQuery::default()
    };
    assert_eq!(lines(&lab, workload.id, none).await, []);
    lab.gone(workload.id).await;
    assert_eq!(lines(&lab, workload.id, LogQuery::default()).await, []);
}

#[tokio::test]
async fn long_lines_are_whole_and_odd_bytes_are_replaced() {
    let lab = lab();
    let workload = script("head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'a\\377b\\r\\n'");
    lab.up(&workload).await;
    lab.ended(workload.id).await;
    let all = lines(&lab, workload.id, LogQuery::default()).await;
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].message.len(), 100_000);
    assert_eq!(all[1].message, "a\u{fffd}b");
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn following_goes_on_until_the_container_ends() {
    let lab = lab();
    let workload = script("for i in 1 2 3 4 5; do echo $i; sleep 0.2; done");
    lab.backend.create(&call(), &workload).await.unwrap();
    lab.backend.start(&call(), &workload).await.unwrap();
    let follow = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let all = tokio::time::timeout(Duration::from_secs(10), lines(&lab, workload.id, follow))
        .await
        .unwrap();
    assert_eq!(texts(&all), ["1", "2", "3", "4", "5"]);
    lab.gone(workload.id).await;
}

/// Resident memory of this process in MB.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096) >> 20
}

#[tokio::test]
async fn a_reader_that_stalls_holds_nothing_in_memory_and_misses_nothing() {
    let lab = lab();
    // Some 13 MB, within what the log keeps.
    let workload = script(
        "awk 'BEGIN { for (i = 1; i <= 180000; i++) printf \"line number %07d of a container that writes a lot\\n\", i }'",
    );
    lab.up(&workload).await;
    let follow = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let mut stream = lab.backend.logs(workload.id, follow).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(first.message.starts_with("line number 0000001 "), "{first:?}");
    let before = resident();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 64, "{grown} MB");
    let mut expected = 2;
    while let Some(line) = stream.next().await {
        let line = line.unwrap();
        assert!(
            line.message.starts_with(&format!("line number {expected:07} ")),
            "{expected}: {line:?}"
        );
        expected += 1;
    }
    assert_eq!(expected, 180_001);
    lab.gone(workload.id).await;
}
