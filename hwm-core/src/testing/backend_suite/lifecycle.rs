//! Making, starting, stopping, removing, and seeing what is.

use futures_util::future::join_all;

use super::{Bench, Broken, Check, Outcome, Promise, Verdict, ensure};
use crate::backend::{ObservedState, StopOptions};

pub(super) const PROMISES: &[Promise] = &[
    ("info says the same each time, and names a type of workload", info),
    ("probe answers, and its epoch stays while nothing restarts", probe),
    ("check changes nothing", check),
    (
        "create makes without starting, and inspect tells the generation",
        create,
    ),
    (
        "start brings up, stop brings down, and both may be repeated",
        start_and_stop,
    ),
    ("a forced stop brings down", forced_stop),
    ("stopping what does not exist succeeds", stop_nothing),
    ("what is started again keeps its identity", start_again),
    ("a config that changed is applied at the next start", changed),
    (
        "remove removes what runs, what is stopped and what is gone",
        remove,
    ),
    ("what was removed can be made again", make_again),
    (
        "a workload that cannot be made fails for good, and leaves nothing",
        refused,
    ),
    ("inspect shows exactly what exists of what was asked for", inspect),
    ("workloads do not wait for each other", parallel),
];

fn info<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let info = bench.backend().info();
        ensure(info == bench.backend().info(), "two answers differ")?;
        ensure(
            !info.types.is_empty() && !info.name.as_str().is_empty(),
            format!("{info:?}"),
        )?;
        Ok(Verdict::Kept)
    })
}

fn probe<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let first = bench.backend().probe().await?;
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let second = bench.backend().probe().await?;
        ensure(
            first.epoch == second.epoch,
            format!("the epoch went from {:?} to {:?}", first.epoch, second.epoch),
        )?;
        ensure(!first.version.is_empty(), "it has no version")?;
        Ok(Verdict::Kept)
    })
}

fn check<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let workload = bench.lasting();
        let report = bench.backend().check(&workload).await?;
        ensure(
            report.violations.is_empty(),
            format!("it refuses the sample: {:?}", report.violations),
        )?;
        bench.expect_gone(workload.id).await?;
        Ok(Verdict::Kept)
    })
}

fn create<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let workload = bench.lasting();
        for _ in 0..2 {
            bench.backend().create(&bench.call(1), &workload).await?;
            let seen = bench.look(workload.id).await?;
            ensure(
                seen.state == ObservedState::Created,
                format!("it is {:?} after create", seen.state),
            )?;
            ensure(
                seen.generation == Some(workload.generation),
                format!("made of generation 1, it says {:?}", seen.generation),
            )?;
        }
        let owned = bench.backend().owned().await?;
        let count = owned.iter().filter(|o| o.id == workload.id).count();
        ensure(count == 1, format!("made twice, owned shows it {count} times"))?;
        Ok(Verdict::Kept)
    })
}

fn start_and_stop<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let workload = bench.lasting();
        let id = workload.id;
        bench.up(&workload).await?;
        let first = bench.expect_running(id).await?;
        ensure(first.started_at.is_some(), "it runs, and has not started")?;
        bench.backend().start(&bench.call(1), &workload).await?;
        let second = bench.expect_running(id).await?;
        ensure(
            (first.started_at, &first.runtime_id) == (second.started_at, &second.runtime_id),
            "starting what runs started it anew",
        )?;
        for _ in 0..2 {
            bench
                .backend()
                .stop(&bench.call(1), id, bench.stop_options())
                .await?;
            let seen = bench.look(id).await?;
            ensure(
                matches!(seen.state, ObservedState::Ended { .. }),
                format!("it is {:?} after stop", seen.state),
            )?;
        }
        Ok(Verdict::Kept)
    })
}

fn forced_stop<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let options = StopOptions {
            force: true,
            grace: None,
        };
        bench.backend().stop(&bench.call(1), workload.id, options).await?;
        let seen = bench.look(workload.id).await?;
        ensure(
            matches!(seen.state, ObservedState::Ended { .. }),
            format!("it is {:?} after a forced stop", seen.state),
        )?;
        Ok(Verdict::Kept)
    })
}

fn stop_nothing<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let id = bench.id();
        bench
            .backend()
            .stop(&bench.call(1), id, bench.stop_options())
            .await?;
        bench.expect_gone(id).await?;
        let workload = bench.lasting();
        bench.backend().create(&bench.call(1), &workload).await?;
        bench
            .backend()
            .stop(&bench.call(1), workload.id, bench.stop_options())
            .await?;
        let seen = bench.look(workload.id).await?;
        ensure(
            seen.state != ObservedState::Running,
            "stopped before it was started, it runs",
        )?;
        Ok(Verdict::Kept)
    })
}

fn start_again<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let workload = bench.lasting();
        let first = bench.up(&workload).await?;
        bench
            .backend()
            .stop(&bench.call(2), workload.id, bench.stop_options())
            .await?;
        bench.backend().start(&bench.call(2), &workload).await?;
        let second = bench.expect_running(workload.id).await?;
        ensure(
            first.runtime_id == second.runtime_id,
            format!("it was {} and is {}", first.runtime_id, second.runtime_id),
        )?;
        ensure(
            second.started_at >= first.started_at,
            "it started earlier than before",
        )?;
        Ok(Verdict::Kept)
    })
}

fn changed<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(change) = &bench.fixture.changed else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        bench
            .backend()
            .stop(&bench.call(1), workload.id, bench.stop_options())
            .await?;
        let mut wanted = change(&workload);
        wanted.generation = 2;
        bench.backend().start(&bench.call(2), &wanted).await?;
        let seen = bench.expect_running(workload.id).await?;
        ensure(
            seen.generation == Some(2),
            format!("started with generation 2, it says {:?}", seen.generation),
        )?;
        Ok(Verdict::Kept)
    })
}

fn remove<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let running = bench.lasting();
        bench.up(&running).await?;
        let made = bench.lasting();
        bench.backend().create(&bench.call(1), &made).await?;
        let stopped = bench.lasting();
        bench.up(&stopped).await?;
        bench
            .backend()
            .stop(&bench.call(1), stopped.id, bench.stop_options())
            .await?;
        for id in [running.id, made.id, stopped.id, bench.id()] {
            for _ in 0..2 {
                bench.backend().remove(&bench.call(1), id).await?;
                bench.expect_gone(id).await?;
            }
        }
        Ok(Verdict::Kept)
    })
}

fn make_again<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let mut workload = bench.lasting();
        bench.up(&workload).await?;
        bench.backend().remove(&bench.call(2), workload.id).await?;
        workload.generation = 3;
        bench.up(&workload).await?;
        bench.expect_running(workload.id).await?;
        Ok(Verdict::Kept)
    })
}

fn refused<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(refused) = &bench.fixture.refused else {
            return Ok(Verdict::NotOffered);
        };
        let workload = refused(bench.id());
        let made = bench.backend().create(&bench.call(1), &workload).await;
        let Err(error) = made else {
            return Err(Broken::from("it was made"));
        };
        ensure(
            !error.is_retryable(),
            format!("{:?} says that trying again helps: {error}", error.kind),
        )?;
        let text = format!("{error} {error:?}");
        for (path, secret) in workload.config.secrets() {
            ensure(!text.contains(secret.expose()), format!("the error shows {path}"))?;
        }
        bench.backend().remove(&bench.call(1), workload.id).await?;
        bench.expect_gone(workload.id).await?;
        Ok(Verdict::Kept)
    })
}

fn inspect<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let (one, two) = (bench.lasting(), bench.lasting());
        bench.up(&one).await?;
        bench.backend().create(&bench.call(1), &two).await?;
        ensure(
            bench.backend().inspect(&[]).await?.is_empty(),
            "asked for nothing, it shows something",
        )?;
        let seen = bench.backend().inspect(&[bench.id(), one.id, two.id]).await?;
        let mut ids: Vec<_> = seen.iter().map(|o| o.id).collect();
        let mut wanted = [one.id, two.id];
        ids.sort();
        wanted.sort();
        ensure(
            ids == wanted,
            format!("asked for three of which two exist, it shows {ids:?}"),
        )?;
        let owned = bench.backend().owned().await?;
        for id in wanted {
            let of_owned = owned.iter().find(|o| o.id == id);
            let of_inspect = seen.iter().find(|o| o.id == id);
            ensure(
                of_owned == of_inspect,
                format!("owned says {of_owned:?}, inspect {of_inspect:?}"),
            )?;
        }
        Ok(Verdict::Kept)
    })
}

fn parallel<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let life = || async {
            let workload = bench.lasting();
            bench.up(&workload).await?;
            bench.expect_running(workload.id).await?;
            bench
                .backend()
                .stop(&bench.call(1), workload.id, bench.stop_options())
                .await?;
            bench.backend().remove(&bench.call(1), workload.id).await?;
            bench.expect_gone(workload.id).await
        };
        let lives: Vec<Outcome<()>> = join_all((0..4).map(|_| life())).await;
        lives.into_iter().collect::<Outcome<()>>()?;
        Ok(Verdict::Kept)
    })
}
