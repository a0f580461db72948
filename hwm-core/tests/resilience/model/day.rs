//! A day: random callers, random requests, random accidents.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use hwm_core::access::{Owner, Permission, Principal};
use hwm_core::env::Environment;
use hwm_core::error::Error;
use hwm_core::id::ResourceId;
use hwm_core::ledger::Capacity;
use hwm_core::lifecycle::Action;
use hwm_core::manager::{Accepted, RequestOptions, Result};
use hwm_core::operation::Arguments;
use hwm_core::store::ListQuery;
use hwm_core::testing::faults::Fault;
use hwm_core::testing::sim::{Daemon, Latency, SimOptions};
use hwm_core::units::{Bytes, Cores};

use super::reference::{Hurt, Reference, Thing, Want};
use crate::house::{Life, World, oracle, request};

const STEPS: u64 = 24;
const PORTS: [u16; 3] = [8080, 8081, 8082];

/// Lives through a day, and answers what was wrong.
pub(crate) async fn live(seed: u64) -> Vec<String> {
    let options = SimOptions {
        capacity: Capacity {
            cpu: Cores::whole(4),
            ram: Bytes::from_whole_gb(16),
            disk: Bytes::from_whole_gb(100),
        },
        latency: Latency {
            call: Duration::from_millis(4),
            jitter: Duration::from_millis(8),
            ..Latency::default()
        },
        ..SimOptions::default()
    };
    let world = World::with(seed, options);
    let life = world.begin().await;
    // What the node was like before is known from here on.
    world.env.sleep(Duration::from_secs(1)).await;
    let mut day = Day {
        world,
        life,
        callers: callers(),
        reference: Reference::default(),
        wrong: Vec::new(),
        diary: Vec::new(),
        away: false,
    };
    for step in 0..STEPS {
        day.step().await;
        if step == STEPS / 2 {
            day.rest().await;
        }
        if !day.wrong.is_empty() {
            break;
        }
    }
    day.rest().await;
    day.life.kill();
    if !day.wrong.is_empty() {
        day.wrong.extend(oracle::history(&day.world).await);
        day.wrong
            .extend(day.diary.into_iter().map(|line| format!("    {line}")));
    }
    day.wrong
}

fn callers() -> Vec<Principal> {
    let caller = |subject: &str, org: &str, group: &str, role: &str| Principal {
        subject: subject.into(),
        username: subject.into(),
        owner: Owner {
            org_id: org.into(),
            group_id: group.into(),
            user_id: subject.into(),
            ..Owner::default()
        },
        roles: vec![role.parse().unwrap()],
    };
    vec![
        Principal::admin("ada"),
        caller("org-owner", "a", "x", "organization.owner"),
        caller("group-editor", "a", "x", "group.editor"),
        caller("member", "a", "y", "member.editor"),
        caller("viewer", "a", "x", "organization.viewer"),
        caller("stranger", "b", "z", "organization.owner"),
    ]
}

struct Day {
    world: World,
    life: Life,
    callers: Vec<Principal>,
    reference: Reference,
    wrong: Vec<String>,
    diary: Vec<String>,
    /// Whether a daemon was made to go away, so that requests may be refused for it.
    away: bool,
}

/// What came of a request.
enum Answer {
    Accepted(Box<Accepted>),
    Refused(Error),
    /// The manager died, or its store failed: it may have happened.
    None,
}

impl Day {
    fn below(&self, bound: usize) -> usize {
        self.world.env.random_below(bound as u64) as usize
    }

    fn note(&mut self, line: String) {
        let now = self.world.env.now();
        self.diary.push(format!("{now} {line}"));
    }

    fn any(&self) -> Option<ResourceId> {
        let count = self.reference.things.len();
        self.reference
            .things
            .keys()
            .nth(self.below(count.max(1)))
            .copied()
    }

    async fn step(&mut self) {
        let caller = self.callers[self.below(self.callers.len())].clone();
        match self.below(20) {
            0..5 => self.create(caller).await,
            5..10 => self.act(caller).await,
            10..12 => self.rename(caller).await,
            12..14 => self.list(caller).await,
            14 => self.delete(caller).await,
            15 => {
                let pause = Duration::from_millis(self.world.env.random_below(20_000));
                self.world.env.sleep(pause).await;
            }
            16 => self.hurt(),
            17 => self.upset(),
            18 => self.crash().await,
            _ => {
                let number = self.world.env.random_below(30);
                let fault = [Fault::Away, Fault::Crash, Fault::Delay(Duration::from_secs(2))][self.below(3)];
                self.note(format!("{fault:?} at point {number}"));
                self.life.faults.reset();
                self.life.faults.at(number, fault);
            }
        }
        // A crash that was planned may have come.
        if self.life.is_dead() {
            self.begin_again().await;
        }
        let pause = Duration::from_millis(self.world.env.random_below(60));
        self.world.env.sleep(pause).await;
    }

    async fn begin_again(&mut self) {
        self.life.kill();
        self.note("the manager is started again".into());
        self.life = self.world.begin().await;
    }

    async fn crash(&mut self) {
        self.note("the manager is killed".into());
        self.begin_again().await;
    }

    fn answer(&mut self, what: &str, answer: Option<Result<Accepted>>) -> Answer {
        let line = match &answer {
            None => format!("{what}: no answer"),
            Some(Ok(a)) => format!("{what}: accepted {} at {}", a.resource.id, a.revision),
            Some(Err(error)) => format!("{what}: {} {error}", error.code()),
        };
        self.note(line);
        match answer {
            None | Some(Err(Error::Store(_))) => Answer::None,
            Some(Ok(accepted)) => Answer::Accepted(Box::new(accepted)),
            Some(Err(error)) => Answer::Refused(error),
        }
    }

    async fn create(&mut self, caller: Principal) {
        let port = [None, None, Some(PORTS[self.below(3)])][self.below(3)];
        let auto_start = self.below(5) > 0;
        let name = format!("n{}", self.world.env.random_u64());
        let (kind, config) = match self.below(5) {
            0 => ("virtual-machine", machine(self.below(3))),
            n => (
                "application-container",
                container(port, 1 + self.below(5), n == 1),
            ),
        };
        let port = port.filter(|_| kind == "application-container");
        let scoped = self.life.manager.as_principal(caller.clone());
        let wanted = request(&name, kind, config, auto_start);
        let asked = self
            .life
            .attempt(scoped.create(wanted, RequestOptions::default()))
            .await;
        let what = format!("{} creates a {kind} with port {port:?}", caller.subject);
        let may = caller.may(Permission::Write, &caller.owner);
        match self.answer(&what, asked) {
            Answer::Accepted(accepted) => {
                if !may {
                    self.wrong.push(format!("{what}, and may not"));
                }
                let holder = self.reference.things.iter().find(|(_, t)| {
                    port.is_some() && t.port == port && t.want != Want::Deleted && t.hurt.is_empty()
                });
                if let Some((holder, _)) = holder {
                    self.wrong.push(format!("{what}, which {holder} has"));
                }
                self.reference.things.insert(
                    accepted.resource.id,
                    Thing {
                        owner: caller.owner,
                        want: if auto_start { Want::Running } else { Want::Queued },
                        hurt: BTreeSet::new(),
                        name: Some(name),
                        port,
                    },
                );
            }
            Answer::Refused(error) => self.refused(&what, &error, may),
            Answer::None => self.reference.unanswered_creates += 1,
        }
    }

    /// Judges a refusal of what the caller may do, or may not.
    fn refused(&mut self, what: &str, error: &Error, may: bool) {
        let expected: &[&str] = match (may, self.away) {
            (false, _) => &["FORBIDDEN", "NOT_FOUND"],
            (true, false) => &[
                "PORT_CONFLICT",
                "ADDRESS_CONFLICT",
                "GPU_CONFLICT",
                "INSUFFICIENT_CAPACITY",
                "INVALID_STATE",
                "TOO_MANY_OPERATIONS",
                "NOT_FOUND",
                // A daemon that was made to fail once counts as away until it is asked again.
                "BACKEND_UNAVAILABLE",
            ],
            (true, true) => &[
                "BACKEND_UNAVAILABLE",
                "PORT_CONFLICT",
                "ADDRESS_CONFLICT",
                "GPU_CONFLICT",
                "INSUFFICIENT_CAPACITY",
                "INVALID_STATE",
                "TOO_MANY_OPERATIONS",
                "NOT_FOUND",
            ],
        };
        if !expected.contains(&error.code()) {
            self.wrong
                .push(format!("{what} is refused with {}: {error}", error.code()));
        }
    }

    async fn act(&mut self, caller: Principal) {
        let Some(id) = self.any() else { return };
        let action = [Action::Start, Action::Stop, Action::Restart][self.below(3)];
        let scoped = self.life.manager.as_principal(caller.clone());
        let asked = scoped.act(id, action, Arguments::default(), RequestOptions::default());
        let asked = self.life.attempt(asked).await;
        let want = if action == Action::Stop {
            Want::Stopped
        } else {
            Want::Running
        };
        self.changed(caller, id, &action.to_string(), asked, want);
    }

    async fn delete(&mut self, caller: Principal) {
        let Some(id) = self.any() else { return };
        let scoped = self.life.manager.as_principal(caller.clone());
        let asked = self
            .life
            .attempt(scoped.delete(id, RequestOptions::default()))
            .await;
        self.changed(caller, id, "delete", asked, Want::Deleted);
    }

    fn changed(
        &mut self,
        caller: Principal,
        id: ResourceId,
        action: &str,
        asked: Option<Result<Accepted>>,
        want: Want,
    ) {
        let what = format!("{} asks to {action} {id}", caller.subject);
        let answer = self.answer(&what, asked);
        let Some(thing) = self.reference.things.get_mut(&id) else {
            return;
        };
        let may = caller.may(Permission::Write, &thing.owner);
        match answer {
            Answer::Accepted(_) => {
                if !may {
                    self.wrong.push(format!("{what}, and may not"));
                }
                if thing.want == Want::Deleted && want != Want::Deleted && thing.hurt.is_empty() {
                    self.wrong.push(format!("{what}, which is deleted"));
                }
                if thing.want != Want::Deleted {
                    thing.want = want;
                }
            }
            Answer::Refused(error) => self.refused(&what, &error, may),
            Answer::None => {
                thing.hurt.insert(Hurt::Unanswered);
            }
        }
    }

    async fn rename(&mut self, caller: Principal) {
        let Some(id) = self.any() else { return };
        let name = format!("n{}", self.world.env.random_u64());
        let patch = match self.below(2) {
            0 => json!({ "name": name }),
            _ => json!({ "name": name, "description": "again" }),
        };
        let scoped = self.life.manager.as_principal(caller.clone());
        let asked = self
            .life
            .attempt(scoped.update(id, patch, RequestOptions::default()))
            .await;
        let what = format!("{} renames {id}", caller.subject);
        let answer = self.answer(&what, asked);
        let Some(thing) = self.reference.things.get_mut(&id) else {
            return;
        };
        let may = caller.may(Permission::Write, &thing.owner);
        match answer {
            Answer::Accepted(_) if may => thing.name = Some(name),
            Answer::Accepted(_) => self.wrong.push(format!("{what}, and may not")),
            Answer::Refused(error) => self.refused(&what, &error, may),
            Answer::None => thing.name = None,
        }
    }

    async fn list(&mut self, caller: Principal) {
        let (must, must_not) = self.reference.visible(&caller);
        let scoped = self.life.manager.as_principal(caller.clone());
        let query = ListQuery {
            limit: 200,
            ..ListQuery::default()
        };
        let Some(Ok(page)) = self.life.attempt(scoped.list(query)).await else {
            return;
        };
        let seen: BTreeSet<ResourceId> = page.resources.iter().map(|r| r.id).collect();
        if !must.is_subset(&seen) {
            let missing: Vec<_> = must.difference(&seen).collect();
            self.wrong
                .push(format!("{} does not see {missing:?}", caller.subject));
        }
        if !must_not.is_disjoint(&seen) {
            let shown: Vec<_> = must_not.intersection(&seen).collect();
            self.wrong.push(format!("{} sees {shown:?}", caller.subject));
        }
        let of_status: u64 = page.counts.by_status.values().sum();
        let of_type: u64 = page.counts.by_type.values().sum();
        if [of_status, of_type, page.total] != [seen.len() as u64; 3] {
            self.wrong.push(format!(
                "{} sees {} resources, and the counts are {:?}",
                caller.subject,
                seen.len(),
                page.counts
            ));
        }
    }

    /// Something happens to a workload.
    fn hurt(&mut self) {
        let Some(id) = self.any() else { return };
        let sim = self.world.sim.clone();
        let (what, hurt) = match self.below(4) {
            0 => {
                sim.kill_workload(id, 1);
                ("is killed", Hurt::Ended)
            }
            1 => {
                sim.kill_workload(id, 0);
                ("ends by itself", Hurt::Ended)
            }
            2 => {
                sim.stop_behind_back(id);
                ("is stopped by somebody", Hurt::Ended)
            }
            _ => {
                sim.remove_behind_back(id);
                ("is removed by somebody", Hurt::Removed)
            }
        };
        self.note(format!("{id} {what}"));
        if let Some(thing) = self.reference.things.get_mut(&id) {
            thing.hurt.insert(hurt);
        }
    }

    /// Something happens to the node.
    fn upset(&mut self) {
        let sim = self.world.sim.clone();
        let what = match self.below(5) {
            0 => {
                sim.restart_daemon(Daemon::Containers);
                "the container engine restarts"
            }
            1 => {
                sim.restart_daemon(Daemon::Machines);
                "the hypervisor's daemon restarts"
            }
            2 => {
                // The manager runs on the host.
                self.life.kill();
                sim.reboot_host();
                "the host restarts"
            }
            3 => {
                self.away = true;
                sim.set_away(true);
                "the daemons go away"
            }
            _ => {
                sim.set_away(false);
                "the daemons are there"
            }
        };
        self.note(what.into());
    }

    /// Lets everything come to rest, and judges it.
    async fn rest(&mut self) {
        self.world.sim.set_away(false);
        self.life.faults.reset();
        self.note("rest".into());
        self.world.env.sleep(Duration::from_secs(10)).await;
        if !self.life.converge().await {
            self.begin_again().await;
            self.life.converge().await;
        }
        self.away = false;
        self.wrong.extend(oracle::complaints(&self.world).await);
        let records = oracle::records(&self.world).await;
        self.wrong.extend(self.reference.judge(&records));
        // Doubts end here: what is so now is what is so.
        for (id, thing) in &mut self.reference.things {
            let Some(record) = records.get(id) else { continue };
            use hwm_core::lifecycle::Phase;
            thing.want = match record.phase {
                Phase::Queued => Want::Queued,
                Phase::Running => Want::Running,
                Phase::Deleted => Want::Deleted,
                _ => thing.want,
            };
            if record.phase == Phase::Stopped {
                thing.want = Want::Stopped;
            }
            if !matches!(record.phase, Phase::Error | Phase::Failed) {
                thing.hurt.clear();
            }
            thing.name = Some(record.name.clone());
        }
    }
}

fn container(port: Option<u16>, cores: usize, slice: bool) -> serde_json::Value {
    let mut config = json!({
        "type": "application-container", "registry": "docker-hub", "imageName": "app",
        "cpuCores": cores, "ramLimit": 1,
        "containerPorts": [{ "containerPort": 80 }],
    });
    if let Some(port) = port {
        config["containerPorts"] = json!([{ "containerPort": 80, "hostPort": port }]);
    }
    if slice {
        config["gpuConfig"] = json!({ "enabled": true, "mode": "mig", "migProfile": "3g.20gb" });
    }
    config
}

fn machine(address: usize) -> serde_json::Value {
    json!({
        "type": "virtual-machine", "osImage": "debian-12", "vcpus": 2, "ramMB": 1024, "diskGB": 20,
        "networkConfig": {
            "mode": "bridge-vlan", "ipMode": "static", "ipAddress": format!("192.168.7.{}", 10 + address),
            "netmask": "255.255.255.0", "gateway": "192.168.7.1", "vlanId": 7,
        },
    })
}
