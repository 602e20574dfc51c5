//! The wire: each RPC reads its request into domain types, has a rule do the
//! work, and writes the answer. Nothing else happens here.

mod auth;
mod convert;
mod role;
mod session;
mod token;
mod user;

use std::{future::Future, sync::Arc, time::Duration};

use countersign_proto::{FILE_DESCRIPTOR_SET, v1};
use countersign_verifier::Verifier;
use tonic::{Extensions, Request, service::Routes};
use tonic_reflection::pb;

use crate::{
    domain::Call,
    error::{Error, Result},
    service::{Core, Work},
};

/// The largest request, in bytes. A message within its documented rules is far
/// smaller; tonic's own limit of 4 MiB would be decoded for anybody.
const MOST_BYTES: usize = 64 * 1024;

/// The largest request of TokenService: a hundred tokens of 8 KiB.
const MOST_BYTES_OF_TOKENS: usize = 1024 * 1024;

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
        let auth = v1::auth_service_server::AuthServiceServer::new(self.clone());
        let users = v1::user_service_server::UserServiceServer::new(self.clone());
        let roles = v1::role_service_server::RoleServiceServer::new(self.clone());
        let sessions = v1::session_service_server::SessionServiceServer::new(self);
        routes
            .add_service(auth.max_decoding_message_size(MOST_BYTES))
            .add_service(users.max_decoding_message_size(MOST_BYTES))
            .add_service(roles.max_decoding_message_size(MOST_BYTES))
            .add_service(sessions.max_decoding_message_size(MOST_BYTES))
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
        let tokens = v1::token_service_server::TokenServiceServer::new(self);
        routes.add_service(tokens.max_decoding_message_size(MOST_BYTES_OF_TOKENS))
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
