//! Whose tokens are accepted; `server token`.

use std::fs;
use std::io::Write;
use std::path::Path;

use hwm_core::access::{Kind, Role, Scope};
use hwm_core::env::{Environment, SystemEnvironment};
use hwm_core::secret::Secret;
use hwm_http::auth::{Auth, Claims, sign_hs256};

use crate::datadir;
use crate::failure::Failure;
use crate::flags::{Keys, TokenRequest};

/// What tokens are checked against.
pub(crate) struct Accepted {
    pub(crate) auth: Auth,
    /// A token that may do everything, when the shared secret was made just now.
    pub(crate) admin: Option<String>,
}

/// The shared secret, and whether it was made just now.
struct Shared {
    secret: Secret,
    made: bool,
}

/// Prints a token on standard output, and nothing else.
pub(crate) fn print(keys: &Keys, data_dir: &Path, request: &TokenRequest) -> Result<(), Failure> {
    complete(request)?;
    let shared = shared(keys, data_dir)?.ok_or(Failure::NoSecret)?;
    let token = sign(&shared.secret, request)?;
    writeln!(std::io::stdout(), "{token}").map_err(|source| Failure::System {
        doing: "cannot print the token",
        source,
    })
}

/// Refuses roles that reach nothing because what they are about is not named.
fn complete(request: &TokenRequest) -> Result<(), Failure> {
    for role in &request.roles {
        let missing = match role.scope {
            Scope::Universe => None,
            _ if request.org.is_empty() => Some("--org"),
            Scope::Organization => None,
            Scope::Group | Scope::Member if request.group.is_empty() => Some("--group"),
            Scope::Group | Scope::Member => None,
        };
        if let Some(missing) = missing {
            return Err(Failure::Choice {
                what: format!("{role} reaches nothing without {missing}"),
            });
        }
    }
    Ok(())
}

/// Whose tokens are accepted.
pub(crate) fn accepted(keys: &Keys, data_dir: &Path) -> Result<Accepted, Failure> {
    let shared = shared(keys, data_dir)?;
    let of_secret = shared
        .as_ref()
        .map(|s| Auth::hs256(s.secret.expose().as_bytes()))
        .transpose()?;
    let of_file = keys.jwks.as_deref().map(Auth::jwks_file).transpose()?;
    let auth = match (of_secret, of_file) {
        (Some(one), Some(other)) => one.or(other),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return Err(Failure::NoSecret),
    };
    let admin = match shared {
        Some(Shared { secret, made: true }) => Some(sign(&secret, &admin())?),
        _ => None,
    };
    Ok(Accepted { auth, admin })
}

fn admin() -> TokenRequest {
    TokenRequest {
        roles: vec![Role {
            scope: Scope::Universe,
            kind: Kind::Owner,
        }],
        org: String::new(),
        group: String::new(),
        user: "admin".to_owned(),
        agent: String::new(),
        app: String::new(),
        hours: 365 * 24,
    }
}

fn shared(keys: &Keys, data_dir: &Path) -> Result<Option<Shared>, Failure> {
    let known = |secret: &str| {
        Ok(Some(Shared {
            secret: Secret::new(secret),
            made: false,
        }))
    };
    if let Some(path) = &keys.jwt_secret_file {
        let text = fs::read_to_string(path).map_err(|source| Failure::Secret {
            path: path.clone(),
            source,
        })?;
        return known(text.trim_end_matches(['\r', '\n']));
    }
    for name in ["HWM_JWT_SECRET", "JWT_SECRET"] {
        if let Ok(text) = std::env::var(name)
            && !text.is_empty()
        {
            return known(&text);
        }
    }
    if keys.jwks.is_some() {
        return Ok(None);
    }
    let path = datadir::make(data_dir)?.join("jwt-secret");
    let env = SystemEnvironment;
    let (text, made) = datadir::keep(&path, || format!("{:032x}{:032x}\n", env.random(), env.random()))?;
    Ok(Some(Shared {
        secret: Secret::new(text.trim_end()),
        made,
    }))
}

fn sign(secret: &Secret, request: &TokenRequest) -> Result<String, Failure> {
    let now = SystemEnvironment.now().as_millis() / 1000;
    let claims = Claims {
        sub: request.user.clone(),
        username: request.user.clone(),
        status: "active".to_owned(),
        roles: request.roles.iter().map(ToString::to_string).collect(),
        org_id: request.org.clone(),
        group_id: request.group.clone(),
        user_id: request.user.clone(),
        agent_id: request.agent.clone(),
        app_id: request.app.clone(),
        exp: u64::try_from(now).unwrap_or_default() + u64::from(request.hours) * 3600,
    };
    Ok(sign_hs256(secret.expose().as_bytes(), &claims)?)
}
