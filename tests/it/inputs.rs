//! Bad input for every field of every request. The fields come from the
//! descriptor; what is sent is a valid request with one thing wrong in it,
//! written as bytes, since no stub would write it.
//!
//! Whatever is sent, the answer is a refusal that names the field, or a
//! success where the text is merely odd; never a fault of the service.

use std::{collections::BTreeSet, time::Duration};

use countersign::{domain::Call, service::keys};
use countersign_proto::v1;
use countersign_verifier::KeyState;
use prost::{Message as _, encoding::encode_varint};
use prost_reflect::{Kind, MessageDescriptor, MethodDescriptor};
use tokio::time::timeout;
use tonic::{Code, Status, client::GrpcService as _};
use tonic_types::StatusExt;

use crate::{
    harness::{
        Failure, Person, World, refused,
        rpc::{self, Objects},
        world,
    },
    on_both,
};

/// One field that a request may carry, however deep.
#[derive(Debug, Clone)]
struct Field {
    /// How it is reported: `filter.role`, `metadata`.
    reported: String,
    /// The numbers on the way to it, its own last.
    numbers: Vec<u32>,
    /// What stands beside it in its message, so that only it is wrong.
    beside: Vec<u8>,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Number,
    Message,
}

/// All fields of a request. A kind that is not known here fails.
fn fields(request: &MessageDescriptor) -> Vec<Field> {
    let mut all = Vec::new();
    walk(request, "", &[], &mut all);
    all
}

fn walk(message: &MessageDescriptor, prefix: &str, numbers: &[u32], all: &mut Vec<Field>) {
    assert!(numbers.len() < 8, "{} contains itself", message.full_name());
    for field in message.fields() {
        // What maps and masks hold is reported as the whole.
        let reported = match message.full_name() {
            "google.protobuf.FieldMask"
            | "google.protobuf.Timestamp"
            | "google.protobuf.Duration" => prefix.to_owned(),
            _ if message.is_map_entry() => prefix.to_owned(),
            _ if prefix.is_empty() => field.name().to_owned(),
            _ => format!("{prefix}.{}", field.name()),
        };
        let numbers = [numbers, &[field.number()]].concat();
        let shape = match field.kind() {
            // Bytes are as long as an id, which no text here is.
            Kind::String | Kind::Bytes => Shape::Text,
            Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Enum(_) => Shape::Number,
            Kind::Message(inner) => {
                walk(&inner, &reported, &numbers, all);
                Shape::Message
            }
            other => panic!(
                "{} is a {other:?}: say here what is bad for it",
                field.full_name()
            ),
        };
        // A map's value needs a legal key, an item's audience a token, a number
        // of the trust log its nonce.
        let beside = match field.full_name() {
            _ if message.is_map_entry() && field.number() == 2 => write(&[1], Wire::Text(b"k")),
            "countersign.v1.ValidateTokenRequest.audience" => write(&[1], Wire::Text(b"t")),
            "countersign.v1.TrustPosition.seq" => write(&[2], Wire::Text(&[7; 16])),
            _ => Vec::new(),
        };
        all.push(Field {
            reported,
            numbers,
            beside,
            shape,
        });
    }
}

#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Text(&'a [u8]),
    Fixed32,
    /// A group that does not end.
    Group,
}

/// Writes one field. After a valid request it takes the place of a single
/// value, is one more of a repeated one, and is merged into messages.
fn write(numbers: &[u32], value: Wire<'_>) -> Vec<u8> {
    let (last, outer) = numbers.split_last().unwrap();
    let tag = |number: u32, kind: u32, into: &mut Vec<u8>| {
        encode_varint(u64::from(number << 3 | kind), into);
    };
    let mut bytes = Vec::new();
    match value {
        Wire::Varint(value) => {
            tag(*last, 0, &mut bytes);
            encode_varint(value, &mut bytes);
        }
        Wire::Text(text) => {
            tag(*last, 2, &mut bytes);
            encode_varint(text.len() as u64, &mut bytes);
            bytes.extend(text);
        }
        Wire::Fixed32 => {
            tag(*last, 5, &mut bytes);
            bytes.extend([1, 2, 3, 4]);
        }
        Wire::Group => tag(*last, 3, &mut bytes),
    }
    wrap(outer, bytes)
}

fn wrap(numbers: &[u32], mut bytes: Vec<u8>) -> Vec<u8> {
    for number in numbers.iter().rev() {
        bytes = write(&[*number], Wire::Text(&bytes));
    }
    bytes
}

impl Field {
    fn with(&self, value: Wire<'_>) -> Vec<u8> {
        let (last, outer) = self.numbers.split_last().unwrap();
        wrap(
            outer,
            [self.beside.clone(), write(&[*last], value)].concat(),
        )
    }

    /// Whether only the server writes it: what a request says there is not
    /// read.
    fn is_output(&self) -> bool {
        let top: Vec<_> = self.reported.split('.').take(2).collect();
        OUTPUT.contains(&top.join(".").as_str())
    }

    /// Credentials and the like: a text that is wrong is merely unknown, as
    /// long as it is no longer than this; and what is said then.
    fn merely_unknown(&self, rpc: &str) -> Option<(usize, Code, &'static str)> {
        const UNAUTHENTICATED: Code = Code::Unauthenticated;
        Some(match (rpc, self.reported.as_str()) {
            ("TokenService/ValidateToken", "token") => {
                (usize::MAX, UNAUTHENTICATED, "TOKEN_INVALID")
            }
            ("TokenService/ValidateToken", "audience") => (256, UNAUTHENTICATED, "TOKEN_INVALID"),
            // A bad token is what the answer is about.
            ("TokenService/ValidateTokens", "items.token")
            | ("TokenService/ExplainToken", "token") => (usize::MAX, Code::Ok, ""),
            ("TokenService/ValidateTokens", "items.audience")
            | ("TokenService/ExplainToken", "audience") => (256, Code::Ok, ""),
            (_, "refresh_token") => (1024, UNAUTHENTICATED, "REFRESH_TOKEN_INVALID"),
            // A bad one is passed over.
            (_, "device_token") => (1024, Code::Ok, ""),
            (_, "page_token") => (1024, Code::InvalidArgument, "PAGE_TOKEN_INVALID"),
            _ => return None,
        })
    }
}

const OUTPUT: [&str; 8] = [
    "user.email_verified",
    "user.status",
    "user.roles",
    "user.created_at",
    "user.updated_at",
    "role.built_in",
    "role.created_at",
    "role.updated_at",
];

/// Texts that no field takes.
fn hopeless() -> Vec<String> {
    vec![
        "x".repeat(10_000),
        "x".repeat(60_000),
        format!("{}@example.com", "a".repeat(10_000)),
        format!("a@{}com", "example.".repeat(1_250)),
        "\u{1f468}\u{200d}".repeat(5_000),
        "a\0b".to_owned(),
        "\0".to_owned(),
        "a\u{1b}[2Jb".to_owned(),
        "a\r\nb: c".to_owned(),
        "a\u{7f}".to_owned(),
        "a\u{85}b".to_owned(),
    ]
}

/// Texts that some fields take and others do not.
#[rustfmt::skip]
fn naughty() -> Vec<String> {
    let long_grapheme = format!("e{}", "\u{301}".repeat(120));
    let texts = [
        " ", "''''\"", "\\0", "%s%s%n", "${jndi:ldap://x/a}", "'; DROP TABLE users; --", "$1", "@", "a@b@c",
        "../../../../etc/passwd", "C:\\CON", "null", "-1", "9223372036854775808", "<script>alert(1)</script>",
        "{\"$gt\":\"\"}", "\u{feff}bom", "ΑΣΦΑΛΕΣ", "İstanbul", "ﬃ", "田中さん", "مرحبا", "\u{202e}override",
        "zero\u{200b}width", "👩‍👩‍👧‍👦", "Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙͎̯̹̞͓G̻O̭̗̮", "\u{ffff}", "\u{10ffff}", "00000000-0000-0000-0000-000000000000",
        "{00000000-0000-4000-8000-0000000000}", "csr_AAAA", "eyJhbGciOiJub25lIn0.e30.", "NAUGHTY+tag@EXAMPLE.COM",
        "ünïcödé@ΑΣΦΑΛΕΣ.example", "a@[127.0.0.1]", "*", "password", "user.email", "countersign.everything",
    ];
    texts.map(str::to_owned).into_iter().chain([long_grapheme]).collect()
}

/// One RPC under attack.
struct Attack<'w> {
    world: &'w World,
    name: String,
    path: String,
    admin: Person,
    objects: Objects,
}

impl<'w> Attack<'w> {
    async fn on(world: &'w World, rpc: &MethodDescriptor) -> Self {
        let name = rpc::name(rpc);
        Self {
            world,
            path: rpc::path(&name),
            admin: world.admin().await,
            objects: Objects::new(world).await.and_keys(world, &name).await,
            name,
        }
    }

    /// A valid request that has every field looked at.
    fn request(&self) -> Vec<u8> {
        let mut request = rpc::request(&self.name, &self.objects);
        let mask = |paths: &[&str]| {
            Some(prost_types::FieldMask {
                paths: paths.iter().map(ToString::to_string).collect(),
            })
        };
        match self.name.as_str() {
            "UserService/UpdateUser" => request.extend(
                v1::UpdateUserRequest {
                    user: Some(v1::User {
                        email: self.objects.free_email.clone(),
                        ..Default::default()
                    }),
                    update_mask: mask(&["email", "username", "metadata"]),
                }
                .encode_to_vec(),
            ),
            "RoleService/UpdateRole" => request.extend(
                v1::UpdateRoleRequest {
                    role: None,
                    update_mask: mask(&["permissions"]),
                }
                .encode_to_vec(),
            ),
            _ => {}
        }
        request
    }

    /// Replaces what a success has used up.
    async fn renew(&mut self) {
        match self.name.split('/').nth(1).unwrap() {
            "Register" | "CreateUser" | "UpdateUser" | "CreateRole" => {
                self.objects.free_email = self.world.new_email();
            }
            "Login" | "UpdateRole" | "WhoAmI" | "WatchEvents" | "VerifyLog" => {}
            read if ["Get", "BatchGet", "List", "Validate", "Explain"]
                .iter()
                .any(|start| read.starts_with(start)) => {}
            "StageKey" | "RetireKey" => self.keys().await,
            "ActivateKey" => {
                // There is no room for as many keys as this makes.
                let (core, call) = (self.world.node.running.core(), Call::internal("test"));
                for key in keys::list(core, &call).await.unwrap() {
                    if key.state == KeyState::Retired {
                        keys::retire(core, &call, &key.kid).await.unwrap();
                    }
                }
                self.admin = self.world.admin().await;
                self.keys().await;
            }
            _ => self.objects = Objects::new(self.world).await,
        }
    }

    async fn keys(&mut self) {
        let objects = self.objects.clone();
        self.objects = objects.and_keys(self.world, &self.name).await;
    }

    /// The valid request with something more at its end.
    async fn send(&mut self, more: &[u8]) -> Option<Status> {
        let message = [self.request(), more.to_vec()].concat();
        // These act upon the caller.
        let token = match self.name.as_str() {
            "AuthService/Logout" | "AuthService/ChangePassword" => &self.objects.target,
            _ => &self.admin,
        };
        let token = token.tokens.access_token.clone();
        let channel = &self.world.anonymous().channel;
        let call = rpc::call(channel, &self.path, Some(&token), message);
        let result = timeout(Duration::from_secs(20), call).await;
        let result = result.unwrap_or_else(|_| panic!("{} hangs on {more:x?}", self.name));
        match result {
            Ok(_) => {
                self.renew().await;
                None
            }
            Err(status) => {
                within_bounds(&self.name, &status);
                Some(status)
            }
        }
    }
}

/// What holds for every failure, whatever its kind.
#[track_caller]
fn within_bounds(rpc: &str, status: &Status) {
    let failure = Failure::from(status);
    assert!(
        !matches!(
            failure.code,
            Code::Internal | Code::Unknown | Code::DataLoss
        ),
        "{rpc}: {status:?}"
    );
    assert!(
        !failure.reason.is_empty() && !failure.request_id.is_empty(),
        "{rpc}: {status:?}"
    );
    assert!(
        status.message().len() <= 1024,
        "{rpc}: a text of {} bytes",
        status.message().len()
    );
    assert!(
        status.details().len() <= 4096,
        "{rpc}: details of {} bytes",
        status.details().len()
    );
    assert!(
        failure.fields.len() <= 16,
        "{rpc}: {} violations",
        failure.fields.len()
    );
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().domain, "countersign");
}

/// The fields that a failure names, without indices.
fn named(status: &Status) -> BTreeSet<String> {
    let whole = |field: &String| {
        let mut text = field.clone();
        while let (Some(from), Some(to)) = (text.find('['), text.find(']')) {
            text.replace_range(from..=to, "");
        }
        text
    };
    Failure::from(status).fields.iter().map(whole).collect()
}

fn is_invalid(status: &Status, field: &str) -> bool {
    let failure = Failure::from(status);
    (failure.code, failure.reason.as_str()) == (Code::InvalidArgument, "INVALID_REQUEST")
        && named(status) == BTreeSet::from([field.to_owned()])
}

/// What else may be said to a text that is no more than odd.
fn is_unknown(rpc: &str, field: &str, status: &Status) -> bool {
    let reason = Failure::from(status).reason;
    match field {
        "user_id" | "user.user_id" => reason == "USER_NOT_FOUND",
        "session_id" => reason == "SESSION_NOT_FOUND",
        "stream_id" => reason == "STREAM_NOT_FOUND",
        "api_key_id" => reason == "API_KEY_NOT_FOUND",
        "kid" => reason == "KEY_NOT_FOUND",
        "force" => reason == "KEY_NOT_PUBLISHED",
        "after_position" => reason == "AUDIT_LOG_BROKEN",
        "role" | "roles" | "role.name" => reason == "ROLE_NOT_FOUND",
        "name" if rpc == "RoleService/DeleteRole" => reason == "ROLE_NOT_FOUND",
        "identifier" | "password" if rpc == "AuthService/Login" => reason == "LOGIN_FAILED",
        "current_password" => reason == "CURRENT_PASSWORD_INCORRECT",
        // Sent twice, it is somebody's.
        "email" | "user.email" => reason == "EMAIL_TAKEN",
        "username" | "user.username" => reason == "USERNAME_TAKEN",
        "name" if rpc == "RoleService/CreateRole" => reason == "ROLE_EXISTS",
        _ => false,
    }
}

async fn still_answers(world: &World) {
    let person = world.person().await;
    world::login(&world.anonymous(), &person.email, world::PASSWORD)
        .await
        .unwrap();
}

on_both! {
    async fn texts_that_no_field_takes_are_refused_by_name(world: World) {
        for rpc in rpc::all() {
            let mut attack = Attack::on(&world, &rpc).await;
            assert!(attack.send(&[]).await.is_none(), "{} refuses a valid request", attack.name);
            for field in fields(&rpc.input()).iter().filter(|field| field.shape == Shape::Text) {
                for text in hopeless() {
                    let status = attack.send(&field.with(Wire::Text(text.as_bytes()))).await;
                    let as_expected = match (&status, field.merely_unknown(&attack.name)) {
                        (None, _) if field.is_output() => true,
                        (Some(status), Some((most, code, reason))) if text.len() <= most => {
                            Failure::from(status).reason == reason && status.code() == code
                        }
                        (None, Some((most, Code::Ok, _))) => text.len() <= most,
                        (Some(status), _) => is_invalid(status, &field.reported),
                        (None, _) => false,
                    };
                    let shown: String = text.chars().take(20).collect();
                    assert!(as_expected, "{} {} {shown:?}: {status:?}", attack.name, field.reported);
                }
            }
        }
        still_answers(&world).await;
    }

    async fn odd_texts_are_refused_by_name_or_taken(world: World) {
        for rpc in rpc::all() {
            let mut attack = Attack::on(&world, &rpc).await;
            for field in fields(&rpc.input()).iter().filter(|field| field.shape == Shape::Text) {
                for text in naughty() {
                    let Some(status) = attack.send(&field.with(Wire::Text(text.as_bytes()))).await else {
                        continue;
                    };
                    let reason = Failure::from(&status).reason;
                    let unknown = field.merely_unknown(&attack.name).is_some_and(|u| u.2 == reason);
                    assert!(
                        unknown
                            || is_invalid(&status, &field.reported)
                            || is_unknown(&attack.name, &field.reported, &status),
                        "{} {} {text:?}: {status:?}", attack.name, field.reported
                    );
                }
            }
        }
        still_answers(&world).await;
    }

    async fn odd_numbers_are_refused_by_name_or_taken(world: World) {
        // The last one is jiff's, 26 hours before the end of the year 9999.
        let (year_0, last) = (-62_135_596_801_i64, 253_402_207_200_i64);
        let numbers = [
            0, 1, 2, 99, 1_000_000_000, -1, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN,
            year_0, year_0 + 1, last, last + 1, -377_705_023_201, -377_705_023_202, 253_402_300_800,
        ];
        for rpc in rpc::all() {
            let mut attack = Attack::on(&world, &rpc).await;
            for field in fields(&rpc.input()).iter().filter(|field| field.shape == Shape::Number) {
                for number in numbers {
                    let status = attack.send(&field.with(Wire::Varint(number.cast_unsigned()))).await;
                    let expected = |status| {
                        is_invalid(status, &field.reported)
                            || is_unknown(&attack.name, &field.reported, status)
                    };
                    assert!(
                        status.as_ref().is_none_or(expected),
                        "{} {} {number}: {status:?}", attack.name, field.reported
                    );
                    if field.reported.contains("created_") && !field.is_output() {
                        let seconds = field.numbers.last() == Some(&1);
                        let legal = if seconds { year_0 + 1..=last } else { 0..=999_999_999 };
                        // Of nanos, the wire's lower 32 bits are read.
                        #[expect(clippy::cast_possible_truncation, reason = "as prost does")]
                        let number = if seconds { number } else { i64::from(number as i32) };
                        assert_eq!(status.is_none(), legal.contains(&number), "{number}: {status:?}");
                    }
                }
            }
        }
    }

    async fn what_is_no_message_is_refused(world: World) {
        for rpc in rpc::all() {
            let mut attack = Attack::on(&world, &rpc).await;
            let mut broken = vec![
                vec![0x0a, 0x7f],             // ends within a field
                vec![0x00],                   // a field without a number
                vec![0xff; 11],               // a number that does not end
                vec![0x0b],                   // a group that does not end
                vec![0x0c],                   // the end of none
                vec![0x0e],                   // a kind of field that there is not
                [vec![0x0b; 200], vec![0x0c; 200]].concat(), // too deep
            ];
            for field in fields(&rpc.input()) {
                broken.push(field.with(Wire::Fixed32));
                broken.push(field.with(Wire::Group));
                match field.shape {
                    Shape::Text => {
                        broken.push(field.with(Wire::Varint(1)));
                        broken.push(field.with(Wire::Text(b"a\xff\xfeb")));
                        broken.push(field.with(Wire::Text(b"\xed\xa0\x80"))); // half a surrogate pair
                        broken.push(field.with(Wire::Text(b"\xc0\x80"))); // an overlong NUL
                    }
                    Shape::Number => broken.push(field.with(Wire::Text(b"1"))),
                    Shape::Message => broken.push(field.with(Wire::Varint(1))),
                }
            }
            for more in broken {
                let status = attack.send(&more).await;
                let invalid = status.as_ref().is_some_and(|status| {
                    let failure = Failure::from(status);
                    (failure.code, failure.reason.as_str()) == (Code::InvalidArgument, "INVALID_REQUEST")
                });
                assert!(invalid, "{} {more:x?}: {status:?}", attack.name);
            }
        }
        still_answers(&world).await;
    }

    async fn all_that_is_wrong_is_told_at_once(world: World) {
        let text = "x".repeat(2_000);
        for rpc in rpc::all() {
            let mut attack = Attack::on(&world, &rpc).await;
            let mut more = Vec::new();
            let mut expected = BTreeSet::new();
            for field in fields(&rpc.input()).iter().filter(|field| field.shape == Shape::Text) {
                let unknown = field.merely_unknown(&attack.name);
                if field.is_output() || unknown.is_some_and(|(most, ..)| most > text.len()) {
                    continue;
                }
                more.extend(field.with(Wire::Text(text.as_bytes())));
                expected.insert(field.reported.clone());
            }
            if !expected.is_empty() {
                let status = attack.send(&more).await.expect("refused");
                assert_eq!(named(&status), expected, "{}", attack.name);
            }
        }
    }

    async fn at_most_sixteen_violations_are_told(world: World) {
        let mut admin = world.admin().await;
        let request = v1::BatchGetUsersRequest { user_ids: vec!["x".repeat(500); 100] };
        let status = admin.client.users.batch_get_users(request).await.unwrap_err();
        within_bounds("BatchGetUsers", &status);
        assert_eq!(Failure::from(&status).fields.len(), 16);
        let request = v1::ValidateTokensRequest { items: vec![v1::ValidateTokenRequest::default(); 100] };
        let status = admin.client.tokens.validate_tokens(request).await.unwrap_err();
        within_bounds("ValidateTokens", &status);
        assert_eq!(Failure::from(&status).fields.len(), 16);
        let paths = (0..40).map(|i| format!("{i}{}", "x".repeat(1_000))).collect();
        let request = v1::UpdateUserRequest {
            user: Some(v1::User { user_id: admin.user_id.clone(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let status = admin.client.users.update_user(request).await.unwrap_err();
        within_bounds("UpdateUser", &status);
        assert_eq!(Failure::from(&status).fields.len(), 16);
    }

    async fn messages_over_the_limit_are_too_large(world: World) {
        let channel = &world.anonymous().channel;
        for rpc in rpc::all() {
            let attack = Attack::on(&world, &rpc).await;
            let token = attack.admin.tokens.access_token.clone();
            // The limit where a hundred tokens are taken at once is higher.
            let limit = if attack.name == "TokenService/ValidateTokens" { 1024 } else { 64 } * 1024;
            // A field that nobody knows, which is skipped.
            for (size, taken) in [(limit, true), (limit + 1, false), (2_000_000, false)] {
                let base = attack.request();
                let header = 2 + 3;
                let mut message = base.clone();
                message.extend(write(&[1_000], Wire::Text(&vec![b'x'; size - base.len() - header])));
                assert_eq!(message.len(), size);
                if taken && ["AuthService/ChangePassword", "AuthService/Logout"].contains(&&*attack.name) {
                    continue;
                }
                let result = rpc::call(channel, &attack.path, Some(&token), message).await;
                if taken {
                    assert!(result.is_ok(), "{}: {result:?}", attack.name);
                } else {
                    within_bounds(&attack.name, result.as_ref().unwrap_err());
                    refused(result, Code::ResourceExhausted, "REQUEST_TOO_LARGE");
                }
            }
        }
        // As many and as large as the documentation says.
        let item = v1::ValidateTokenRequest { token: "x".repeat(8 * 1024), audience: "x".repeat(256) };
        let request = v1::ValidateTokensRequest { items: vec![item; 100] };
        let reply = world.anonymous().tokens.validate_tokens(request).await.unwrap();
        assert_eq!(reply.into_inner().results.len(), 100);
        still_answers(&world).await;
    }

    async fn broken_framing_is_the_callers_fault(world: World) {
        let admin = world.admin().await;
        for rpc in rpc::all() {
            let name = rpc::name(&rpc);
            let (path, token) = (rpc::path(&name), &admin.tokens.access_token);
            for (what, body) in [
                ("nothing at all", &b""[..]),
                ("half a header", b"\0\0\0"),
                ("less than announced", b"\0\0\0\0\x10abc"),
                ("a flag that there is not", b"\x02\0\0\0\0"),
                ("compressed, by nobody says what", b"\x01\0\0\0\0"),
            ] {
                let status = framed(&world, &path, token, &[], body).await;
                let failure = Failure::from(&status);
                assert_eq!(
                    (failure.code, failure.reason.as_str()),
                    (Code::InvalidArgument, "INVALID_REQUEST"),
                    "{name} {what}: {status:?}"
                );
                within_bounds(&name, &status);
            }
            let status = framed(&world, &path, token, &[], b"\0\xff\xff\xff\xff").await;
            assert_eq!(Failure::from(&status).reason, "REQUEST_TOO_LARGE", "{status:?}");
            // The gRPC protocol wants this code for it.
            let gzip = [("grpc-encoding", "gzip")];
            let status = framed(&world, &path, token, &gzip, b"\x01\0\0\0\0").await;
            assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
            assert_eq!(Failure::from(&status).reason, "INVALID_REQUEST", "{status:?}");
        }
    }

    async fn no_mask_reaches_what_it_must_not(world: World) {
        let mut admin = world.admin().await;
        let mut ana = world.person().await;
        let get = v1::GetUserRequest { user_id: ana.user_id.clone() };
        let before = admin.client.users.get_user(get.clone()).await.unwrap().into_inner().user.unwrap();
        // Says everything that a mask could let in.
        let wish = v1::User {
            user_id: ana.user_id.clone(),
            email: "new@example.com".into(),
            email_verified: true,
            username: "new.name".into(),
            display_name: "New".into(),
            status: v1::UserStatus::Disabled.into(),
            roles: vec!["admin".into()],
            metadata: [("team".into(), "blue".into())].into(),
            created_at: Some(prost_types::Timestamp::default()),
            updated_at: Some(prost_types::Timestamp::default()),
        };
        let mut paths: Vec<String> = [
            "user_id", "email_verified", "status", "roles", "created_at", "updated_at", "password", "password_hash",
            "epoch", "min_session_epoch", "id", "*", "", ".", " ", "user", "user.roles", "user.email", "Email", "EMAIL",
            " email", "email ", "email\0", "email.x", "displayName", "display-name", "display_name.x", "username,roles",
            "username roles", "roles.0", "roles[0]", "metadata.", "metadata.*", "metadata.A", "metadata.a.b",
            "metadata.\0", "metadata..", "metadata.team,roles", "metadata ", "Metadata.team", "emailVerified",
        ].map(str::to_owned).into();
        paths.extend(scrambled(&["email", "username", "display_name", "metadata", "roles", "status", "password"]));
        for path in paths {
            for beside in [None, Some("display_name"), Some("metadata.team"), Some("email")] {
                for client in [&admin.client, &ana.client] {
                    let named = beside.into_iter().map(str::to_owned).chain([path.clone()]);
                    let request = v1::UpdateUserRequest {
                        user: Some(wish.clone()),
                        update_mask: Some(prost_types::FieldMask { paths: named.collect() }),
                    };
                    let result = client.clone().users.update_user(request).await;
                    let failure = refused(result, Code::InvalidArgument, "INVALID_REQUEST");
                    assert_eq!(failure.fields, ["update_mask"], "{path:?}");
                }
            }
        }
        for paths in [vec![], vec!["display_name".to_owned(); 41]] {
            let request = v1::UpdateUserRequest {
                user: Some(wish.clone()),
                update_mask: Some(prost_types::FieldMask { paths }),
            };
            let result = admin.client.users.update_user(request).await;
            refused(result, Code::InvalidArgument, "INVALID_REQUEST");
        }
        let after = admin.client.users.get_user(get).await.unwrap().into_inner().user.unwrap();
        assert_eq!(before, after);
        // Neither password nor epoch has moved.
        ana.client.auth.who_am_i(v1::WhoAmIRequest {}).await.unwrap();
        world::login(&world.anonymous(), &ana.email, world::PASSWORD).await.unwrap();

        // And what a mask may name changes that alone.
        let mut expected = before;
        for (path, change) in [
            ("username", (|user: &mut v1::User| user.username = "new.name".into()) as fn(&mut v1::User)),
            ("display_name", |user| user.display_name = "New".into()),
            ("metadata.team", |user| _ = user.metadata.insert("team".into(), "blue".into())),
            ("metadata", |user| user.metadata = [("team".into(), "blue".into())].into()),
            ("email", |user| user.email = "new@example.com".into()),
        ] {
            let request = v1::UpdateUserRequest {
                user: Some(wish.clone()),
                update_mask: Some(prost_types::FieldMask { paths: vec![path.to_owned()] }),
            };
            let reply = admin.client.users.update_user(request).await.unwrap();
            change(&mut expected);
            assert_eq!(reply.into_inner().user.unwrap(), expected, "{path}");
        }
    }

    async fn no_mask_of_a_role_reaches_what_it_must_not(world: World) {
        let mut admin = world.admin().await;
        let on = Objects::new(&world).await;
        for path in ["name", "built_in", "created_at", "updated_at", "*", "", "permissions.0", "role.permissions", "Description"] {
            for beside in [None, Some("description")] {
                let named = beside.into_iter().chain([path]).map(str::to_owned);
                let request = v1::UpdateRoleRequest {
                    role: Some(v1::Role {
                        name: on.role.clone(),
                        description: "new".into(),
                        permissions: vec!["new".into()],
                        built_in: true,
                        ..Default::default()
                    }),
                    update_mask: Some(prost_types::FieldMask { paths: named.collect() }),
                };
                let result = admin.client.roles.update_role(request).await;
                let failure = refused(result, Code::InvalidArgument, "INVALID_REQUEST");
                assert_eq!(failure.fields, ["update_mask"], "{path:?}");
            }
        }
        let request = v1::ListRolesRequest::default();
        let roles = admin.client.roles.list_roles(request).await.unwrap().into_inner().roles;
        let role = roles.iter().find(|role| role.name == on.role).unwrap();
        assert_eq!((role.description.as_str(), role.built_in), ("", false));
        assert_eq!(role.permissions, on.permissions);
    }

    async fn one_wrong_label_is_told_with_the_rest(world: World) {
        let mut admin = world.admin().await;
        let request = v1::UpdateUserRequest {
            user: Some(v1::User {
                user_id: admin.user_id.clone(),
                email: "no address".into(),
                metadata: [("team".into(), "a\0b".into())].into(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["email".into(), "metadata.team".into()],
            }),
        };
        let result = admin.client.users.update_user(request).await;
        let failure = refused(result, Code::InvalidArgument, "INVALID_REQUEST");
        assert_eq!(failure.fields, ["user.email", "user.metadata"]);
    }
}

/// Neighbours of legal paths that are not legal themselves: with a character
/// removed, doubled, in capitals, or followed by another.
fn scrambled(legal: &[&str]) -> Vec<String> {
    let mut all = BTreeSet::new();
    for path in legal {
        for at in 0..path.len() {
            let (head, tail) = path.split_at(at);
            let (one, rest) = tail.split_at(1);
            all.insert(format!("{head}{rest}"));
            all.insert(format!("{head}{one}{one}{rest}"));
            all.insert(format!("{head}{}{rest}", one.to_uppercase()));
        }
        for after in ["/", "\u{200b}", "\t", ";", "_"] {
            all.insert(format!("{path}{after}"));
        }
    }
    let legal: BTreeSet<_> = ["email", "username", "display_name", "metadata"].into();
    // An underscore has no capital.
    all.retain(|path| !legal.contains(path.as_str()));
    all.into_iter().collect()
}

/// Sends a body as it is, frames and all, and returns how the call failed.
async fn framed(
    world: &World,
    path: &str,
    token: &str,
    more: &[(&str, &str)],
    body: &[u8],
) -> Status {
    let mut request = http::Request::post(format!("http://{}{path}", world.node.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"));
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(prost::bytes::Bytes::copy_from_slice(body));
    let request = request.body(tonic::body::Body::new(body)).unwrap();
    let mut channel = world.anonymous().channel;
    std::future::poll_fn(|cx| channel.poll_ready(cx))
        .await
        .unwrap();
    let call = timeout(Duration::from_secs(20), channel.call(request));
    let response = call.await.expect("answers").unwrap();
    let (head, body) = response.into_parts();
    let trailers = http_body_util::BodyExt::collect(body)
        .await
        .unwrap()
        .trailers()
        .cloned();
    Status::from_header_map(&head.headers)
        .or_else(|| Status::from_header_map(&trailers?))
        .expect("a status")
}
