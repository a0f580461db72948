//! The process that dies, and the one after it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hwm_core::access::Principal;
use hwm_core::env::SystemEnvironment;
use hwm_core::id::{NodeId, ResourceId};
use hwm_core::lifecycle::Action;
use hwm_core::manager::{Accepted, Manager, RequestOptions, Scoped};
use hwm_core::operation::Arguments;
use hwm_core::store::{ClaimFilter, ListQuery, Store};
use hwm_core::testing::faults::{Fault, Faults};
use hwm_core::validate;
use hwm_store::{SealingKey, SqliteStore};
use serde_json::json;

use crate::Act;
use crate::engine::Engine;

/// How much memory an update leaves it with; all engines change that while it runs.
pub(crate) const OTHER_MB: u64 = 768;

const PATIENCE: Duration = Duration::from_secs(120);

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn store(data: &Path) -> Arc<SqliteStore> {
    let key = SealingKey::load_or_create(&data.join("key")).unwrap();
    Arc::new(SqliteStore::open(&data.join("hwm.db"), key).unwrap())
}

/// Acts, and aborts at a point where one is given.
pub(crate) fn act(engine: Engine, data: &Path, node: &str, act: Act, point: Option<u64>) {
    wait(async {
        let faults = Faults::new(Arc::new(SystemEnvironment));
        faults.off(true);
        let manager = Manager::builder(faults.store(store(data)), NodeId::new(node))
            .backend(faults.backend(engine.backend(data, node)))
            .rules(engine.rules())
            .build()
            .await
            .unwrap();
        let me = manager.as_principal(Principal::admin("me"));
        let id = match act {
            Act::Create => None,
            Act::Start | Act::Stop | Act::Restart | Act::Update | Act::Delete => {
                let made = create(&me, engine).await;
                end(&me, &made).await;
                Some(made.resource.id)
            }
        };
        if let (Act::Start, Some(id)) = (act, id) {
            let stopped = command(&me, id, Action::Stop).await;
            end(&me, &stopped).await;
        }
        manager.settled().await;
        if let Some(id) = id {
            println!("id {id}");
        }

        faults.on_crash(|| std::process::abort());
        if let Some(point) = point {
            faults.at(point, Fault::Crash);
        }
        faults.off(false);
        let accepted = match (act, id) {
            (Act::Start, Some(id)) => command(&me, id, Action::Start).await,
            (Act::Stop, Some(id)) => command(&me, id, Action::Stop).await,
            (Act::Restart, Some(id)) => command(&me, id, Action::Restart).await,
            (Act::Delete, Some(id)) => me.delete(id, RequestOptions::default()).await.unwrap(),
            (Act::Update, Some(id)) => {
                let patch = json!({ "config": engine.memory(OTHER_MB) });
                me.update(id, patch, RequestOptions::default()).await.unwrap()
            }
            (_, None) | (Act::Create, Some(_)) => create(&me, engine).await,
        };
        if id.is_none() {
            println!("id {}", accepted.resource.id);
        }
        println!("acknowledged");
        end(&me, &accepted).await;
        println!("points {}", faults.points().len());
        faults.off(true);
        manager.shutdown(Duration::from_secs(5)).await;
    });
}

async fn create(me: &Scoped, engine: Engine) -> Accepted {
    let request = validate::create_request(&engine.body(), &engine.rules()).unwrap();
    me.create(request, RequestOptions::default()).await.unwrap()
}

async fn command(me: &Scoped, id: ResourceId, action: Action) -> Accepted {
    let arguments = Arguments {
        force: matches!(action, Action::Stop | Action::Restart),
        ..Arguments::default()
    };
    me.act(id, action, arguments, RequestOptions::default())
        .await
        .unwrap()
}

async fn end(me: &Scoped, accepted: &Accepted) {
    if let Some(operation) = accepted.operation {
        let ended = me.wait(operation, PATIENCE).await.unwrap();
        assert!(ended.error.is_none(), "{ended:?}");
    }
}

/// Takes up what the other left, and prints what then is.
pub(crate) fn next(engine: Engine, data: &Path, node: &str) {
    wait(async {
        let store = store(data);
        let manager = Manager::builder(store.clone(), NodeId::new(node))
            .backend(engine.backend(data, node))
            .rules(engine.rules())
            .build()
            .await
            .unwrap();
        let me = manager.as_principal(Principal::admin("me"));
        let began = std::time::Instant::now();
        loop {
            manager.settled().await;
            manager.resync().await;
            manager.settled().await;
            let (operations, _) = me.operations(None, 0, 100).await.unwrap();
            if operations.iter().all(|o| o.finished_at.is_some()) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "these do not end: {operations:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let page = me.list(ListQuery::default()).await.unwrap();
        let resources: Vec<_> = page
            .resources
            .iter()
            .map(|r| {
                json!({
                    "_id": r.id, "status": r.status, "errorMessage": r.error_message,
                    "memoryMB": r.config.ram().unwrap_or_default().as_mb(),
                })
            })
            .collect();
        let claims = store.claims(&NodeId::new(node), ClaimFilter::All).await.unwrap();
        println!("{}", json!({ "resources": resources, "claims": claims.len() }));
        manager.shutdown(Duration::from_secs(5)).await;
    });
}
