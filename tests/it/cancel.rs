//! Callers who leave in the middle: what they began ends as a whole, and
//! nobody else pays for it.

use std::time::Duration;

use countersign_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    harness::{Client, Kind, Lock, World, eventually, refused, world},
    on_both,
};

const GRACE: Duration = Duration::from_secs(30);

async fn refresh(client: Client, token: String) -> Result<v1::TokenPair, Status> {
    let request = v1::RefreshRequest {
        refresh_token: token,
        audiences: Vec::new(),
    };
    let mut auth = client.auth;
    let reply = auth.refresh(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

async fn register(client: Client, email: String) -> Result<v1::User, Status> {
    let request = v1::RegisterRequest {
        email,
        password: world::PASSWORD.to_owned(),
        request_id: Uuid::from_u128(1).to_string(),
        ..Default::default()
    };
    let mut auth = client.auth;
    let reply = auth.register(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

async fn logout(client: Client) -> Result<(), Status> {
    let mut auth = client.auth;
    auth.logout(v1::LogoutRequest::default()).await.map(drop)
}

async fn change_password(client: Client, new: &str) -> Result<(), Status> {
    let request = v1::ChangePasswordRequest {
        current_password: world::PASSWORD.to_owned(),
        new_password: new.to_owned(),
    };
    let mut auth = client.auth;
    auth.change_password(request).await.map(drop)
}

async fn validates(client: &Client, token: &str) -> bool {
    let request = v1::ValidateTokenRequest {
        token: token.to_owned(),
        audience: String::new(),
    };
    client.clone().tokens.validate_token(request).await.is_ok()
}

/// Makes a call and goes away before its answer: resets the stream.
async fn leave<T>(patience: Duration, call: impl Future<Output = T>) {
    let answered = tokio::time::timeout(patience, call).await;
    assert!(answered.is_err(), "it was answered before the caller left");
    // The reset is on its way.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Long enough for a call to reach the lock, and shorter than it waits there.
const IN_THE_MIDDLE: Duration = Duration::from_millis(150);

/// Nobody holds a lock or an open transaction.
async fn nothing_is_held(world: &World) -> bool {
    match world.database.kind {
        // Waits for nobody.
        Kind::Sqlite => {
            use diesel::{Connection as _, SqliteConnection, connection::SimpleConnection as _};
            let path = world.database.url.strip_prefix("sqlite://").unwrap();
            let mut connection = SqliteConnection::establish(path).unwrap();
            connection
                .batch_execute("BEGIN IMMEDIATE; ROLLBACK")
                .is_ok()
        }
        Kind::Postgres => {
            let connected = tokio_postgres::connect(&world.database.url, tokio_postgres::NoTls);
            let (client, connection) = connected.await.unwrap();
            let driver = tokio::spawn(connection);
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'";
            let busy: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
            drop(client);
            driver.await.unwrap().unwrap();
            busy == 0
        }
    }
}

on_both! {
    async fn theft_commits_although_the_thief_leaves(world: World) {
        let ana = world.person().await;
        let stale = ana.tokens.refresh_token.clone();
        let next = refresh(world.anonymous(), stale.clone()).await.unwrap();
        world.clock.advance(GRACE + Duration::from_secs(1));
        assert!(validates(&world.anonymous(), &next.access_token).await);
        let lock = Lock::take(&world.database).await;
        leave(IN_THE_MIDDLE, refresh(world.node.new_connection(), stale)).await;
        lock.release().await;
        eventually("the session is ended", async || {
            !validates(&world.anonymous(), &next.access_token).await
        }).await;
        refused(
            refresh(world.anonymous(), next.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
    }

    async fn what_was_begun_ends_as_a_whole(world: World) {
        let (ana, bob) = (world.person().await, world.person().await);
        let (email, new) = (world.new_email(), "another horse entirely, thanks");
        let client = || world.node.new_connection();
        let lock = Lock::take(&world.database).await;
        let of = |person: &crate::harness::Person| client().with_token(&person.tokens.access_token);
        tokio::join!(
            leave(IN_THE_MIDDLE, register(client(), email.clone())),
            leave(IN_THE_MIDDLE, logout(of(&ana))),
            leave(IN_THE_MIDDLE, change_password(of(&bob), new)),
        );
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await);
        lock.release().await;
        eventually("the account is there", async || {
            world::login(&world.anonymous(), &email, world::PASSWORD).await.is_ok()
        }).await;
        eventually("the session is ended", async || {
            !validates(&world.anonymous(), &ana.tokens.access_token).await
        }).await;
        eventually("the password is changed", async || {
            world::login(&world.anonymous(), &bob.email, new).await.is_ok()
        }).await;
        assert!(!validates(&world.anonymous(), &bob.tokens.access_token).await);
    }

    async fn many_who_leave_delay_nobody(world: World) {
        let ana = world.person().await;
        let mut left = 0;
        for wave in 0..8 {
            let calls = (0..12_u64).map(|number| {
                let (client, email) = (world.node.new_connection(), world.new_email());
                let (token, person) = (ana.tokens.refresh_token.clone(), ana.clone());
                tokio::spawn(async move {
                    let patience = Duration::from_micros(200 * (wave * 12 + number));
                    let call = async {
                        match number % 3 {
                            0 => register(client, email).await.map(drop),
                            1 => refresh(client, token).await.map(drop),
                            _ => world::login(&client, &person.email, world::PASSWORD).await.map(drop),
                        }
                    };
                    tokio::time::timeout(patience, call).await.is_err()
                })
            });
            for call in calls.collect::<Vec<_>>() {
                left += u32::from(call.await.unwrap());
            }
        }
        assert!(left >= 20, "only {left} left in the middle");
        eventually("nothing is held", async || nothing_is_held(&world).await).await;
        for _ in 0..5 {
            let person = world.person().await;
            refresh(world.anonymous(), person.tokens.refresh_token).await.unwrap();
            logout(person.client).await.unwrap();
        }
    }
}

/// A world where a hash takes its time, and few wait.
async fn slow_hashing(kind: Kind) -> World {
    World::with(kind, |config| {
        config.hashing.lanes = 1;
        config.hashing.queue = 3;
        config.hashing.memory_kib = 32 * 1024;
        config.hashing.iterations = 4;
    })
    .await
}

mod leaving_while_a_hash_waits {
    use super::*;

    async fn test(world: World) {
        let ana = world.person().await;
        for _ in 0..4 {
            let email = world.new_email();
            let ahead = {
                let (client, ana) = (world.node.new_connection(), ana.clone());
                tokio::spawn(
                    async move { world::login(&client, &ana.email, world::PASSWORD).await },
                )
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut behind = world.node.new_connection();
            // Behind the login: whether it was begun or is passed over by then,
            // it is all or nothing.
            let request = v1::RegisterRequest {
                email: email.clone(),
                password: world::PASSWORD.to_owned(),
                ..Default::default()
            };
            leave(
                Duration::from_millis(30),
                behind.auth.register(request.clone()),
            )
            .await;
            ahead.await.unwrap().unwrap();
            // Who asks again has an account either way.
            let again = behind.auth.register(request).await;
            if again.is_err() {
                refused(again, Code::AlreadyExists, "EMAIL_TAKEN");
            }
            world::login(&world.anonymous(), &email, world::PASSWORD)
                .await
                .unwrap();
        }
        // Every place in the queue is free again: all of them can be taken.
        let logins = (0..4).map(|n| {
            let (client, name) = (world.node.new_connection(), format!("no{n}@example.com"));
            tokio::spawn(async move { world::login(&client, &name, world::PASSWORD).await })
        });
        for login in logins.collect::<Vec<_>>() {
            let looked_at = login.await.unwrap();
            refused(looked_at, Code::Unauthenticated, "LOGIN_FAILED");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        test(slow_hashing(Kind::Sqlite).await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        test(slow_hashing(Kind::Postgres).await).await;
    }
}
