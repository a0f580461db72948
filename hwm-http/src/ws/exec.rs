//! Terminals: `v4.channel.k8s.io`, binary frames whose first byte is a channel.
//!
//! ```text
//! 0 stdin →   1 ← stdout   2 ← stderr   3 ← exit status (JSON)   4 resize → {"Width", "Height"}
//! 255 close → the channel that the second byte names (v5 only)
//! ```

use axum::extract::ws::Message;
use hwm_core::backend::{Input, Output, TerminalSize};
use serde::Deserialize;
use serde_json::json;

use super::Framing;
use crate::error::ApiError;

/// Subprotocols, the better first.
pub(crate) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The framing of terminals.
pub(crate) struct Channels;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resize {
    width: u16,
    height: u16,
}

impl Framing for Channels {
    fn read(&self, message: Message) -> Result<Option<Input>, &'static str> {
        let Message::Binary(bytes) = message else {
            return Ok(None);
        };
        let Some((&channel, data)) = bytes.split_first() else {
            return Ok(None);
        };
        match channel {
            // Clients of Kubernetes open a channel by an empty frame.
            STDIN if data.is_empty() => Ok(None),
            STDIN => Ok(Some(Input::Data(data.to_vec()))),
            RESIZE => {
                let Resize { width, height } =
                    serde_json::from_slice(data).map_err(|_| "a resize is {\"Width\", \"Height\"}")?;
                Ok((width > 0 && height > 0).then_some(Input::Resize(TerminalSize { width, height })))
            }
            CLOSE if data == [STDIN] => Ok(Some(Input::Close)),
            _ => Err("only channels 0 and 4 can be written to"),
        }
    }

    fn write(&self, output: Output) -> Option<Message> {
        Some(match output {
            Output::Stdout(data) => frame(STDOUT, &data),
            Output::Stderr(data) => frame(STDERR, &data),
            Output::Exit(0) => status(&json!({ "metadata": {}, "status": "Success", "exitCode": 0 })),
            Output::Exit(code) => status(&json!({
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": format!("command terminated with exit code {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
                "exitCode": code,
            })),
        })
    }

    fn failure(&self, error: &ApiError) -> Option<Message> {
        Some(status(&json!({
            "metadata": {},
            "status": "Failure",
            "reason": "InternalError",
            "message": error.message,
            "code": error.status.as_u16(),
        })))
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

fn status(value: &serde_json::Value) -> Message {
    frame(STATUS, value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Input>, &'static str> {
        Channels.read(Message::Binary(bytes.to_vec().into()))
    }

    #[test]
    fn channels_are_told_apart_by_their_first_byte() {
        assert_eq!(read(b"\x00ls\n"), Ok(Some(Input::Data(b"ls\n".to_vec()))));
        let size = TerminalSize {
            width: 80,
            height: 24,
        };
        assert_eq!(
            read(b"\x04{\"Width\":80,\"Height\":24}"),
            Ok(Some(Input::Resize(size)))
        );
        assert_eq!(read(b"\xff\x00"), Ok(Some(Input::Close)));
        assert_eq!(
            Channels.write(Output::Stderr(b"no".to_vec())),
            Some(Message::Binary(b"\x02no".to_vec().into()))
        );
    }

    #[test]
    fn frames_that_say_nothing_are_passed_over() {
        assert_eq!(read(b""), Ok(None));
        assert_eq!(read(b"\x00"), Ok(None));
        assert_eq!(read(b"\x04{\"Width\":0,\"Height\":24}"), Ok(None));
        assert_eq!(Channels.read(Message::Text("hello".into())), Ok(None));
    }

    #[test]
    fn what_a_client_may_not_write_is_refused() {
        for bytes in [
            &b"\x01x"[..],
            b"\x03{}",
            b"\x05x",
            b"\xff",
            b"\xff\x01",
            b"\x04nonsense",
            b"\x04{\"Width\":-1,\"Height\":1}",
            b"\x04{\"Width\":70000,\"Height\":1}",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_exit_status_is_one_that_kubernetes_clients_read() {
        let Some(Message::Binary(bytes)) = Channels.write(Output::Exit(137)) else {
            panic!("no frame")
        };
        assert_eq!(bytes[0], 3);
        let value: serde_json::Value = serde_json::from_slice(&bytes[1..]).unwrap();
        assert_eq!(value["status"], "Failure");
        assert_eq!(value["details"]["causes"][0]["message"], "137");
    }
}
