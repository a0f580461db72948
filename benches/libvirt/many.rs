//! A hundred machines at once.

use std::time::{Duration, Instant};

use hwm_benches::{Figure, median};
use hwm_core::backend::{Backend, Call, Workload};
use hwm_core::id::ResourceId;

use crate::proxy::Mode;
use crate::rig::Rig;
use crate::{Error, number};

const ROUNDS: usize = 15;

pub(crate) async fn figures(rig: &Rig) -> Result<Vec<Figure>, Error> {
    let count = number("HWM_BENCH_DOMAINS", 100);
    let mut ids = Vec::new();
    for n in 0..count {
        let workload = workload()?;
        let call = Call::new(1, Duration::from_secs(120));
        rig.counted.create(&call, &workload).await?;
        rig.counted.start(&call, &workload).await?;
        ids.push(workload.id);
        if n % 10 == 9 {
            eprintln!("{} machines run", n + 1);
        }
    }
    // What they are is read once.
    rig.counted.inspect(&ids).await?;
    rig.counted.metrics(&ids).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut figures = Vec::new();
    for (name, bulk) in [("status", false), ("metrics", true)] {
        let (mut ours, mut raw, mut trips) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let seen = tokio::task::block_in_place(|| rig.raw.all(bulk))?;
            raw.push(begun.elapsed());
            rig.proxy.set(Mode::Open);
            let begun = Instant::now();
            let told = if bulk {
                rig.counted.metrics(&ids).await?.len()
            } else {
                rig.counted.inspect(&ids).await?.len()
            };
            ours.push(begun.elapsed());
            trips = trips.max(rig.proxy.sent());
            if told != count || seen < count {
                return Err(format!("{told} and {seen} of {count}").into());
            }
            // Looks at agents, which nobody waits for, are over by then.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (ours, raw) = (
            median(&mut ours).as_secs_f64() * 1e3,
            median(&mut raw).as_secs_f64() * 1e3,
        );
        figures.push(Figure {
            name: format!("{name} of {count} machines"),
            value: ours,
            unit: "ms",
            beside: Some(("the bulk call, raw", raw)),
            target: Some("at most + 10 ms"),
        });
        figures.push(Figure {
            name: format!("{name} of {count} machines, calls to libvirt"),
            value: trips as f64,
            unit: "calls",
            beside: None,
            target: Some(if bulk { "1" } else { "at most 2" }),
        });
    }
    Ok(figures)
}

fn workload() -> Result<Workload, Error> {
    let config = serde_json::json!({
        "type": "virtual-machine", "osImage": "empty", "vcpus": 1, "ramMB": 64, "diskGB": 10,
        "networkConfig": { "mode": "bridge-vlan", "ipMode": "static", "ipAddress": "192.0.2.9",
            "netmask": "255.255.255.0", "gateway": "192.0.2.1" },
    });
    Ok(Workload {
        id: ResourceId::from_u128(uuid::Uuid::now_v7().as_u128()),
        name: "bench".to_owned(),
        generation: 1,
        config: serde_json::from_value(config)?,
        ports: Vec::new(),
        grants: Vec::new(),
    })
}
