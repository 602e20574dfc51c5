//! Public keys as a JWKS has them: what a validator asks for when it has no feed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_proto::v1::{self, token_service_client::TokenServiceClient};
use tonic::transport::Endpoint;

use crate::{Algorithm, KeySet, KeyState, PublicKey};

/// Keys that were asked for alone, and are in force.
#[derive(Debug)]
pub(super) struct Polled {
    /// What the feed has said.
    pub(super) before: KeySet,
    /// What stands in its place.
    pub(super) keys: KeySet,
    /// The trust log entry that they rest on.
    pub(super) seq: i64,
    /// When they were asked for, by the monotonic clock.
    pub(super) at: Duration,
}

/// Puts the keys that were polled in place of those that the feed says were in force after entry `seq`,
/// and at `read_at`; or forgets the former, if it knows as much.
pub(super) fn choose(
    polled: &mut Option<Polled>,
    keys: &mut KeySet,
    seq: i64,
    read_at: Option<Duration>,
) {
    match polled {
        Some(polled) if seq < polled.seq && read_at.is_none_or(|at| at <= polled.at) => {
            polled.before.clone_from(keys);
            keys.clone_from(&polled.keys);
        }
        _ => *polled = None,
    }
}

/// What a node publishes.
pub(super) async fn ask(endpoint: &Endpoint) -> Option<v1::GetJwksResponse> {
    let mut client = TokenServiceClient::new(endpoint.connect().await.ok()?);
    let reply = client.get_jwks(v1::GetJwksRequest {}).await.ok()?;
    Some(reply.into_inner())
}

/// The keys of a JWKS; none if one of them is unreadable.
pub(super) fn read(jwks: &[v1::Jwk]) -> Option<KeySet> {
    let mut keys = KeySet::default();
    for jwk in jwks {
        let algorithm = Algorithm::from_name(&jwk.alg)?;
        let x = URL_SAFE_NO_PAD.decode(&jwk.x).ok()?;
        let public = match algorithm {
            Algorithm::Ed25519 => x,
            Algorithm::Es256 => [vec![4], x, URL_SAFE_NO_PAD.decode(&jwk.y).ok()?].concat(),
        };
        // A JWKS does not say which one signs, and verifying does not ask.
        keys.insert(PublicKey::new(&jwk.kid, algorithm, KeyState::Active, &public).ok()?);
    }
    Some(keys)
}
