//! gRPC-Web as a browser speaks it: over HTTP/1.1, after asking, and only for
//! pages of origins that are listed. On SQLite: no database has a say in it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use countersign_proto::v1;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status};

use crate::harness::{Kind, World, calls::validates, refused, world};

const ORIGIN: &str = "https://app.example.com";
const LOGIN: &str = "/countersign.v1.AuthService/Login";
const WHO_AM_I: &str = "/countersign.v1.AuthService/WhoAmI";
const VALIDATE: &str = "/countersign.v1.TokenService/ValidateToken";
const WEB: &str = "application/grpc-web+proto";

/// What a browser got.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// The message, and the trailers that follow it in the body.
    fn parts(&self) -> (Vec<u8>, String) {
        let (mut message, mut trailers) = (Vec::new(), String::new());
        let mut rest = &self.body[..];
        while let [flag, a, b, c, d, after @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (frame, next) = after.split_at(length);
            match flag {
                0 => message = frame.to_vec(),
                0x80 => trailers = String::from_utf8(frame.to_vec()).unwrap(),
                other => panic!("a frame of kind {other}"),
            }
            rest = next;
        }
        (message, trailers)
    }
}

async fn world_with(origins: &[&str]) -> World {
    World::with(Kind::Sqlite, |config| {
        config.grpc_web.allowed_origins = origins.iter().map(ToString::to_string).collect();
    })
    .await
}

async fn send(world: &World, request: Request<Full<Bytes>>) -> Got {
    let stream = TcpStream::connect(world.node.address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    Got {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &message].concat()
}

async fn call(world: &World, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Got {
    let mut request = Request::post(path).header("host", "node");
    for (name, value) in [("origin", ORIGIN), ("x-grpc-web", "1")]
        .iter()
        .chain(headers)
    {
        request = request.header(*name, *value);
    }
    send(world, request.body(Full::from(body)).unwrap()).await
}

async fn ask(world: &World, origin: &str) -> Got {
    let request = Request::builder()
        .method(Method::OPTIONS)
        .uri(WHO_AM_I)
        .header("host", "node")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-grpc-web",
        );
    send(world, request.body(Full::default()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_logs_in_and_reads_answers_and_errors() {
    let world = world_with(&["https://other.example.com", ORIGIN]).await;
    let person = world.person().await;
    let login = v1::LoginRequest {
        identifier: person.email.clone(),
        password: world::PASSWORD.to_owned(),
        ..Default::default()
    };
    let kind = [("content-type", WEB)];
    let got = call(&world, LOGIN, &kind, framed(&login)).await;
    assert_eq!((got.status, got.header("content-type")), (200, WEB));
    assert_eq!(got.header("access-control-allow-origin"), ORIGIN);
    let (message, trailers) = got.parts();
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let reply = v1::LoginResponse::decode(&message[..]).unwrap();
    let Some(v1::login_response::Result::Tokens(tokens)) = reply.result else {
        panic!("no tokens in {reply:?}");
    };

    let bearer = format!("Bearer {}", tokens.access_token);
    let headers = [("content-type", WEB), ("authorization", &*bearer)];
    let got = call(
        &world,
        WHO_AM_I,
        &headers,
        framed(&v1::WhoAmIRequest::default()),
    )
    .await;
    let me = v1::WhoAmIResponse::decode(&got.parts().0[..]).unwrap();
    assert_eq!(me.user.unwrap().user_id, person.user_id);

    // The same as text, for clients that cannot read bytes as they come.
    let text = [
        ("content-type", "application/grpc-web-text"),
        ("accept", "application/grpc-web-text"),
        ("authorization", &*bearer),
    ];
    let body = STANDARD.encode(framed(&v1::WhoAmIRequest::default()));
    let got = call(&world, WHO_AM_I, &text, body.into_bytes()).await;
    assert!(
        got.header("content-type")
            .starts_with("application/grpc-web-text")
    );
    assert_eq!(got.header("grpc-status"), "");
    assert!(!got.body.is_empty());

    // A failure comes as headers, which the page may read.
    let refusal = call(
        &world,
        WHO_AM_I,
        &kind,
        framed(&v1::WhoAmIRequest::default()),
    )
    .await;
    assert_eq!(refusal.status, 200);
    let status = Status::from_header_map(&refusal.headers).unwrap();
    let failure = refused(
        Err::<(), _>(status),
        Code::Unauthenticated,
        "CREDENTIALS_MISSING",
    );
    assert_eq!(failure.request_id, refusal.header("x-request-id"));
    let exposed = refusal.header("access-control-expose-headers");
    for name in [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "x-request-id",
    ] {
        assert!(
            exposed.split(',').any(|given| given.trim() == name),
            "{exposed}"
        );
    }

    // gRPC goes on beside it.
    assert!(validates(&world.anonymous(), &tokens.access_token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_the_listed_origins_may() {
    let world = world_with(&[ORIGIN]).await;
    let got = ask(&world, ORIGIN).await;
    assert_eq!(got.status, 200);
    assert_eq!(got.header("access-control-allow-origin"), ORIGIN);
    assert_eq!(got.header("access-control-allow-methods"), "POST");
    for name in [
        "authorization",
        "content-type",
        "x-grpc-web",
        "grpc-timeout",
    ] {
        assert!(got.header("access-control-allow-headers").contains(name));
    }
    assert_eq!(got.header("access-control-allow-credentials"), "");
    for origin in [
        "https://evil.example.com",
        "http://app.example.com",
        "https://app.example.com.evil.test",
        "https://app.example.com:8443",
        "null",
    ] {
        let got = ask(&world, origin).await;
        assert_eq!(got.header("access-control-allow-origin"), "", "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bounds_grpc_bounds_grpc_web() {
    let world = world_with(&[ORIGIN]).await;
    let kind = [("content-type", WEB)];
    for (path, token, code, reason) in [
        (
            VALIDATE,
            70 * 1024,
            Code::ResourceExhausted,
            "REQUEST_TOO_LARGE",
        ),
        (VALIDATE, 0, Code::InvalidArgument, "INVALID_REQUEST"),
        (
            "/countersign.v1.TokenService/Nothing",
            1,
            Code::Unimplemented,
            "METHOD_UNKNOWN",
        ),
        (VALIDATE, 1, Code::Unauthenticated, "TOKEN_INVALID"),
    ] {
        let message = v1::ValidateTokenRequest {
            token: "a".repeat(token),
            ..Default::default()
        };
        let got = call(&world, path, &kind, framed(&message)).await;
        let status = Status::from_header_map(&got.headers).expect(reason);
        refused(Err::<(), _>(status), code, reason);
    }
    // What is neither gRPC-Web nor HTTP/2 is no call.
    for kind in ["application/grpc", "application/json", "text/plain"] {
        let got = call(&world, VALIDATE, &[("content-type", kind)], Vec::new()).await;
        assert_eq!(got.status, 400, "{kind}");
    }
    let get = Request::get(VALIDATE)
        .header("host", "node")
        .header("content-type", WEB);
    assert_eq!(
        send(&world, get.body(Full::default()).unwrap())
            .await
            .status,
        405
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_origin_listed_there_is_none() {
    let world = World::new(Kind::Sqlite).await;
    let mut stream = TcpStream::connect(world.node.address).await.unwrap();
    let request = format!(
        "POST {VALIDATE} HTTP/1.1\r\nhost: node\r\ncontent-type: {WEB}\r\norigin: {ORIGIN}\r\n\
         content-length: 5\r\n\r\n\0\0\0\0\0"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP/1"), "{answer:?}");
}
