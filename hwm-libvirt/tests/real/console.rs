use std::time::Duration;

use hwm_core::backend::{BackendErrorKind, Console, ConsoleKind, Input, Output, Session};

use crate::lab::{Lab, call, new_id};

/// Reads until `enough` says so.
async fn read(session: &mut Session, limit: u64, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut all = Vec::new();
    let reading = async {
        while !enough(&all) {
            match session.output.recv().await {
                Some(Ok(Output::Stdout(bytes))) => all.extend_from_slice(&bytes),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
            }
        }
    };
    let late = tokio::time::timeout(Duration::from_secs(limit), reading)
        .await
        .is_err();
    assert!(!late, "only: {}", String::from_utf8_lossy(&all));
    all
}

fn holds(bytes: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_serial_console_has_a_past_and_several_viewers() {
    let lab = Lab::new("serial").await;
    let machine = lab.machine();
    lab.up(&machine).await;
    let backend = &lab.backend;
    let mut one = backend.open(machine.id, ConsoleKind::Serial).await.unwrap();
    let past = read(&mut one, 20, |b| holds(b, "guest ready")).await;
    // A new line, so that the prompt is written once more.
    one.input.send(Input::Data(b"\n".to_vec())).await.unwrap();
    let mut two = backend.open(machine.id, ConsoleKind::Serial).await.unwrap();
    read(&mut two, 20, |b| holds(b, "guest ready")).await;
    read(&mut one, 20, |b| holds(b, "login:")).await;
    one.input.send(Input::Data(b"root\n".to_vec())).await.unwrap();
    read(&mut one, 20, |b| holds(b, "# ")).await;
    one.input
        .send(Input::Data(b"echo sum=$((40+2))\n".to_vec()))
        .await
        .unwrap();
    read(&mut one, 20, |b| holds(b, "sum=42")).await;
    read(&mut two, 20, |b| holds(b, "sum=42")).await;
    println!("the past was {} bytes", past.len());
    drop(one);
    two.input
        .send(Input::Data(b"echo still=$((6*7))\n".to_vec()))
        .await
        .unwrap();
    read(&mut two, 20, |b| holds(b, "still=42")).await;
    drop(two);
    let mut three = backend.open(machine.id, ConsoleKind::Serial).await.unwrap();
    read(&mut three, 20, |b| holds(b, "still=42")).await;

    // The console of a machine that goes away ends.
    hwm_core::backend::Backend::remove(backend, &call(9), machine.id)
        .await
        .unwrap();
    let ended = async { while let Some(Ok(_)) = three.output.recv().await {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap();
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_screen_speaks_rfb_behind_a_password_that_changes() {
    let lab = Lab::new("screen").await;
    let machine = lab.machine();
    lab.up(&machine).await;
    let backend = &lab.backend;
    let password = backend
        .password(machine.id, ConsoleKind::Vnc)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(password.expose().len(), 8);
    let mut viewers = Vec::new();
    for _ in 0..3 {
        let mut session = backend.open(machine.id, ConsoleKind::Vnc).await.unwrap();
        let hello = read(&mut session, 10, |b| b.len() >= 12).await;
        assert_eq!(&hello[..8], b"RFB 003.");
        session
            .input
            .send(Input::Data(b"RFB 003.008\n".to_vec()))
            .await
            .unwrap();
        let kinds = read(&mut session, 10, |b| b.len() >= 2).await;
        // One kind of security, and it is the password's.
        assert_eq!(kinds, [1, 2]);
        viewers.push(session);
    }
    hwm_core::backend::Backend::stop(
        backend,
        &call(1),
        machine.id,
        hwm_core::backend::StopOptions {
            force: true,
            grace: None,
        },
    )
    .await
    .unwrap();
    for mut viewer in viewers {
        let ended = async { while let Some(Ok(_)) = viewer.output.recv().await {} };
        tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap();
    }
    let gone = backend.open(machine.id, ConsoleKind::Vnc).await.unwrap_err();
    assert_eq!(gone.kind, BackendErrorKind::NotRunning);
    hwm_core::backend::Backend::start(backend, &call(1), &machine)
        .await
        .unwrap();
    let again = backend
        .password(machine.id, ConsoleKind::Vnc)
        .await
        .unwrap()
        .unwrap();
    assert_ne!(again, password);
    let none = backend.open(new_id(), ConsoleKind::Serial).await.unwrap_err();
    assert_eq!(none.kind, BackendErrorKind::NotRunning);
    lab.clean().await;
}
