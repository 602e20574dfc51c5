//! Tokens and stored hashes. Of what is signed or authenticated the one good text is
//! known, so whatever else is taken for good is a forgery.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{
    crypto::{self, MasterKey, RefreshKeys, RequestKeys, Sealer, secret_key},
    domain::{Entropy, SessionId, UserId, signing_key::Purpose},
    grpc::explain,
};
use countersign_verifier::{
    Algorithm, ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, Clock, KeySet, KeyState, Policy,
    PublicKey, Revocations, TrustState, Verifier, api_key_text,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::seed;

pub(super) const ISSUER: &str = "https://auth.example.com";
const NOW: i64 = 1_800_000_000;
const ID: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
const BINDING: [u8; 16] = [7; 16];
const SCOPE: &[u8] = b"users:";

static SIGNER: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key"));

static GOOD_TOKEN: LazyLock<String> =
    LazyLock::new(|| signed(&good_header().to_string(), &good_claims().to_string()));

static GOOD_API_KEY: LazyLock<String> = LazyLock::new(|| api_key_text(&[1; 24]));

static VERIFIER: LazyLock<Arc<Verifier>> = LazyLock::new(|| {
    let verifier = Verifier::new(Arc::new(Still), Policy::default());
    verifier.replace(trust_state());
    Arc::new(verifier)
});

static KEYS: LazyLock<Keys> = LazyLock::new(Keys::new);

/// A clock that stands still.
#[derive(Debug)]
pub(super) struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(NOW).expect("a time")
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// Random bytes that anybody can guess.
#[derive(Debug, Default)]
pub(super) struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill_with(|| self.0.fetch_add(1, Relaxed));
    }
}

/// The keys of refresh, device and page tokens, and one good token of each.
struct Keys {
    refresh: RefreshKeys,
    requests: RequestKeys,
    refresh_token: String,
    device_token: String,
    page_token: String,
}

impl Keys {
    fn new() -> Self {
        let entropy = Counting::default();
        let sealer = Sealer::new(&MasterKey::generate(&entropy).into()).expect("a sealer");
        let made_at = Timestamp::from_second(NOW - 86_400).expect("a time");
        let keys = [Purpose::Refresh, Purpose::Request, Purpose::Throttle];
        let keys = (1..).zip(keys).map(|(id, purpose)| {
            secret_key::generate(id, purpose, made_at, &entropy, sealer.first()).expect("a key")
        });
        let keys: Vec<_> = keys.collect();
        let refresh = RefreshKeys::open(&keys, &sealer).expect("refresh keys");
        let requests = RequestKeys::open(&keys, &sealer).expect("request keys");
        let now = Still.now();
        let refresh_token = refresh.mint(refresh.maker(now), SessionId(ID), 5, &BINDING);
        Self {
            refresh_token: refresh_token.expect("a token").expose().to_owned(),
            device_token: requests.device_token(now, UserId(ID), 2, [9; 16]),
            page_token: requests.page_token(now, SCOPE, b"somebody@example.com"),
            refresh,
            requests,
        }
    }
}

/// A verifier that knows one signing key of each algorithm and one API key.
pub(super) fn verifier() -> Arc<Verifier> {
    Arc::clone(&VERIFIER)
}

/// Whether a text is one of the two good credentials.
pub(super) fn is_good(credential: &str) -> bool {
    credential == *GOOD_TOKEN || credential == *GOOD_API_KEY
}

pub(super) fn good_token() -> &'static str {
    &GOOD_TOKEN
}

pub(super) fn trust_state() -> TrustState {
    // The public key of RFC 7515, appendix A.3.
    let x = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    let y = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.decode(part).expect("base64url"));
    let point = [vec![4], x, y].concat();
    let mut keys = KeySet::default();
    for (kid, algorithm, state, public) in [
        (
            "ed",
            Algorithm::Ed25519,
            KeyState::Active,
            SIGNER.public_key().as_ref(),
        ),
        ("p256", Algorithm::Es256, KeyState::Next, point.as_slice()),
    ] {
        keys.insert(PublicKey::new(kid, algorithm, state, public).expect("a key"));
    }
    let mut api_keys = ApiKeys::default();
    api_keys.insert(ApiKey {
        id: ID,
        owner: ID,
        name: "importer".into(),
        scopes: vec!["orders.read".into()],
        audience: vec!["orders".into()],
        created_at: Still.now(),
        expires_at: None,
        secrets: vec![ApiKeySecret {
            hash: ApiKeyHash::of(&GOOD_API_KEY).expect("an API key"),
            expires_at: None,
        }],
    });
    TrustState {
        issuer: ISSUER.into(),
        audiences: vec!["orders".into(), "billing".into()],
        keys,
        revocations: Revocations::default(),
        api_keys,
        seq: 41,
        nonce: Uuid::nil(),
    }
}

fn good_header() -> Value {
    json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "ed"})
}

fn good_claims() -> Value {
    json!({
        "iss": ISSUER, "sub": ID, "aud": ["orders"], "exp": NOW + 900, "iat": NOW, "nbf": NOW,
        "jti": ID, "sid": ID, "client_id": "countersign", "scope": "orders.read orders.write",
        "roles": ["clerk"], "amr": ["pwd"], "auth_time": NOW - 60, "epoch": 3,
    })
}

fn signed(header: &str, claims: &str) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(SIGNER.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A text where a credential stands: nothing but the two good ones is good.
pub fn access_token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for audience in [None, Some("orders")] {
        let is_accepted = VERIFIER.verify(text, audience).is_ok();
        assert_eq!(is_accepted, is_good(text), "{text}");
    }
}

/// Why a credential is good or not: of one without a good signature nothing is shown.
pub fn explanation(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for audience in [None, Some("orders"), Some("billing")] {
        let explained = VERIFIER.explain(text, audience).expect("it is ready");
        assert_eq!(explained.rejection, VERIFIER.verify(text, audience).err());
        let answer = explain::response(&explained);
        assert_eq!(answer.caller.is_some(), is_good(text), "{text}");
        assert_eq!(answer.claims.is_some(), text == good_token(), "{text}");
        assert!(is_good(text) || answer.off_by.is_none(), "{text}");
    }
}

/// A header and claims, a line each, with a good signature over them: what is behind
/// the signature.
pub fn claims(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let (header, claims) = text.split_once('\n').unwrap_or_default();
    let token = signed(header, claims);
    let verdict = VERIFIER.verify(&token, Some("orders"));
    let explained = VERIFIER.explain(&token, Some("orders"));
    let explained = explained.expect("it is ready");
    assert_eq!(explained.rejection.as_ref(), verdict.as_ref().err());
    let _answer = explain::response(&explained);
    let Ok(caller) = verdict else {
        return;
    };
    // What nobody reads may hold a number that no type holds.
    let [Ok(header), Ok(claims)] = [header, claims].map(serde_json::from_str::<Value>) else {
        return;
    };
    let leeway = i64::try_from(Policy::default().leeway.as_secs()).expect("fits");
    let number = |name: &str| claims[name].as_i64().expect("an integer");
    assert_eq!(
        (&header["alg"], &header["kid"]),
        (&json!("EdDSA"), &json!("ed"))
    );
    let typ = header["typ"].as_str().expect("a text").to_ascii_lowercase();
    assert_eq!(typ.strip_prefix("application/").unwrap_or(&typ), "at+jwt");
    for name in ["crit", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256"] {
        assert_eq!(header.get(name), None, "{name}");
    }
    assert_eq!(claims["iss"], ISSUER);
    assert!(number("exp") + leeway > NOW);
    assert!(number("nbf") - leeway <= NOW && number("iat") - leeway <= NOW);
    assert!(caller.audience.iter().any(|audience| audience == "orders"));
    // Tokens with the rest of the claims exist only in one spelling of each name.
    let scope = claims["scope"].as_str().expect("a text");
    assert!(scope.split_ascii_whitespace().eq(&caller.scopes));
    let subject = claims["sub"].as_str().expect("a text");
    assert_eq!(subject.parse().ok(), caller.user_id());
}

/// The text of an API key: it has one form, and one spelling.
pub fn api_key(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Some(hash) = ApiKeyHash::of(text) else {
        return;
    };
    let body = text.get(4..36).expect("its length was checked");
    // What the checksum covers need not be base64url: it is only ever hashed.
    if let Ok(random) = URL_SAFE_NO_PAD.decode(body) {
        let random = random.try_into().expect("32 characters are 24 bytes");
        assert_eq!(api_key_text(&random), text);
    }
    assert_eq!(VERIFIER.verify(text, None).is_ok(), text == *GOOD_API_KEY);
    assert_eq!(ApiKeyHash::of(text), Some(hash));
}

/// A refresh token, as far as it is read without the database.
pub fn refresh_token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let read = KEYS.refresh.read(text);
    assert_eq!(read.is_ok(), text == KEYS.refresh_token, "{text}");
    if let Ok(presented) = read {
        assert_eq!(
            (presented.session_id, presented.generation),
            (SessionId(ID), 5)
        );
        assert!(presented.bound_to(&KEYS.refresh, &BINDING));
        assert!(!presented.bound_to(&KEYS.refresh, &[8; 16]));
    }
}

/// The token of a device from which somebody has logged in.
pub fn device_token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let device = KEYS.requests.device(text);
    assert_eq!(device.is_some(), text == KEYS.device_token, "{text}");
    if let Some(device) = device {
        assert_eq!((device.user_id, device.epoch), (UserId(ID), 2));
    }
}

/// The token that continues a list.
pub fn page_token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let cursor = KEYS.requests.open_page_token(SCOPE, text);
    assert_eq!(cursor.is_ok(), text == KEYS.page_token, "{text}");
    assert!(KEYS.requests.open_page_token(b"roles:", text).is_err());
}

/// A stored password hash: it is read, and nothing is hashed. What is read is what we
/// write, and asks for no more than we pay.
pub fn password_hash(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if !crypto::is_stored_hash(text) {
        return;
    }
    let fields: Vec<&str> = text.split('$').collect();
    let ["", "argon2id", "v=19", parameters, salt, output] = fields[..] else {
        panic!("another form: {text}");
    };
    let parameters: Vec<&str> = parameters.split(',').collect();
    let [memory, iterations, parallelism] = parameters[..] else {
        panic!("other parameters: {text}");
    };
    for (parameter, name, most) in [
        (memory, "m=", 64 * 1024),
        (iterations, "t=", 10),
        (parallelism, "p=", 4),
    ] {
        let value = parameter.strip_prefix(name).expect("in this order");
        let value: u32 = value.parse().expect("a number");
        assert!((1..=most).contains(&value), "{text}");
        assert_eq!(parameter, format!("{name}{value}"), "no other spelling");
    }
    assert!(
        (22..=43).contains(&salt.len()) && output.len() == 43,
        "{text}"
    );
}

pub(super) fn access_token_seeds() -> Vec<(String, Vec<u8>)> {
    let good = good_token();
    let (start, _) = good.rsplit_once('.').expect("three parts");
    let p256 = json!({"alg": "ES256", "typ": "at+jwt", "kid": "p256"});
    let p256 = signed(&p256.to_string(), &good_claims().to_string());
    vec![
        seed("good", good),
        seed("api_key", GOOD_API_KEY.as_str()),
        seed("unsigned", format!("{start}.")),
        seed("another_algorithm", p256),
    ]
}

pub(super) fn claims_seeds() -> Vec<(String, Vec<u8>)> {
    let (header, claims) = (good_header(), good_claims());
    let with = |member: &str| {
        let header = header.to_string();
        let header = header.strip_suffix('}').expect("an object");
        format!("{header},{member}}}\n{claims}")
    };
    vec![
        seed("good", format!("{header}\n{claims}")),
        seed(
            "another_type",
            format!("{header}\n{claims}").replace("at+jwt", "id+jwt"),
        ),
        seed(
            "another_algorithm",
            format!("{header}\n{claims}").replace("EdDSA", "none"),
        ),
        seed(
            "another_issuer",
            format!("{header}\n{claims}").replace("https", "http"),
        ),
        seed("crit", with(r#""crit":["b64"],"b64":false"#)),
        seed(
            "jwk",
            with(r#""jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#),
        ),
        seed("twice", with(r#""\u006bid":"p256""#)),
        seed("unknown", with(r#""cty":"x","zip":{"a":[1,2.5e3,null]}"#)),
    ]
}

pub(super) fn api_key_seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        seed("good", GOOD_API_KEY.as_str()),
        seed("of_nobody", api_key_text(&[2; 24])),
    ]
}

pub(super) fn refresh_token_seeds() -> Vec<(String, Vec<u8>)> {
    // The next generation, with all but the MACs as it should be.
    let body = URL_SAFE_NO_PAD.decode(&KEYS.refresh_token[4..96]);
    let mut body = body.expect("base64url");
    body[28] += 1;
    let mut forged = format!("csr_{}", URL_SAFE_NO_PAD.encode(body));
    let checksum = digest(&SHA256, forged.as_bytes());
    forged += &URL_SAFE_NO_PAD.encode(&checksum.as_ref()[..3]);
    vec![
        seed("good", KEYS.refresh_token.as_str()),
        seed("forged", forged),
    ]
}

pub(super) fn device_token_seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("good", KEYS.device_token.as_str())]
}

pub(super) fn page_token_seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("good", KEYS.page_token.as_str())]
}
