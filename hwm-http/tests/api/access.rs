//! Every operation of the document × no token, every role, other tenants. An operation that this table does
//! not know fails, so that no route is ever added without saying who may use it.

use serde_json::{Value, json};

use crate::house::{ADMIN, House, Who, house};
use crate::schema;

/// What a caller needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing, not even a token.
    Nothing,
    /// Any role that sees the resource.
    Read,
    /// A role that may write, to the resource.
    Write,
    /// Any role at all; what is answered is scoped.
    AnyReader,
    /// A role that may write to what belongs to the caller.
    AnyWriter,
    /// A role of scope universe.
    UniverseReader,
    /// universe.owner.
    UniverseOwner,
}

/// What its path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    None,
    Container,
    Machine,
    Snapshot,
    Operation,
    Node,
}

const READ_STREAMS: [&str; 1] = ["openTerminal"];

fn table(operation: &str) -> (Needs, Target, Option<Value>) {
    use Needs as N;
    use Target as T;
    match operation {
        "createResource" => (N::AnyWriter, T::None, Some(crate::house::container())),
        "listResources" | "listOperations" | "listNodes" | "streamEvents" => (N::AnyReader, T::None, None),
        "getNode" => (N::AnyReader, T::Node, None),
        "recoverGpu" => (N::UniverseOwner, T::Node, None),
        "getResource" | "getResourceStatus" | "getResourceLogs" | "getResourceMetrics" => {
            (N::Read, T::Container, None)
        }
        "updateResource" => (N::Write, T::Container, Some(json!({ "description": "new" }))),
        "deleteResource" | "startResource" | "stopResource" | "restartResource" | "openTerminal" => {
            (N::Write, T::Container, None)
        }
        "runCommand" => (N::Write, T::Container, Some(json!({ "command": "true" }))),
        "createTicket" => (N::Write, T::Container, Some(json!({ "for": "exec" }))),
        "getResourceConsole" => (N::Write, T::Machine, None),
        "createSnapshot" => (N::Write, T::Machine, Some(json!({ "name": "s" }))),
        "listSnapshots" => (N::Read, T::Machine, None),
        "restoreSnapshot" | "deleteSnapshot" => (N::Write, T::Snapshot, None),
        "getOperation" => (N::Read, T::Operation, None),
        "cancelOperation" => (N::Write, T::Operation, None),
        "getMetrics" => (N::UniverseReader, T::None, None),
        "getHealth" | "getReadiness" => (N::Nothing, T::None, None),
        other => panic!("{other} is in the document and not in this table: say who may use it"),
    }
}

/// How a caller stands to ann's resources.
#[derive(Debug, Clone, Copy)]
struct Case {
    who: Who,
    sees: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for role in [
        "universe.owner",
        "universe.editor",
        "universe.viewer",
        "organization.owner",
        "organization.editor",
        "organization.viewer",
        "group.owner",
        "group.editor",
        "group.viewer",
        "member.owner",
        "member.editor",
        "member.viewer",
    ] {
        let ann = Who::ann(role);
        cases.push(Case { who: ann, sees: true });
        let scope = role.split('.').next().unwrap();
        // Elsewhere: another organization; the same with another group; the same with another user.
        cases.push(Case {
            who: Who { org: "evil", ..ann },
            sees: scope == "universe",
        });
        cases.push(Case {
            who: Who {
                group: "other",
                ..ann
            },
            sees: matches!(scope, "universe" | "organization"),
        });
        cases.push(Case {
            who: Who { user: "bob", ..ann },
            sees: scope != "member",
        });
        // Ids that are empty are nobody's, not everybody's.
        cases.push(Case {
            who: Who {
                org: "",
                group: "",
                user: "ann",
                role,
            },
            sees: scope == "universe",
        });
    }
    cases
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Allowed,
    Status(u16),
}

fn expected(needs: Needs, case: Case) -> Expected {
    use Expected::{Allowed, Status};
    let (scope, kind) = case.who.role.split_once('.').unwrap();
    let writes = kind != "viewer";
    let has_ids = scope == "universe" || !case.who.org.is_empty();
    let allowed_if = |ok: bool| if ok { Allowed } else { Status(403) };
    match needs {
        Needs::Nothing | Needs::AnyReader => Allowed,
        Needs::AnyWriter => allowed_if(writes && has_ids),
        Needs::UniverseReader => allowed_if(scope == "universe"),
        Needs::UniverseOwner => allowed_if(case.who.role == "universe.owner"),
        Needs::Read if case.sees => Allowed,
        Needs::Write if case.sees => allowed_if(writes),
        Needs::Read | Needs::Write => Status(404),
    }
}

struct Prepared {
    path: String,
    ids: Vec<String>,
}

/// A fresh target of ann's, and the path that names it.
async fn prepare(house: &House, template: &str, target: Target) -> Prepared {
    let fill = |id: &str| template.replace("{id}", id).replace("{gpu}", "0");
    let prepared = |path: String, ids: Vec<String>| Prepared { path, ids };
    match target {
        Target::None => prepared(template.to_owned(), vec![]),
        Target::Node => prepared(fill("node-1"), vec![]),
        Target::Container => {
            let id = house.container().await;
            prepared(fill(&id), vec![id])
        }
        Target::Machine => {
            let id = house.machine().await;
            prepared(fill(&id), vec![id])
        }
        Target::Snapshot => {
            let id = house.machine().await;
            let made = house
                .ask("POST", &format!("/resources/{id}/snapshots"))
                .by(ADMIN)
                .header("prefer", "wait=10")
                .json(&json!({ "name": "s" }))
                .send()
                .await
                .expect(201)
                .json();
            if made["snapshot"]["state"] != "ready" {
                let list = house.get(&format!("/operations?resourceId={id}")).await.json();
                panic!(
                    "{made:#} {list:#} {:#}",
                    house.get(&format!("/resources/{id}")).await.json()
                );
            }
            let snapshot = made["snapshot"]["id"].as_str().unwrap();
            prepared(fill(&id).replace("{snapshotId}", snapshot), vec![id.clone()])
        }
        Target::Operation => {
            let id = house.container().await;
            let list = house.get(&format!("/operations?resourceId={id}")).await.json();
            prepared(fill(list["data"][0]["id"].as_str().unwrap()), vec![id])
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_those_who_may_and_nobody_else() {
    let house = house().await;
    let mut asked = 0;
    for (template, methods) in schema::document()["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            let method = method.to_ascii_uppercase();
            let (needs, target, body) = table(name);

            let prepared = prepare(&house, template, target).await;
            // Who is not known learns nothing of what else is wrong.
            let wrong = format!("{}?nonsense=1&tail=x", prepared.path);
            let unknown = [
                (None, &prepared.path),
                (Some("nonsense"), &prepared.path),
                (Some(""), &prepared.path),
                (None, &wrong),
                (Some("nonsense"), &wrong),
            ];
            for (token, path) in unknown {
                if needs == Needs::Nothing && *path == wrong {
                    continue;
                }
                let mut ask = house.ask(&method, path);
                if let Some(token) = token {
                    ask = ask.token(token);
                }
                let ask = match &body {
                    Some(body) => ask.json(body),
                    None => ask,
                };
                let answer = ask.send().await;
                if needs == Needs::Nothing {
                    answer.expect(200);
                } else {
                    let answer = answer.expect(401);
                    assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
                }
            }

            for case in cases() {
                let fresh = prepare(&house, template, target).await;
                let ask = house.ask(&method, &fresh.path).by(case.who);
                let ask = match &body {
                    Some(body) => ask.json(body),
                    None => ask,
                };
                let answer = ask.send().await;
                asked += 1;
                let status = answer.status.as_u16();
                let what = format!("{name} by {:?}: {status} {}", case.who, answer.text());
                match expected(needs, case) {
                    Expected::Status(expected) => assert_eq!(status, expected, "{what}"),
                    Expected::Allowed if READ_STREAMS.contains(&name) => assert_eq!(status, 426, "{what}"),
                    Expected::Allowed => assert!(matches!(status, 200 | 201), "{what}"),
                }
                if status == 404 {
                    for id in &fresh.ids {
                        assert!(
                            !answer.text().replace(&fresh.path, "").contains("web"),
                            "{id}: {what}"
                        );
                    }
                }
                let made = (name == "createResource" && status == 201).then(|| answer.json());
                for id in fresh
                    .ids
                    .iter()
                    .cloned()
                    .chain(made.map(|r| crate::house::id(&r)))
                {
                    house.remove(&id).await;
                }
            }
            for id in prepared.ids {
                house.remove(&id).await;
            }
        }
    }
    assert!(asked > 1500, "{asked}");
    assert_eq!(house.sim.breaches(), Vec::<String>::new());
}

#[tokio::test]
async fn lists_counts_and_operations_are_of_what_the_caller_sees() {
    let house = house().await;
    house.container().await;
    house.machine().await;
    let totals = |who: Who| {
        let house = &house;
        async move {
            let list = house
                .ask("GET", "/resources")
                .by(who)
                .send()
                .await
                .expect(200)
                .json();
            let operations = house
                .ask("GET", "/operations")
                .by(who)
                .send()
                .await
                .expect(200)
                .json();
            let total = list["pagination"]["total"].as_u64().unwrap();
            assert_eq!(list["statistics"]["total"].as_u64(), Some(total));
            assert_eq!(list["data"].as_array().unwrap().len() as u64, total);
            assert_eq!(operations["pagination"]["total"].as_u64(), Some(total));
            total
        }
    };
    for case in cases() {
        let total = totals(case.who).await;
        assert_eq!(total, if case.sees { 2 } else { 0 }, "{:?}", case.who);
    }
}

#[tokio::test]
async fn a_caller_without_a_role_that_is_known_may_nothing() {
    let house = house().await;
    let id = house.container().await;
    for role in [
        "admin",
        "universe",
        "universe.admin",
        "Universe.Owner",
        "universe.owner ",
    ] {
        let nobody = Who::ann(role);
        for path in [
            "/resources".to_owned(),
            format!("/resources/{id}"),
            "/nodes".to_owned(),
            "/events".to_owned(),
            "/operations".to_owned(),
        ] {
            house.ask("GET", &path).by(nobody).send().await.expect(403);
        }
    }
}
