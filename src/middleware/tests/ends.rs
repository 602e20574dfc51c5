//! How calls are held back, cut short and given up.

use std::time::Instant;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_call_ends_with_its_deadline() {
    let edge = Edge::new();
    for (timeout, longest) in [
        (Some("50m"), 50),
        (Some("2S"), 2000),
        (None, 30_000),
        (Some("9H"), 30_000),
    ] {
        let mut headers = vec![("x-do", "wait")];
        headers.extend(timeout.map(|timeout| ("grpc-timeout", timeout)));
        let started = tokio::time::Instant::now();
        let ended = edge.call(VALIDATE, &headers).await;
        ended.assert_failed(Code::DeadlineExceeded, Reason::DeadlineExceeded);
        let took = i64::try_from(started.elapsed().as_millis()).unwrap();
        assert!((took - longest).abs() <= 5, "{timeout:?} took {took} ms");
    }
}

#[tokio::test]
async fn the_handler_knows_the_deadline() {
    let edge = Edge::new();
    edge.call(VALIDATE, &[("grpc-timeout", "5S")]).await;
    let remaining = edge.last_call().deadline.unwrap() - Instant::now();
    assert!((4..=5).contains(&remaining.as_secs()), "{remaining:?}");
    edge.call(VALIDATE, &[]).await;
    let remaining = edge.last_call().deadline.unwrap() - Instant::now();
    assert!((29..=30).contains(&remaining.as_secs()), "{remaining:?}");
}

#[tokio::test]
async fn a_malformed_timeout_is_refused_and_one_of_zero_is_over() {
    let edge = Edge::new();
    let ended = edge.call(VALIDATE, &[("grpc-timeout", "1s")]).await;
    ended.assert_failed(Code::InvalidArgument, Reason::InvalidRequest);
    let ended = edge.call(VALIDATE, &[("grpc-timeout", "0S")]).await;
    ended.assert_failed(Code::DeadlineExceeded, Reason::DeadlineExceeded);
    assert_eq!(edge.reached(), 0);
}

#[tokio::test]
async fn a_class_without_a_free_place_refuses_and_others_do_not_feel_it() {
    let edge = Edge::with(|parts| parts.config.concurrency.hash = 1);
    let (service, wait) = (edge.service.clone(), request(LOGIN, &[("x-do", "wait")]));
    let first = tokio::spawn(service.oneshot(wait));
    while edge.reached() == 0 {
        tokio::task::yield_now().await;
    }
    let ended = edge.call(LOGIN, &[]).await;
    ended.assert_failed(Code::ResourceExhausted, Reason::Overloaded);
    assert!(ended.status.get_error_details().retry_info().is_some());
    assert!(
        ended
            .status
            .metadata()
            .contains_key("grpc-retry-pushback-ms")
    );
    assert_eq!(edge.call(VALIDATE, &[]).await.status.code(), Code::Ok);

    // A caller that leaves gives its place back.
    first.abort();
    first.await.unwrap_err();
    assert_eq!(edge.call(LOGIN, &[]).await.status.code(), Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn work_whose_caller_has_left_keeps_its_place_and_knows() {
    let edge = Edge::with(|parts| parts.config.concurrency.write = 1);
    let service = edge.service.clone();
    let first = tokio::spawn(service.oneshot(request(LOGOUT, &[("x-do", "work on")])));
    while edge.reached() == 0 {
        tokio::task::yield_now().await;
    }
    let left = edge.last_call();
    assert!(!left.is_abandoned());
    first.abort();
    first.await.unwrap_err();
    assert!(left.is_abandoned());
    let ended = edge.call(LOGOUT, &[]).await;
    ended.assert_failed(Code::ResourceExhausted, Reason::Overloaded);

    tokio::time::sleep(Duration::from_secs(21)).await;
    assert_eq!(edge.call(LOGOUT, &[]).await.status.code(), Code::Ok);
    assert!(!edge.last_call().is_abandoned());
}

#[tokio::test]
async fn one_peer_has_a_quarter_of_the_places() {
    let edge = Edge::with(|parts| {
        parts.config.concurrency.stream = 8;
        parts.config.trusted_proxies = vec!["198.51.100.1/32".parse().unwrap()];
    });
    let from = |address| [("x-do", "stream"), ("x-forwarded-for", address)];
    let mut open = Vec::new();
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        for _ in 0..2 {
            open.push(edge.send(request(WATCH, &from(address))).await);
        }
        let ended = edge.call(WATCH, &from(address)).await;
        ended.assert_failed(Code::ResourceExhausted, Reason::Overloaded);
    }
    drop(open);
    let reached = edge.reached();
    drop(edge.send(request(WATCH, &from("192.0.2.1"))).await);
    assert_eq!(edge.reached(), reached + 1);
}

#[tokio::test]
async fn a_stream_keeps_its_place_to_its_end_and_an_answer_does_not() {
    let edge = Edge::with(|parts| {
        parts.config.concurrency.stream = 1;
        parts.config.concurrency.validate = 1;
    });
    let stream = edge.send(request(WATCH, &[("x-do", "stream")])).await;
    let refused = edge.call(WATCH, &[]).await;
    refused.assert_failed(Code::ResourceExhausted, Reason::Overloaded);
    drop(stream);
    assert_eq!(edge.call(WATCH, &[]).await.status.code(), Code::Ok);

    let _unread = edge.send(request(VALIDATE, &[])).await;
    assert_eq!(edge.call(VALIDATE, &[]).await.status.code(), Code::Ok);
}

#[tokio::test]
async fn an_open_breaker_refuses_what_needs_the_database_and_nothing_else() {
    let edge = Edge::with(|parts| parts.config.login_per_minute = 1);
    assert_eq!(
        edge.call(WHO_AM_I, &[]).await.status.code(),
        Code::Unauthenticated
    );
    edge.lose_database();
    for _ in 0..3 {
        let ended = edge.call(LOGIN, &[]).await;
        ended.assert_failed(Code::Unavailable, Reason::DependencyUnavailable);
        let details = ended.status.get_error_details();
        assert_eq!(
            details.error_info().unwrap().metadata["dependency"],
            "database"
        );
        assert!(details.retry_info().is_some());
    }
    // Not even the credential is looked at.
    let ended = edge.call(WHO_AM_I, &[]).await;
    ended.assert_failed(Code::Unavailable, Reason::DependencyUnavailable);
    assert_eq!(edge.reached(), 0);
    assert_eq!(edge.call(VALIDATE, &[]).await.status.code(), Code::Ok);
    // What was refused did not count against the peer.
    let peer = "198.51.100.1".parse().unwrap();
    edge.limits.count(access::Rate::Login, peer).unwrap();
    edge.limits.count(access::Rate::Login, peer).unwrap_err();
}

#[tokio::test]
async fn a_peer_that_calls_too_often_is_held_back_and_others_are_not() {
    let edge = Edge::with(|parts| {
        parts.config.login_per_minute = 2;
        parts.config.trusted_proxies = vec!["198.51.100.1/32".parse().unwrap()];
    });
    let from = |address| [("x-forwarded-for", address)];
    for _ in 0..2 {
        assert_eq!(
            edge.call(LOGIN, &from("2001:db8::1")).await.status.code(),
            Code::Ok
        );
    }
    // Another address of the same /64 is the same peer.
    let ended = edge.call(LOGIN, &from("2001:db8::2")).await;
    ended.assert_failed(Code::ResourceExhausted, Reason::RateLimited);
    let details = ended.status.get_error_details();
    let retry = details.retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(retry.as_secs(), 30);
    assert_eq!(
        details.quota_failure().unwrap().violations[0].description,
        "login"
    );

    assert_eq!(
        edge.call(LOGIN, &from("203.0.113.9")).await.status.code(),
        Code::Ok
    );
    assert_eq!(
        edge.call(VALIDATE, &from("2001:db8::1"))
            .await
            .status
            .code(),
        Code::Ok
    );
    edge.mint.clock.advance(retry);
    assert_eq!(
        edge.call(LOGIN, &from("2001:db8::2")).await.status.code(),
        Code::Ok
    );
}

#[tokio::test]
async fn a_network_of_addresses_is_held_back_as_one_and_others_are_not() {
    let edge = Edge::with(|parts| {
        parts.config.login_per_minute = 2;
        parts.config.network_factor = 3;
    });
    let count = |address: &str| {
        let counted = edge
            .limits
            .count(access::Rate::Login, address.parse().unwrap());
        counted.err().map(|error| {
            let details = Status::from(error).get_error_details();
            details.quota_failure().unwrap().violations[0]
                .description
                .clone()
        })
    };
    for (network, elsewhere) in [
        ("198.51.100.", "198.51.101.1"),
        ("2001:db8:7:", "2001:db8:8::1"),
    ] {
        let of_network = Some("login_of_network".to_owned());
        let address = |n: usize| {
            let end = if network.ends_with(':') { "::1" } else { "" };
            format!("{network}{n}{end}")
        };
        // What one address has too many uses up nothing of its neighbours'.
        for _ in 0..20 {
            count(&address(1));
        }
        assert_eq!(count(&address(1)), Some("login".to_owned()));
        for n in 2..4 {
            assert_eq!((count(&address(n)), count(&address(n))), (None, None));
        }
        assert_eq!(count(&address(4)), of_network);
        assert_eq!(count(&address(5)), of_network);
        assert_eq!(count(elsewhere), None);
    }
}

#[tokio::test]
async fn limits_per_peer_can_be_switched_off() {
    let edge = Edge::with(|parts| {
        parts.config.login_per_minute = 1;
        parts.config.rate_limits_enabled = false;
    });
    for _ in 0..5 {
        assert_eq!(edge.call(LOGIN, &[]).await.status.code(), Code::Ok);
    }
}

#[tokio::test]
async fn a_flood_of_addresses_takes_no_more_than_the_buckets() {
    let edge = Edge::new();
    for address in 0..400_000_u32 {
        // Each in a network of its own.
        let address = std::net::Ipv4Addr::from_bits(address << 8).into();
        edge.limits
            .count(access::Rate::Login, address)
            .unwrap_or_default();
    }
    let used = edge.limits.used();
    assert!((200_000..=2 * 131_072).contains(&used), "{used}");
    edge.mint.clock.advance(Duration::from_secs(61));
    edge.limits.sweep();
    assert_eq!(edge.limits.used(), 0);
}
