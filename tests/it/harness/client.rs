//! A client of a node: the generated stubs over one connection, with or
//! without a bearer token, and what its failures say.

use countersign_proto::v1::{
    api_key_service_client::ApiKeyServiceClient, audit_service_client::AuditServiceClient,
    auth_service_client::AuthServiceClient, key_service_client::KeyServiceClient,
    role_service_client::RoleServiceClient, session_service_client::SessionServiceClient,
    token_service_client::TokenServiceClient, trust_service_client::TrustServiceClient,
    user_service_client::UserServiceClient,
};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_types::StatusExt;

type Stub = InterceptedService<Channel, Bearer>;

/// Adds `authorization` if there is a token.
#[derive(Debug, Clone, Default)]
pub struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = MetadataValue::try_from(format!("Bearer {token}")).expect("a header");
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// All services of one node, as one caller sees them.
#[derive(Debug, Clone)]
pub struct Client {
    pub channel: Channel,
    pub auth: AuthServiceClient<Stub>,
    pub tokens: TokenServiceClient<Stub>,
    pub users: UserServiceClient<Stub>,
    pub roles: RoleServiceClient<Stub>,
    pub sessions: SessionServiceClient<Stub>,
    pub trust: TrustServiceClient<Stub>,
    pub api_keys: ApiKeyServiceClient<Stub>,
    pub keys: KeyServiceClient<Stub>,
    pub audit: AuditServiceClient<Stub>,
}

impl Client {
    pub fn new(channel: Channel, token: Option<&str>) -> Self {
        let bearer = Bearer(token.map(str::to_owned));
        let stub = || InterceptedService::new(channel.clone(), bearer.clone());
        Self {
            auth: AuthServiceClient::new(stub()),
            tokens: TokenServiceClient::new(stub()),
            users: UserServiceClient::new(stub()),
            roles: RoleServiceClient::new(stub()),
            sessions: SessionServiceClient::new(stub()),
            trust: TrustServiceClient::new(stub()),
            api_keys: ApiKeyServiceClient::new(stub()),
            keys: KeyServiceClient::new(stub()),
            audit: AuditServiceClient::new(stub()),
            channel,
        }
    }

    /// The same connection, another caller.
    pub fn with_token(&self, token: &str) -> Self {
        Self::new(self.channel.clone(), Some(token))
    }

    /// The same connection, nobody.
    pub fn anonymous(&self) -> Self {
        Self::new(self.channel.clone(), None)
    }
}

/// What a failed call says to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub reason: String,
    /// Fields that are said to break their rules.
    pub fields: Vec<String>,
    pub retry: bool,
    pub request_id: String,
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let fields = details.bad_request().map(|bad| {
            bad.field_violations
                .iter()
                .map(|violation| violation.field.clone())
                .collect()
        });
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            fields: fields.unwrap_or_default(),
            retry: details.retry_info().is_some(),
            request_id: details
                .request_info()
                .map(|i| i.request_id.clone())
                .unwrap_or_default(),
        }
    }
}

/// The failure of a call that must fail, checked to be a whole one: our
/// domain, a reason, and the correlation id.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) -> Failure {
    let status = result.expect_err("the call was to be refused");
    let failure = Failure::from(&status);
    assert_eq!(
        (failure.code, failure.reason.as_str()),
        (code, reason),
        "{status:?}"
    );
    assert!(
        !failure.request_id.is_empty(),
        "no correlation id: {status:?}"
    );
    let details = status.get_error_details();
    assert_eq!(
        details.error_info().expect("ErrorInfo").domain,
        "countersign"
    );
    failure
}
