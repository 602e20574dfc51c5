//! ApiKeyService.

use countersign_proto::v1::{self, api_key_service_server::ApiKeyService};
use prost::Message;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{Api, convert};
use crate::{
    domain::ApiKey,
    error::{Error, Result},
    service::{
        api_keys,
        once::{Made, Repeatable},
    },
};

#[tonic::async_trait]
impl ApiKeyService for Api {
    async fn create_api_key(
        &self,
        request: Request<v1::CreateApiKeyRequest>,
    ) -> Result<Response<v1::CreateApiKeyResponse>, Status> {
        let read = |message: v1::CreateApiKeyRequest| {
            let body = Zeroizing::new(message.encode_to_vec());
            let (wish, request_id) = convert::create_api_key(message)?;
            let encode = |key: &ApiKey| created(key.clone(), String::new()).encode_to_vec();
            Ok((
                wish,
                Repeatable {
                    method: "CreateApiKey",
                    request_id,
                    body,
                    encode,
                },
            ))
        };
        let made = self.run(request, read, |core, call, (wish, request)| async move {
            api_keys::create(&core, &call, wish, request).await
        });
        Ok(Response::new(match made.await? {
            Made::Now((key, secret)) => created(key, secret.expose().to_owned()),
            Made::Before(reply) => Message::decode(&*reply).map_err(Error::internal)?,
        }))
    }

    async fn list_api_keys(
        &self,
        request: Request<v1::ListApiKeysRequest>,
    ) -> Result<Response<v1::ListApiKeysResponse>, Status> {
        let listing =
            self.run(
                request,
                convert::list_api_keys,
                |core, call, (owner, page)| async move {
                    api_keys::list(&core, &call, owner, page).await
                },
            );
        let listing = listing.await?;
        Ok(Response::new(v1::ListApiKeysResponse {
            api_keys: listing.items.into_iter().map(convert::api_key).collect(),
            next_page_token: listing.next_page_token,
        }))
    }

    async fn rotate_api_key(
        &self,
        request: Request<v1::RotateApiKeyRequest>,
    ) -> Result<Response<v1::RotateApiKeyResponse>, Status> {
        let read = |m: v1::RotateApiKeyRequest| convert::rotate_api_key(&m);
        let rotated = self.run(request, read, |core, call, (id, overlap)| async move {
            api_keys::rotate(&core, &call, id, overlap).await
        });
        let (key, secret) = rotated.await?;
        Ok(Response::new(v1::RotateApiKeyResponse {
            api_key: Some(convert::api_key(key)),
            secret: secret.expose().to_owned(),
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<v1::RevokeApiKeyRequest>,
    ) -> Result<Response<v1::RevokeApiKeyResponse>, Status> {
        let read = |m: v1::RevokeApiKeyRequest| convert::api_key_id(&m.api_key_id);
        let done = self.run(request, read, |core, call, id| async move {
            api_keys::revoke(&core, &call, id).await
        });
        done.await?;
        Ok(Response::new(v1::RevokeApiKeyResponse {}))
    }
}

fn created(key: ApiKey, secret: String) -> v1::CreateApiKeyResponse {
    v1::CreateApiKeyResponse {
        api_key: Some(convert::api_key(key)),
        secret,
    }
}
