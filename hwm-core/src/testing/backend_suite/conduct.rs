//! Fencing, dropped calls, and what is not ours.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use super::{Bench, Broken, Check, Outcome, Promise, Verdict, ensure};
use crate::backend::{BackendErrorKind, ObservedState, Result};
use crate::id::ResourceId;

pub(super) const PROMISES: &[Promise] = &[
    ("an older generation is refused and changes nothing", older),
    ("a create that comes after its delete makes nothing", late_create),
    ("a dropped create can be repeated", dropped_create),
    ("a dropped start can be repeated", dropped_start),
    ("a dropped stop can be repeated", dropped_stop),
    ("a dropped remove can be repeated", dropped_remove),
    ("a create that was dropped can be removed", dropped_and_removed),
    ("owned finds what is ours and nothing else", owned),
    ("what carries another owner label is never touched", foreign),
];

async fn superseded<T>(what: &str, call: impl Future<Output = Result<T>>) -> Outcome<()> {
    match call.await {
        Err(error) if error.kind == BackendErrorKind::Superseded => Ok(()),
        Err(error) => Err(format!(
            "{what} of an older generation fails with {:?}: {error}",
            error.kind
        )
        .into()),
        Ok(_) => Err(format!("{what} of an older generation succeeds").into()),
    }
}

fn older<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let mut workload = bench.lasting();
        workload.generation = 5;
        let before = bench.up(&workload).await?;
        let (backend, late) = (bench.backend(), bench.call(4));
        workload.generation = 4;
        superseded("create", backend.create(&late, &workload)).await?;
        superseded("start", backend.start(&late, &workload)).await?;
        superseded("stop", backend.stop(&late, workload.id, bench.stop_options())).await?;
        superseded("remove", backend.remove(&late, workload.id)).await?;
        let after = bench.look(workload.id).await?;
        ensure(before == after, format!("it was {before:?} and is {after:?}"))?;
        Ok(Verdict::Kept)
    })
}

fn late_create<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let workload = bench.lasting();
        bench.up(&workload).await?;
        bench.backend().remove(&bench.call(2), workload.id).await?;
        superseded("create", bench.backend().create(&bench.call(1), &workload)).await?;
        bench.expect_gone(workload.id).await?;
        Ok(Verdict::Kept)
    })
}

/// How many times each call is dropped, each time a little later.
const CUTS: u64 = 12;

/// Polls `call` so often, then drops it. Answers what it came to, if it came to an end before.
async fn cut<T>(call: impl Future<Output = T>, polls: u64) -> Option<T> {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        call.as_mut().poll(context).map(Some)
    })
    .await
}

async fn exactly_one(bench: &Bench<'_>, id: ResourceId) -> Outcome<()> {
    let owned = bench.backend().owned().await?;
    let count = owned.iter().filter(|o| o.id == id).count();
    ensure(count == 1, format!("owned shows it {count} times"))
}

fn dropped_create<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        for _ in 0..CUTS {
            let polls = bench.next_cut();
            let workload = bench.lasting();
            let call = bench.call(1);
            cut(bench.backend().create(&call, &workload), polls).await;
            bench.backend().create(&call, &workload).await?;
            let seen = bench.look(workload.id).await?;
            ensure(
                seen.state == ObservedState::Created,
                format!("dropped after {polls} polls and repeated, it is {:?}", seen.state),
            )?;
            exactly_one(bench, workload.id).await?;
            bench.backend().start(&call, &workload).await?;
            bench.expect_running(workload.id).await?;
        }
        Ok(Verdict::Kept)
    })
}

fn dropped_start<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        for _ in 0..CUTS {
            let workload = bench.lasting();
            let call = bench.call(1);
            bench.backend().create(&call, &workload).await?;
            cut(bench.backend().start(&call, &workload), bench.next_cut()).await;
            bench.backend().start(&call, &workload).await?;
            bench.expect_running(workload.id).await?;
            exactly_one(bench, workload.id).await?;
        }
        Ok(Verdict::Kept)
    })
}

fn dropped_stop<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        for _ in 0..CUTS {
            let workload = bench.lasting();
            let call = bench.call(1);
            bench.up(&workload).await?;
            cut(
                bench.backend().stop(&call, workload.id, bench.stop_options()),
                bench.next_cut(),
            )
            .await;
            bench
                .backend()
                .stop(&call, workload.id, bench.stop_options())
                .await?;
            let seen = bench.look(workload.id).await?;
            ensure(
                matches!(seen.state, ObservedState::Ended { .. }),
                format!("it is {:?}", seen.state),
            )?;
        }
        Ok(Verdict::Kept)
    })
}

fn dropped_remove<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        for _ in 0..CUTS {
            let workload = bench.lasting();
            let call = bench.call(1);
            bench.up(&workload).await?;
            cut(bench.backend().remove(&call, workload.id), bench.next_cut()).await;
            bench.backend().remove(&call, workload.id).await?;
            bench.expect_gone(workload.id).await?;
        }
        Ok(Verdict::Kept)
    })
}

fn dropped_and_removed<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let mut dropped = Vec::new();
        for _ in 0..CUTS {
            let workload = bench.lasting();
            let call = bench.call(1);
            cut(bench.backend().create(&call, &workload), bench.next_cut()).await;
            bench.backend().remove(&bench.call(2), workload.id).await?;
            dropped.push(workload.id);
        }
        // What the daemon went on with alone has had time to appear.
        bench.fixture.env.sleep(bench.fixture.patience / 20).await;
        for id in dropped {
            bench.expect_gone(id).await?;
        }
        Ok(Verdict::Kept)
    })
}

fn owned<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(stranger) = &bench.fixture.stranger else {
            return Ok(Verdict::NotOffered);
        };
        let (ours, theirs) = (bench.lasting(), bench.lasting());
        bench.up(&ours).await?;
        stranger.create(&bench.call(1), &theirs).await?;
        let ids = |list: Vec<crate::backend::Observed>| list.into_iter().map(|o| o.id).collect::<Vec<_>>();
        let (mine, their) = (ids(bench.backend().owned().await?), ids(stranger.owned().await?));
        ensure(mine.contains(&ours.id), "ours is missing")?;
        ensure(!mine.contains(&theirs.id), "a stranger's is among ours")?;
        ensure(
            their.contains(&theirs.id) && !their.contains(&ours.id),
            "ours is among the stranger's",
        )?;
        ensure(
            bench.see(theirs.id).await?.is_none(),
            "inspect shows a stranger's",
        )?;
        Ok(Verdict::Kept)
    })
}

fn foreign<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(stranger) = &bench.fixture.stranger else {
            return Ok(Verdict::NotOffered);
        };
        let theirs = bench.lasting();
        let call = bench.call(1);
        stranger.create(&call, &theirs).await?;
        stranger.start(&call, &theirs).await?;
        let before = stranger.inspect(&[theirs.id]).await?;
        // Whatever these answer, they must not reach it.
        let _ = bench
            .backend()
            .stop(&bench.call(2), theirs.id, bench.stop_options())
            .await;
        let _ = bench.backend().remove(&bench.call(2), theirs.id).await;
        let after = stranger.inspect(&[theirs.id]).await?;
        if before != after {
            return Err(Broken(format!("a stranger's was {before:?} and is {after:?}")));
        }
        Ok(Verdict::Kept)
    })
}
