//! Tokens that are not what they seem. None is accepted.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use hwm_http::auth::Auth;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::house::{ADMIN, House, SECRET, house_with};

const RSA: &[u8] = include_bytes!("../keys/ours-rsa.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("../keys/ours-rsa.pub.pem");
const EC: &[u8] = include_bytes!("../keys/ours-ec.pem");
const EC_PUBLIC: &[u8] = include_bytes!("../keys/ours-ec.pub.pem");
const ED: &[u8] = include_bytes!("../keys/ours-ed.pem");
const ED_PUBLIC: &[u8] = include_bytes!("../keys/ours-ed.pub.pem");
const THEIR_RSA: &[u8] = include_bytes!("../keys/attacker-rsa.pem");
const THEIR_EC: &[u8] = include_bytes!("../keys/attacker-ec.pem");
const THEIR_ED: &[u8] = include_bytes!("../keys/attacker-ed.pem");

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn hmac(secret: &[u8]) -> EncodingKey {
    EncodingKey::from_secret(secret)
}

fn rsa(pem: &[u8]) -> EncodingKey {
    EncodingKey::from_rsa_pem(pem).unwrap()
}

fn ec(pem: &[u8]) -> EncodingKey {
    EncodingKey::from_ec_pem(pem).unwrap()
}

fn ed(pem: &[u8]) -> EncodingKey {
    EncodingKey::from_ed_pem(pem).unwrap()
}

/// A token of exactly this header and payload, signed as told whatever the header says.
fn signed(header: &Value, payload: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", b64(header.to_string()), b64(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn claims() -> Value {
    serde_json::to_value(ADMIN.claims()).unwrap()
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn jwks() -> JwkSet {
    let with_id = |key: &EncodingKey, algorithm, id: &str| {
        let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        jwk
    };
    let mut symmetric =
        Jwk::from_encoding_key(&hmac(b"a symmetric key in a public file"), Algorithm::HS256).unwrap();
    symmetric.common.key_id = Some("oct".to_owned());
    JwkSet {
        keys: vec![
            with_id(&ec(EC), Algorithm::ES256, "ec-1"),
            with_id(&ed(ED), Algorithm::EdDSA, "ed-1"),
            symmetric,
        ],
    }
}

/// A server that knows a shared secret, an RSA key by PEM, and EC and Ed25519 keys by JWKS.
async fn server() -> (House, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    std::fs::write(&path, serde_json::to_vec(&jwks()).unwrap()).unwrap();
    let auth = Auth::hs256(SECRET)
        .unwrap()
        .or(Auth::public_key_pem(RSA_PUBLIC).unwrap())
        .or(Auth::jwks_file(&path).unwrap());
    (house_with(|options| options.auth = auth).await, folder)
}

async fn status(house: &House, authorization: &str) -> StatusCode {
    house
        .ask("GET", "/resources")
        .header("authorization", authorization)
        .send()
        .await
        .status
}

fn good() -> Vec<(&'static str, String)> {
    let plain = claims().to_string();
    let of = |alg: &str| json!({ "alg": alg, "typ": "JWT" });
    let named = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    vec![
        (
            "HS256",
            signed(&of("HS256"), &plain, &hmac(SECRET), Algorithm::HS256),
        ),
        ("RS256", signed(&of("RS256"), &plain, &rsa(RSA), Algorithm::RS256)),
        (
            "ES256",
            signed(&named("ES256", "ec-1"), &plain, &ec(EC), Algorithm::ES256),
        ),
        (
            "EdDSA",
            signed(&named("EdDSA", "ed-1"), &plain, &ed(ED), Algorithm::EdDSA),
        ),
        (
            "ES256 without kid",
            signed(&of("ES256"), &plain, &ec(EC), Algorithm::ES256),
        ),
        (
            "a status in capitals, a fraction of a second, unknown claims",
            signed(
                &of("HS256"),
                &with(json!({ "status": "ACTIVE", "exp": 4_000_000_000.5, "nbf": 1, "iat": 1, "x": {} }))
                    .to_string(),
                &hmac(SECRET),
                Algorithm::HS256,
            ),
        ),
        (
            "no status, no roles but one",
            signed(
                &of("HS256"),
                &without("status").to_string(),
                &hmac(SECRET),
                Algorithm::HS256,
            ),
        ),
        (
            "an expiry within the leeway",
            signed(
                &of("HS256"),
                &with(json!({ "exp": now() - 2 })).to_string(),
                &hmac(SECRET),
                Algorithm::HS256,
            ),
        ),
    ]
}

fn now() -> i64 {
    use hwm_core::env::Environment as _;
    hwm_core::env::SystemEnvironment.now().as_millis() / 1000
}

fn forged() -> Vec<(String, String)> {
    let plain = claims().to_string();
    let hs = json!({ "alg": "HS256" });
    let mut tokens: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, token: String| tokens.push((name.to_owned(), token));

    // No algorithm, in all its spellings.
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let message = format!("{}.{}", b64(json!({ "alg": alg }).to_string()), b64(&plain));
        add(&format!("alg {alg:?} unsigned"), format!("{message}."));
        add(
            &format!("alg {alg:?} signed"),
            signed(&json!({ "alg": alg }), &plain, &hmac(SECRET), Algorithm::HS256),
        );
    }
    for header in [
        json!({}),
        json!({ "alg": null }),
        json!({ "alg": 1 }),
        json!({ "alg": ["HS256"] }),
    ] {
        add(
            &format!("header {header}"),
            signed(&header, &plain, &hmac(SECRET), Algorithm::HS256),
        );
    }

    // Public keys as shared secrets.
    let jwks = serde_json::to_vec(&jwks()).unwrap();
    for (name, secret) in [
        ("RSA PEM", RSA_PUBLIC),
        ("EC PEM", EC_PUBLIC),
        ("Ed PEM", ED_PUBLIC),
        ("JWKS", &jwks),
        ("symmetric JWK", b"a symmetric key in a public file"),
        ("empty", b""),
        ("a guess", b"secret"),
    ] {
        for header in [json!({ "alg": "HS256" }), json!({ "alg": "HS256", "kid": "oct" })] {
            add(
                &format!("HS256 with {name} {header}"),
                signed(&header, &plain, &hmac(secret), Algorithm::HS256),
            );
        }
        add(
            &format!("RS256 with HMAC of {name}"),
            signed(
                &json!({ "alg": "RS256" }),
                &plain,
                &hmac(secret),
                Algorithm::HS256,
            ),
        );
    }

    // Relatives of the algorithms, with the right keys.
    for (alg, key, algorithm) in [
        ("HS384", hmac(SECRET), Algorithm::HS384),
        ("HS512", hmac(SECRET), Algorithm::HS512),
        ("RS384", rsa(RSA), Algorithm::RS384),
        ("RS512", rsa(RSA), Algorithm::RS512),
        ("PS256", rsa(RSA), Algorithm::PS256),
        ("ES384", ec(EC), Algorithm::ES256),
        ("hs256", hmac(SECRET), Algorithm::HS256),
        ("HS256 ", hmac(SECRET), Algorithm::HS256),
    ] {
        add(
            &format!("relative {alg:?}"),
            signed(&json!({ "alg": alg }), &plain, &key, algorithm),
        );
    }

    // Keys of somebody else, and headers that offer them.
    let offered = Jwk::from_encoding_key(&rsa(THEIR_RSA), Algorithm::RS256).unwrap();
    for header in [
        json!({ "alg": "RS256" }),
        json!({ "alg": "RS256", "jku": "https://evil.example/jwks.json" }),
        json!({ "alg": "RS256", "x5u": "https://evil.example/cert.pem" }),
        json!({ "alg": "RS256", "jwk": offered }),
        json!({ "alg": "RS256", "x5c": [b64("certificate")] }),
        json!({ "alg": "RS256", "kid": "../../../../dev/null" }),
        json!({ "alg": "RS256", "kid": "x' UNION SELECT 'key" }),
    ] {
        let token = signed(&header, &plain, &rsa(THEIR_RSA), Algorithm::RS256);
        add(&format!("their RSA key {header}"), token);
    }
    for kid in ["ec-1", "ed-1", "none"] {
        let header = |alg: &str| json!({ "alg": alg, "kid": kid });
        add(
            &format!("their EC key as {kid}"),
            signed(&header("ES256"), &plain, &ec(THEIR_EC), Algorithm::ES256),
        );
        add(
            &format!("their Ed key as {kid}"),
            signed(&header("EdDSA"), &plain, &ed(THEIR_ED), Algorithm::EdDSA),
        );
    }
    add(
        "our EC key under an unknown kid",
        signed(
            &json!({ "alg": "ES256", "kid": "ec-2" }),
            &plain,
            &ec(EC),
            Algorithm::ES256,
        ),
    );
    add(
        "our EC key under the other kid",
        signed(
            &json!({ "alg": "ES256", "kid": "ed-1" }),
            &plain,
            &ec(EC),
            Algorithm::ES256,
        ),
    );
    add(
        "a kid that is no text",
        signed(
            &json!({ "alg": "ES256", "kid": 1 }),
            &plain,
            &ec(EC),
            Algorithm::ES256,
        ),
    );
    for header in [
        json!({ "alg": "HS256", "crit": ["exp"] }),
        json!({ "alg": "HS256", "crit": [] }),
        json!({ "alg": "HS256", "b64": false, "crit": ["b64"] }),
    ] {
        let token = signed(&header, &plain, &hmac(SECRET), Algorithm::HS256);
        add(&format!("critical {header}"), token);
    }

    // Claims, signed with the right secret.
    let mut claim = |name: String, claims: String| {
        add(&name, signed(&hs, &claims, &hmac(SECRET), Algorithm::HS256));
    };
    for name in ["exp", "sub"] {
        claim(format!("without {name}"), without(name).to_string());
    }
    for (name, values) in [
        (
            "exp",
            vec![
                json!("4000000000"),
                json!(null),
                json!(now() - 60),
                json!(0),
                json!(-1),
                json!(true),
                json!(1e300),
                json!([4_000_000_000_u64]),
                json!({}),
            ],
        ),
        (
            "nbf",
            vec![
                json!(now() + 60),
                json!("0"),
                json!(true),
                json!(-1),
                json!(1e300),
            ],
        ),
        (
            "aud",
            vec![
                json!("another"),
                json!(["a", "b"]),
                json!([]),
                json!(1),
                json!({}),
            ],
        ),
        ("sub", vec![json!(""), json!(null), json!(1), json!(["ann"])]),
        (
            "status",
            vec![
                json!("suspended"),
                json!(""),
                json!(1),
                json!("active "),
                json!(true),
            ],
        ),
        (
            "roles",
            vec![
                json!("universe.owner"),
                json!([1]),
                json!({ "universe.owner": true }),
            ],
        ),
        ("orgId", vec![json!(1), json!(["acme"])]),
        ("userId", vec![json!({})]),
    ] {
        for value in values {
            claim(
                format!("{name} = {value}"),
                with(json!({ name: value })).to_string(),
            );
        }
    }
    let twice = plain.replacen('{', &format!("{{\"exp\":{},", now() - 60), 1);
    claim("exp given twice".to_owned(), twice);
    claim("claims in a list".to_owned(), json!([claims()]).to_string());
    claim("claims that are no JSON".to_owned(), "exp=4000000000".to_owned());
    claim("no claims".to_owned(), String::new());

    // The token itself.
    let real = signed(&hs, &plain, &hmac(SECRET), Algorithm::HS256);
    let parts: Vec<&str> = real.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let promoted = b64(with(json!({ "sub": "root" })).to_string());
    let mut add = |name: &str, token: String| tokens.push((name.to_owned(), token));
    add("changed claims", format!("{header}.{promoted}.{signature}"));
    add("no signature", format!("{header}.{payload}."));
    add("two parts", format!("{header}.{payload}"));
    add("four parts", format!("{real}.{signature}"));
    add("a shorter signature", real[..real.len() - 4].to_owned());
    add("a longer signature", format!("{real}AAAA"));
    add("another's signature", {
        let other = signed(
            &hs,
            &with(json!({ "x": 1 })).to_string(),
            &hmac(SECRET),
            Algorithm::HS256,
        );
        format!("{header}.{payload}.{}", other.rsplit('.').next().unwrap())
    });
    let padded = URL_SAFE.encode(json!({ "alg": "HS256", "typ": "jwt" }).to_string());
    add("padding", format!("{padded}=.{payload}.{signature}"));
    add("empty", String::new());
    add("dots", "..".to_owned());
    add("a space inside", format!("{header}. {payload}.{signature}"));
    add(
        "too long",
        signed(
            &hs,
            &with(json!({ "pad": "x".repeat(9000) })).to_string(),
            &hmac(SECRET),
            Algorithm::HS256,
        ),
    );
    tokens
}

#[tokio::test]
async fn good_tokens_are_accepted() {
    let (house, _folder) = server().await;
    for (name, token) in good() {
        assert_eq!(status(&house, &format!("Bearer {token}")).await, 200, "{name}");
    }
    let (_, token) = good().remove(0);
    assert_eq!(status(&house, &format!("bearer   {token}")).await, 200);
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let (house, _folder) = server().await;
    let forged = forged();
    assert!(forged.len() >= 60, "{}", forged.len());
    let mut accepted = Vec::new();
    for (name, token) in &forged {
        let answer = house
            .ask("GET", "/resources")
            .header("authorization", &format!("Bearer {token}"))
            .send()
            .await;
        if answer.status != 401 {
            accepted.push(format!("{name}: {}", answer.status));
        } else {
            assert_eq!(answer.code(), "UNAUTHORIZED");
            assert!(
                token.len() < 20 || !answer.text().contains(token.as_str()),
                "{name}"
            );
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?} of {}", forged.len());
}

#[tokio::test]
async fn a_good_token_is_good_only_in_its_place() {
    let (house, _folder) = server().await;
    let (_, token) = good().remove(0);
    for authorization in [
        token.clone(),
        format!("Basic {token}"),
        format!("Token {token}"),
        format!("Bearer:{token}"),
        "Bearer".to_owned(),
    ] {
        assert_eq!(
            status(&house, &authorization).await,
            401,
            "{}",
            &authorization[..6]
        );
    }
    for query in ["token", "access_token", "ticket", "jwt"] {
        let answer = house
            .ask("GET", &format!("/resources?{query}={token}"))
            .send()
            .await;
        answer.expect(401);
    }
    let answer = house.ask("GET", &format!("/events?ticket={token}")).send().await;
    answer.expect(401);
    let twice = house
        .ask("GET", "/resources")
        .token(&token)
        .token(&token)
        .send()
        .await;
    twice.expect(401);
    let cookie = house
        .ask("GET", "/resources")
        .header("cookie", &format!("token={token}; authorization=Bearer {token}"))
        .send()
        .await;
    cookie.expect(401);
}

#[tokio::test]
async fn audience_and_issuer_are_demanded_where_they_are_configured() {
    let auth = Auth::hs256(SECRET).unwrap().audience("hwm").issuer("portal");
    let house = house_with(|options| options.auth = auth).await;
    let token = |changes: Value| {
        let header = json!({ "alg": "HS256" });
        signed(
            &header,
            &with(changes).to_string(),
            &hmac(SECRET),
            Algorithm::HS256,
        )
    };
    let good = [
        json!({ "aud": "hwm", "iss": "portal" }),
        json!({ "aud": ["x", "hwm"], "iss": "portal" }),
    ];
    for changes in good {
        assert_eq!(status(&house, &format!("Bearer {}", token(changes))).await, 200);
    }
    for changes in [
        json!({}),
        json!({ "aud": "hwm" }),
        json!({ "iss": "portal" }),
        json!({ "aud": "hw", "iss": "portal" }),
        json!({ "aud": "hwm", "iss": "evil" }),
        json!({ "aud": "hwm", "iss": ["portal"] }),
    ] {
        let name = changes.to_string();
        assert_eq!(
            status(&house, &format!("Bearer {}", token(changes))).await,
            401,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_jwks_file_that_changes_is_read_again_and_one_that_breaks_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let write = |set: &JwkSet| std::fs::write(&path, serde_json::to_vec(set).unwrap()).unwrap();
    let all = jwks();
    write(&JwkSet {
        keys: vec![all.keys[0].clone()],
    });
    let auth = Auth::jwks_file(&path).unwrap();
    let house = house_with(|options| options.auth = auth).await;
    let plain = claims().to_string();
    let ec_token = signed(&json!({ "alg": "ES256" }), &plain, &ec(EC), Algorithm::ES256);
    let ed_token = signed(&json!({ "alg": "EdDSA" }), &plain, &ed(ED), Algorithm::EdDSA);
    let both = async || {
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        (
            status(&house, &format!("Bearer {ec_token}")).await.as_u16(),
            status(&house, &format!("Bearer {ed_token}")).await.as_u16(),
        )
    };
    assert_eq!(both().await, (200, 401));
    write(&JwkSet {
        keys: vec![all.keys[1].clone()],
    });
    assert_eq!(both().await, (401, 200));
    std::fs::write(&path, "{ half a fi").unwrap();
    assert_eq!(both().await, (401, 200));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(both().await, (401, 200));
}

#[test]
fn keys_that_protect_nothing_are_refused() {
    assert!(Auth::hs256(b"").is_err());
    assert!(Auth::hs256(b"fifteen bytes..").is_err());
    assert!(Auth::public_key_pem(b"no key").is_err());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    assert!(Auth::jwks_file(&path).is_err());
    for text in ["", "{}", "{\"keys\": []}"] {
        std::fs::write(&path, text).unwrap();
        assert!(Auth::jwks_file(&path).is_err(), "{text}");
    }
    let symmetric = JwkSet {
        keys: vec![jwks().keys[2].clone()],
    };
    std::fs::write(&path, serde_json::to_vec(&symmetric).unwrap()).unwrap();
    assert!(Auth::jwks_file(&path).is_err());
}
