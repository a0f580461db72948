//! A small RFB 3.8 server: VNC authentication and a test picture, enough for a real client to show.

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};

use super::Inner;
use crate::backend::{Input, Output, SessionPeer};

const WIDTH: u16 = 640;
const HEIGHT: u16 = 400;
const REFRESH: std::time::Duration = std::time::Duration::from_millis(500);

/// Serves one viewer until it goes, or until it breaks the protocol. Answers none then.
pub(super) async fn serve(inner: &Inner, name: &str, password: &str, peer: &mut SessionPeer) -> Option<()> {
    let mut wire = Wire {
        peer,
        read: Vec::new(),
    };
    wire.write(b"RFB 003.008\n".to_vec()).await?;
    let version = wire.read::<12>().await?;
    if !version.starts_with(b"RFB 003.") {
        return None;
    }
    let vnc_authentication = 2;
    if &version == b"RFB 003.003\n" {
        wire.write(vec![0, 0, 0, vnc_authentication]).await?;
    } else {
        wire.write(vec![1, vnc_authentication]).await?;
        if wire.read::<1>().await? != [vnc_authentication] {
            return None;
        }
    }
    let challenge = inner.env.random().to_be_bytes();
    wire.write(challenge.to_vec()).await?;
    let response = wire.read::<16>().await?;
    if response != answer(password, challenge) {
        let reason = b"the password is wrong";
        let mut refusal = vec![0, 0, 0, 1, 0, 0, 0, reason.len() as u8];
        refusal.extend_from_slice(reason);
        wire.write(refusal).await?;
        return None;
    }
    wire.write(vec![0, 0, 0, 0]).await?;
    let _shared = wire.read::<1>().await?;
    let mut format = PixelFormat::default();
    let mut hello = Vec::new();
    hello.extend_from_slice(&WIDTH.to_be_bytes());
    hello.extend_from_slice(&HEIGHT.to_be_bytes());
    hello.extend_from_slice(&format.0);
    hello.extend_from_slice(&(name.len() as u32).to_be_bytes());
    hello.extend_from_slice(name.as_bytes());
    wire.write(hello).await?;
    loop {
        match wire.read::<1>().await?[0] {
            // SetPixelFormat
            0 => {
                let body = wire.read::<19>().await?;
                format.0.copy_from_slice(&body[3..]);
            }
            // SetEncodings: raw is always understood.
            2 => {
                let head = wire.read::<3>().await?;
                wire.skip(4 * usize::from(u16::from_be_bytes([head[1], head[2]])))
                    .await?;
            }
            // FramebufferUpdateRequest
            3 => {
                let body = wire.read::<9>().await?;
                let incremental = body[0] != 0;
                if incremental {
                    inner.take(REFRESH).await;
                }
                let seconds = inner.env.now().as_millis() / 1000;
                let top = if incremental { HEIGHT - 40 } else { 0 };
                wire.write(update(&format, top, seconds)).await?;
            }
            // KeyEvent
            4 => wire.skip(7).await?,
            // PointerEvent
            5 => wire.skip(5).await?,
            // ClientCutText
            6 => {
                let head = wire.read::<7>().await?;
                let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
                wire.skip(length.min(1 << 20) as usize).await?;
            }
            _ => return None,
        }
    }
}

/// What a viewer that knows the password answers: DES with each byte of the password mirrored.
fn answer(password: &str, challenge: [u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (k, byte) in key.iter_mut().zip(password.bytes()) {
        *k = byte.reverse_bits();
    }
    let des = Des::new(&key.into());
    let mut response = challenge;
    for half in response.chunks_exact_mut(8) {
        let mut block = [0; 8];
        block.copy_from_slice(half);
        let mut block = block.into();
        des.encrypt_block(&mut block);
        half.copy_from_slice(&block);
    }
    response
}

/// The sixteen bytes in which the protocol says how a pixel is written.
struct PixelFormat([u8; 16]);

impl Default for PixelFormat {
    fn default() -> Self {
        // 32 bits, depth 24, little-endian, true colour, 8 bits each, red at 16, green at 8, blue at 0.
        Self([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0])
    }
}

impl PixelFormat {
    fn write(&self, [red, green, blue]: [u8; 3], to: &mut Vec<u8>) {
        let f = &self.0;
        let scaled = |value: u8, max: [u8; 2], shift: u8| {
            (u32::from(value) * u32::from(u16::from_be_bytes(max)) / 255) << (shift & 31)
        };
        let pixel = scaled(red, [f[4], f[5]], f[10])
            | scaled(green, [f[6], f[7]], f[11])
            | scaled(blue, [f[8], f[9]], f[12]);
        let bytes = match f[0] {
            8 => 1,
            16 => 2,
            _ => 4,
        };
        if f[2] == 0 {
            to.extend_from_slice(&pixel.to_le_bytes()[..bytes]);
        } else {
            to.extend_from_slice(&pixel.to_be_bytes()[4 - bytes..]);
        }
    }
}

/// One rectangle, raw, from `top` to the bottom: colour bars above a row of blocks that counts seconds.
fn update(format: &PixelFormat, top: u16, seconds: i64) -> Vec<u8> {
    const BARS: [[u8; 3]; 8] = [
        [235, 235, 235],
        [235, 235, 16],
        [16, 235, 235],
        [16, 235, 16],
        [235, 16, 235],
        [235, 16, 16],
        [16, 16, 235],
        [16, 16, 16],
    ];
    let mut message = vec![0, 0, 0, 1, 0, 0];
    message.extend_from_slice(&top.to_be_bytes());
    message.extend_from_slice(&WIDTH.to_be_bytes());
    message.extend_from_slice(&(HEIGHT - top).to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    for y in top..HEIGHT {
        for x in 0..WIDTH {
            let color = if y < HEIGHT - 40 {
                BARS[usize::from(x * 8 / WIDTH)]
            } else {
                let bit = 15 - x * 16 / WIDTH;
                let edge = x % (WIDTH / 16) < 3 || y < HEIGHT - 37;
                match (edge, (seconds >> bit) & 1) {
                    (true, _) => [16, 16, 16],
                    (false, 1) => [118, 185, 0],
                    (false, _) => [60, 60, 60],
                }
            };
            format.write(color, &mut message);
        }
    }
    message
}

struct Wire<'a> {
    peer: &'a mut SessionPeer,
    read: Vec<u8>,
}

impl Wire<'_> {
    async fn fill(&mut self, wanted: usize) -> Option<()> {
        while self.read.len() < wanted {
            match self.peer.input.recv().await? {
                Input::Data(bytes) => self.read.extend_from_slice(&bytes),
                Input::Close => return None,
                Input::Resize(_) => {}
            }
        }
        Some(())
    }

    async fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.fill(N).await?;
        let mut taken = [0; N];
        taken.copy_from_slice(&self.read[..N]);
        self.read.drain(..N);
        Some(taken)
    }

    async fn skip(&mut self, bytes: usize) -> Option<()> {
        self.fill(bytes).await?;
        self.read.drain(..bytes);
        Some(())
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Option<()> {
        for part in bytes.chunks(64 * 1024) {
            self.peer
                .output
                .send(Ok(Output::Stdout(part.to_vec())))
                .await
                .ok()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_challenge_is_the_one_that_viewers_give() {
        let one = answer("password", [0; 16]);
        assert_eq!(one[..8], one[8..], "both halves are enciphered alike");
        assert_ne!(one, answer("passwore", [0; 16]));
        assert_eq!(
            one,
            answer("password-and-more", [0; 16]),
            "eight characters count"
        );
    }

    #[test]
    fn an_update_has_as_many_bytes_as_its_header_says() {
        let format = PixelFormat::default();
        let whole = update(&format, 0, 5);
        assert_eq!(whole.len(), 16 + usize::from(WIDTH) * usize::from(HEIGHT) * 4);
        let mut small = PixelFormat::default();
        small.0[0] = 16;
        assert_eq!(
            update(&small, HEIGHT - 40, 5).len(),
            16 + usize::from(WIDTH) * 40 * 2
        );
    }
}
