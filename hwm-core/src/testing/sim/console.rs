//! Terminals in simulated workloads, and the consoles of simulated machines.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::{Either, select};
use tokio_util::sync::CancellationToken;

use super::backend::SimBackend;
use super::run::run_in;
use super::world::{Guest, Key};
use super::{Inner, rfb, shell};
use crate::backend::{
    Console, ConsoleKind, ExecSession, Input, LogStream, Output, Result, Session, SessionPeer,
};
use crate::id::ResourceId;
use crate::secret::Secret;

#[async_trait]
impl Console for SimBackend {
    async fn password(&self, id: ResourceId, kind: ConsoleKind) -> Result<Option<Secret>> {
        let (key, doing) = (self.key(id), format!("reading the console password of {id}"));
        self.ask(doing.clone(), move |world, _| {
            let guest = world.running(&key, &doing)?;
            Ok(match kind {
                ConsoleKind::Vnc => guest.screen_password.clone().map(Secret::new),
                ConsoleKind::Serial => None,
            })
        })
        .await
    }

    async fn open(&self, id: ResourceId, kind: ConsoleKind) -> Result<Session> {
        let (key, doing) = (self.key(id), format!("opening the console of {id}"));
        let (down, name, password, scrollback) = self
            .ask(doing.clone(), move |world, _| {
                let guest = world.running(&key, &doing)?;
                let password = guest.screen_password.clone().unwrap_or_default();
                Ok((
                    guest.down.clone(),
                    guest.workload.name.clone(),
                    password,
                    scrollback(guest),
                ))
            })
            .await?;
        let (session, mut peer) = Session::pair();
        let (inner, key) = (Arc::clone(&self.inner), self.key(id));
        self.inner.env.spawn(Box::pin(async move {
            match kind {
                ConsoleKind::Vnc => {
                    let screen = Box::pin(rfb::serve(&inner, &name, &password, &mut peer));
                    let _ = select(screen, Box::pin(down.cancelled())).await;
                }
                ConsoleKind::Serial => {
                    if peer.output.send(Ok(Output::Stdout(scrollback))).await.is_ok() {
                        let terminal = Terminal::login(Arc::clone(&inner), key);
                        let _ = select(Box::pin(terminal.serve(&mut peer)), Box::pin(down.cancelled())).await;
                    }
                }
            }
        }));
        Ok(session)
    }
}

fn scrollback(guest: &Guest) -> Vec<u8> {
    let lines = guest.log.iter().filter(|l| l.stream == LogStream::Console);
    lines
        .flat_map(|l| format!("{}\r\n", l.message).into_bytes())
        .collect()
}

/// Serves an interactive command in a workload until it, the client or the workload ends.
pub(super) async fn exec(
    inner: Arc<Inner>,
    key: Key,
    request: ExecSession,
    down: CancellationToken,
    mut peer: SessionPeer,
) {
    let work = Box::pin(async {
        let is_shell = request.command.first().is_none_or(|c| shell::is_shell(c));
        let program = request.command.first().map(String::as_str);
        let is_echo = request.command == ["cat"];
        let mut terminal = Terminal::shell(Arc::clone(&inner), key, &request);
        let code = match shell::script_of(&request.command) {
            Some(script) if !is_echo => terminal.run(script, &peer).await.unwrap_or(1),
            _ if is_shell => terminal.serve(&mut peer).await,
            _ if is_echo => echo(&mut peer).await,
            _ => {
                let text = format!("exec: {}: not found\n", program.unwrap_or_default());
                terminal.write_error(&text, &peer).await;
                127
            }
        };
        // A client that has gone wants no exit code.
        let _ = peer.output.send(Ok(Output::Exit(code))).await;
    });
    let _ = select(work, Box::pin(down.cancelled())).await;
}

/// What `cat` does with a terminal: what comes in goes out.
async fn echo(peer: &mut SessionPeer) -> i64 {
    while let Some(input) = peer.input.recv().await {
        match input {
            Input::Data(bytes) => {
                if peer.output.send(Ok(Output::Stdout(bytes))).await.is_err() {
                    break;
                }
            }
            Input::Close => break,
            Input::Resize(_) => {}
        }
    }
    0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Login,
    Shell,
}

/// A line editor in front of the simulated shell.
struct Terminal {
    inner: Arc<Inner>,
    key: Key,
    mode: Mode,
    tty: bool,
    size: Option<(u16, u16)>,
    line: Vec<u8>,
    code: i64,
}

impl Terminal {
    fn login(inner: Arc<Inner>, key: Key) -> Self {
        Self {
            inner,
            key,
            mode: Mode::Login,
            tty: true,
            size: Some((80, 24)),
            line: Vec::new(),
            code: 0,
        }
    }

    fn shell(inner: Arc<Inner>, key: Key, request: &ExecSession) -> Self {
        let size = request.size.map_or((80, 24), |s| (s.width, s.height));
        Self {
            mode: Mode::Shell,
            tty: request.tty,
            size: request.tty.then_some(size),
            ..Self::login(inner, key)
        }
    }

    fn prompt(&self) -> String {
        match (self.tty, self.mode) {
            (false, _) => String::new(),
            (true, Mode::Shell) => "# ".to_owned(),
            (true, Mode::Login) => {
                let world = self.inner.lock();
                let name = world
                    .guests
                    .get(&self.key)
                    .and_then(|g| g.files.get("/etc/hostname"));
                format!("{} login: ", name.map_or("hwm", |n| n.trim()))
            }
        }
    }

    async fn write(&self, text: &str, peer: &SessionPeer) -> bool {
        if text.is_empty() {
            return true;
        }
        let bytes = if self.tty {
            text.replace('\n', "\r\n").into_bytes()
        } else {
            text.as_bytes().to_vec()
        };
        peer.output.send(Ok(Output::Stdout(bytes))).await.is_ok()
    }

    async fn write_error(&self, text: &str, peer: &SessionPeer) -> bool {
        if self.tty || text.is_empty() {
            return self.write(text, peer).await;
        }
        peer.output
            .send(Ok(Output::Stderr(text.as_bytes().to_vec())))
            .await
            .is_ok()
    }

    /// Serves until the shell is left or the client has gone. Answers the exit code.
    async fn serve(mut self, peer: &mut SessionPeer) -> i64 {
        if !self.write(&self.prompt(), peer).await {
            return 1;
        }
        while let Some(input) = peer.input.recv().await {
            let bytes = match input {
                Input::Data(bytes) => bytes,
                Input::Resize(size) => {
                    self.size = self.size.map(|_| (size.width, size.height));
                    continue;
                }
                Input::Close => break,
            };
            for byte in bytes {
                match self.take(byte, peer).await {
                    Some(true) => {}
                    Some(false) => return self.code,
                    None => return 1,
                }
            }
        }
        // What was typed without a line end runs when no more can come.
        if !self.line.is_empty() {
            self.enter(peer).await;
        }
        self.code
    }

    /// Takes one byte. Answers whether the session goes on; none when the client has gone.
    async fn take(&mut self, byte: u8, peer: &mut SessionPeer) -> Option<bool> {
        let (interrupt, end, backspace) = (3, 4, [8, 127]);
        match byte {
            b'\r' | b'\n' => {
                if self.tty && !self.write("\n", peer).await {
                    return None;
                }
                return self.enter(peer).await;
            }
            _ if byte == interrupt && self.tty => {
                self.line.clear();
                let prompt = format!("^C\n{}", self.prompt());
                return self.write(&prompt, peer).await.then_some(true);
            }
            _ if byte == end && self.tty => {
                if !self.line.is_empty() {
                    return Some(true);
                }
                return self.leave(peer).await;
            }
            _ if backspace.contains(&byte) && self.tty => {
                if self.line.pop().is_some() {
                    return self.write("\u{8} \u{8}", peer).await.then_some(true);
                }
            }
            _ => {
                const LONGEST: usize = 4096;
                if self.line.len() < LONGEST {
                    self.line.push(byte);
                    if self.tty {
                        return peer
                            .output
                            .send(Ok(Output::Stdout(vec![byte])))
                            .await
                            .is_ok()
                            .then_some(true);
                    }
                }
            }
        }
        Some(true)
    }

    async fn enter(&mut self, peer: &mut SessionPeer) -> Option<bool> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        match self.mode {
            Mode::Login => {
                if !line.trim().is_empty() {
                    self.mode = Mode::Shell;
                }
            }
            Mode::Shell => {
                if !self.run_until_interrupt(shell::parse(&line), peer).await {
                    return self.leave(peer).await;
                }
            }
        }
        self.write(&self.prompt(), peer).await.then_some(true)
    }

    /// Leaves the shell: a login begins again, a session ends.
    async fn leave(&mut self, peer: &SessionPeer) -> Option<bool> {
        let is_console = self.key.daemon == super::Daemon::Machines;
        if !is_console {
            return Some(false);
        }
        self.mode = Mode::Login;
        let prompt = format!("\n{}", self.prompt());
        self.write(&prompt, peer).await.then_some(true)
    }

    /// Runs a line; what is typed meanwhile waits, and an interrupt ends it. Answers whether the shell goes on.
    async fn run_until_interrupt(&mut self, script: Vec<shell::Statement>, peer: &mut SessionPeer) -> bool {
        for statement in script {
            if !statement.runs_after(self.code) {
                continue;
            }
            let Some(done) = self.step(&statement) else {
                return false;
            };
            if !self.write(&done.stdout, peer).await || !self.write_error(&done.stderr, peer).await {
                return false;
            }
            self.code = done.code;
            if !done.takes.is_zero() {
                let interrupt = Box::pin(async {
                    loop {
                        match peer.input.recv().await {
                            Some(Input::Data(bytes)) if bytes.contains(&3) => return true,
                            Some(_) => {}
                            None => return false,
                        }
                    }
                });
                let interrupted = match select(self.inner.env.sleep(done.takes), interrupt).await {
                    Either::Left(_) => None,
                    Either::Right((interrupted, _)) => Some(interrupted),
                };
                match interrupted {
                    None => {}
                    Some(true) => {
                        self.code = 130;
                        return self.write("^C\n", peer).await;
                    }
                    Some(false) => return false,
                }
            }
            if done.exits {
                return false;
            }
        }
        true
    }

    /// Runs a script to its end. Answers its exit code; none when the client has gone.
    async fn run(&mut self, script: Vec<shell::Statement>, peer: &SessionPeer) -> Option<i64> {
        for statement in script {
            if !statement.runs_after(self.code) {
                continue;
            }
            let done = self.step(&statement)?;
            if !self.write(&done.stdout, peer).await || !self.write_error(&done.stderr, peer).await {
                return None;
            }
            self.code = done.code;
            self.inner.take(done.takes).await;
            if done.exits {
                break;
            }
        }
        Some(self.code)
    }

    fn step(&self, statement: &shell::Statement) -> Option<shell::Done> {
        let now = self.inner.env.now();
        let mut world = self.inner.lock();
        let guest = world.guests.get_mut(&self.key).filter(|g| g.is_up())?;
        Some(run_in(guest, statement, now, self.size, "/"))
    }
}
