//! A daemon that goes on alone with what nobody waits for any more.

use std::time::Duration;

use hwm_core::env::Environment;
use hwm_core::lifecycle::{Action, Phase};
use hwm_core::manager::RequestOptions;
use hwm_core::operation::Arguments;
use hwm_core::testing::sim::Latency;

use crate::house::{Kind, World, oracle, request, run, seeds};

#[test]
fn a_create_that_completes_after_its_cancel_is_undone() {
    seeds::each(500, |seed| {
        run(async {
            let kind = Kind::ALL[(seed % 4) as usize];
            let world = World::new(seed);
            world.sim.set_latency(Latency {
                call: Duration::from_millis(200),
                jitter: Duration::from_millis(300),
                pull: Duration::from_millis(400),
                boot: Duration::from_millis(300),
                stop: Duration::from_millis(50),
            });
            world.sim.set_detached(true);
            let life = world.begin().await;
            let wanted = request("w", kind.resource_type(), kind.config(), true);
            let made = life
                .admin
                .create(wanted, RequestOptions::default())
                .await
                .unwrap();
            let id = made.resource.id;
            world
                .env
                .sleep(Duration::from_millis(world.env.random_below(3000)))
                .await;
            let how = world.env.random_below(4);
            let allowed: &[Phase] = match how {
                0 => {
                    // Too late to be cancelled is no fault.
                    let _ = life.admin.cancel(made.operation.unwrap()).await;
                    &[Phase::Queued, Phase::Running]
                }
                1 => {
                    life.admin.delete(id, RequestOptions::default()).await.unwrap();
                    &[Phase::Deleted]
                }
                2 => {
                    let (options, arguments) = (RequestOptions::default(), Arguments::default());
                    life.admin
                        .act(id, Action::Stop, arguments, options)
                        .await
                        .unwrap();
                    &[Phase::Stopped, Phase::Queued]
                }
                _ => {
                    life.admin.delete(id, RequestOptions::default()).await.unwrap();
                    life.kill();
                    &[Phase::Deleted]
                }
            };
            life.converge().await;
            life.kill();
            // Whatever the daemon goes on with has arrived now.
            world.env.sleep(Duration::from_secs(30)).await;
            world.recover().await;
            let mut wrong = oracle::complaints(&world).await;
            let records = oracle::records(&world).await;
            match records.get(&id) {
                Some(record) if allowed.contains(&record.phase) => {}
                Some(record) => wrong.push(format!(
                    "{how}: it is {} ({:?})",
                    record.phase, record.error_message
                )),
                None => wrong.push("it is gone".into()),
            }
            if !wrong.is_empty() {
                wrong.insert(0, format!("{kind:?}, {how}"));
                wrong.extend(oracle::history(&world).await);
            }
            wrong
        })
    });
}
