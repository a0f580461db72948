//! `/resources/{id}/exec`: a command run to its end, or a terminal.

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use hwm_core::access::Permission;
use hwm_core::backend::ExecSession;
use hwm_core::id::ResourceId;
use hwm_core::validate;

use super::headers::IdempotencyHeader;
use super::refusals::PlainRefused;
use super::{BackendReadRefused, ChangeRefused};
use crate::auth::{Caller, Visitor};
use crate::body::{Command, CommandOutput};
use crate::error::ApiError;
use crate::extract::{Change, FromQuery, Id, NoQuery, Query, QueryReader};
use crate::state::Shared;
use crate::tickets::TicketPurpose;
use crate::ws::{self, exec};

const MOST_ARGUMENTS: usize = 256;
const LONGEST_ARGUMENT: usize = 8192;

/// Runs a command in a container, to its end or its timeout. A non-zero exit code is no error.
#[utoipa::path(
    post,
    path = "/resources/{id}/exec",
    tag = "interact",
    operation_id = "runCommand",
    params(
        ("id" = ResourceId, Path, description = "The container"),
        IdempotencyHeader
    ),
    request_body(content = Command, examples(
        ("Which system" = (value = json!({ "command": "uname -a", "timeoutSeconds": 10 })))
    )),
    responses((status = 200, description = "What it did", body = CommandOutput), ChangeRefused)
)]
pub(crate) async fn run(
    State(api): State<Shared>,
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Json<CommandOutput>, ApiError> {
    let request =
        validate::exec_request(&change.json()?).map_err(|violations| ApiError::validation(&violations))?;
    // If-Match is judged as for every action; the command itself changes no revision.
    let options = change.options(&caller, id).await?;
    if let Some(wanted) = options.if_match
        && caller.scoped.get(id, false).await?.revision != wanted
    {
        return Err(hwm_core::Error::PreconditionFailed { resource: id }.into());
    }
    let answer = api
        .in_flight
        .once(&caller, change.idempotency.as_ref(), || async {
            let output = caller.scoped.exec(id, request.clone()).await?;
            Ok(CommandOutput {
                resource_id: id,
                command: request.command,
                working_dir: request.working_dir,
                output: output.output,
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.exit_code,
                truncated: output.truncated,
                timestamp: api.options.environment.now(),
            })
        })
        .await?;
    Ok(Json(answer))
}

/// What the terminal runs.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TerminalParameters {
    /// The program; repeated, its arguments follow. Given once with more than a word, it is a line for
    /// `/bin/sh -c`; `/bin/sh` when absent.
    #[param(value_type = Option<Vec<String>>, style = Form, explode)]
    command: Vec<String>,
    /// Whether it gets a terminal; true when absent.
    tty: Option<bool>,
}

impl FromQuery for TerminalParameters {
    fn from_query(query: &mut QueryReader) -> Self {
        // It is the visitor's.
        query.text("ticket");
        let command = query.all("command");
        let fits = |argument: &String| argument.len() <= LONGEST_ARGUMENT && !argument.contains('\0');
        let named = command.first().is_none_or(|program| !program.trim().is_empty());
        if !named || command.len() > MOST_ARGUMENTS || !command.iter().all(fits) {
            query.refuse(
                "command",
                format!(
                    "must be a program and at most {} arguments, each of at most {LONGEST_ARGUMENT} bytes without NUL",
                    MOST_ARGUMENTS - 1
                ),
            );
        }
        Self {
            command,
            tty: query.flag("tty"),
        }
    }
}

/// Program and arguments of what was asked for.
fn argv(command: Vec<String>) -> Vec<String> {
    let shell = || "/bin/sh".to_owned();
    match <[String; 1]>::try_from(command) {
        Err(none) if none.is_empty() => vec![shell()],
        Err(several) => several,
        Ok([one]) => {
            let word = |b: u8| b.is_ascii_alphanumeric() || b"/._-+".contains(&b);
            if one.bytes().all(word) {
                vec![one]
            } else {
                vec![shell(), "-c".to_owned(), one]
            }
        }
    }
}

/// Opens a terminal in a container: a WebSocket with the subprotocol `v4.channel.k8s.io`. Binary frames, the
/// first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 exit status as JSON, 4 resize
/// `{"Width", "Height"}`. A client that can neither set a header nor get a ticket sends `{"token": "…"}` as
/// its first message.
#[utoipa::path(
    get,
    path = "/resources/{id}/exec",
    tag = "interact",
    operation_id = "openTerminal",
    params(
        ("id" = ResourceId, Path, description = "The container"),
        TerminalParameters,
        ("ticket" = Option<String>, Query, description = "One for `exec`, in place of the Authorization header")
    ),
    responses(
        (status = 101, description = "The terminal (WebSocket)"),
        BackendReadRefused,
        PlainRefused
    )
)]
pub(crate) async fn attach(
    State(api): State<Shared>,
    visitor: Visitor,
    Id(id): Id<ResourceId>,
    Query(parameters): Query<TerminalParameters>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let Ok(upgrade) = upgrade else {
        return Err(refuse_plain(&visitor.with_token()?, id).await);
    };
    ws::check_origin(&api, &headers)?;
    let caller = visitor.may_open(id, TicketPurpose::Exec)?;
    let session = ExecSession {
        command: argv(parameters.command),
        tty: parameters.tty.unwrap_or(true),
        size: None,
    };
    ws::connect(
        api,
        upgrade.protocols(exec::PROTOCOLS),
        caller,
        id,
        exec::Channels,
        move |caller| async move { caller.scoped.open_exec(id, session).await },
    )
    .await
}

/// Says what is wrong with a GET that is no handshake, as far as the caller may know.
async fn refuse_plain(caller: &Caller, id: ResourceId) -> ApiError {
    match caller.scoped.get(id, false).await {
        Ok(found) if caller.principal().may(Permission::Write, &found.resource.owner) => {
            ws::upgrade_required()
        }
        Ok(_) => ApiError::forbidden("a terminal is not allowed: it needs a role such as member.editor"),
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_program_a_shell_line_or_program_and_arguments() {
        let of = |command: &[&str]| argv(command.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(of(&[]), ["/bin/sh"]);
        assert_eq!(of(&["/usr/bin/bash"]), ["/usr/bin/bash"]);
        assert_eq!(of(&["ls -l; id"]), ["/bin/sh", "-c", "ls -l; id"]);
        assert_eq!(of(&["ls", "-l", "a b"]), ["ls", "-l", "a b"]);
    }
}
