//! The API on a real socket, and clients for what streams.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::house::House;

pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) server: tokio::task::JoinHandle<()>,
}

impl House {
    pub(crate) async fn listen(&self) -> Listener {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = self
            .app
            .clone()
            .into_make_service_with_connect_info::<SocketAddr>();
        let stop = self.options.shutdown.clone();
        let server = tokio::spawn(async move {
            axum::serve(listener, service)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .unwrap();
        });
        Listener { address, server }
    }
}

/// One frame of an event stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: String,
    pub(crate) comment: String,
    pub(crate) retry: String,
}

impl Frame {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// A client of server-sent events that knows no HTTP but what axum answers.
pub(crate) struct Sse {
    reader: BufReader<TcpStream>,
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pending: String,
}

impl Sse {
    pub(crate) async fn open(listener: &Listener, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(listener.address).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await.unwrap();
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_ascii_lowercase());
        }
        let status = head[0].split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            reader,
            status,
            headers: head,
            pending: String::new(),
        }
    }

    /// The next frame; none when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let wait = Duration::from_secs(10);
        tokio::time::timeout(wait, self.read())
            .await
            .expect("no frame within 10 s")
    }

    /// The next frame that has a name and is not about the node itself.
    pub(crate) async fn event(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if !frame.event.is_empty() && !frame.event.starts_with("node.") {
                return Some(frame);
            }
        }
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.pending.split_once("\n\n") {
                let mut parsed = Frame::default();
                for line in frame.lines() {
                    let (name, value) = line.split_once(':').unwrap();
                    let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
                    match name {
                        "" => parsed.comment = value,
                        "id" => parsed.id = value,
                        "event" => parsed.event = value,
                        "data" => parsed.data = value,
                        "retry" => parsed.retry = value,
                        other => panic!("{other}"),
                    }
                }
                self.pending = rest.to_owned();
                return Some(parsed);
            }
            let mut size = String::new();
            if self.reader.read_line(&mut size).await.ok()? == 0 {
                return None;
            }
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk).await.ok()?;
            if size == 0 {
                return None;
            }
            chunk.truncate(size);
            self.pending.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Opens one, or answers the status that refused it.
    pub(crate) async fn open(
        listener: &Listener,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Option<String>), u16> {
        let mut request = format!("ws://{}{path}", listener.address)
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, response)) => {
                let protocol = response.headers().get("sec-websocket-protocol");
                let protocol = protocol.map(|v| v.to_str().unwrap().to_owned());
                Ok((Self(socket), protocol))
            }
            Err(WsError::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn binary(&mut self, bytes: &[u8]) {
        self.0.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    pub(crate) async fn try_binary(&mut self, bytes: Vec<u8>) -> bool {
        self.0.send(Message::binary(bytes)).await.is_ok()
    }

    /// The next binary message, or how the server closed.
    pub(crate) async fn next(&mut self) -> Result<Vec<u8>, Option<CloseFrame>> {
        let wait = Duration::from_secs(10);
        tokio::time::timeout(wait, async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Binary(bytes))) => return Ok(bytes.to_vec()),
                    Some(Ok(Message::Close(frame))) => return Err(frame),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(None),
                }
            }
        })
        .await
        .expect("nothing within 10 s")
    }

    /// How the server closes, whatever it sends before.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Err(frame) = self.next().await {
                let frame = frame.expect("closed without a close frame");
                return (frame.code.into(), frame.reason.to_string());
            }
        }
    }
}
