//! Several processes on one database: what one of them does, the others hear.

use std::time::{Duration, Instant};

use countersign::{
    config::Config,
    domain::{Call, Password, RoleName, UserId},
    service::{keyring, password, users},
};
use tonic::Code;

use crate::{
    harness::{
        Client, Kind, Node, World,
        binary::Program,
        calls,
        calls::{is_dead, validates},
        clock::MockClock,
        database::{self, Database},
        eventually, refused, world,
        world::PASSWORD,
    },
    on_both,
};

/// The promise is a second; a busy machine gets more.
const SOON: Duration = Duration::from_secs(5);

const NEW: &str = "another horse entirely, thanks";

/// Waits until a token is refused, and says how long that took.
async fn until_refused(client: &Client, token: &str, what: &str) {
    let begun = Instant::now();
    while validates(client, token).await {
        assert!(begun.elapsed() < SOON, "{what} is not heard");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("{what}: heard after {} ms", begun.elapsed().as_millis());
}

fn id(text: &str) -> UserId {
    text.parse().expect("an id")
}

on_both! {
    async fn what_the_command_line_does_is_heard(world: World) {
        let admin = world.admin().await;
        let cli = world.command_line().await;
        let call = Call::internal("cli");
        keyring::load(&cli, &call).await.unwrap();
        let [disabled, changed, promoted, deleted] = [
            world.person().await, world.person().await, world.person().await, world.person().await,
        ];
        let bystander = world.person().await;
        users::disable(&cli, &call, id(&disabled.user_id)).await.unwrap();
        until_refused(&world.anonymous(), &disabled.tokens.access_token, "a disabling").await;
        assert!(is_dead(&world.anonymous(), &disabled.tokens).await);

        let new = Password::parse(NEW).unwrap();
        password::set(&cli, &call, id(&changed.user_id), &new).await.unwrap();
        until_refused(&world.anonymous(), &changed.tokens.access_token, "a password").await;
        assert!(is_dead(&world.anonymous(), &changed.tokens).await);
        world::login(&world.anonymous(), &changed.email, NEW).await.unwrap();

        users::grant(&cli, &call, id(&promoted.user_id), &RoleName::admin()).await.unwrap();
        until_refused(&world.anonymous(), &promoted.tokens.access_token, "a role").await;
        let next = calls::refresh(&world.anonymous(), &promoted.tokens.refresh_token).await.unwrap();
        let caller = calls::caller(&world.anonymous(), &next.access_token).await.unwrap();
        assert_eq!(caller.roles, ["admin"]);

        users::delete(&cli, &call, id(&deleted.user_id)).await.unwrap();
        until_refused(&world.anonymous(), &deleted.tokens.access_token, "a deletion").await;
        for person in [&admin, &bystander] {
            assert!(validates(&world.anonymous(), &person.tokens.access_token).await);
        }
        // What the command line did has no actor.
        let actors = "SELECT count(*) FROM audit_events WHERE correlation_id = 'cli' AND actor IS NULL";
        assert_eq!(world.query(actors).await, ["4"]);
    }
}

/// PostgreSQL only: a SQLite file is served by one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_does_the_other_hears() {
    let world = World::new(Kind::Postgres).await;
    let other = world.another_node().await.expect("a second node");
    let admin = world.admin().await;
    let admins = other.client().with_token(&admin.tokens.access_token);
    let (here, there) = (world.anonymous(), other.client());

    let ana = world.person().await;
    assert!(
        validates(&there, &ana.tokens.access_token).await,
        "one key for both"
    );
    calls::disable(&admins, &ana.user_id).await.unwrap();
    assert!(
        !validates(&there, &ana.tokens.access_token).await,
        "at once where it is done"
    );
    until_refused(&here, &ana.tokens.access_token, "a disabling").await;
    assert!(
        calls::refresh(&here, &ana.tokens.refresh_token)
            .await
            .is_err()
    );

    let ben = world.person().await;
    let tablet = ben.again().await;
    let bens = other.client().with_token(&ben.tokens.access_token);
    calls::revoke_session(&bens, &tablet.tokens.session_id)
        .await
        .unwrap();
    until_refused(&here, &tablet.tokens.access_token, "an ended session").await;
    assert!(validates(&here, &ben.tokens.access_token).await);

    let fresh = calls::change_password(&bens, PASSWORD, NEW).await.unwrap();
    until_refused(&here, &ben.tokens.access_token, "a changed password").await;
    assert!(validates(&here, &fresh.access_token).await);
    // The answer of one node says what is so on it, also when another did it.
    calls::disable(&admin.client, &ana.user_id).await.unwrap();
    assert!(!validates(&here, &ana.tokens.access_token).await);
    // A page token of one is good on the other.
    let request = |page_token: String| countersign_proto::v1::ListUsersRequest {
        page_size: 1,
        page_token,
        ..Default::default()
    };
    let mut users = admin.client.users.clone();
    let page = users.list_users(request(String::new())).await.unwrap();
    let token = page.into_inner().next_page_token;
    admins
        .clone()
        .users
        .list_users(request(token))
        .await
        .unwrap();
}

/// Those that listen for changes of the trust log, by the process of their server.
async fn listeners(world: &World) -> Vec<String> {
    let own = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()";
    world
        .query(&format!("{own} AND query LIKE 'LISTEN %'"))
        .await
}

/// PostgreSQL only: SQLite has nobody else to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_alone_is_enough() {
    // The poll sees none of it.
    let never = |config: &mut Config| config.database.trust_poll_ms = 600_000;
    let world = World::with(Kind::Postgres, never).await;
    let other = world.another_node().await.expect("a second node");
    eventually("both listen", async || listeners(&world).await.len() == 2).await;
    for _ in 0..3 {
        let ana = world.person().await;
        assert!(validates(&other.client(), &ana.tokens.access_token).await);
        calls::revoke_session(&ana.client, &ana.tokens.session_id)
            .await
            .unwrap();
        until_refused(
            &other.client(),
            &ana.tokens.access_token,
            "an ended session",
        )
        .await;
    }
    // What is missed while nobody listens is heard as soon as somebody does.
    let ana = world.person().await;
    for pid in listeners(&world).await {
        world
            .execute(&format!("SELECT pg_terminate_backend({pid})"))
            .await;
    }
    calls::revoke_session(&ana.client, &ana.tokens.session_id)
        .await
        .unwrap();
    until_refused(&other.client(), &ana.tokens.access_token, "what was missed").await;
}

/// PostgreSQL only: SQLite has nobody else to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_notification_the_poll_hears_it() {
    let world = World::new(Kind::Postgres).await;
    let other = world.another_node().await.expect("a second node");
    let ana = world.person().await;
    eventually("both listen", async || listeners(&world).await.len() == 2).await;
    let pids = listeners(&world).await;
    let name = world.query("SELECT current_database()").await.remove(0);
    let allow = async |allowed: bool| {
        let statement = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}");
        database::execute(&database::cluster_url(), &statement).await;
    };
    // Nobody comes back, and who is there stays.
    allow(false).await;
    for pid in pids {
        let statement = format!("SELECT pg_terminate_backend({pid})");
        database::execute(&database::cluster_url(), &statement).await;
    }
    eventually("the session is ended", async || {
        let ended = calls::revoke_session(&ana.client, &ana.tokens.session_id);
        ended.await.is_ok()
    })
    .await;
    until_refused(&other.client(), &ana.tokens.access_token, "by the poll").await;
    allow(true).await;
    eventually("both listen again", async || {
        listeners(&world).await.len() == 2
    })
    .await;
}

/// PostgreSQL only: a SQLite file is served by one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_agree_on_their_keys() {
    for round in 0..5 {
        let database = Database::create(Kind::Postgres).await;
        let config = world::settings(&database);
        let clock = std::sync::Arc::new(MockClock::new());
        let starting = (0..3).map(|seed| Node::start(&config, &clock, round * 10 + seed));
        let nodes = futures_util::future::join_all(starting).await;
        let count = |table: &str| format!("SELECT count(*) FROM {table}");
        for (table, rows) in [
            ("signing_keys", "1"),
            ("secret_keys", "4"),
            ("audit_events", "1"),
        ] {
            let found = database::query_on(&database, &count(table)).await;
            assert_eq!(found, [rows], "{table}");
        }
        let request = countersign_proto::v1::RegisterRequest {
            email: "ana@example.com".into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        calls::register(&nodes[0].client(), request).await.unwrap();
        let pair = world::login(&nodes[1].client(), "ana@example.com", PASSWORD).await;
        let pair = pair.unwrap();
        for node in &nodes {
            assert!(validates(&node.client(), &pair.access_token).await);
        }
        calls::refresh(&nodes[2].client(), &pair.refresh_token)
            .await
            .unwrap();
    }
}

/// SQLite only: any number of nodes may serve one PostgreSQL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_serve_on_one_file_is_refused() {
    let program = Program::new(Kind::Sqlite).await;
    let mut server = program.serve("first").await;
    let said = program.fail(&["serve"], "");
    assert!(
        said.contains("is in use by another countersign that serves"),
        "{said}"
    );
    // The first one does not mind, and the file is free when it has ended.
    refused(
        world::login(&server.client(), "ana@example.com", PASSWORD).await,
        Code::Unauthenticated,
        "LOGIN_FAILED",
    );
    server.signal("TERM");
    assert!(server.end().await.success());
    program.serve("second").await;
}
