//! Who gets through.

use countersign_verifier::TrustState;
use http::{Method, Request};
use tonic::Code;

use super::*;
use crate::domain::workload::{Certificate, SubjectName};

const LIST_USERS: &str = "/countersign.v1.UserService/ListUsers";
const LOGOUT: &str = "/countersign.v1.AuthService/Logout";

#[tokio::test]
async fn what_has_no_row_is_refused() {
    let edge = Edge::new();
    for path in [
        "/countersign.v1.AuthService/Nothing",
        "/countersign.v1.AuthService/login",
        "/countersign.v1.AuthService/Login/",
        "//countersign.v1.AuthService/Login",
        "/",
        "/metrics",
    ] {
        let bearer = format!("Bearer {}", edge.mint.token(Permission::ALL));
        let ended = edge.call(path, &[("authorization", &bearer)]).await;
        ended.assert_failed(Code::Unimplemented, Reason::MethodUnknown);
    }
    assert_eq!(edge.reached(), 0);
}

#[tokio::test]
async fn what_is_no_grpc_call_is_refused() {
    let edge = Edge::new();
    edge.call(&format!("{VALIDATE}?x=1"), &[])
        .await
        .assert_failed(Code::Unimplemented, Reason::MethodUnknown);
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let mut get = request(VALIDATE, &[]);
        *get.method_mut() = method;
        let ended = end(edge.send(get).await).await;
        ended.assert_failed(Code::Unimplemented, Reason::MethodUnknown);
    }
    for content_type in ["application/json", "application/grpc-web"] {
        let post = Request::post(VALIDATE).header("content-type", content_type);
        let ended = end(edge.send(post.body(Body::empty()).unwrap()).await).await;
        ended.assert_failed(Code::InvalidArgument, Reason::InvalidRequest);
    }
    assert_eq!(edge.reached(), 0);
    edge.call(VALIDATE, &[]).await;
    assert_eq!(edge.reached(), 1);
}

#[tokio::test]
async fn each_kind_of_row_asks_for_what_it_says() {
    let edge = Edge::new();
    let reader = format!("Bearer {}", edge.mint.token(&[Permission::UsersRead]));
    let other = format!("bearer {}", edge.mint.token(&[Permission::UsersWrite]));
    let bad = "Bearer a.b.c";
    let missing = Some((Code::Unauthenticated, Reason::CredentialsMissing));
    let invalid = Some((Code::Unauthenticated, Reason::TokenInvalid));
    let denied = Some((Code::PermissionDenied, Reason::PermissionDenied));
    for (path, authorization, refusal) in [
        // Public: nobody looks.
        (VALIDATE, &[][..], None),
        (VALIDATE, &[bad], None),
        (VALIDATE, &[bad, bad], None),
        // Absent or good.
        (LOGOUT, &[], None),
        (LOGOUT, &[&*other], None),
        (LOGOUT, &[bad], invalid),
        (LOGOUT, &["Basic abc"], missing),
        (LOGOUT, &[&*other, &*other], missing),
        // Good.
        (WHO_AM_I, &[&*other], None),
        (WHO_AM_I, &[], missing),
        (WHO_AM_I, &["Basic abc"], missing),
        (WHO_AM_I, &[&*other, &*other], missing),
        (WHO_AM_I, &[bad], invalid),
        // Good, with the permission.
        (LIST_USERS, &[&*reader], None),
        (LIST_USERS, &[&*other], denied),
        (LIST_USERS, &[], missing),
        (LIST_USERS, &[bad], invalid),
    ] {
        let before = edge.reached();
        let headers: Vec<_> = authorization
            .iter()
            .map(|value| ("authorization", *value))
            .collect();
        let ended = edge.call(path, &headers).await;
        match refusal {
            None => assert_eq!(ended.status.code(), Code::Ok, "{path} {authorization:?}"),
            Some((code, reason)) => ended.assert_failed(code, reason),
        }
        let passed = edge.reached() - before;
        assert_eq!(
            passed,
            usize::from(refusal.is_none()),
            "{path} {authorization:?}"
        );
    }
}

#[tokio::test]
async fn the_permission_that_is_missing_is_named() {
    let edge = Edge::new();
    let bearer = format!("Bearer {}", edge.mint.token(&[]));
    let ended = edge.call(LIST_USERS, &[("authorization", &bearer)]).await;
    let details = ended.status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["permission"], Permission::UsersRead.name());
}

#[tokio::test]
async fn the_handler_knows_the_caller_and_not_the_token() {
    let edge = Edge::new();
    let bearer = format!("Bearer {}", edge.mint.token(&[]));
    edge.call(
        WHO_AM_I,
        &[("authorization", &bearer), ("user-agent", "test/1 \u{e9}")],
    )
    .await;
    let call = edge.last_call();
    assert_eq!(call.caller.unwrap().user_id(), Some(Uuid::from_u128(7)));
    assert_eq!(call.peer.address, Some("198.51.100.1".parse().unwrap()));
    assert_eq!(call.user_agent, "test/1 ");
    edge.call(VALIDATE, &[("authorization", &bearer)]).await;
    assert!(edge.last_call().caller.is_none());
}

#[tokio::test]
async fn bad_tokens_are_all_answered_alike() {
    let edge = Edge::new();
    let good = edge.mint.token(&[]);
    let stranger = Mint::new();
    let forged = format!("Bearer {}", stranger.token(&[]));
    edge.mint.clock.advance(Duration::from_secs(1000));
    let expired = format!("Bearer {good}");
    let mut messages = Vec::new();
    for bearer in [&*forged, &*expired, "Bearer x"] {
        let ended = edge
            .call(
                WHO_AM_I,
                &[("authorization", bearer), ("x-request-id", "r")],
            )
            .await;
        ended.assert_failed(Code::Unauthenticated, Reason::TokenInvalid);
        messages.push((
            ended.status.message().to_owned(),
            ended.status.details().to_owned(),
        ));
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
}

#[tokio::test]
async fn a_node_that_knows_no_keys_says_that_it_is_not_ready() {
    let mint = Mint::new();
    let bearer = format!("Bearer {}", mint.token(&[]));
    let unready = mint.verifier.clone();
    let edge = Edge::with(|parts| parts.verifier = unready);
    let ended = edge.call(WHO_AM_I, &[("authorization", &bearer)]).await;
    ended.assert_failed(Code::Unavailable, Reason::NotReady);
    assert!(ended.status.get_error_details().retry_info().is_some());
    let state: Option<Arc<TrustState>> = mint.verifier.state();
    assert!(state.is_none());
}

#[tokio::test]
async fn a_token_for_another_service_is_none_here() {
    let edge = Edge::new();
    for (audience, code) in [
        ("countersign", Code::Ok),
        ("elsewhere", Code::Unauthenticated),
    ] {
        let bearer = format!("Bearer {}", edge.mint.token_for(audience, &[]));
        let ended = edge.call(WHO_AM_I, &[("authorization", &bearer)]).await;
        assert_eq!(ended.status.code(), code, "{audience}");
        // It is good where it belongs.
        let token = edge.mint.token_for(audience, &[]);
        edge.mint.verifier.verify(&token, None).unwrap();
    }
    assert_eq!(edge.reached(), 1);
}

#[tokio::test]
async fn a_certificate_is_a_credential_where_no_token_is() {
    let list = ["spiffe://example.org/orders countersign.users.read"];
    let list = list.map(|entry| entry.parse().unwrap());
    let edge = Edge::with(|parts| parts.workloads = Workloads::new(list.into()));
    let certificate = |uri: &str| {
        let now = edge.mint.clock.now();
        Some(Arc::new(Certificate {
            names: vec![SubjectName::Uri(uri.into())],
            not_before: now,
            not_after: now + Duration::from_mins(1),
        }))
    };
    let listed = certificate("spiffe://example.org/orders");
    let other = certificate("spiffe://example.org/others");
    let good = format!("Bearer {}", edge.mint.token(&[]));
    let missing = Some((Code::Unauthenticated, Reason::CredentialsMissing));
    let invalid = Some((Code::Unauthenticated, Reason::TokenInvalid));
    let denied = Some((Code::PermissionDenied, Reason::PermissionDenied));
    let kind = Some((Code::PermissionDenied, Reason::CredentialKindNotAllowed));
    let change_password = "/countersign.v1.AuthService/ChangePassword";
    let list_roles = "/countersign.v1.RoleService/ListRoles";
    let check = async |path: &str,
                       certificate: &Option<Arc<Certificate>>,
                       headers: &[(&str, &str)],
                       refusal| {
        let mut request = request(path, headers);
        let connection = request.extensions_mut().get_mut::<Connection>().unwrap();
        connection.certificate.clone_from(certificate);
        let before = edge.reached();
        let ended = end(edge.send(request).await).await;
        match refusal {
            Some((code, reason)) => ended.assert_failed(code, reason),
            None => assert_eq!(edge.reached(), before + 1, "{path}: {:?}", ended.status),
        }
    };
    check(LIST_USERS, &listed, &[], None).await;
    let call = edge.last_call();
    let caller = call.caller.unwrap();
    assert_eq!(caller.subject.to_string(), "spiffe://example.org/orders");
    assert_eq!(
        (call.workload.as_deref(), caller.user_id()),
        (Some("spiffe://example.org/orders"), None)
    );
    check(WHO_AM_I, &listed, &[], None).await;
    check(list_roles, &listed, &[], denied).await;
    check(change_password, &listed, &[], kind).await;
    // The token's caller, and the workload is known beside it.
    let token = [("authorization", good.as_str())];
    check(LIST_USERS, &listed, &token, denied).await;
    check(WHO_AM_I, &listed, &token, None).await;
    let call = edge.last_call();
    assert!(call.user_id().is_some() && call.workload.is_some());
    check(
        WHO_AM_I,
        &listed,
        &[("authorization", "Bearer a.b.c")],
        invalid,
    )
    .await;
    // Public and optional ones look at no certificate, good or not.
    for certificate in [&listed, &other] {
        check(LOGOUT, certificate, &[], None).await;
        assert!(edge.last_call().caller.is_none());
        check(VALIDATE, certificate, &[], None).await;
    }
    check(LIST_USERS, &other, &[], missing).await;
    check(LIST_USERS, &None, &[], missing).await;
    // The connection is as it was, and the certificate has ended.
    edge.mint.clock.advance(Duration::from_mins(1));
    check(LIST_USERS, &listed, &[], invalid).await;
    check(VALIDATE, &listed, &[], None).await;
    assert_eq!(edge.last_call().workload, None);
    check(WHO_AM_I, &listed, &token, None).await;
    assert_eq!(edge.last_call().workload, None);
}
