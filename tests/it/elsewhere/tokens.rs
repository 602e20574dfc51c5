//! What happened to opaque texts: tokens that were good with something around
//! them, and page tokens that anybody could write.

use countersign_proto::v1;
use tonic::{Code, Status};

use super::call_with;
use crate::{
    harness::{
        Client, World, calls,
        calls::{create_api_key, refresh, validates},
        refused,
    },
    on_both,
};

const LISTS: [&str; 5] = ["users", "roles", "sessions", "api keys", "events"];

/// A good text, as somebody may have it by accident or to get past a
/// comparison.
fn misspelt(good: &str) -> Vec<String> {
    let (head, tail) = good.split_at(good.len() / 2);
    let first = good.as_bytes()[0];
    let mut all = vec![
        format!("%{first:02X}{}", &good[1..]),
        format!("\"{good}\""),
        format!("Bearer {good}"),
        format!("{good},{good}"),
        format!("{good}\0{good}"),
        head.to_owned(),
        tail.to_owned(),
        good[..good.len() - 1].to_owned(),
    ];
    for more in [
        " ", "\t", "\n", "\r\n", "\0", "\u{a0}", "\u{200b}", "\u{feff}", "%00", "%20", "%0A", "+",
        "=", "==", ".", "/",
    ] {
        all.push(format!("{more}{good}"));
        all.push(format!("{good}{more}"));
        all.push(format!("{head}{more}{tail}"));
    }
    all
}

/// The token of the page after the first, which has one row.
async fn page(client: &Client, list: &str, page_token: &str) -> Result<String, Status> {
    let (mut client, page_token) = (client.clone(), page_token.to_owned());
    let page_size = 1;
    match list {
        "users" => {
            let request = v1::ListUsersRequest {
                page_size,
                page_token,
                ..Default::default()
            };
            let reply = client.users.list_users(request).await?;
            Ok(reply.into_inner().next_page_token)
        }
        "roles" => {
            let request = v1::ListRolesRequest {
                page_size,
                page_token,
            };
            let reply = client.roles.list_roles(request).await?;
            Ok(reply.into_inner().next_page_token)
        }
        "sessions" => {
            let request = v1::ListSessionsRequest {
                page_size,
                page_token,
                ..Default::default()
            };
            let reply = client.sessions.list_sessions(request).await?;
            Ok(reply.into_inner().next_page_token)
        }
        "api keys" => {
            let request = v1::ListApiKeysRequest {
                page_size,
                page_token,
                ..Default::default()
            };
            let reply = client.api_keys.list_api_keys(request).await?;
            Ok(reply.into_inner().next_page_token)
        }
        "events" => {
            let request = v1::ListEventsRequest {
                page_size,
                page_token,
                ..Default::default()
            };
            let reply = client.audit.list_events(request).await?;
            Ok(reply.into_inner().next_page_token)
        }
        other => panic!("no list of {other}"),
    }
}

async fn log_out(client: &Client, refresh_token: &str) -> Result<(), Status> {
    let request = v1::LogoutRequest {
        refresh_token: refresh_token.to_owned(),
    };
    client.clone().auth.logout(request).await.map(drop)
}

on_both! {
    // Leans on what reads a text: `Token::parse` and `ApiKeyHash::of` in the
    // verifier, `read` in crypto/refresh.rs. They take one spelling, and nobody
    // before them mends another.
    async fn a_token_with_something_around_it_was_good(world: World) {
        let ana = world.person().await;
        let (_, secret) = create_api_key(&ana.client, &[]).await.unwrap();
        let nobody = world.anonymous();
        for good in [&ana.tokens.access_token, &secret] {
            for bad in misspelt(good) {
                let known = calls::caller(&nobody, &bad).await;
                refused(known, Code::Unauthenticated, "TOKEN_INVALID");
            }
            assert!(validates(&nobody, good).await);
        }
        for bad in misspelt(&ana.tokens.refresh_token) {
            let next = refresh(&nobody, &bad).await;
            refused(next, Code::Unauthenticated, "REFRESH_TOKEN_INVALID");
            let ended = log_out(&nobody, &bad).await;
            refused(ended, Code::Unauthenticated, "REFRESH_TOKEN_INVALID");
        }
        // In a header, as far as one can hold it.
        let who = "/countersign.v1.AuthService/WhoAmI";
        for good in [&ana.tokens.access_token, &secret] {
            for value in [
                format!("Bearer \"{good}\""), format!("Bearer {good},{good}"), format!("Bearer {good} {good}"),
                format!("Bearer {good}%00"), format!("Bearer {good}%20x"), format!("Bearer {good}="), format!("Bearer%20{good}"),
                format!("Bearer={good}"), format!("Bearer:{good}"), format!("Token {good}"), format!("Basic {good}"), good.clone(),
            ] {
                let reply = call_with(&nobody.channel, who, &[("authorization", value)], &v1::WhoAmIRequest {}).await;
                assert_eq!(reply.expect_err("refused").code(), Code::Unauthenticated);
            }
        }
        // And none of it has done anything.
        assert!(validates(&nobody, &ana.tokens.access_token).await);
        refresh(&nobody, &ana.tokens.refresh_token).await.unwrap();
    }

    // Leans on `scope` in service/page.rs and on the MAC in crypto/request.rs: a
    // token continues the list of its caller, and is written by us.
    async fn a_page_token_was_written_by_anybody_and_opened_any_list(world: World) {
        let (admin, other) = (world.admin().await, world.admin().await);
        let _second_session = admin.again().await;
        for name in ["buyer", "reader"] {
            calls::create_role(&admin.client, name, &["orders.read"]).await.unwrap();
            create_api_key(&admin.client, &[]).await.unwrap();
        }
        let mut tokens = Vec::new();
        for list in LISTS {
            let token = page(&admin.client, list, "").await.unwrap();
            assert!(!token.is_empty(), "there are more {list} than one");
            tokens.push((list, token));
        }
        let forged = |result: Result<String, Status>| {
            refused(result, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        };
        for (of, token) in &tokens {
            for list in LISTS {
                let listed = page(&admin.client, list, token).await;
                if list == *of {
                    listed.unwrap();
                } else {
                    forged(listed);
                }
            }
            forged(page(&other.client, of, token).await);
            for bad in misspelt(token) {
                forged(page(&admin.client, of, &bad).await);
            }
            // One bit at a time in what it says, and in what vouches for it.
            for at in (0..token.len()).step_by(5) {
                let mut bytes = token.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                forged(page(&admin.client, of, &String::from_utf8(bytes).unwrap()).await);
            }
        }
    }
}
