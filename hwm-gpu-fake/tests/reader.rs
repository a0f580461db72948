//! NVIDIA's own Python binding reads the fake, and agrees with every board's description.
//!
//! Needs a Python with `nvidia-ml-py` from PyPI, named by `HWM_TEST_PYTHON`.

use std::process::Command;

use hwm_gpu::boards::BOARDS;
use hwm_gpu_fake::World;
use serde_json::{Value, json};

#[test]
fn nvidias_own_binding_agrees_with_every_board() {
    let python = std::env::var("HWM_TEST_PYTHON")
        .expect("HWM_TEST_PYTHON must name a Python that has nvidia-ml-py (pip install nvidia-ml-py)");
    let folder = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    let names: Vec<String> = BOARDS.iter().map(|b| format!("{}+mig", b.name)).collect();
    let world = World::of(&names.join(",")).unwrap();
    world
        .create(folder.path(), &own.with_file_name("libhwm_gpu_fake.so"))
        .unwrap();
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader.py"))
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["driver"], world.driver);
    assert_eq!(seen["cards"].as_array().unwrap().len(), BOARDS.len());
    for ((board, card), seen) in BOARDS
        .iter()
        .zip(&world.cards)
        .zip(seen["cards"].as_array().unwrap())
    {
        let geometry = board.geometry().unwrap();
        assert_eq!(seen["uuid"], card.uuid);
        assert_eq!(seen["name"], board.model);
        assert_eq!(seen["bus"], format!("0000{}", card.pci_address().to_uppercase()));
        assert_eq!(seen["memory"], board.memory_mib << 20);
        assert_eq!(seen["memory_v2"], board.memory_mib << 20);
        assert_eq!(seen["mig"], json!([1, 1]));
        assert!((35..=70).contains(&seen["temperature"].as_u64().unwrap()));
        let profiles = seen["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), geometry.profiles().len(), "{}", board.name);
        for seen in profiles {
            let p = geometry.profiles().iter().find(|p| seen["id"] == p.id).unwrap();
            assert_eq!(seen["constant"], p.constant, "{} {}", board.name, p.name);
            assert_eq!(seen["name"], format!("MIG {}", p.name));
            assert_eq!(seen["slices"], p.slices);
            assert_eq!(
                (&seen["max"], &seen["remaining"]),
                (&json!(p.max), &json!(p.max)),
                "{} {}",
                board.name,
                p.name
            );
            assert_eq!(seen["mib"], p.memory.as_mb());
            assert_eq!(seen["decoders"], p.engines.decoders);
            let places: Vec<_> = p.starts.iter().map(|s| json!([s, p.size])).collect();
            assert_eq!(seen["places"], json!(places));
        }
        let slice = &seen["slice"];
        assert_eq!(slice["overlap"], 23, "insufficient resources");
        assert_eq!((&slice["in_use"], &slice["stale"]), (&json!(19), &json!(2)));
        assert_eq!(
            (&slice["utilization"], &slice["parent_utilization"]),
            (&json!(3), &json!(3))
        );
        assert!(slice["uuid"].as_str().unwrap().starts_with("MIG-"));
        assert_eq!(slice["ids"][0], slice["ids"][1]);
        assert_eq!(slice["place"], profiles[0]["places"][0]);
        assert_eq!(slice["is_mig"], 1);
        assert_eq!(
            slice["memory"].as_u64(),
            profiles[0]["mib"].as_u64().map(|m| m << 20)
        );
        assert_eq!(slice["attributes_mib"], profiles[0]["mib"]);
    }
    assert_eq!(
        World::read(folder.path()).unwrap().cards,
        world.cards,
        "every slice was removed"
    );
}
