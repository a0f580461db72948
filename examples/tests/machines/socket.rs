//! Consoles over WebSockets.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Opens one, or answers the status that refused it.
    pub(crate) async fn open(url: &str) -> Result<Self, u16> {
        match tokio_tungstenite::connect_async(url).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    /// Reads until `enough` says so.
    pub(crate) async fn read(&mut self, limit: Duration, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut all = Vec::new();
        let reading = async {
            while !enough(&all) {
                match self.0.next().await {
                    Some(Ok(Message::Binary(bytes))) => all.extend_from_slice(&bytes),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
                }
            }
        };
        let late = tokio::time::timeout(limit, reading).await.is_err();
        assert!(!late, "only: {}", String::from_utf8_lossy(&all));
        all
    }

    pub(crate) async fn says(&mut self, limit: Duration, text: &str) {
        self.read(limit, |all| String::from_utf8_lossy(all).contains(text))
            .await;
    }

    /// Waits for its end.
    pub(crate) async fn ends(mut self, limit: Duration) {
        let ended = async {
            while let Some(Ok(message)) = self.0.next().await {
                if message.is_close() {
                    break;
                }
            }
        };
        tokio::time::timeout(limit, ended)
            .await
            .expect("the socket is cut");
    }
}
