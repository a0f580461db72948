//! One machine's life.

use std::time::{Duration, Instant};

use hwm_benches::{Figure, median};
use reqwest::Method;
use serde_json::json;

use crate::rig::Rig;
use crate::{Error, number};

/// How long each part of a life took.
#[derive(Default)]
struct Lives {
    up: Vec<Duration>,
    taken: Vec<Duration>,
    back: Vec<Duration>,
    gone: Vec<Duration>,
}

pub(crate) async fn figures(rig: &Rig) -> Result<Vec<Figure>, Error> {
    let (mut raw, mut ours) = (Lives::default(), Lives::default());
    // In turns, so that both meet the same machine.
    for _ in 0..number("HWM_BENCH_CYCLES", 10) {
        tokio::task::block_in_place(|| raw_life(rig, &mut raw))?;
        our_life(rig, &mut ours).await?;
    }
    let figures = [
        ("POST to running, image present", &mut ours.up, &mut raw.up),
        ("snapshot with memory", &mut ours.taken, &mut raw.taken),
        ("go back to it", &mut ours.back, &mut raw.back),
        ("DELETE", &mut ours.gone, &mut raw.gone),
    ]
    .into_iter()
    .map(|(name, ours, raw)| Figure {
        name: name.to_owned(),
        value: median(ours).as_secs_f64() * 1e3,
        unit: "ms",
        beside: Some(("the raw libvirt calls", median(raw).as_secs_f64() * 1e3)),
        target: Some("at most 1.10 × or + 10 ms"),
    });
    Ok(figures.collect())
}

fn raw_life(rig: &Rig, lives: &mut Lives) -> Result<(), Error> {
    let id = uuid::Uuid::now_v7().to_string();
    let begun = Instant::now();
    rig.raw.create(&id, false)?;
    lives.up.push(begun.elapsed());
    let begun = Instant::now();
    rig.raw.snapshot(&id, "one")?;
    lives.taken.push(begun.elapsed());
    let begun = Instant::now();
    rig.raw.revert(&id, "one")?;
    lives.back.push(begun.elapsed());
    rig.raw.forget(&id, "one")?;
    let begun = Instant::now();
    rig.raw.delete(&id)?;
    lives.gone.push(begun.elapsed());
    Ok(())
}

async fn our_life(rig: &Rig, lives: &mut Lives) -> Result<(), Error> {
    let begun = Instant::now();
    let id = rig.create("bench").await?;
    lives.up.push(begun.elapsed());
    let path = format!("/resources/{id}/snapshots");
    let begun = Instant::now();
    let taken = rig
        .ask(Method::POST, &path, Some(json!({ "name": "one" })))
        .await?;
    lives.taken.push(begun.elapsed());
    if taken["snapshot"]["consistency"] != "memory" {
        return Err(format!("not the snapshot that is measured: {taken}").into());
    }
    let one = format!("{path}/{}", taken["snapshot"]["id"].as_str().unwrap_or_default());
    let begun = Instant::now();
    rig.ask(Method::POST, &format!("{one}/restore"), None).await?;
    lives.back.push(begun.elapsed());
    rig.ask(Method::DELETE, &one, None).await?;
    let begun = Instant::now();
    rig.delete(&id).await?;
    lives.gone.push(begun.elapsed());
    Ok(())
}
