//! The wire: each RPC reads its request into domain types, has a rule do the
//! work, and writes the answer. Nothing else happens here.

mod api_key;
mod audit;
mod auth;
mod convert;
pub mod explain;
pub mod ext_authz;
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod role;
mod session;
mod token;
mod trust;
mod user;

pub use audit::AuditApi;
pub use trust::TrustApi;

use std::{future::Future, sync::Arc, time::Duration};

use countersign_proto::{FILE_DESCRIPTOR_SET, v1};
use countersign_verifier::Verifier;
use tonic::{Extensions, Request, service::Routes};
use tonic_reflection::pb;

use crate::{
    domain::{
        Call,
        call::{BATCH_BYTES, MESSAGE_BYTES},
    },
    error::{Error, Result},
    service::{Core, Work},
};

/// The services that need the database.
#[derive(Debug, Clone)]
pub struct Api {
    core: Arc<Core>,
    work: Work,
}

/// The service that does not: it answers from memory.
#[derive(Debug, Clone)]
pub struct TokenApi {
    verifier: Arc<Verifier>,
    jwks_max_age: Duration,
}

impl Api {
    /// The services over these rules.
    pub fn new(core: Arc<Core>, work: Work) -> Self {
        Self { core, work }
    }

    /// Adds the services to the routes.
    pub fn routes(self, routes: Routes) -> Routes {
        use v1::{
            api_key_service_server::ApiKeyServiceServer, auth_service_server::AuthServiceServer,
            key_service_server::KeyServiceServer, role_service_server::RoleServiceServer,
            session_service_server::SessionServiceServer, user_service_server::UserServiceServer,
        };
        let auth = AuthServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let user = UserServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let role = RoleServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let api_key =
            ApiKeyServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let key = KeyServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES);
        let session = SessionServiceServer::new(self).max_decoding_message_size(MESSAGE_BYTES);
        routes
            .add_service(auth)
            .add_service(user)
            .add_service(role)
            .add_service(session)
            .add_service(api_key)
            .add_service(key)
    }

    /// Reads a request, does the work for it on the work runtime, and returns
    /// what came of it.
    async fn run<M, W, T, F>(
        &self,
        request: Request<M>,
        read: impl FnOnce(M) -> Result<W>,
        act: impl FnOnce(Arc<Core>, Call, W) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (_, extensions, message) = request.into_parts();
        let call = call(&extensions)?;
        let wish = read(message)?;
        self.work.run(act(Arc::clone(&self.core), call, wish)).await
    }
}

impl TokenApi {
    /// The service over this verifier. Public keys may be kept for
    /// `jwks_max_age`.
    pub fn new(verifier: Arc<Verifier>, jwks_max_age: Duration) -> Self {
        Self {
            verifier,
            jwks_max_age,
        }
    }

    /// Adds the service to the routes.
    pub fn routes(self, routes: Routes) -> Routes {
        let token = v1::token_service_server::TokenServiceServer::new(self);
        // Of the batch; the edge knows what the others may be.
        routes.add_service(token.max_decoding_message_size(BATCH_BYTES))
    }
}

/// Adds reflection, so that grpcurl finds everything, the types of error
/// details included. v1alpha stands beside v1 for older tools.
pub fn reflection(routes: Routes) -> Result<Routes> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            // Of itself a version would name only itself.
            .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET)
            .include_reflection_service(false)
    };
    let v1 = builder().build_v1().map_err(Error::internal)?;
    let v1alpha = builder().build_v1alpha().map_err(Error::internal)?;
    Ok(routes.add_service(v1).add_service(v1alpha))
}

/// The call as the layers made it.
fn call(extensions: &Extensions) -> Result<Call> {
    let call = extensions.get::<Call>().cloned();
    call.ok_or_else(|| Error::internal("a request came past the layers"))
}
