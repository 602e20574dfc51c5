//! Public keys as a JWKS has them: what a validator asks for when it has no feed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_proto::v1;

use crate::{Algorithm, KeySet, KeyState, PublicKey};

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
