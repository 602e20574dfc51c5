//! Symmetric keys: rotated while nodes serve, gone when nothing is under them any
//! more, and at once when they have leaked.

use countersign::{
    domain::{Call, signing_key::Purpose},
    error::Reason,
    service::{Core, secret_keys},
};

use super::{
    rewrap::{Load, patient},
    *,
};

const AHEAD: Duration = Duration::from_secs(60);

async fn rotate(core: &Core, purpose: Purpose) -> i32 {
    let made = secret_keys::rotate(core, &Call::internal("test"), purpose).await;
    made.unwrap().id
}

async fn retire(core: &Core, id: i32) -> Result<usize, Reason> {
    let retired = secret_keys::retire(core, &Call::internal("test"), id).await;
    let retired = retired.map_err(|error| error.reason())?;
    assert_eq!(retired.unaware, 0);
    Ok(retired.sessions)
}

/// The ids of the keys of a purpose, oldest first.
async fn ids(world: &World, purpose: &str) -> Vec<String> {
    let query = format!("SELECT id FROM secret_keys WHERE purpose = '{purpose}' ORDER BY id");
    world.query(&query).await
}

/// The key that a person's only session has its refresh token under.
async fn under(world: &World, person: &Person) -> String {
    let user = match world.database.kind {
        Kind::Sqlite => format!("x'{}'", person.user_id.replace('-', "")),
        Kind::Postgres => format!("'{}'", person.user_id),
    };
    let query = format!("SELECT key_id FROM sessions WHERE user_id = {user}");
    world.query(&query).await.concat()
}

async fn first_page(client: &Client) -> String {
    let request = v1::ListSessionsRequest {
        page_size: 1,
        ..Default::default()
    };
    let reply = client.sessions.clone().list_sessions(request).await;
    reply.unwrap().into_inner().next_page_token
}

async fn next_page(client: &Client, page_token: &str) -> Result<(), Status> {
    let request = v1::ListSessionsRequest {
        page_size: 1,
        page_token: page_token.to_owned(),
        ..Default::default()
    };
    client
        .sessions
        .clone()
        .list_sessions(request)
        .await
        .map(drop)
}

on_both! {
    /// On PostgreSQL with two nodes.
    async fn secret_keys_are_rotated_while_calls_go_on(world: World) {
        let world = world.restarted(patient).await;
        let other = world.another_node().await;
        let load = Load::default();
        let mut tasks = tokio::task::JoinSet::new();
        for turn in 0..2 {
            let there = other.as_ref().unwrap_or(&world.node);
            let (one, two) = if turn == 0 { (&world.node, there) } else { (there, &world.node) };
            let (one, two) = (one.new_connection(), two.new_connection());
            tasks.spawn(load.clone().go_on(one, two, world.person().await));
        }
        let nodes = if other.is_some() { "2" } else { "1" };
        let core = world.command_line().await;
        let mut newest = 0;
        for _ in 0..6 {
            newest = rotate(&core, Purpose::Refresh).await;
            rotate(&core, Purpose::Request).await;
            // The clock of the test is faster than any node.
            let up = "SELECT count(*) FROM nodes WHERE applied_seq >= (SELECT seq FROM trust_head)";
            eventually("all have heard", async || world.query(up).await == [nodes]).await;
            world.clock.advance(AHEAD);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        load.over.cancel();
        tasks.join_all().await;
        let (done, failures) = load.ended();
        assert_eq!(failures, Vec::<String>::new());
        println!("calls: {done:?}");
        assert_eq!(under(&world, &world.person().await).await, newest.to_string());
        assert_eq!(ids(&world, "refresh").await.len(), 7);
        assert_eq!(recorded(&world, "secret_key.created").await, 12);
    }

    async fn an_old_refresh_key_stays_as_long_as_its_tokens(world: World) {
        let core = world.node.running.core();
        let (ana, ben) = (world.person().await, world.person().await);
        assert_eq!(under(&world, &ana).await, "1");
        let second = rotate(core, Purpose::Refresh).await;
        // Not before all nodes have had the time to hear of it.
        assert_eq!(under(&world, &world.person().await).await, "1");
        world.clock.advance(AHEAD);
        calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        assert_eq!(under(&world, &ana).await, second.to_string());
        assert_eq!(under(&world, &ben).await, "1");

        // One day before it ends ben comes back, with a token under the old key.
        let idle = Duration::from_secs(u64::from(world.config.sessions.idle_seconds));
        world.clock.advance(idle - DAY);
        sweep(&world).await;
        calls::refresh(&world.anonymous(), &ben.tokens.refresh_token).await.unwrap();
        assert_eq!(under(&world, &ben).await, second.to_string());
        world.clock.advance(DAY + Duration::from_secs(3_600 + 29));
        sweep(&world).await;
        assert_eq!(ids(&world, "refresh").await, ["1", &second.to_string()]);
        // Somebody's session is longer than this node would have it.
        world.clock.advance(Duration::from_secs(1));
        let lives = "UPDATE sessions SET key_id = 1, revoked_at = NULL, expires_at = absolute_expires_at";
        world.execute(lives).await;
        sweep(&world).await;
        assert_eq!(ids(&world, "refresh").await.len(), 2);
        world.execute(&format!("UPDATE sessions SET key_id = {second}")).await;
        sweep(&world).await;
        assert_eq!(ids(&world, "refresh").await, [second.to_string()]);
        assert_eq!(recorded(&world, "secret_key.removed").await, 1);
    }

    async fn an_old_request_key_stays_as_long_as_its_tokens(world: World) {
        let ana = world.person().await;
        let ana = ana.again().await;
        let old = first_page(&ana.client).await;
        let register = |id: &str| v1::RegisterRequest {
            email: "ben@example.com".to_owned(),
            password: PASSWORD.to_owned(),
            request_id: format!("018f6c3e-0000-7000-8000-{id}"),
            ..Default::default()
        };
        let made = world.anonymous().auth.register(register("000000000001")).await.unwrap();
        let core = world.node.running.core();
        rotate(core, Purpose::Request).await;
        world.clock.advance(AHEAD);
        next_page(&ana.client, &old).await.unwrap();
        let again = world.anonymous().auth.register(register("000000000001")).await.unwrap();
        assert_eq!(again.into_inner(), made.into_inner());
        let new = first_page(&ana.client).await;
        assert_ne!(new, old);
        next_page(&ana.client, &new).await.unwrap();

        world.clock.advance(90 * DAY - Duration::from_secs(1));
        sweep(&world).await;
        assert_eq!(ids(&world, "request").await.len(), 2);
        world.clock.advance(Duration::from_secs(1));
        sweep(&world).await;
        assert_eq!(ids(&world, "request").await.len(), 1);
        let ana = ana.again().await;
        let gone = async || next_page(&ana.client, &old).await.is_err();
        eventually("the node has heard", gone).await;
        next_page(&ana.client, &new).await.unwrap();
    }

    /// On PostgreSQL with two nodes.
    async fn a_leaked_refresh_key_ends_its_sessions(world: World) {
        let world = world.restarted(patient).await;
        let core = world.node.running.core();
        let other = world.another_node().await;
        let mut everywhere = vec![world.anonymous()];
        everywhere.extend(other.as_ref().map(Node::client));
        let (ana, ben) = (world.person().await, world.person().await);
        let second = rotate(core, Purpose::Refresh).await;
        world.clock.advance(AHEAD);
        let cai = world.person().await;
        let fresh = calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        world.execute("CREATE TABLE kept AS SELECT * FROM secret_keys").await;

        // More than one transaction ends.
        let id = match world.database.kind {
            Kind::Sqlite => "randomblob(16)",
            Kind::Postgres => "gen_random_uuid()",
        };
        let columns = "user_id, epoch, generation, key_id, binding, device_name, user_agent, address, \
            client_id, created_at, rotated_at, expires_at, absolute_expires_at, revoked_at";
        world.execute(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1100) \
             INSERT INTO sessions (id, {columns}) SELECT {id}, {columns} FROM n, sessions WHERE key_id = 1"
        )).await;
        assert_eq!(retire(core, 1).await, Ok(1_101));
        for client in &everywhere {
            let dead = async || !validates(client, &ben.tokens.access_token).await;
            eventually("the access token is dead", dead).await;
            assert!(calls::refresh(client, &ben.tokens.refresh_token).await.is_err());
            assert!(validates(client, &fresh.access_token).await);
            assert!(validates(client, &cai.tokens.access_token).await);
        }
        calls::refresh(&everywhere[0], &cai.tokens.refresh_token).await.unwrap();
        assert_eq!(retire(core, 1).await, Err(Reason::KeyNotFound));

        // Cut short after the key was gone, it goes on when it is done again.
        world.execute("UPDATE sessions SET revoked_at = NULL WHERE key_id = 1").await;
        assert_eq!(retire(core, 1).await, Ok(1_101));

        // The one that makes, and its successor is there at once.
        assert_eq!(retire(core, second).await, Ok(2));
        for client in &everywhere {
            let dead = async || !validates(client, &cai.tokens.access_token).await;
            eventually("the access token is dead", dead).await;
            let pair = world::login(client, &cai.email, PASSWORD).await.unwrap();
            for client in &everywhere {
                assert!(validates(client, &pair.access_token).await);
            }
        }
        // A row that somebody has kept does not bring it back.
        world.execute("INSERT INTO secret_keys SELECT * FROM kept WHERE purpose = 'refresh'").await;
        world.execute("UPDATE sessions SET revoked_at = NULL").await;
        rotate(core, Purpose::Request).await;
        for client in &everywhere {
            assert!(calls::refresh(client, &ben.tokens.refresh_token).await.is_err());
        }
    }

    async fn the_command_line_rotates_secret_keys(program: Program) {
        let server = program.serve("server").await;
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        program.succeed(&create, PASSWORD);
        let pair = world::login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();
        let listed = program.succeed(&["key", "secret", "list"], "");
        let purposes: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(purposes, ["PURPOSE", "refresh", "request", "throttle", "audit"]);
        let said = program.succeed(&["key", "secret", "rotate", "refresh"], "");
        assert_eq!(said, "the refresh key 5 takes over in 60 seconds\n");
        let said = program.succeed(&["key", "secret", "retire", "1"], "");
        assert_eq!(said, "the key 1 is gone; 1 sessions are ended\n");
        let dead = async || !validates(&server.client(), &pair.access_token).await;
        eventually("the session has ended", dead).await;
        assert!(calls::refresh(&server.client(), &pair.refresh_token).await.is_err());
        let said = program.fail(&["key", "secret", "retire", "1"], "");
        assert!(said.contains("no such"), "{said}");
        world::login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();
    }
}
