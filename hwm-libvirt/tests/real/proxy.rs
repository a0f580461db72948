//! Something between the backend and libvirtd that knows libvirt's messages: it counts what is sent, cuts at any
//! message, and holds calls back while the test does something to the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// libvirt's keep-alive, which is no call.
const KEEPALIVE: u32 = 0x6b65_6570;

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Hands everything on.
    Open,
    /// Ends all connections when so many messages were sent, before the last of them or after its effect; and is
    /// as if the backend's process were dead from then on.
    Cut { at: usize, after: bool },
    /// Hands nothing more on to libvirtd until it is open again.
    Hold,
    /// Takes no connections.
    Dead,
}

struct Shared {
    target: PathBuf,
    mode: watch::Sender<Mode>,
    sent: AtomicUsize,
    held: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    socket: PathBuf,
}

impl Proxy {
    /// A proxy in `folder` for the libvirt at `uri`, whose socket it names.
    pub(crate) fn new(folder: &Path, uri: &str) -> Self {
        let socket = folder.join("proxy.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            target: uri.split_once("socket=").unwrap().1.into(),
            mode: watch::Sender::new(Mode::Open),
            sent: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = serving.clone();
                // Whatever goes wrong here is what the backend has to bear.
                tokio::spawn(async move { shared.serve(client).await.ok() });
            }
        });
        Self { shared, socket }
    }

    pub(crate) fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket.display())
    }

    /// Changes what it does, and counts from none.
    pub(crate) fn set(&self, mode: Mode) {
        self.shared.sent.store(0, Ordering::SeqCst);
        self.shared.held.store(0, Ordering::SeqCst);
        self.shared.mode.send_replace(mode);
    }

    /// How many messages were sent since then.
    pub(crate) fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// How many connections wait with a call.
    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.shared.mode.borrow() == Mode::Dead
    }
}

/// One message, with its length before it.
async fn message(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    from.read_exact(&mut bytes).await?;
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    bytes.resize(length.max(4), 0);
    from.read_exact(&mut bytes[4..]).await?;
    Ok(bytes)
}

fn word(message: &[u8], index: usize) -> u32 {
    let bytes = message.get(index * 4..index * 4 + 4).unwrap_or(&[0; 4]);
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Shared {
    async fn serve(self: Arc<Self>, client: UnixStream) -> std::io::Result<()> {
        let mut mode = self.mode.subscribe();
        if *mode.borrow() == Mode::Dead {
            return Ok(());
        }
        let libvirtd = UnixStream::connect(&self.target).await?;
        let (asks, answers) = (client.into_split(), libvirtd.into_split());
        // Which answer, by its number, is the one that is cut off.
        let (cut, wanted) = watch::channel(None);
        tokio::select! {
            done = self.forward(asks.0, answers.1, cut) => done,
            done = self.back(answers.0, asks.1, wanted) => done,
            _ = mode.wait_for(|mode| *mode == Mode::Dead) => Ok(()),
        }
    }

    async fn forward(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        cut: watch::Sender<Option<u32>>,
    ) -> std::io::Result<()> {
        loop {
            let message = message(&mut from).await?;
            if word(&message, 1) == KEEPALIVE {
                to.write_all(&message).await?;
                continue;
            }
            let sent = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
            let mode = *self.mode.borrow();
            match mode {
                Mode::Cut { at, after: false } if sent == at => {
                    self.mode.send_replace(Mode::Dead);
                    return Ok(());
                }
                // Pieces of a stream are not answered.
                Mode::Cut { at, after: true } if sent == at && word(&message, 4) == 3 => {
                    to.write_all(&message).await?;
                    self.mode.send_replace(Mode::Dead);
                    return Ok(());
                }
                Mode::Cut { at, after: true } if sent == at => {
                    cut.send_replace(Some(word(&message, 5)));
                }
                Mode::Hold => {
                    self.held.fetch_add(1, Ordering::SeqCst);
                    let mut mode = self.mode.subscribe();
                    let _ = mode.wait_for(|mode| *mode != Mode::Hold).await;
                }
                Mode::Cut { .. } | Mode::Open | Mode::Dead => {}
            }
            to.write_all(&message).await?;
        }
    }

    async fn back(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        cut: watch::Receiver<Option<u32>>,
    ) -> std::io::Result<()> {
        loop {
            let message = message(&mut from).await?;
            // An answer (1) to the call that is the last.
            if word(&message, 4) == 1 && *cut.borrow() == Some(word(&message, 5)) {
                self.mode.send_replace(Mode::Dead);
                return Ok(());
            }
            to.write_all(&message).await?;
        }
    }
}
