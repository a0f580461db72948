//! What workloads do by themselves, and what they say.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};

use super::{Bench, Broken, Check, Outcome, Promise, Verdict, ensure};
use crate::backend::{LogQuery, LogStream, ObservedState};
use crate::id::ResourceId;

pub(super) const PROMISES: &[Promise] = &[
    ("inspect tells the exit code of what ended by itself", exit_codes),
    ("what ended badly says why", last_words),
    ("events hint at a death", events),
    ("a log has every line, with stream and time", log_lines),
    ("a log can be cut by tail, since and until", log_cuts),
    (
        "following a log brings what comes, and ends with the workload",
        log_follow,
    ),
    ("a workload that does not exist has no log", no_log),
    ("metrics are of what runs, and of nothing else", metrics),
];

fn exit_codes<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        for code in [0, 3] {
            let Some(workload) = bench.script(&format!("exit {code}")) else {
                return Ok(Verdict::NotOffered);
            };
            bench.up(&workload).await?;
            let seen = bench.until_ended(workload.id).await?;
            let told = match &seen.state {
                ObservedState::Ended { exit_code, .. } => *exit_code,
                ObservedState::Created | ObservedState::Running => None,
            };
            ensure(
                told == Some(code),
                format!("it ended with {code}, and inspect says {:?}", seen.state),
            )?;
            ensure(
                seen.state.ended_clean() == (code == 0),
                "it does not tell a good end from a bad one",
            )?;
            ensure(seen.ended_at.is_some(), "it ended, and nobody knows when")?;
        }
        Ok(Verdict::Kept)
    })
}

fn last_words<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(workload) = bench.script("echo the reason >&2; exit 4") else {
            return Ok(Verdict::NotOffered);
        };
        bench.up(&workload).await?;
        let seen = bench.until_ended(workload.id).await?;
        match seen.state {
            ObservedState::Ended {
                cause: Some(cause), ..
            } if cause.contains("the reason") => Ok(Verdict::Kept),
            state => Err(Broken(format!("its last words are not in {state:?}"))),
        }
    })
}

async fn within<T>(bench: &Bench<'_>, what: &str, future: impl Future<Output = T> + Send) -> Outcome<T> {
    match select(Box::pin(future), bench.fixture.env.sleep(bench.fixture.patience)).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(_) => Err(format!("{what} took longer than {:?}", bench.fixture.patience).into()),
    }
}

fn events<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(workload) = bench.script("sleep 1; exit 1") else {
            return Ok(Verdict::NotOffered);
        };
        let mut events = bench.backend().events().await?;
        bench.up(&workload).await?;
        let hinted = async {
            loop {
                match events.next().await {
                    None => return Err(Broken::from("the stream ended")),
                    Some(event) if event.id == workload.id => {
                        let seen = bench.look(workload.id).await?;
                        if matches!(seen.state, ObservedState::Ended { .. }) {
                            return Ok(());
                        }
                    }
                    Some(_) => {}
                }
            }
        };
        within(bench, "a hint at its death", hinted).await??;
        Ok(Verdict::Kept)
    })
}

async fn log_of(bench: &Bench<'_>, id: ResourceId, query: LogQuery) -> Outcome<Vec<crate::backend::LogLine>> {
    let lines = bench.backend().logs(id, query).await?;
    let lines = within(bench, "reading the log", lines.collect::<Vec<_>>()).await?;
    Ok(lines.into_iter().collect::<crate::backend::Result<Vec<_>>>()?)
}

fn log_lines<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(workload) = bench.script("echo one; echo two; echo three >&2; echo; echo ünï") else {
            return Ok(Verdict::NotOffered);
        };
        bench.up(&workload).await?;
        bench.until_ended(workload.id).await?;
        let lines = log_of(bench, workload.id, LogQuery::default()).await?;
        let of = |stream: LogStream| -> Vec<&str> {
            let of_stream = lines.iter().filter(move |l| l.stream == stream);
            of_stream.map(|l| l.message.as_str()).collect()
        };
        let (out, err) = (of(LogStream::Stdout), of(LogStream::Stderr));
        ensure(
            out == ["one", "two", "", "ünï"],
            format!("standard output is {out:?}"),
        )?;
        ensure(err == ["three"], format!("standard error is {err:?}"))?;
        let now = bench.fixture.env.now();
        let age = |l: &crate::backend::LogLine| now.since(l.timestamp).max(l.timestamp.since(now));
        ensure(
            lines.iter().all(|l| age(l) < Duration::from_secs(3600)),
            "a line has a time that cannot be",
        )?;
        Ok(Verdict::Kept)
    })
}

fn log_cuts<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(workload) = bench.script("echo one; sleep 2; echo two; echo three") else {
            return Ok(Verdict::NotOffered);
        };
        bench.up(&workload).await?;
        bench.until_ended(workload.id).await?;
        let texts = |query: LogQuery| async {
            let lines = log_of(bench, workload.id, query).await?;
            Ok::<_, Broken>(lines.into_iter().map(|l| l.message).collect::<Vec<_>>())
        };
        let tail = texts(LogQuery {
            tail: Some(2),
            ..LogQuery::default()
        })
        .await?;
        ensure(
            tail == ["two", "three"],
            format!("the last two lines are {tail:?}"),
        )?;
        let none = texts(LogQuery {
            tail: Some(0),
            ..LogQuery::default()
        })
        .await?;
        ensure(none.is_empty(), format!("the last no lines are {none:?}"))?;
        let all = log_of(bench, workload.id, LogQuery::default()).await?;
        let Some(middle) = all.first().map(|l| l.timestamp + Duration::from_secs(1)) else {
            return Err(Broken::from("there are no lines"));
        };
        let since = texts(LogQuery {
            since: Some(middle),
            ..LogQuery::default()
        })
        .await?;
        ensure(
            since == ["two", "three"],
            format!("since the pause there are {since:?}"),
        )?;
        let until = texts(LogQuery {
            until: Some(middle),
            ..LogQuery::default()
        })
        .await?;
        ensure(until == ["one"], format!("until the pause there are {until:?}"))?;
        Ok(Verdict::Kept)
    })
}

fn log_follow<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(workload) = bench.script("echo one; sleep 2; echo two; exit 0") else {
            return Ok(Verdict::NotOffered);
        };
        bench.up(&workload).await?;
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let lines = log_of(bench, workload.id, query).await?;
        let texts: Vec<&str> = lines.iter().map(|l| l.message.as_str()).collect();
        ensure(texts == ["one", "two"], format!("it brought {texts:?}"))?;
        Ok(Verdict::Kept)
    })
}

fn no_log<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        for follow in [false, true] {
            let query = LogQuery {
                follow,
                ..LogQuery::default()
            };
            let lines = log_of(bench, bench.id(), query).await?;
            ensure(lines.is_empty(), format!("it has {} lines", lines.len()))?;
        }
        Ok(Verdict::Kept)
    })
}

fn metrics<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let (up, made) = (bench.lasting(), bench.lasting());
        bench.up(&up).await?;
        bench.backend().create(&bench.call(1), &made).await?;
        let measured = bench.backend().metrics(&[bench.id(), up.id, made.id]).await?;
        let ids: Vec<ResourceId> = measured.iter().map(|(id, _)| *id).collect();
        ensure(
            ids == [up.id],
            format!("one of three runs, and there are figures of {ids:?}"),
        )?;
        for (_, metrics) in &measured {
            let percents = [
                metrics.cpu.usage_percent,
                metrics.memory.usage_percent,
                metrics.disk.usage_percent,
            ];
            let sane = percents.iter().flatten().all(|p| p.is_finite() && *p >= 0.0);
            ensure(sane, format!("a figure cannot be: {metrics:?}"))?;
        }
        Ok(Verdict::Kept)
    })
}
