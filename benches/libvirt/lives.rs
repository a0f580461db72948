//! One machine's life.

use std::time::{Duration, Instant};

use hwm_benches::{Figure, median};
use reqwest::Method;
use serde_json::json;

use crate::rig::Rig;
use crate::{Error, number};

/// A snapshot takes the longer the more memory the firmware has touched, so it waits until that has looked in vain
/// for something to boot.
const SETTLE: Duration = Duration::from_secs(5);

/// How often each life goes back to its snapshot: libvirt ends QEMU for it, which takes between one second and four.
const BACK: usize = 3;

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
    // In turns, each first as often as the other, so that both meet the same machine.
    for n in 0..number("HWM_BENCH_CYCLES", 10) {
        for is_ours in [n % 2 == 0, n % 2 != 0] {
            if is_ours {
                our_life(rig, &mut ours).await?;
            } else {
                tokio::task::block_in_place(|| raw_life(rig, &mut raw))?;
            }
        }
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
    std::thread::sleep(SETTLE);
    let begun = Instant::now();
    rig.raw.snapshot(&id, "one")?;
    lives.taken.push(begun.elapsed());
    for _ in 0..BACK {
        let begun = Instant::now();
        rig.raw.revert(&id, "one")?;
        lives.back.push(begun.elapsed());
    }
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
    tokio::time::sleep(SETTLE).await;
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
    for _ in 0..BACK {
        let begun = Instant::now();
        rig.ask(Method::POST, &format!("{one}/restore"), None).await?;
        lives.back.push(begun.elapsed());
    }
    rig.ask(Method::DELETE, &one, None).await?;
    let begun = Instant::now();
    rig.delete(&id).await?;
    lives.gone.push(begun.elapsed());
    Ok(())
}
