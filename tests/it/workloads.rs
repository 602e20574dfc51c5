//! Workloads: services that prove who they are by a client certificate.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use countersign_proto::v1;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{Code, Status, transport::Endpoint};

use crate::{
    harness::{Client, Failure, Kind, World, calls, eventually, refused, rpc, world},
    on_both,
};

const ORDERS: &str = "spiffe://example.org/orders";

/// Who certifies.
pub type Issuer = CertifiedIssuer<'static, KeyPair>;

pub fn issuer() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// The files of a node with TLS, and who signs for its clients.
struct Fleet {
    folder: TempDir,
    server: Issuer,
    clients: Issuer,
}

/// A certificate with its key.
pub type Identity = (rcgen::Certificate, KeyPair);

impl Fleet {
    fn new() -> Self {
        let fleet = Self {
            folder: tempfile::tempdir().unwrap(),
            server: issuer(),
            clients: issuer(),
        };
        let (certificate, key) = sign(&fleet.server, vec![dns("localhost")], (2020, 2100));
        fs::write(fleet.file("c.pem"), certificate.pem()).unwrap();
        fs::write(fleet.file("k.pem"), key.serialize_pem()).unwrap();
        fs::write(fleet.file("ca.pem"), fleet.clients.pem()).unwrap();
        fleet
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The world, with these files and this list.
    async fn serve(&self, world: World, workloads: &[&str]) -> World {
        world
            .restarted(|config| {
                config.listen.tls_certificate_file = Some(self.file("c.pem"));
                config.listen.tls_key_file = Some(self.file("k.pem"));
                config.listen.tls_client_ca_file = Some(self.file("ca.pem"));
                config.listen.tls_workloads = workloads.iter().map(ToString::to_string).collect();
                config.listen.tls_reload_seconds = 1;
            })
            .await
    }

    /// A certificate of this fleet.
    fn identity(&self, names: Vec<SanType>) -> Identity {
        sign(&self.clients, names, (2020, 2100))
    }

    /// A client that shows a certificate, if it has one.
    fn client(&self, world: &World, identity: Option<&Identity>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.server.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                let chain = vec![certificate.der().clone()];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (config, address) = (Arc::new(config), world.node.address);
        let connect = move |_: http::Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").expect("a name");
                let stream = connector.connect(name, stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        };
        let endpoint = Endpoint::from_static("http://localhost");
        Client::new(
            endpoint.connect_with_connector_lazy(tower::service_fn(connect)),
            None,
        )
    }
}

pub fn sign(issuer: &Issuer, names: Vec<SanType>, (from, to): (i32, i32)) -> Identity {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap(), key)
}

async fn who(client: &Client) -> Result<v1::Caller, Status> {
    let reply = client.clone().auth.who_am_i(v1::WhoAmIRequest {}).await?;
    let reply = reply.into_inner();
    let caller = reply.caller.expect("a caller");
    assert_eq!(
        reply.user.is_some(),
        caller.kind() == v1::CallerKind::User,
        "an account has who logged in to it"
    );
    Ok(caller)
}

/// Whether the handshake fails, so that no node answers.
async fn is_turned_away(client: &Client) -> bool {
    let keys = client.clone().tokens.get_jwks(v1::GetJwksRequest {}).await;
    keys.is_err_and(|status| Failure::from(&status).reason.is_empty())
}

on_both! {
    async fn a_workload_on_the_list_is_a_caller(world: World) {
        let fleet = Fleet::new();
        let list = [
            "spiffe://example.org/orders countersign.users.read countersign.users.write",
            "gateway.internal",
        ];
        let world = fleet.serve(world, &list).await;
        let mut orders = fleet.client(&world, Some(&fleet.identity(vec![uri(ORDERS)])));
        let caller = who(&orders).await.unwrap();
        assert_eq!((caller.kind(), caller.subject.as_str()), (v1::CallerKind::Workload, ORDERS));
        assert_eq!(caller.scopes, ["countersign.users.read", "countersign.users.write"]);
        assert_eq!((caller.session_id.as_str(), caller.expires_at.unwrap().seconds), ("", 4_102_444_800));
        orders.users.list_users(v1::ListUsersRequest::default()).await.unwrap();
        let roles = orders.roles.list_roles(v1::ListRolesRequest::default()).await;
        refused(roles, Code::PermissionDenied, "PERMISSION_DENIED");
        let leave = v1::ChangePasswordRequest {
            current_password: world::PASSWORD.into(),
            new_password: "another horse entirely, thanks".into(),
        };
        refused(orders.auth.change_password(leave).await, Code::PermissionDenied, "CREDENTIAL_KIND_NOT_ALLOWED");
        // It has no sessions and no keys of its own to be meant.
        for result in [calls::sessions(&orders, "").await.map(drop), calls::api_keys(&orders, "").await.map(drop)] {
            assert_eq!(refused(result, Code::InvalidArgument, "INVALID_REQUEST").fields, ["user_id"]);
        }
        // What it does is recorded under its name, and what it repeats is its own.
        let create = |email: &str| v1::CreateUserRequest {
            email: email.into(),
            request_id: "00000001-0000-4000-8000-000000000000".into(),
            ..Default::default()
        };
        let made = orders.users.create_user(create("a@example.com")).await.unwrap().into_inner();
        let again = orders.users.create_user(create("a@example.com")).await.unwrap().into_inner();
        assert_eq!(made, again);
        let by = format!("SELECT count(*) FROM audit_events WHERE action = 'user.created' AND workload = '{ORDERS}' AND actor IS NULL");
        assert_eq!(world.query(&by).await, ["1"]);

        // The name of a host, and of two names the one on the list.
        let both = fleet.identity(vec![uri("spiffe://example.org/other"), dns("Gateway.internal")]);
        let gateway = who(&fleet.client(&world, Some(&both))).await.unwrap();
        assert_eq!((gateway.subject.as_str(), gateway.scopes.len()), ("gateway.internal", 0));
    }

    async fn one_that_is_trusted_says_for_whom_it_logs_in_and_no_other_does(world: World) {
        let email = world.person().await.email;
        let fleet = Fleet::new();
        let world = fleet.serve(world, &["spiffe://example.org/other"]).await;
        let web = "spiffe://example.org/web";
        let world = world.restarted(|config| config.limits.trusted_workloads = vec![web.into()]).await;
        for (name, expected) in [
            (Some(web), "198.51.100.7"),
            (Some("spiffe://example.org/other"), "127.0.0.1"),
            (None, "127.0.0.1"),
        ] {
            let identity = name.map(|name| fleet.identity(vec![uri(name)]));
            let mut client = fleet.client(&world, identity.as_ref());
            let mut request = tonic::Request::new(v1::LoginRequest {
                identifier: email.clone(),
                password: world::PASSWORD.into(),
                ..Default::default()
            });
            let said = "203.0.113.9, 198.51.100.7".parse().unwrap();
            request.metadata_mut().insert("x-forwarded-for", said);
            let reply = client.auth.login(request).await.unwrap().into_inner();
            let Some(v1::login_response::Result::Tokens(pair)) = reply.result else { panic!("no tokens") };
            let sessions = calls::sessions(&client.with_token(&pair.access_token), "").await.unwrap();
            let session = sessions.iter().find(|session| session.session_id == pair.session_id);
            assert_eq!(session.unwrap().address, expected, "{name:?}");
        }
    }

    async fn who_is_not_on_the_list_is_nobody_and_no_error(world: World) {
        let fleet = Fleet::new();
        let world = fleet.serve(world, &["spiffe://example.org/orders countersign.users.read"]).await;
        let nobody = fleet.client(&world, None);
        let strangers = [
            fleet.identity(vec![uri("spiffe://example.org/orders/too")]),
            fleet.identity(vec![dns("orders")]),
            fleet.identity(vec![]),
        ];
        let (ana, _) = rpc::persona_by(&nobody, &world, &[]).await;
        for client in std::iter::once(nobody).chain(strangers.iter().map(|one| fleet.client(&world, Some(one)))) {
            refused(who(&client).await, Code::Unauthenticated, "CREDENTIALS_MISSING");
            client.clone().tokens.get_jwks(v1::GetJwksRequest {}).await.unwrap();
            let with_token = client.with_token(&ana.tokens.access_token);
            assert_eq!(who(&with_token).await.unwrap().subject, ana.user_id);
        }
        // Whom others certify, or whose time is over, or has not come, is turned away.
        let other = issuer();
        for bad in [
            sign(&other, vec![uri(ORDERS)], (2020, 2100)),
            sign(&fleet.clients, vec![uri(ORDERS)], (2020, 2021)),
            sign(&fleet.clients, vec![uri(ORDERS)], (2099, 2100)),
        ] {
            assert!(is_turned_away(&fleet.client(&world, Some(&bad))).await);
        }
    }

    async fn tokens_say_through_which_workload_they_were_asked_for(world: World) {
        let fleet = Fleet::new();
        let world = fleet.serve(world, &["gateway.internal"]).await;
        let nobody = fleet.client(&world, None);
        let gateway = fleet.client(&world, Some(&fleet.identity(vec![dns("gateway.internal")])));
        let (ana, _) = rpc::persona_by(&nobody, &world, &[]).await;
        assert_eq!(calls::claims(&ana.tokens.access_token)["client_id"], "countersign");
        let pair = world::login(&gateway, &ana.email, world::PASSWORD).await.unwrap();
        let client_id = |pair: &v1::TokenPair| calls::claims(&pair.access_token)["client_id"].clone();
        assert_eq!(client_id(&pair), "gateway.internal");
        // Whoever asks now; not whoever asked first.
        let next = calls::refresh(&nobody, &pair.refresh_token).await.unwrap();
        assert_eq!(client_id(&next), "countersign");
        let next = calls::refresh(&gateway, &next.refresh_token).await.unwrap();
        assert_eq!(client_id(&next), "gateway.internal");
        // With a token it is the token that calls.
        let caller = who(&gateway.with_token(&next.access_token)).await.unwrap();
        assert_eq!((caller.subject.as_str(), caller.client_id.as_str()), (ana.user_id.as_str(), "gateway.internal"));
        refused(who(&gateway.with_token("no.token")).await, Code::Unauthenticated, "TOKEN_INVALID");
        // It may end a session by its refresh token, as anybody may.
        let leave = v1::LogoutRequest { refresh_token: next.refresh_token.clone() };
        gateway.clone().auth.logout(leave).await.unwrap();
        assert!(calls::is_dead(&nobody, &next).await);
    }
}

/// SQLite only: no database is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_outlives_its_certificate_and_the_caller_does_not() {
    let fleet = Fleet::new();
    let world = fleet
        .serve(World::new(Kind::Sqlite).await, &["gateway.internal"])
        .await;
    // The node's clock says 2030.
    let short = sign(&fleet.clients, vec![dns("gateway.internal")], (2020, 2031));
    let gateway = fleet.client(&world, Some(&short));
    assert_eq!(who(&gateway).await.unwrap().subject, "gateway.internal");
    world.clock.advance(Duration::from_secs(366 * 24 * 3600));
    refused(who(&gateway).await, Code::Unauthenticated, "TOKEN_INVALID");
    gateway
        .clone()
        .tokens
        .get_jwks(v1::GetJwksRequest {})
        .await
        .unwrap();
}

/// SQLite only: no database is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_certificates_are_good_is_read_again() {
    let fleet = Fleet::new();
    let world = fleet
        .serve(World::new(Kind::Sqlite).await, &["gateway.internal"])
        .await;
    let next = issuer();
    let names = || vec![dns("gateway.internal")];
    let (old, new) = (fleet.identity(names()), sign(&next, names(), (2020, 2100)));
    let connect = |identity: &Identity| fleet.client(&world, Some(identity));
    who(&connect(&old)).await.unwrap();
    assert!(is_turned_away(&connect(&new)).await);
    // Both, while the fleet moves; then the new one alone.
    fs::write(
        fleet.file("ca.pem"),
        format!("{}{}", fleet.clients.pem(), next.pem()),
    )
    .unwrap();
    eventually("the next CA is known", async || {
        who(&connect(&new)).await.is_ok()
    })
    .await;
    who(&connect(&old)).await.unwrap();
    fs::write(fleet.file("ca.pem"), next.pem()).unwrap();
    eventually("the old CA is known no more", async || {
        is_turned_away(&connect(&old)).await
    })
    .await;
    who(&connect(&new)).await.unwrap();
    // What cannot be read changes nothing.
    fs::write(fleet.file("ca.pem"), "garbage").unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    who(&connect(&new)).await.unwrap();
    assert!(is_turned_away(&connect(&old)).await);
}
