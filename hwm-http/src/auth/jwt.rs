//! Tokens: what they say, and whether that can be believed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hwm_core::access::{Owner, Principal, Role};
use hwm_core::units::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation};
use serde::{Deserialize, Serialize};

const LONGEST_TOKEN: usize = 8 * 1024;

/// What a token says, for signing one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// Who it is about; audit fields name it.
    pub sub: String,
    /// For people to read.
    pub username: String,
    /// `active`, or the token is refused.
    pub status: String,
    /// Roles such as `group.editor`.
    pub roles: Vec<String>,
    /// The organization.
    pub org_id: String,
    /// The group inside it.
    pub group_id: String,
    /// The user.
    pub user_id: String,
    /// The agent that acts for the user.
    pub agent_id: String,
    /// The application.
    pub app_id: String,
    /// Until when it is good, in seconds since 1970.
    pub exp: u64,
}

/// Signs a token with HS256.
///
/// ```
/// use hwm_http::auth::{Auth, Claims, sign_hs256};
///
/// let secret = b"thirty-two random bytes are good";
/// let claims = Claims {
///     sub: "ann".into(),
///     roles: vec!["universe.owner".into()],
///     exp: 4_000_000_000,
///     ..Claims::default()
/// };
/// let token = sign_hs256(secret, &claims)?;
/// assert_eq!(token.split('.').count(), 3);
/// assert!(Auth::hs256(secret).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`AuthError::ShortSecret`](super::AuthError::ShortSecret) for a secret that [`Auth`](super::Auth) refuses.
pub fn sign_hs256(secret: &[u8], claims: &Claims) -> Result<String, super::AuthError> {
    let short = super::AuthError::ShortSecret(secret.len());
    if secret.len() < super::SHORTEST_SECRET {
        return Err(short);
    }
    let header = jsonwebtoken::Header::new(Algorithm::HS256);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).map_err(|_| short)
}

/// A key and the one algorithm that it is for.
#[derive(Clone)]
pub(super) struct Key {
    /// Its `kid`, where it has one.
    pub(super) id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    /// What the library is to check.
    validation: Validation,
}

impl Key {
    pub(super) fn new(id: Option<String>, algorithm: Algorithm, key: DecodingKey) -> Self {
        // exp, nbf, aud and iss are judged here, with our clock and without the library's leniencies.
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self {
            id,
            algorithm,
            key,
            validation,
        }
    }
}

/// What must be true of a token besides its signature.
#[derive(Debug, Clone)]
pub(super) struct Expectations {
    pub(super) audiences: Vec<String>,
    pub(super) issuers: Vec<String>,
    pub(super) leeway: Duration,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            audiences: Vec::new(),
            issuers: Vec::new(),
            leeway: Duration::from_secs(5),
        }
    }
}

/// Why a token is not accepted; a fixed text that repeats nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) &'static str);

/// A token that is accepted.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) principal: Principal,
    pub(crate) expires: Timestamp,
}

/// What of a token's header is looked at. Where keys come from is the operator's choice, so `jku`, `jwk`,
/// `x5u` and `x5c` are not.
#[derive(Deserialize)]
pub(super) struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl Header {
    pub(super) fn peek(token: &str) -> Result<Self, Refused> {
        if token.len() > LONGEST_TOKEN {
            return Err(Refused("it is too long"));
        }
        let first = token.split('.').next().unwrap_or_default();
        let json = URL_SAFE_NO_PAD
            .decode(first)
            .map_err(|_| Refused("it is no JWT"))?;
        let header: Self = serde_json::from_slice(&json).map_err(|_| Refused("it is no JWT"))?;
        if header.crit.is_some() {
            return Err(Refused("it has critical extensions"));
        }
        Ok(header)
    }

    fn algorithm(&self) -> Option<Algorithm> {
        match self.alg.as_str() {
            "HS256" => Some(Algorithm::HS256),
            "RS256" => Some(Algorithm::RS256),
            "ES256" => Some(Algorithm::ES256),
            "EdDSA" => Some(Algorithm::EdDSA),
            _ => None,
        }
    }
}

/// Claims as they come. What is present must have the right type; `exp` must be present.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Received {
    sub: String,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    roles: Option<Vec<String>>,
    #[serde(default)]
    org_id: Option<String>,
    #[serde(default)]
    group_id: Option<String>,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    agent_id: Option<String>,
    #[serde(default)]
    app_id: Option<String>,
    exp: serde_json::Number,
    #[serde(default)]
    nbf: Option<serde_json::Number>,
    #[serde(default)]
    aud: Option<OneOrMany>,
    #[serde(default)]
    iss: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn names_one_of(&self, accepted: &[String]) -> bool {
        match self {
            Self::One(one) => accepted.contains(one),
            Self::Many(many) => many.iter().any(|one| accepted.contains(one)),
        }
    }
}

pub(super) fn verify<'a>(
    token: &str,
    header: &Header,
    keys: impl Iterator<Item = &'a Key>,
    expectations: &Expectations,
    now: Timestamp,
) -> Result<Verified, Refused> {
    let algorithm = header
        .algorithm()
        .ok_or(Refused("its algorithm is not accepted"))?;
    let mut refused = Refused("no key has its algorithm and key id");
    for key in keys.filter(|key| key.algorithm == algorithm) {
        // A key that has an id is for tokens that name it; a token without one may try.
        if let (Some(id), Some(wanted)) = (&key.id, &header.kid)
            && id != wanted
        {
            continue;
        }
        match jsonwebtoken::decode::<Received>(token, &key.key, &key.validation) {
            Ok(data) => return accept(data.claims, expectations, now),
            Err(error) => {
                use jsonwebtoken::errors::ErrorKind;
                refused = match error.kind() {
                    ErrorKind::Json(_) => Refused("its claims are missing or have wrong types"),
                    _ => Refused("its signature is wrong"),
                };
            }
        }
    }
    Err(refused)
}

fn accept(claims: Received, expectations: &Expectations, now: Timestamp) -> Result<Verified, Refused> {
    let leeway = i64::try_from(expectations.leeway.as_millis()).unwrap_or(i64::MAX);
    let expires = moment(&claims.exp).ok_or(Refused("its exp is no time"))?;
    if expires.saturating_add(leeway) <= now.as_millis() {
        return Err(Refused("it has expired"));
    }
    if let Some(nbf) = &claims.nbf {
        let from = moment(nbf).ok_or(Refused("its nbf is no time"))?;
        if from.saturating_sub(leeway) > now.as_millis() {
            return Err(Refused("it is not valid yet"));
        }
    }
    match (&claims.aud, expectations.audiences.as_slice()) {
        (None, []) => {}
        (Some(aud), accepted) if aud.names_one_of(accepted) => {}
        _ => return Err(Refused("it is for another audience")),
    }
    match (&claims.iss, expectations.issuers.as_slice()) {
        (_, []) => {}
        (Some(iss), accepted) if accepted.contains(iss) => {}
        _ => return Err(Refused("it is from another issuer")),
    }
    if claims.sub.is_empty() {
        return Err(Refused("it has no subject"));
    }
    if claims.status.is_some_and(|s| !s.eq_ignore_ascii_case("active")) {
        return Err(Refused("its account is not active"));
    }
    let roles = claims.roles.unwrap_or_default();
    Ok(Verified {
        principal: Principal {
            username: claims.username.unwrap_or_else(|| claims.sub.clone()),
            subject: claims.sub,
            owner: Owner {
                org_id: claims.org_id.unwrap_or_default(),
                group_id: claims.group_id.unwrap_or_default(),
                user_id: claims.user_id.unwrap_or_default(),
                agent_id: claims.agent_id.unwrap_or_default(),
                app_id: claims.app_id.unwrap_or_default(),
            },
            // A role that is not known grants nothing; the others do.
            roles: roles
                .iter()
                .filter_map(|role| role.parse::<Role>().ok())
                .collect(),
        },
        expires: Timestamp::from_millis(expires.saturating_add(leeway)),
    })
}

/// Milliseconds since 1970 of a NumericDate.
fn moment(seconds: &serde_json::Number) -> Option<i64> {
    const YEAR_10000: f64 = 253_402_300_800.0;
    let seconds = seconds.as_f64()?;
    (0.0..YEAR_10000)
        .contains(&seconds)
        .then_some((seconds * 1000.0) as i64)
}
