//! Consoles: RFB as noVNC reads it, and a serial line as xterm.js reads it.

use axum::extract::ws::Message;
use hwm_core::backend::{ConsoleKind, Input, Output};

use super::Framing;

/// The subprotocol that noVNC and websockify used to ask for.
pub(crate) const PROTOCOLS: [&str; 1] = ["binary"];

/// The framing of consoles: bytes as they are.
pub(crate) struct Raw(pub(crate) ConsoleKind);

impl Framing for Raw {
    fn read(&self, message: Message) -> Result<Option<Input>, &'static str> {
        match (message, self.0) {
            (Message::Binary(bytes), _) => Ok((!bytes.is_empty()).then(|| Input::Data(bytes.to_vec()))),
            // xterm.js sends what is typed as text.
            (Message::Text(text), ConsoleKind::Serial) => {
                Ok((!text.is_empty()).then(|| Input::Data(text.as_bytes().to_vec())))
            }
            (Message::Text(_), ConsoleKind::Vnc) => Err("RFB is binary"),
            (Message::Ping(_) | Message::Pong(_) | Message::Close(_), _) => Ok(None),
        }
    }

    fn write(&self, output: Output) -> Option<Message> {
        match output {
            Output::Stdout(data) | Output::Stderr(data) => Some(Message::Binary(data.into())),
            Output::Exit(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_line_takes_text_and_a_screen_does_not() {
        let text = || Message::Text("ls\n".into());
        assert_eq!(
            Raw(ConsoleKind::Serial).read(text()),
            Ok(Some(Input::Data(b"ls\n".to_vec())))
        );
        assert!(Raw(ConsoleKind::Vnc).read(text()).is_err());
    }

    #[test]
    fn output_is_binary() {
        let message = Raw(ConsoleKind::Vnc).write(Output::Stdout(b"RFB 003.008\n".to_vec()));
        assert_eq!(message, Some(Message::Binary(b"RFB 003.008\n".to_vec().into())));
    }
}
