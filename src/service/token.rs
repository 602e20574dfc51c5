//! What a pair of tokens holds, and how long it lives.

use std::collections::BTreeSet;

use countersign_verifier::{Algorithm, Claims};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Core, keyring::Keys};
use crate::{
    crypto::RefreshToken,
    domain::{Invalid, PermissionName, Role, SessionId, UserId, Violations, id},
    error::{Error, Reason, Result},
};

/// The longest life that can be set for access tokens.
const MOST_ACCESS_SECONDS: u32 = 3_600;

/// The largest leeway that can be set.
const MOST_LEEWAY_SECONDS: u32 = 30;

/// For how long a revocation is remembered: as long as any token may live under
/// any settings, and a minute. Not under the settings in force: tokens minted
/// before they were changed, or by a node with others, must stay revoked.
pub(super) const RETENTION: SignedDuration =
    SignedDuration::from_secs(MOST_ACCESS_SECONDS as i64 + MOST_LEEWAY_SECONDS as i64 + 60);

/// Settings of access tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What new signing keys sign with: "EdDSA" (Ed25519) or "ES256".
    pub algorithm: String,
    /// How long an access token lives, in seconds, before it is shortened at
    /// random by up to 5 %.
    pub access_seconds: u32,
    /// By how much the clocks of nodes and validators may differ, in seconds.
    pub leeway_seconds: u32,
    /// How far the clock may be from the database's, in seconds. Beyond it no
    /// token is minted.
    pub max_clock_skew_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            algorithm: "EdDSA".to_owned(),
            access_seconds: 900,
            leeway_seconds: 5,
            max_clock_skew_seconds: 5,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if self.algorithm().is_none() {
            problems.push("tokens.algorithm must be \"EdDSA\" or \"ES256\"".to_owned());
        }
        if !(60..=MOST_ACCESS_SECONDS).contains(&self.access_seconds) {
            problems.push("tokens.access_seconds must be 60 to 3600".to_owned());
        }
        if self.leeway_seconds > MOST_LEEWAY_SECONDS {
            problems.push("tokens.leeway_seconds must be at most 30".to_owned());
        }
        if !(1..=60).contains(&self.max_clock_skew_seconds) {
            problems.push("tokens.max_clock_skew_seconds must be 1 to 60".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// What new signing keys sign with.
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self.algorithm.as_str() {
            "EdDSA" => Some(Algorithm::Ed25519),
            "ES256" => Some(Algorithm::Es256),
            _ => None,
        }
    }
}

/// What a session holds: an access token for calls, and a refresh token for
/// the next pair.
#[derive(Debug)]
pub struct TokenPair {
    /// A signed JWT.
    pub access_token: AccessToken,
    /// When it expires.
    pub expires_at: Timestamp,
    /// A good moment for the next refresh.
    pub refresh_after: Timestamp,
    /// Opaque.
    pub refresh_token: RefreshToken,
    /// When that expires unless it is used before.
    pub refresh_expires_at: Timestamp,
    /// The session that both belong to.
    pub session_id: SessionId,
}

/// A signed JWT; mute in logs, wiped when dropped.
pub struct AccessToken(Zeroizing<String>);

impl AccessToken {
    /// The compact form, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

/// What an access token is minted from.
#[derive(Debug)]
pub(super) struct Subject {
    pub user_id: UserId,
    pub session_id: SessionId,
    /// The user's epoch as the authorising statement read it.
    pub epoch: i64,
    pub roles: Vec<Role>,
    pub client_id: String,
    pub authenticated_at: Timestamp,
    pub audiences: Vec<String>,
}

/// Checks that the audiences asked for are ours; none means all.
pub(super) fn audiences(core: &Core, wish: Vec<String>) -> Result<Vec<String>> {
    let ours = &core.policy.audiences;
    if wish.is_empty() {
        return Ok(ours.clone());
    }
    if wish.iter().all(|audience| ours.contains(audience)) {
        let set: BTreeSet<_> = wish.into_iter().collect();
        return Ok(set.into_iter().collect());
    }
    let mut violations = Violations::default();
    violations.add(
        "audiences",
        Invalid::new("must be a subset of the audiences that the server is configured with"),
    );
    Err(violations.into())
}

/// Signs an access token and joins it with a refresh token.
pub(super) fn pair(
    core: &Core,
    keys: &Keys,
    subject: &Subject,
    refresh_token: RefreshToken,
    refresh_expires_at: Timestamp,
) -> Result<TokenPair> {
    let now = core.clock.now();
    let issued_at = now.as_second();
    let life = i64::from(core.policy.tokens.access_seconds);
    let jitter = i64::from(u16::from_le_bytes(core.entropy.array())) % (life / 20 + 1);
    // No token outlives its session: a session that has expired is not revoked
    // any more.
    let expires_at = (issued_at + life - jitter).min(refresh_expires_at.as_second());
    let scope: BTreeSet<&str> = subject
        .roles
        .iter()
        .flat_map(|r| &r.permissions)
        .map(PermissionName::as_str)
        .collect();
    let claims = Claims {
        iss: core.policy.issuer.clone(),
        sub: subject.user_id.0,
        aud: subject.audiences.clone(),
        exp: expires_at,
        iat: issued_at,
        nbf: issued_at,
        jti: id::uuid_v7(now, &*core.entropy),
        sid: subject.session_id.0,
        client_id: subject.client_id.clone(),
        scope: scope.into_iter().collect::<Vec<_>>().join(" "),
        roles: subject.roles.iter().map(|r| r.name.to_string()).collect(),
        amr: vec!["pwd".to_owned()],
        auth_time: subject.authenticated_at.as_second(),
        epoch: subject.epoch,
    };
    Ok(TokenPair {
        access_token: AccessToken(Zeroizing::new(keys.signer.sign(&claims)?)),
        expires_at: second(expires_at)?,
        // Early enough for a few retries, late enough to be worth it.
        refresh_after: second(issued_at + (expires_at - issued_at) * 4 / 5)?,
        refresh_token,
        refresh_expires_at,
        session_id: subject.session_id,
    })
}

fn second(second: i64) -> Result<Timestamp> {
    Timestamp::from_second(second).map_err(Error::internal)
}

/// The refusal of a refresh token.
pub(super) fn refused() -> Error {
    Error::new(Reason::RefreshTokenInvalid)
}
