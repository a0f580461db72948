use std::sync::Arc;

use hwm_core::backend::Workload;
use hwm_core::id::ResourceId;
use hwm_core::testing::backend_suite::{self, Fixture};
use serde_json::json;

use crate::lab::*;

fn with_id(id: ResourceId, workload: Workload) -> Workload {
    Workload { id, ..workload }
}

fn changed(workload: &Workload, change: serde_json::Value) -> Workload {
    let mut config = serde_json::to_value(&workload.config).unwrap();
    merge(&mut config, change);
    Workload {
        config: serde_json::from_value(config).unwrap(),
        ..workload.clone()
    }
}

#[tokio::test]
async fn every_promise_of_a_backend_is_kept() {
    let (lab, stranger) = (lab(), lab());
    let lasting = |id| {
        let limits = json!({"cpuCores": 0.5, "ramLimit": 0.0625});
        with_id(id, application("busybox", limits))
    };
    let fixture = Fixture::new(Arc::new(lab.backend.clone()), lasting)
        .script(|id, text| with_id(id, script(text)))
        .refused(|id| with_id(id, application("no-such-image", json!({}))))
        .changed(|w| changed(w, json!({"environment": {"CHANGED": "yes"}})))
        .live(|w| changed(w, json!({"cpuCores": 0.25, "ramLimit": 0.125})))
        .stranger(Arc::new(stranger.backend.clone()));
    let report = backend_suite::run(&fixture).await;
    // Those are of virtual machines.
    report.expect(&[
        "a snapshot can be taken, restored and removed, each repeatedly",
        "removing a workload removes its snapshots",
        "the screen speaks RFB",
        "the serial console can be opened",
        "a console of what is not running fails",
    ]);
}
