//! The screen through our WebSocket, beside QEMU's own socket: whole pictures, uncompressed, as fast as they come.

use std::time::{Duration, Instant};

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use futures_util::{SinkExt, StreamExt};
use hwm_benches::Figure;
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;

use crate::Error;
use crate::rig::Rig;

/// How long pictures are asked for each way, and how often in turns.
const TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

/// A connection that speaks RFB.
enum Wire {
    Socket(UnixStream),
    Web(
        Box<tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>>,
        Vec<u8>,
    ),
}

impl Wire {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Socket(socket) => Ok(socket.write_all(bytes).await?),
            Self::Web(socket, _) => Ok(socket.send(Message::binary(bytes.to_vec())).await?),
        }
    }

    async fn read(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::Socket(socket) => {
                socket.read_exact(buffer).await?;
            }
            Self::Web(socket, rest) => {
                let mut filled = 0;
                while filled < buffer.len() {
                    if rest.is_empty() {
                        match socket.next().await.ok_or("the socket ended")?? {
                            Message::Binary(bytes) => rest.extend_from_slice(&bytes),
                            Message::Close(why) => return Err(format!("closed: {why:?}").into()),
                            _ => continue,
                        }
                    }
                    let n = rest.len().min(buffer.len() - filled);
                    buffer[filled..filled + n].copy_from_slice(&rest[..n]);
                    rest.drain(..n);
                    filled += n;
                }
            }
        }
        Ok(())
    }

    async fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.read(&mut bytes).await?;
        Ok(bytes)
    }

    /// Greets, answers the password's challenge, and answers the screen's size.
    async fn greet(&mut self, password: &str) -> Result<(u16, u16), Error> {
        self.take::<12>().await?;
        self.send(b"RFB 003.008\n").await?;
        let [kinds] = self.take().await?;
        let mut offered = vec![0; kinds.into()];
        self.read(&mut offered).await?;
        if offered != [2] {
            return Err(format!("kinds of security: {offered:?}").into());
        }
        self.send(&[2]).await?;
        let mut challenge: [u8; 16] = self.take().await?;
        let mut key = [0; 8];
        for (to, from) in key.iter_mut().zip(password.bytes()) {
            *to = from.reverse_bits();
        }
        let des = Des::new(&key.into());
        for half in challenge.chunks_exact_mut(8) {
            let mut block = <[u8; 8]>::try_from(&*half)?.into();
            des.encrypt_block(&mut block);
            half.copy_from_slice(&block);
        }
        self.send(&challenge).await?;
        if self.take::<4>().await? != [0; 4] {
            return Err("the password is refused".into());
        }
        self.send(&[1]).await?;
        let init: [u8; 24] = self.take().await?;
        let name = u32::from_be_bytes([init[20], init[21], init[22], init[23]]);
        self.read(&mut vec![0; name as usize]).await?;
        // Raw pictures only.
        self.send(&[2, 0, 0, 1, 0, 0, 0, 0]).await?;
        Ok((
            u16::from_be_bytes([init[0], init[1]]),
            u16::from_be_bytes([init[2], init[3]]),
        ))
    }

    /// Asks for whole pictures, one after the other, and answers how many bytes came in a second.
    async fn rate(&mut self, (width, height): (u16, u16)) -> Result<f64, Error> {
        let mut ask = vec![3, 0, 0, 0, 0, 0];
        ask.extend(width.to_be_bytes());
        ask.extend(height.to_be_bytes());
        let mut bytes = 0;
        let mut pixels = Vec::new();
        let begun = Instant::now();
        self.send(&ask).await?;
        while begun.elapsed() < TIME {
            let [kind, _, high, low] = self.take().await?;
            if kind != 0 {
                return Err(format!("a message of kind {kind}").into());
            }
            self.send(&ask).await?;
            for _ in 0..u16::from_be_bytes([high, low]) {
                let rectangle: [u8; 12] = self.take().await?;
                let side = |at: usize| usize::from(u16::from_be_bytes([rectangle[at], rectangle[at + 1]]));
                pixels.resize(side(4) * side(6) * 4, 0);
                self.read(&mut pixels).await?;
                bytes += pixels.len() + 12;
            }
        }
        Ok(bytes as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20))
    }
}

pub(crate) async fn figure(rig: &Rig) -> Result<Figure, Error> {
    let raw_id = uuid::Uuid::now_v7().to_string();
    tokio::task::block_in_place(|| rig.raw.create(&raw_id, true))?;
    let id = rig.create("screen").await?;
    let xml = rig
        .raw
        .domain(&raw_id)?
        .get_xml_desc(virt::sys::VIR_DOMAIN_XML_SECURE)?;
    let attribute = |name: &str| {
        let rest = xml
            .split_once("<graphics ")?
            .1
            .split_once(&format!("{name}='"))?
            .1;
        Some(rest.split_once('\'')?.0.to_owned())
    };
    let password = attribute("passwd").ok_or("the raw machine has no password")?;
    let socket = attribute("socket").ok_or("the raw machine has no socket")?;
    // Where libvirt's folders are in the lab.
    let lab = std::env::var("HWM_TEST_LAB_DIR")?;
    let socket = socket.replace("/var/lib/libvirt", &format!("{lab}/libvirt/lib"));

    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut wire = Wire::Socket(UnixStream::connect(&socket).await?);
        let size = wire.greet(&password).await?;
        raw.push(wire.rate(size).await?);
        let where_ = rig
            .ask(Method::GET, &format!("/resources/{id}/console"), None)
            .await?;
        let (url, password) = (
            where_["url"].as_str().unwrap_or_default(),
            where_["password"].as_str(),
        );
        let (web, _) = tokio_tungstenite::connect_async(url).await?;
        let mut wire = Wire::Web(Box::new(web), Vec::new());
        let size = wire.greet(password.unwrap_or_default()).await?;
        ours.push(wire.rate(size).await?);
    }
    rig.delete(&id).await?;
    tokio::task::block_in_place(|| rig.raw.delete(&raw_id))?;
    let middle = |mut rates: Vec<f64>| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    Ok(Figure {
        name: "whole pictures of a screen through the console's WebSocket".to_owned(),
        value: middle(ours),
        unit: "MB/s",
        beside: Some(("QEMU's own socket", middle(raw))),
        target: Some("at least 0.8 ×"),
    })
}
