//! Consoles: the screen as raw RFB, each viewer with a connection of its own, and the serial line, which libvirt
//! gives to one client only and which is therefore shared out here.

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hwm_core::backend::{
    BackendError, BackendErrorKind, Console, ConsoleKind, Input, Output, Result, Session, SessionPeer,
};
use hwm_core::id::ResourceId;
use hwm_core::secret::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};

use crate::backend::{Inner, Libvirt, QUICK, lock};
use crate::connection::{ConsoleStream, Fault, FaultKind, Host};
use crate::domain::DomainSeen;
use crate::lifecycle::Place;

/// How much is read at a time.
const CHUNK: usize = 64 * 1024;
/// How often a serial line that is quiet is looked at.
const SERIAL_POLL: Duration = Duration::from_millis(10);
/// How much of the serial line's past a viewer is shown.
const SCROLLBACK: usize = 64 * 1024;

/// The serial lines that are open, by machine.
#[derive(Default)]
pub(crate) struct SerialHubs(Mutex<HashMap<ResourceId, Weak<Hub>>>);

/// A serial line and all who see it. It is closed with its last viewer.
struct Hub {
    output: broadcast::Sender<Arc<[u8]>>,
    input: mpsc::Sender<Vec<u8>>,
    closing: Arc<AtomicBool>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

impl SerialHubs {
    /// Ends the serial line of a machine for all who see it.
    pub(crate) fn close(&self, id: ResourceId) {
        if let Some(hub) = lock(&self.0).remove(&id).and_then(|hub| hub.upgrade()) {
            hub.closing.store(true, Ordering::Relaxed);
        }
    }

    fn get(&self, id: ResourceId) -> Option<Arc<Hub>> {
        lock(&self.0).get(&id)?.upgrade()
    }

    fn put(&self, id: ResourceId, hub: &Arc<Hub>) {
        let mut hubs = lock(&self.0);
        hubs.retain(|_, hub| hub.strong_count() > 0);
        hubs.insert(id, Arc::downgrade(hub));
    }
}

/// What runs, or why there is no console.
fn running(place: &Place, host: &Host) -> std::result::Result<DomainSeen, Fault> {
    if !place.is_up(host)? {
        return Err(Fault::new(FaultKind::NotRunning, "the machine does not run"));
    }
    host.domain_xml(place.id, true)?
        .as_deref()
        .and_then(DomainSeen::parse)
        .ok_or_else(|| Fault::new(FaultKind::NotRunning, "the machine does not run"))
}

#[async_trait]
impl Console for Libvirt {
    async fn password(&self, id: ResourceId, kind: ConsoleKind) -> Result<Option<Secret>> {
        let place = self.inner.place(id);
        match kind {
            ConsoleKind::Serial => Ok(None),
            ConsoleKind::Vnc => {
                self.inner.refuse_remote_screen()?;
                self.inner
                    .ask("asking for the screen's password", move |host| {
                        Ok(running(&place, host)?.screen_password)
                    })
                    .await
            }
        }
    }

    async fn open(&self, id: ResourceId, kind: ConsoleKind) -> Result<Session> {
        match kind {
            ConsoleKind::Vnc => self.inner.open_screen(id).await,
            ConsoleKind::Serial => self.inner.open_serial(id).await,
        }
    }
}

impl Inner {
    fn refuse_remote_screen(&self) -> Result<()> {
        if self.options.is_local() {
            return Ok(());
        }
        Err(BackendError::new(
            BackendErrorKind::Unsupported,
            "opening the screen",
            "libvirt hands over a screen's connection only on its own host: use the serial console (type=serial), or \
             run hwm beside libvirt",
        ))
    }

    async fn open_screen(&self, id: ResourceId) -> Result<Session> {
        self.refuse_remote_screen()?;
        let place = self.place(id);
        let doing = "opening the screen";
        let socket = self
            .ask(doing, move |host| {
                running(&place, host)?;
                host.open_graphics(id)
            })
            .await?;
        let failed = |e: std::io::Error| BackendError::new(BackendErrorKind::Failed, doing, e.to_string());
        let socket = StdUnixStream::from(socket);
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = UnixStream::from_std(socket).map_err(failed)?;
        let (session, peer) = Session::pair();
        tokio::spawn(bridge(socket, peer));
        Ok(session)
    }

    async fn open_serial(self: &Arc<Self>, id: ResourceId) -> Result<Session> {
        let hub = match self.hubs.get(id) {
            Some(hub) => hub,
            None => self.open_hub(id).await?,
        };
        let live = hub.output.subscribe();
        let past = self.scrollback(id).await;
        let (session, peer) = Session::pair();
        tokio::spawn(view(hub, live, past, peer));
        Ok(session)
    }

    async fn open_hub(&self, id: ResourceId) -> Result<Arc<Hub>> {
        let place = self.place(id);
        let doing = "opening the serial console";
        let open = move |host: Host| {
            running(&place, &host)?;
            host.open_console(id)
        };
        let stream = self.connection.run_owned(doing, QUICK, open).await?;
        let (input, typed) = mpsc::channel::<Vec<u8>>(Session::CREDIT);
        let closing = Arc::new(AtomicBool::new(false));
        let output = broadcast::Sender::new(256);
        let hub = Arc::new(Hub {
            output: output.clone(),
            input,
            closing: closing.clone(),
        });
        std::thread::Builder::new()
            .name("libvirt-console".into())
            .spawn(move || carry(stream, &output, typed, &closing))
            .map_err(|e| BackendError::new(BackendErrorKind::Failed, doing, e.to_string()))?;
        self.hubs.put(id, &hub);
        Ok(hub)
    }

    async fn scrollback(&self, id: ResourceId) -> Vec<u8> {
        let mut log = self.read_console_log(id, 0, 4 << 20).await.unwrap_or_default();
        log.drain(..log.len().saturating_sub(SCROLLBACK));
        // A line that is cut at its beginning is left out.
        if log.len() == SCROLLBACK
            && let Some(end) = log.iter().position(|b| *b == b'\n')
        {
            log.drain(..=end);
        }
        log
    }
}

/// Carries bytes between a serial line and its viewers until either ends; an empty piece tells them the end.
fn carry(
    stream: ConsoleStream,
    output: &broadcast::Sender<Arc<[u8]>>,
    mut typed: mpsc::Receiver<Vec<u8>>,
    closing: &AtomicBool,
) {
    let mut buffer = vec![0; CHUNK];
    let mut pending = Vec::new();
    while !closing.load(Ordering::Relaxed) {
        let mut idle = true;
        match stream.receive(&mut buffer) {
            Ok(None) => {}
            Ok(Some(n)) if n > 0 => {
                let _ = output.send(Arc::from(&buffer[..n]));
                idle = false;
            }
            Ok(Some(_)) | Err(_) => break,
        }
        if pending.is_empty()
            && let Ok(bytes) = typed.try_recv()
        {
            pending = bytes;
        }
        if !pending.is_empty() {
            match stream.send(&pending) {
                Ok(0) => {}
                Ok(n) => {
                    pending.drain(..n);
                    idle = false;
                }
                Err(_) => break,
            }
        }
        if idle {
            std::thread::sleep(SERIAL_POLL);
        }
    }
    let _ = output.send(Arc::from(&[][..]));
    stream.close();
}

/// One viewer of the screen.
async fn bridge(socket: UnixStream, peer: SessionPeer) {
    let (mut from_guest, mut to_guest) = socket.into_split();
    let SessionPeer { mut input, output } = peer;
    let show = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from_guest.read(&mut buffer).await {
                Ok(n) if n > 0 => {
                    if output
                        .send(Ok(Output::Stdout(buffer[..n].to_vec())))
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
                Ok(_) | Err(_) => break,
            }
        }
    };
    let take = async {
        while let Some(frame) = input.recv().await {
            match frame {
                Input::Data(bytes) => {
                    if to_guest.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                // RFB has no half-close, and its size is the guest's own.
                Input::Close => break,
                Input::Resize(_) => {}
            }
        }
    };
    tokio::select! {
        () = show => {}
        () = take => {}
    }
}

/// One viewer of a serial line. Who does not keep up misses output, and is told so.
async fn view(hub: Arc<Hub>, mut live: broadcast::Receiver<Arc<[u8]>>, past: Vec<u8>, peer: SessionPeer) {
    let SessionPeer { mut input, output } = peer;
    let show = async {
        if !past.is_empty() && output.send(Ok(Output::Stdout(past.clone()))).await.is_err() {
            return;
        }
        // What came while the past was read stands in both.
        let mut early = Vec::new();
        loop {
            match live.try_recv() {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => early.extend_from_slice(&bytes),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => break,
            }
        }
        let known = overlap(&past, &early);
        if known < early.len()
            && output
                .send(Ok(Output::Stdout(early[known..].to_vec())))
                .await
                .is_err()
        {
            return;
        }
        loop {
            let bytes = match live.recv().await {
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => bytes.to_vec(),
                Err(broadcast::error::RecvError::Lagged(_)) => b"\r\n[output was left out]\r\n".to_vec(),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if output.send(Ok(Output::Stdout(bytes))).await.is_err() {
                return;
            }
        }
    };
    let take = async {
        while let Some(frame) = input.recv().await {
            match frame {
                Input::Data(bytes) => {
                    if hub.input.send(bytes).await.is_err() {
                        return;
                    }
                }
                Input::Close | Input::Resize(_) => {}
            }
        }
    };
    tokio::select! {
        () = show => {}
        () = take => {}
    }
}

/// How many bytes at the beginning of `later` are the end of `earlier`.
fn overlap(earlier: &[u8], later: &[u8]) -> usize {
    (0..=earlier.len().min(later.len()))
        .rev()
        .find(|n| earlier.ends_with(&later[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn what_stands_in_both_is_shown_once() {
        assert_eq!(overlap(b"login: ro", b"root"), 2);
        assert_eq!(overlap(b"abc", b"abc"), 3);
        assert_eq!(overlap(b"abc", b"xyz"), 0);
        assert_eq!(overlap(b"", b"x"), 0);
    }
}
