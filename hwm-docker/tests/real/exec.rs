use std::time::{Duration, Instant};

use hwm_core::backend::{
    Backend, BackendErrorKind, Exec, ExecRequest, ExecSession, Input, Output, Session, TerminalSize,
};
use hwm_core::id::ResourceId;
use serde_json::json;

use crate::lab::*;

fn request(command: &str) -> ExecRequest {
    ExecRequest {
        command: command.into(),
        working_dir: None,
        timeout: Duration::from_secs(10),
        output_limit: 1 << 20,
    }
}

/// The processes of a container, as its engine sees them.
async fn processes(id: ResourceId) -> String {
    let top = raw().top_processes(&format!("hwm-{id}"), None).await.unwrap();
    format!("{:?}", top.processes.unwrap())
}

#[tokio::test]
async fn a_command_has_two_outputs_an_order_and_an_exit_code() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let run = |r| lab.backend.run(workload.id, r);
    let out = run(request(
        "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; exit 3",
    ))
    .await
    .unwrap();
    assert_eq!(out.stdout, "one\nthree\n");
    assert_eq!(out.stderr, "two\n");
    assert_eq!(out.output, "one\ntwo\nthree\n");
    assert_eq!((out.exit_code, out.truncated), (3, false));
    let out = run(ExecRequest {
        working_dir: Some("/tmp".into()),
        ..request("pwd; echo \"$0 'quoted' \\\"x\\\"\"")
    })
    .await
    .unwrap();
    assert_eq!(out.stdout, "/tmp\n/bin/sh 'quoted' \"x\"\n");
    let out = run(ExecRequest {
        output_limit: 1000,
        ..request("yes | head -c 100000; echo done >&2")
    })
    .await
    .unwrap();
    assert_eq!(
        (out.stdout.len(), out.stderr.as_str(), out.truncated),
        (1000, "done\n", true)
    );
    let out = run(request("printf 'a\\377\\000b'")).await.unwrap();
    assert_eq!(out.stdout, "a\u{fffd}\0b");
    let out = run(request("no-such-command")).await.unwrap();
    assert_eq!(out.exit_code, 127);
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn a_command_that_outlives_its_timeout_is_killed_with_all_it_started() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    for command in [
        "sleep 4321",
        "trap '' TERM INT HUP; sleep 4321 & sleep 4321; wait",
        "setsid sleep 4321 & (sleep 4321 & wait) & exec sleep 4321",
        "while :; do sleep 4321; done",
    ] {
        let begun = Instant::now();
        let short = ExecRequest {
            timeout: Duration::from_secs(1),
            ..request(command)
        };
        let error = lab.backend.run(workload.id, short).await.unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Timeout, "{error}");
        assert!(error.message.contains("was killed"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let left = processes(workload.id).await;
        assert!(!left.contains("4321"), "{command}: {left}");
    }
    lab.seen(workload.id).await;
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn a_command_whose_caller_left_is_killed() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let run = lab.backend.run(workload.id, request("sleep 4322"));
    assert!(tokio::time::timeout(Duration::from_secs(1), run).await.is_err());
    for _ in 0..100 {
        if !processes(workload.id).await.contains("4322") {
            return lab.gone(workload.id).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the command lives on");
}

#[tokio::test]
async fn what_a_command_leaves_in_the_background_does_not_hold_its_answer_back() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let begun = Instant::now();
    let out = lab
        .backend
        .run(workload.id, request("sleep 30 & echo begun"))
        .await
        .unwrap();
    assert_eq!((out.stdout.as_str(), out.exit_code), ("begun\n", 0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn without_a_container_that_runs_there_is_no_command() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    let error = lab.backend.run(workload.id, request("true")).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::NotFound, "{error}");
    lab.backend.create(&call(), &workload).await.unwrap();
    let error = lab.backend.run(workload.id, request("true")).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::NotRunning, "{error}");
    lab.gone(workload.id).await;
}

async fn text_until(session: &mut Session, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let frame = tokio::time::timeout(Duration::from_secs(10), session.output.recv()).await;
        match frame.expect("in time") {
            Some(Ok(Output::Stdout(data))) => text.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

#[tokio::test]
async fn a_terminal_takes_input_sizes_and_says_how_it_ended() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let shell = ExecSession {
        command: vec!["/bin/sh".into()],
        tty: true,
        size: Some(TerminalSize {
            width: 100,
            height: 30,
        }),
    };
    let mut session = lab.backend.open(workload.id, shell).await.unwrap();
    let say = |text: &str| Input::Data(text.as_bytes().to_vec());
    session.input.send(say("stty size\n")).await.unwrap();
    text_until(&mut session, "30 100").await;
    session
        .input
        .send(Input::Resize(TerminalSize {
            width: 77,
            height: 22,
        }))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    session
        .input
        .send(say("stty size; printf '\\001\\002\\000raw%s\\n' END\n"))
        .await
        .unwrap();
    let text = text_until(&mut session, "rawEND").await;
    assert!(
        text.contains("22 77") && text.contains("\u{1}\u{2}\0rawEND"),
        "{text:?}"
    );
    session.input.send(say("exit 5\n")).await.unwrap();
    let mut last = None;
    while let Some(frame) = session.output.recv().await {
        last = Some(frame.unwrap());
    }
    assert_eq!(last, Some(Output::Exit(5)));
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn a_pipe_carries_every_byte_and_ends_when_its_input_does() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let cat = ExecSession {
        command: vec!["/bin/sh".into(), "-c".into(), "cat; echo end >&2; exit 4".into()],
        tty: false,
        size: None,
    };
    let session = lab.backend.open(workload.id, cat).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (input, mut output) = (session.input, session.output);
    let feed = async {
        for chunk in sent.chunks(10_000) {
            input.send(Input::Data(chunk.to_vec())).await.unwrap();
        }
        input.send(Input::Close).await.unwrap();
    };
    let read = async {
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        while let Some(frame) = output.recv().await {
            match frame.unwrap() {
                Output::Stdout(data) => stdout.extend(data),
                Output::Stderr(data) => stderr.extend(data),
                Output::Exit(code) => exit = Some(code),
            }
        }
        (stdout, stderr, exit)
    };
    let ((), (stdout, stderr, exit)) = tokio::join!(feed, read);
    assert!(stdout == sent, "{} of {} bytes", stdout.len(), sent.len());
    assert_eq!((stderr.as_slice(), exit), (&b"end\n"[..], Some(4)));
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn a_session_whose_client_left_is_ended() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    for tty in [true, false] {
        let sleep = ExecSession {
            command: vec!["sleep".into(), "4323".into()],
            tty,
            size: None,
        };
        drop(lab.backend.open(workload.id, sleep).await.unwrap());
        let mut left = String::from("4323");
        for _ in 0..100 {
            left = processes(workload.id).await;
            if !left.contains("4323") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!left.contains("4323"), "{left}");
    }
    lab.gone(workload.id).await;
}
