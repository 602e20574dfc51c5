//! KeyService.

use countersign_proto::v1::{self, key_service_server::KeyService};
use countersign_verifier::{Algorithm, KeyState};
use prost::Message;
use tonic::{Request, Response, Status};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Api, convert};
use crate::{
    domain::{Invalid, Violations, signing_key::SigningKey},
    error::{Error, Result},
    service::{
        keys::{self, Activation},
        once::{Made, Repeatable},
    },
};

/// The longest key id that is looked at, in bytes. Ours have 43.
const MOST_KID_BYTES: usize = 128;

#[tonic::async_trait]
impl KeyService for Api {
    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        let list =
            |core: std::sync::Arc<_>, call, ()| async move { keys::list(&core, &call).await };
        let found = self.run(request, |_| Ok(()), list).await?;
        Ok(Response::new(v1::ListKeysResponse {
            keys: found.iter().map(key).collect(),
        }))
    }

    async fn stage_key(
        &self,
        request: Request<v1::StageKeyRequest>,
    ) -> Result<Response<v1::StageKeyResponse>, Status> {
        let read = |message: v1::StageKeyRequest| {
            let body = Zeroizing::new(message.encode_to_vec());
            let (algorithm, request_id) = wish(&message)?;
            let encode = |key: &SigningKey| staged(key).encode_to_vec();
            let repeatable = Repeatable {
                method: "StageKey",
                request_id,
                body,
                encode,
            };
            Ok((algorithm, repeatable))
        };
        let made = self.run(
            request,
            read,
            |core, call, (algorithm, request)| async move {
                keys::stage(&core, &call, algorithm, request).await
            },
        );
        Ok(Response::new(match made.await? {
            Made::Now(key) => staged(&key),
            Made::Before(reply) => Message::decode(&*reply).map_err(Error::internal)?,
        }))
    }

    async fn activate_key(
        &self,
        request: Request<v1::ActivateKeyRequest>,
    ) -> Result<Response<v1::ActivateKeyResponse>, Status> {
        let read = |message: v1::ActivateKeyRequest| {
            Ok(Activation {
                kid: kid(message.kid)?,
                force: message.force,
                retire_previous: message.retire_previous,
            })
        };
        let active = self.run(request, read, |core, call, wish| async move {
            keys::activate(&core, &call, &wish).await
        });
        let key = Some(key(&active.await?));
        Ok(Response::new(v1::ActivateKeyResponse { key }))
    }

    async fn retire_key(
        &self,
        request: Request<v1::RetireKeyRequest>,
    ) -> Result<Response<v1::RetireKeyResponse>, Status> {
        let done = self.run(
            request,
            |message| kid(message.kid),
            |core, call, kid| async move { keys::retire(&core, &call, &kid).await },
        );
        done.await?;
        Ok(Response::new(v1::RetireKeyResponse {}))
    }
}

pub(super) fn wish(message: &v1::StageKeyRequest) -> Result<(Option<Algorithm>, Option<Uuid>)> {
    let mut v = Violations::default();
    let algorithm = match message.algorithm.as_str() {
        "" => None,
        "EdDSA" => Some(Algorithm::Ed25519),
        "ES256" => Some(Algorithm::Es256),
        _ => {
            v.add("algorithm", Invalid::new("must be EdDSA, ES256 or empty"));
            None
        }
    };
    let request_id = convert::request_id(&mut v, &message.request_id);
    v.finish()?;
    Ok((algorithm, request_id))
}

pub(super) fn kid(text: String) -> Result<String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if (1..=MOST_KID_BYTES).contains(&text.len()) && text.bytes().all(legal) {
        return Ok(text);
    }
    Err(Error::invalid("kid", "must be the id of a signing key"))
}

fn staged(staged: &SigningKey) -> v1::StageKeyResponse {
    let key = Some(key(staged));
    v1::StageKeyResponse { key }
}

/// The public facts; the private half is not among them, sealed or not.
fn key(key: &SigningKey) -> v1::SigningKey {
    let state = match key.state {
        KeyState::Next => v1::SigningKeyState::Next,
        KeyState::Active => v1::SigningKeyState::Active,
        KeyState::Retired => v1::SigningKeyState::Retired,
    };
    v1::SigningKey {
        kid: key.kid.clone(),
        algorithm: key.algorithm.name().to_owned(),
        state: state.into(),
        created_at: Some(convert::timestamp(key.created_at)),
        changed_at: Some(convert::timestamp(key.changed_at)),
        verify_until: key.verify_until.map(convert::timestamp),
    }
}
