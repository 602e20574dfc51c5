//! What a decision costs, beside the least that it could cost.
//!
//! The yardsticks run in the same process, over the same tokens, turn by turn with what they measure,
//! in CPU time, so that a busy machine troubles the figures little and the ratios less. A figure is the median of the rounds and a ratio the
//! median of the rounds' ratios; benchmark libraries measure one thing after the other and have no
//! ratios, so the loop is ours.
//!
//! `cargo bench -p countersign-verifier` prints the figures; with `-- --check` it fails if a ratio is
//! above its bound.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a program for a developer's terminal"
)]

use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_verifier::{
    Algorithm, ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, Caller, Claims, Clock as _, KeySet,
    KeyState, Policy, PublicKey, Revocations, SystemClock, TrustState, Verifier, api_key_text,
};
use jiff::{SignedDuration, Timestamp};
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const TOKENS: u128 = 512;
const ROUNDS: usize = 200;
/// Of sessions, and as many of users: as many as there are seconds in a token's life.
const REVOCATIONS: u64 = 900;
const KID: &str = "0190d6c5-1b1f-7c3e-9c7e-3f0a4d5b6c7d";

/// In the order in which they are measured and printed.
const NAMES: [&str; 5] = [
    "SHA-256 and a bare cache hit",
    "bare Ed25519 check",
    "verify, token cached",
    "verify, token first seen",
    "verify, API key",
];

/// What is compared with which yardstick, by their places in [`NAMES`], and the bound.
const RATIOS: [(usize, usize, f64); 2] = [(2, 0, 2.5), (3, 1, 1.1)];

/// A token, and what a bare check of its signature needs.
struct Token {
    text: String,
    signed: String,
    signature: Vec<u8>,
}

/// The hash that the cache under test uses, so that the yardstick is not made slower by another.
#[derive(Clone, Copy, Default)]
struct FirstBytes(u64);

impl BuildHasher for FirstBytes {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        // An array is hashed after its length.
        if let Some(first) = bytes.first_chunk().filter(|_| bytes.len() == 32) {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn main() -> ExitCode {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = ParsedPublicKey::new(&ED25519, pair.public_key().as_ref()).unwrap();
    let api_key = api_key_text(&[1; 24]);
    let state = trust_state(&pair, &api_key);
    let tokens: Vec<Token> = (0..TOKENS).map(|n| mint(&pair, n)).collect();

    let warm = verifier(&state);
    let (weight, hasher) = (UnitWeighter, FirstBytes::default());
    let bare = Cache::with(10_000, 10_000, weight, hasher, DefaultLifecycle::default());
    for token in &tokens {
        let caller = warm.verify(&token.text, Some("orders")).unwrap();
        bare.insert(sha256(&token.text), caller);
    }

    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let fresh = verifier(&state);
        rounds.push([
            each(&tokens, |token| {
                let hit: Option<Arc<Caller>> = bare.get(&sha256(&token.text));
                black_box(hit).is_some()
            }),
            each(&tokens, |token| {
                let (signed, signature) = (token.signed.as_bytes(), &token.signature);
                black_box(public.verify_sig(signed, signature)).is_ok()
            }),
            each(&tokens, |token| {
                black_box(warm.verify(&token.text, Some("orders"))).is_ok()
            }),
            each(&tokens, |token| {
                black_box(fresh.verify(&token.text, Some("orders"))).is_ok()
            }),
            each(&tokens, |_| {
                black_box(warm.verify(&api_key, Some("orders"))).is_ok()
            }),
        ]);
        assert_eq!(fresh.cache_counts().hits, 0);
    }
    assert_eq!(warm.cache_counts().misses, tokens.len() as u64);
    report(&rounds, tokens.first().map_or(0, |token| token.text.len()))
}

/// How many nanoseconds it takes for one of these, on average over all.
fn each(tokens: &[Token], mut what: impl FnMut(&Token) -> bool) -> f64 {
    let began = cpu_time();
    let good = tokens.iter().filter(|token| what(token)).count();
    let nanoseconds = cpu_time().saturating_sub(began).as_nanos() as f64;
    assert_eq!(good, tokens.len());
    nanoseconds / tokens.len() as f64
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn report(rounds: &[[f64; NAMES.len()]], length: usize) -> ExitCode {
    println!("{ROUNDS} rounds over {TOKENS} tokens of {length} bytes; medians, CPU time\n");
    for (i, name) in NAMES.iter().enumerate() {
        let nanoseconds = median(rounds.iter().filter_map(|round| round.get(i).copied()));
        println!("{name:<32} {nanoseconds:>9.0} ns");
    }
    println!();
    let mut met = true;
    for (of, yardstick, bound) in RATIOS {
        let ratio = |round: &[f64; NAMES.len()]| Some(round.get(of)? / round.get(yardstick)?);
        let ratio = median(rounds.iter().filter_map(ratio));
        let name = |i: usize| NAMES.get(i).copied().unwrap_or_default();
        println!(
            "{:<24} {ratio:.2} x ({}), at most {bound} x",
            name(of),
            name(yardstick)
        );
        met &= ratio <= bound;
    }
    let check = std::env::args().any(|argument| argument == "--check");
    if check && !met {
        println!("\na bound is not met");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sha256(text: &str) -> [u8; 32] {
    digest(&SHA256, text.as_bytes())
        .as_ref()
        .try_into()
        .unwrap()
}

fn verifier(state: &TrustState) -> Verifier {
    let verifier = Verifier::new(Arc::new(SystemClock), Policy::default());
    verifier.replace(state.clone());
    verifier
}

/// The state of a service where every second somebody logs out and somebody's roles change.
fn trust_state(pair: &Ed25519KeyPair, api_key: &str) -> TrustState {
    let mut keys = KeySet::default();
    for (kid, state) in [(KID, KeyState::Active), ("next", KeyState::Next)] {
        let public = pair.public_key().as_ref();
        keys.insert(PublicKey::new(kid, Algorithm::Ed25519, state, public).unwrap());
    }
    let mut revocations = Revocations::default();
    for n in 0..REVOCATIONS {
        let id = Uuid::from_u64_pair(1, n);
        revocations.revoke_session(id, Timestamp::MAX);
        revocations.revoke_user(id, 1, Timestamp::MAX);
    }
    let mut api_keys = ApiKeys::default();
    api_keys.insert(ApiKey {
        id: Uuid::nil(),
        owner: Uuid::nil(),
        name: "importer".into(),
        scopes: vec!["orders.read".into(), "orders.write".into()],
        audience: vec!["orders".into()],
        created_at: SystemClock.now(),
        expires_at: None,
        secrets: vec![ApiKeySecret {
            hash: ApiKeyHash::of(api_key).unwrap(),
            expires_at: None,
        }],
    });
    TrustState {
        issuer: "https://auth.example.com".into(),
        audiences: vec!["orders".into()],
        keys,
        revocations,
        api_keys,
        seq: 1_800,
        nonce: Uuid::nil(),
    }
}

/// A token as the service mints it.
fn mint(pair: &Ed25519KeyPair, n: u128) -> Token {
    let now = SystemClock.now();
    let exp = now.saturating_add(SignedDuration::from_mins(15)).unwrap();
    let claims = Claims {
        iss: "https://auth.example.com".into(),
        sub: Uuid::from_u128(n),
        aud: vec!["orders".into(), "billing".into()],
        exp: exp.as_second(),
        iat: now.as_second(),
        nbf: now.as_second(),
        jti: Uuid::from_u128(n),
        sid: Uuid::from_u128(n),
        client_id: "countersign".into(),
        scope: "orders.read orders.write billing.read".into(),
        roles: vec!["clerk".into(), "auditor".into()],
        amr: vec!["pwd".into()],
        auth_time: now.as_second(),
        epoch: 3,
    };
    let header = format!(r#"{{"alg":"EdDSA","kid":"{KID}","typ":"at+jwt"}}"#);
    let claims = serde_json::to_vec(&claims).unwrap();
    let [header, claims] = [header.as_bytes(), &claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = format!("{header}.{claims}");
    let signature = pair.sign(signed.as_bytes()).as_ref().to_vec();
    let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
    Token {
        text,
        signed,
        signature,
    }
}
