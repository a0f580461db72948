//! Tickets: what a browser puts into a URL in place of a token. Each opens one stream, once, within a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hwm_core::env::Environment;
use hwm_core::id::ResourceId;
use hwm_core::manager::Idempotency;
use hwm_core::units::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::auth::Identity;
use crate::error::ApiError;

/// How long a ticket is good.
const LIFETIME: Duration = Duration::from_secs(60);

/// Tickets that may be out at once.
const MOST: usize = 100_000;

/// What a ticket opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TicketPurpose {
    /// A terminal: `GET /resources/{id}/exec`.
    Exec,
    /// A machine's console: `GET /resources/{id}/console`.
    Console,
    /// The log: `GET /resources/{id}/logs`.
    Logs,
    /// The events about the resource: `GET /events`.
    Events,
}

impl TicketPurpose {
    pub(crate) const ALL: [Self; 4] = [Self::Exec, Self::Console, Self::Logs, Self::Events];

    /// The word in JSON.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Console => "console",
            Self::Logs => "logs",
            Self::Events => "events",
        }
    }
}

/// The tickets that are out. They live in memory only: after a restart there are none.
pub(crate) struct Tickets {
    environment: Arc<dyn Environment>,
    out: Mutex<Out>,
}

#[derive(Default)]
struct Out {
    /// By digest, so that looking one up tells nothing by its timing.
    tickets: HashMap<[u8; 32], Ticket>,
    /// What was answered under an idempotency key, as long as it is good.
    answered: HashMap<String, Answered>,
}

struct Ticket {
    identity: Identity,
    resource: ResourceId,
    purpose: TicketPurpose,
    expires: Timestamp,
}

struct Answered {
    fingerprint: String,
    issued: Issued,
}

/// A ticket as its owner gets it.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) ticket: String,
    pub(crate) expires: Timestamp,
}

impl Tickets {
    pub(crate) fn new(environment: Arc<dyn Environment>) -> Self {
        Self {
            environment,
            out: Mutex::default(),
        }
    }

    /// Makes a ticket, or answers the one that the same request got while it is good.
    pub(crate) fn issue(
        &self,
        identity: &Identity,
        resource: ResourceId,
        purpose: TicketPurpose,
        idempotency: Option<&Idempotency>,
    ) -> Result<Issued, ApiError> {
        let now = self.environment.now();
        let mut out = self.out.lock().unwrap_or_else(|e| e.into_inner());
        out.tickets.retain(|_, ticket| ticket.expires > now);
        out.answered.retain(|_, answered| answered.issued.expires > now);
        let remember = idempotency.map(|i| {
            let principal = &identity.principal;
            let key = format!("{}\n{}\n{}", principal.owner.org_id, principal.subject, i.key);
            (key, i.fingerprint.clone())
        });
        if let Some((key, fingerprint)) = &remember
            && let Some(answered) = out.answered.get(key)
        {
            return if answered.fingerprint == *fingerprint {
                Ok(answered.issued.clone())
            } else {
                Err(hwm_core::Error::IdempotencyMismatch.into())
            };
        }
        if out.tickets.len() >= MOST {
            return Err(ApiError::rate_limited(LIFETIME));
        }
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(&self.environment.random().to_be_bytes());
        secret[16..].copy_from_slice(&self.environment.random().to_be_bytes());
        let issued = Issued {
            ticket: URL_SAFE_NO_PAD.encode(secret),
            expires: (now + LIFETIME).min(identity.credential.expires),
        };
        out.tickets.insert(
            digest(&issued.ticket),
            Ticket {
                identity: identity.clone(),
                resource,
                purpose,
                expires: issued.expires,
            },
        );
        if let Some((key, fingerprint)) = remember {
            out.answered.insert(
                key,
                Answered {
                    fingerprint,
                    issued: issued.clone(),
                },
            );
        }
        Ok(issued)
    }

    /// Takes a ticket back: whose it is, and what it opens. Whatever it was shown for, it is used up.
    pub(crate) fn take(&self, ticket: &str) -> Result<(Identity, Taken), ApiError> {
        let taken = {
            let mut out = self.out.lock().unwrap_or_else(|e| e.into_inner());
            out.tickets.remove(&digest(ticket)).ok_or_else(refused)?
        };
        if taken.expires <= self.environment.now() {
            return Err(refused());
        }
        let Ticket {
            identity,
            resource,
            purpose,
            ..
        } = taken;
        Ok((identity, Taken { resource, purpose }))
    }
}

/// What a ticket that was taken back opens.
pub(crate) struct Taken {
    resource: ResourceId,
    purpose: TicketPurpose,
}

impl Taken {
    /// The resource that it is bound to, where it was made for this.
    pub(crate) fn opens(
        &self,
        wanted: Option<ResourceId>,
        purpose: TicketPurpose,
    ) -> Result<ResourceId, ApiError> {
        if self.purpose == purpose && wanted.is_none_or(|wanted| wanted == self.resource) {
            Ok(self.resource)
        } else {
            Err(refused())
        }
    }
}

fn refused() -> ApiError {
    ApiError::unauthorized(Some("the ticket is not good here, or not any more"))
}

fn digest(ticket: &str) -> [u8; 32] {
    Sha256::digest(ticket.as_bytes()).into()
}
