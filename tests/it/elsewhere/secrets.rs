//! What got out that was to stay in, and what went in the open that was to be
//! covered.

use std::{collections::BTreeMap, fs, sync::Arc};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use countersign::crypto::{MasterKeys, Sealer, signing};
use countersign_proto::v1::{self, watch_trust_response::Event};
use countersign_verifier::KeyState;
use prost::Message as _;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    harness::{
        Failure, Kind, World,
        binary::{Program, get},
        rpc::{self, Objects},
        world::MASTER_KEY,
    },
    on_both,
};

/// The members of a public key (RFC 7517, RFC 8037); a private one has `d`.
const PUBLIC: [&str; 7] = ["alg", "crv", "kid", "kty", "use", "x", "y"];

/// The first byte of a TLS alert, and so of a server that was not greeted.
const ALERT: u8 = 21;

/// The seeds of the signing keys that the node has, by key id. One that is
/// retired has none any more.
fn seeds(world: &World) -> BTreeMap<String, Vec<u8>> {
    let ring: MasterKeys = MASTER_KEY.parse().expect("master keys");
    let sealer = Sealer::new(&ring).expect("a sealer");
    let keys = world.node.running.core().keyring.keys().expect("keys");
    let mut seeds = BTreeMap::new();
    for key in &keys.stored {
        if key.state == KeyState::Retired {
            continue;
        }
        let opened = signing::open(key, &sealer).expect("opens");
        // In PKCS#8 it follows upon a head of 16 bytes (RFC 8410, section 7).
        let seed = opened.plain[16..48].to_vec();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed");
        let public: &[u8] = pair.public_key().as_ref();
        assert_eq!(public, &key.public_key[..], "this is the seed");
        seeds.insert(key.kid.clone(), seed);
    }
    seeds
}

/// How bytes are written: as they are, in hexadecimal, and in base64, also in
/// the middle of something longer.
fn spellings(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![
        bytes.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
    ];
    for before in 0..3 {
        let shifted = [&b"xx"[..before], bytes].concat();
        let text = STANDARD_NO_PAD.encode(&shifted);
        // The first and the last characters depend on what is around.
        let own = &text[(before * 8).div_ceil(6)..shifted.len() * 8 / 6];
        all.push(own.as_bytes().to_vec());
        all.push(own.replace('+', "-").replace('/', "_").into_bytes());
    }
    all
}

/// In which of the answers the bytes stand, however they are written.
fn found_in<'a>(answers: &'a [(String, Vec<u8>)], bytes: &[u8]) -> Vec<&'a str> {
    let spellings = spellings(bytes);
    let holds = |answer: &[u8]| {
        spellings.iter().any(|spelling| {
            answer
                .windows(spelling.len())
                .any(|window| window == &spelling[..])
        })
    };
    let found = answers.iter().filter(|(_, answer)| holds(answer));
    found.map(|(what, _)| what.as_str()).collect()
}

on_both! {
    // Leans on domain/signing_key.rs, where a key that is stored holds no opened
    // half, and on verifier/src/key.rs, jwk, which writes the public members.
    async fn a_private_key_was_to_be_had_by_the_api(world: World) {
        let mut secrets = seeds(&world);
        let mut answers = Vec::new();
        for method in rpc::all() {
            let name = rpc::name(&method);
            let admin = world.admin().await;
            let on = Objects::new(&world).await.and_keys(&world, &name).await;
            secrets.extend(seeds(&world));
            let (channel, token) = (world.anonymous().channel, &admin.tokens.access_token);
            let reply = rpc::call(&channel, &rpc::path(&name), Some(token), rpc::request(&name, &on)).await;
            secrets.extend(seeds(&world));
            answers.push((name, reply.expect("an admin gets an answer")));
        }
        // All that validators are told.
        let admin = world.admin().await;
        let stream = admin.client.clone().trust.watch_trust(v1::WatchTrustRequest::default()).await;
        let mut stream = stream.unwrap().into_inner();
        loop {
            let message = stream.message().await.unwrap().expect("it goes on");
            answers.push(("the feed".to_owned(), message.encode_to_vec()));
            if matches!(&message.event, Some(Event::Snapshot(part)) if part.last) {
                break;
            }
        }
        for path in ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/livez", "/readyz", "/metrics"] {
            let (status, body) = get(world.node.http, path).await;
            assert_eq!(status, 200, "{path}");
            answers.push((path.to_owned(), body.into_bytes()));
        }

        assert!(secrets.len() > 1, "keys were staged");
        for (kid, seed) in &secrets {
            assert_eq!(found_in(&answers, seed), [""; 0], "the private half of {kid}");
        }
        // The search finds what is there.
        let keys = world.node.running.core().keyring.keys().unwrap();
        let active = keys.stored.iter().find(|key| key.state == KeyState::Active);
        let public = found_in(&answers, &active.unwrap().public_key);
        assert!(public.contains(&"/.well-known/jwks.json") && public.contains(&"the feed"), "{public:?}");
        // Nor is there a member for it.
        let (_, jwks) = get(world.node.http, "/.well-known/jwks.json").await;
        let jwks: serde_json::Value = serde_json::from_str(&jwks).unwrap();
        let published = jwks["keys"].as_array().unwrap();
        assert!(!published.is_empty());
        for key in published {
            for member in key.as_object().unwrap().keys() {
                assert!(PUBLIC.contains(&member.as_str()), "{member}");
            }
        }
        let fields = rpc::DESCRIPTORS.get_message_by_name("countersign.v1.Jwk").unwrap();
        for field in fields.fields() {
            assert!(PUBLIC.contains(&field.name()), "{}", field.name());
        }
    }

    // Leans on listen.rs, where a connection of a listener with a certificate begins
    // with the handshake.
    async fn tls_was_configured_and_plaintext_was_served(world: World) {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(file("c.pem"), made.cert.pem()).unwrap();
        fs::write(file("k.pem"), made.signing_key.serialize_pem()).unwrap();
        let world = world.restarted(|config| {
            config.listen.tls_certificate_file = Some(file("c.pem"));
            config.listen.tls_key_file = Some(file("k.pem"));
        }).await;

        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(world.node.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, stream).await.expect("the node is there, and speaks TLS");

        // A client that knows of no TLS, and the first bytes of two more.
        let asked = world.anonymous().tokens.get_jwks(v1::GetJwksRequest {}).await;
        assert_eq!(Failure::from(&asked.unwrap_err()).reason, "", "no node has answered");
        for greeting in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let mut stream = TcpStream::connect(world.node.address).await.unwrap();
            stream.write_all(greeting).await.unwrap();
            let mut first = [0; 1];
            let length = stream.read(&mut first).await.unwrap_or(0);
            assert!(length == 0 || first[0] == ALERT, "{first:?}");
        }
    }
}

/// The server of the tests speaks no TLS. What is told to one that does, and is
/// not whom it should be, store/tests/connecting.rs knows.
mod tls_to_the_database_was_configured_and_not_used {
    use super::*;

    // Leans on store/config.rs, target, which takes the mode as tokio-postgres
    // reads it and refuses a mode that it would not obey.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let mut program = Program::new(Kind::Postgres).await;
        let with = |mode: &str| {
            let mut url = url::Url::parse(&program.database.url).unwrap();
            url.query_pairs_mut().append_pair("sslmode", mode);
            url.to_string()
        };
        let (prefer, require) = (with("prefer"), with("require"));
        let others = ["allow", "verify-ca", "verify-full", "REQUIRE"].map(with);
        program = program.set("COUNTERSIGN_DATABASE_URL", &prefer);
        program.succeed(&["migrate", "status"], "");
        program = program.set("COUNTERSIGN_DATABASE_URL", &require);
        program.succeed(&["check-config"], "");
        program.fail(&["migrate", "status"], "");
        // What cannot be obeyed is not taken for something less.
        for url in &others {
            program = program.set("COUNTERSIGN_DATABASE_URL", url);
            let said = program.fail(&["check-config"], "");
            assert!(said.contains("sslmode"), "{url}: {said}");
        }
    }
}
