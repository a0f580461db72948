use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::churn::{self, Storm};
use crate::common::until;
use crate::lab::{Lab, machine};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_during_ten_concurrent_creates_and_deletes_lose_and_leak_nothing() {
    let lab = Lab::new().await;
    let storm = Storm {
        clients: 10,
        kills: 20,
        patience: Duration::from_secs(240),
    };
    let body = |number: usize, round: usize| {
        let mut body = machine(&format!("churn-{number}-{round}"), "empty");
        // A static address is one resource's at a time, and a deleted one's until it is gone.
        body["config"]["networkConfig"] = serde_json::json!({ "mode": "bridge-vlan", "ipMode": "dhcp" });
        body
    };
    let (_server, client, found) = storm.rage(&lab.data(), || lab.start(), body).await;
    let names: BTreeSet<String> = found.iter().map(|id| format!("hwm-{id}")).collect();
    assert_eq!(
        lab.domains(),
        names,
        "libvirt has a domain for each, and no other"
    );
    assert_eq!(lab.volumes().len(), 3 * names.len(), "disk, seed and log of each");
    churn::delete_all(&client, &found).await;
    until("nothing of ours is left", Duration::from_secs(60), || async {
        lab.domains().is_empty()
    })
    .await;
    lab.assert_empty();
}
