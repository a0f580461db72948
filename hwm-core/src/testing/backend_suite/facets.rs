//! What a backend can do beyond the basic methods, where it can.

use std::fmt;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::{Bench, Broken, Check, Outcome, Promise, Verdict, ensure};
use crate::backend::{
    BackendErrorKind, ConsoleKind, ExecRequest, ExecSession, Input, Output, Result, Session, SnapshotSpec,
};

pub(super) const PROMISES: &[Promise] = &[
    ("exec tells exit code, output and error output", exec),
    ("exec kills a command that outlives its timeout", exec_timeout),
    ("exec cuts output at the limit, and says so", exec_limit),
    ("exec in what is not running fails", exec_down),
    (
        "an exec session carries input, output and the exit code",
        exec_session,
    ),
    ("a live change leaves the workload running", live_update),
    (
        "a snapshot can be taken, restored and removed, each repeatedly",
        snapshots,
    ),
    ("removing a workload removes its snapshots", snapshots_go),
    ("the screen speaks RFB", screen),
    ("the serial console can be opened", serial),
    ("a console of what is not running fails", console_down),
];

fn request(command: &str) -> ExecRequest {
    ExecRequest {
        command: command.to_owned(),
        working_dir: None,
        timeout: Duration::from_secs(30),
        output_limit: 1 << 16,
    }
}

fn exec<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(exec) = bench.backend().facets().exec else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let done = exec
            .run(workload.id, request("echo out; echo err >&2; exit 5"))
            .await?;
        ensure(
            (done.stdout.as_str(), done.stderr.as_str(), done.exit_code) == ("out\n", "err\n", 5),
            format!("it answers {done:?}"),
        )?;
        ensure(
            !done.truncated && done.output.len() == 8,
            format!("it answers {done:?}"),
        )?;
        let mut there = request("pwd");
        there.working_dir = Some("/etc".to_owned());
        let done = exec.run(workload.id, there).await?;
        ensure(
            done.stdout == "/etc\n",
            format!("its working directory is {:?}", done.stdout),
        )?;
        Ok(Verdict::Kept)
    })
}

fn exec_timeout<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(exec) = bench.backend().facets().exec else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let mut long = request("sleep 3; echo late > /tmp/late");
        long.timeout = Duration::from_secs(1);
        let began = bench.fixture.env.now();
        match exec.run(workload.id, long).await {
            Err(error) if error.kind == BackendErrorKind::Timeout => {}
            other => return Err(Broken(format!("it answers {other:?}"))),
        }
        let took = bench.fixture.env.now().since(began);
        ensure(took < bench.fixture.patience, format!("it took {took:?}"))?;
        bench.fixture.env.sleep(Duration::from_secs(4)).await;
        let done = exec.run(workload.id, request("cat /tmp/late")).await?;
        ensure(done.exit_code != 0, "the command went on after its timeout")?;
        bench.expect_running(workload.id).await?;
        Ok(Verdict::Kept)
    })
}

fn exec_limit<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(exec) = bench.backend().facets().exec else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let mut much = request("seq 100000");
        much.output_limit = 1000;
        let done = exec.run(workload.id, much).await?;
        ensure(done.truncated, "it does not say that output was cut")?;
        ensure(
            done.stdout.len() <= 1000 && done.stdout.starts_with("1\n2\n3\n"),
            format!("it kept {} bytes of 1000", done.stdout.len()),
        )?;
        Ok(Verdict::Kept)
    })
}

/// What does not run, or does not exist, is said to.
fn not_running<T: fmt::Debug>(answer: Result<T>) -> Outcome<()> {
    match answer {
        Err(error)
            if matches!(
                error.kind,
                BackendErrorKind::NotRunning | BackendErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        answer => Err(Broken(format!("it answers {answer:?}"))),
    }
}

fn exec_down<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(exec) = bench.backend().facets().exec else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.backend().create(&bench.call(1), &workload).await?;
        for id in [workload.id, bench.id()] {
            not_running(exec.run(id, request("true")).await)?;
        }
        Ok(Verdict::Kept)
    })
}

/// Reads a session until `enough` says so, its end, or the end of patience.
async fn read(bench: &Bench<'_>, session: &mut Session, enough: impl Fn(&Seen) -> bool) -> Outcome<Seen> {
    let mut seen = Seen::default();
    let mut limit = bench.fixture.env.sleep(bench.fixture.patience);
    while !enough(&seen) {
        let next = Box::pin(session.output.recv());
        match select(next, limit).await {
            Either::Left((frame, rest)) => {
                limit = rest;
                match frame {
                    Some(Ok(Output::Stdout(bytes))) => seen.stdout.extend(bytes),
                    Some(Ok(Output::Stderr(bytes))) => seen.stderr.extend(bytes),
                    Some(Ok(Output::Exit(code))) => seen.exit = Some(code),
                    Some(Err(error)) => return Err(error.into()),
                    None => return Ok(seen),
                }
            }
            Either::Right(_) => return Err(format!("nothing more came after {seen:?}").into()),
        }
    }
    Ok(seen)
}

#[derive(Debug, Default)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<i64>,
}

impl Seen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

fn exec_session<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(exec) = bench.backend().facets().exec else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let shell = ExecSession {
            command: vec!["sh".to_owned()],
            tty: false,
            size: None,
        };
        let mut session = exec.open(workload.id, shell.clone()).await?;
        let typed = b"echo hello\necho oops >&2\nexit 7\n".to_vec();
        session
            .input
            .send(Input::Data(typed))
            .await
            .map_err(|_| Broken::from("it takes no input"))?;
        let seen = read(bench, &mut session, |seen| seen.exit.is_some()).await?;
        ensure(
            (seen.stdout.as_slice(), seen.stderr.as_slice(), seen.exit)
                == (b"hello\n".as_slice(), b"oops\n".as_slice(), Some(7)),
            format!("it brought {seen:?}"),
        )?;
        let terminal = ExecSession { tty: true, ..shell };
        let mut session = exec.open(workload.id, terminal).await?;
        let typed = b"echo a-$?-b\rexit 6\r".to_vec();
        session
            .input
            .send(Input::Data(typed))
            .await
            .map_err(|_| Broken::from("it takes no input"))?;
        let seen = read(bench, &mut session, |seen| seen.exit.is_some()).await?;
        ensure(seen.exit == Some(6), format!("the terminal brought {seen:?}"))?;
        ensure(
            seen.text().contains("echo a-"),
            "the terminal does not echo what is typed",
        )?;
        let reader = ExecSession {
            command: vec!["cat".to_owned()],
            tty: false,
            size: None,
        };
        let mut session = exec.open(workload.id, reader).await?;
        for frame in [Input::Data(b"to the end".to_vec()), Input::Close] {
            session
                .input
                .send(frame)
                .await
                .map_err(|_| Broken::from("it takes no input"))?;
        }
        let seen = read(bench, &mut session, |seen| seen.exit.is_some()).await?;
        ensure(
            seen.stdout == b"to the end" && seen.exit == Some(0),
            format!("with its input closed, cat brought {seen:?}"),
        )?;
        Ok(Verdict::Kept)
    })
}

fn live_update<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let facet = bench.backend().facets().live_update;
        let (Some(live), Some(change)) = (facet, &bench.fixture.live) else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        let before = bench.up(&workload).await?;
        let mut wanted = change(&workload);
        wanted.generation = 2;
        ensure(
            live.is_live(&workload.config, &wanted.config),
            "it says that the change is not live",
        )?;
        for _ in 0..2 {
            live.update(&bench.call(2), &wanted).await?;
            let after = bench.expect_running(workload.id).await?;
            ensure(
                (&before.runtime_id, before.started_at) == (&after.runtime_id, after.started_at),
                format!("it was {before:?} and is {after:?}"),
            )?;
        }
        Ok(Verdict::Kept)
    })
}

fn snapshots<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(snapshots) = bench.backend().facets().snapshots else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        let (id, call) = (workload.id, bench.call(1));
        bench.up(&workload).await?;
        let spec = SnapshotSpec {
            id: bench.snapshot_id(),
            name: "suite".to_owned(),
            memory: None,
        };
        for _ in 0..2 {
            snapshots.create(&call, &workload, &spec).await?;
            let list = snapshots.list(id).await?;
            ensure(
                list == [spec.id],
                format!("one was taken, and there are {list:?}"),
            )?;
        }
        for _ in 0..2 {
            let runs = snapshots.restore(&call, &workload, spec.id).await?;
            let seen = bench.look(id).await?;
            let is_running = seen.state == crate::backend::ObservedState::Running;
            ensure(
                runs == is_running,
                format!("restored, it says {runs} and is {:?}", seen.state),
            )?;
        }
        let other = bench.snapshot_id();
        match snapshots.restore(&call, &workload, other).await {
            Err(error) if error.kind == BackendErrorKind::NotFound => {}
            answer => {
                return Err(Broken(format!(
                    "restoring one that is not there answers {answer:?}"
                )));
            }
        }
        for snapshot in [spec.id, spec.id, other] {
            snapshots.delete(&call, id, snapshot).await?;
            ensure(
                snapshots.list(id).await?.is_empty(),
                "it was removed, and is there",
            )?;
        }
        Ok(Verdict::Kept)
    })
}

fn snapshots_go<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(snapshots) = bench.backend().facets().snapshots else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        for _ in 0..2 {
            let spec = SnapshotSpec {
                id: bench.snapshot_id(),
                name: "suite".to_owned(),
                memory: None,
            };
            snapshots.create(&bench.call(1), &workload, &spec).await?;
        }
        bench.backend().remove(&bench.call(2), workload.id).await?;
        bench.expect_gone(workload.id).await?;
        ensure(
            snapshots.list(workload.id).await?.is_empty(),
            "its snapshots are there",
        )?;
        Ok(Verdict::Kept)
    })
}

fn screen<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(console) = bench.backend().facets().console else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        let password = console.password(workload.id, ConsoleKind::Vnc).await?;
        ensure(
            password.is_none_or(|p| !p.expose().is_empty() && p.expose().len() <= 8),
            "the password is empty or longer than the protocol takes",
        )?;
        let mut session = console.open(workload.id, ConsoleKind::Vnc).await?;
        let seen = read(bench, &mut session, |seen| seen.stdout.len() >= 12).await?;
        ensure(
            seen.stdout.starts_with(b"RFB 003."),
            format!("it begins with {:?}", seen.text()),
        )?;
        Ok(Verdict::Kept)
    })
}

fn serial<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(console) = bench.backend().facets().console else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.up(&workload).await?;
        for _ in 0..2 {
            let session = console.open(workload.id, ConsoleKind::Serial).await?;
            let typed = Input::Data(b"\r".to_vec());
            session
                .input
                .send(typed)
                .await
                .map_err(|_| Broken::from("it takes no input"))?;
        }
        bench.expect_running(workload.id).await?;
        Ok(Verdict::Kept)
    })
}

fn console_down<'a>(bench: &'a Bench<'a>) -> Check<'a> {
    Box::pin(async move {
        let Some(console) = bench.backend().facets().console else {
            return Ok(Verdict::NotOffered);
        };
        let workload = bench.lasting();
        bench.backend().create(&bench.call(1), &workload).await?;
        for kind in [ConsoleKind::Vnc, ConsoleKind::Serial] {
            not_running(console.open(workload.id, kind).await)?;
        }
        Ok(Verdict::Kept)
    })
}
