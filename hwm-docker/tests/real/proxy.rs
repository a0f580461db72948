//! Something between the backend and the engine that does not do its work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::lab::variable;

/// What the proxy does with connections that are made from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: it is a good proxy.
    None,
    /// Takes the request and never answers.
    Hang,
    /// Closes the connection at once.
    Close,
    /// Hands so many bytes of the answer on, and closes.
    Truncate(u64),
    /// Answers a body that is no JSON.
    Garbage,
    /// Answers with that status and no engine behind it.
    Status(u16),
    /// Hands the request on after so long.
    Late(Duration),
}

pub(crate) struct Proxy {
    socket: PathBuf,
    fault: watch::Sender<Fault>,
}

impl Proxy {
    pub(crate) fn new(dir: &Path) -> Self {
        let socket = dir.join("proxy.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let fault = *faults.borrow();
                tokio::spawn(async move {
                    // Whatever goes wrong here is what the backend has to bear.
                    let _ = serve(client, fault).await;
                });
            }
        });
        Self { socket, fault }
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn serve(mut client: UnixStream, fault: Fault) -> std::io::Result<()> {
    let host = variable("HWM_TEST_DOCKER_HOST");
    let engine = || UnixStream::connect(host.strip_prefix("unix://").unwrap());
    match fault {
        Fault::None => {
            copy_bidirectional(&mut client, &mut engine().await?).await?;
        }
        Fault::Hang => {
            let mut nowhere = tokio::io::sink();
            copy(&mut client, &mut nowhere).await?;
            std::future::pending::<()>().await;
        }
        Fault::Close => {}
        Fault::Truncate(bytes) => {
            let engine = engine().await?;
            let (answer, mut request) = engine.into_split();
            let (mut from, mut to) = client.split();
            let forward = async {
                copy(&mut from, &mut request).await?;
                std::future::pending().await
            };
            let mut answer = answer.take(bytes);
            tokio::select! {
                done = forward => done,
                done = copy(&mut answer, &mut to) => done.map(drop),
            }?;
        }
        Fault::Garbage => say(&mut client, "200 OK", "so sorry").await?,
        Fault::Status(status) => {
            say(
                &mut client,
                &format!("{status} Broken"),
                "{\"message\":\"broken\"}",
            )
            .await?
        }
        Fault::Late(after) => {
            tokio::time::sleep(after).await;
            copy_bidirectional(&mut client, &mut engine().await?).await?;
        }
    }
    Ok(())
}

async fn say(client: &mut UnixStream, status: &str, body: &str) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let _ = client.read(&mut head).await?;
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(answer.as_bytes()).await
}
