//! What is told and what is read. Over sockets: `tests/it/breached.rs`.

use super::*;

/// A line with this rest of a digest.
fn line(digest: &Digest, count: &str) -> String {
    format!("{}:{count}", digest.rest())
}

fn digest() -> Digest {
    Digest::of(&Password::parse("password").unwrap())
}

const OTHER: &str = "0018A45C4D1DEF81644B54AB7F969B88D65:10";

#[test]
fn the_digest_is_sha_1_and_five_digits_of_it_are_told() {
    // 5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8 by sha1sum.
    assert_eq!(digest().told(), "5BAA6");
    assert_eq!(digest().rest(), "1E4C9B93F3F0682250B6CF8331B7EE68FD8");
}

#[test]
fn what_was_seen_is_found_and_padding_is_not() {
    let digest = digest();
    for (own, seen) in [
        (line(&digest, "3730471"), 3_730_471),
        (line(&digest, "1").to_lowercase(), 1),
        (line(&digest, "0"), 0),
        ("00000000000000000000000000000000000:7".to_owned(), 0),
    ] {
        for text in [
            format!("{OTHER}\r\n{own}\r\n"),
            format!("{own}\n{OTHER}"),
            own.clone(),
        ] {
            let range = Range::parse(text.clone()).unwrap();
            assert_eq!(range.count(digest.rest()), seen, "{text:?}");
        }
    }
}

#[test]
fn what_is_no_list_of_digests_is_not_read() {
    let digest = digest();
    let good = line(&digest, "5");
    for text in [
        String::new(),
        "\r\n".to_owned(),
        "<html>Please log in to the network</html>".to_owned(),
        format!("{good}\n\n{OTHER}"),
        format!("{good}\nand more"),
        line(&digest, ""),
        line(&digest, "-1"),
        line(&digest, "many"),
        line(&digest, "99999999999999999999999"),
        digest.rest().to_owned(),
        format!("0{good}"),
        good[1..].to_owned(),
        good.replacen('1', "G", 1),
    ] {
        let range = Range::parse(text.clone());
        assert!(matches!(range, Err(Failure::Malformed)), "{text:?}");
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let faults = |adjust: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        adjust(&mut config);
        config.validate().err().unwrap_or_default().join("; ")
    };
    assert_eq!(faults(&|_| ()), "");
    for url in [
        "https://api.pwnedpasswords.com/range",
        "https://api.pwnedpasswords.com/range/",
        "http://127.0.0.1:8080",
        "https://[::1]:8443/a/b/",
    ] {
        assert_eq!(faults(&|config| config.url = url.to_owned()), "", "{url}");
    }
    for url in [
        "api.pwnedpasswords.com",
        "ftp://example.com/range",
        "https://user:secret@example.com/range",
        "https://example.com/range?key=secret",
        "https://example.com/range#part",
    ] {
        let fault = faults(&|config| config.url = url.to_owned());
        assert!(fault.contains("breached_passwords.url"), "{url}");
        assert!(!fault.contains("secret"), "{fault}");
    }
    assert!(faults(&|config| config.least_count = 0).contains("least_count"));
    assert!(faults(&|config| config.timeout_ms = 0).contains("timeout_ms"));
    assert!(faults(&|config| config.ca_file = Some("ca.pem".into())).contains("ca_file"));
}

#[test]
fn a_request_goes_to_the_path_that_is_set() {
    for (url, host, authority, path, port) in [
        (
            "https://list.example/range",
            "list.example",
            "list.example",
            "/range/",
            443,
        ),
        (
            "https://list.example/range/",
            "list.example",
            "list.example",
            "/range/",
            443,
        ),
        ("http://127.0.0.1:81", "127.0.0.1", "127.0.0.1:81", "/", 81),
        ("https://[::1]:8443/a", "::1", "[::1]:8443", "/a/", 8443),
    ] {
        let site = Site::new(&url.parse().unwrap(), &Config::default()).unwrap();
        assert_eq!(
            (&*site.host, &*site.authority, &*site.path, site.port),
            (host, authority, path, port)
        );
        assert_eq!(site.tls.is_some(), url.starts_with("https:"));
    }
}

/// One that never answers, under a clock that stands still but for waiting.
async fn silent() -> (BreachList, tokio::net::TcpListener) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        url: format!("http://{}", listener.local_addr().unwrap()),
        on_failure: OnFailure::Refuse,
        ..Config::default()
    };
    (BreachList::new(&config).unwrap().unwrap(), listener)
}

async fn refusal(list: &BreachList) -> String {
    let password = Password::parse("velvet otter parliament 6").unwrap();
    let asked = list.contains(&password, &Call::internal("test")).await;
    chain(asked.unwrap_err().source().unwrap())
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_place_and_for_an_answer_share_one_time() {
    let (list, _listener) = silent().await;
    let begun = Instant::now();
    let places = list.0.places.acquire_many(16).await.unwrap();
    let leaves = async {
        tokio::time::sleep(list.0.timeout / 2).await;
        drop(places);
    };
    let (refusal, ()) = tokio::join!(refusal(&list), leaves);
    assert_eq!(refusal, Failure::Late.to_string());
    // To the timer's millisecond.
    let waited = begun.elapsed();
    assert!(
        waited <= list.0.timeout + Duration::from_millis(5),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_our_own_is_not_laid_at_the_lists_door() {
    let (list, _listener) = silent().await;
    let _places = list.0.places.acquire_many(16).await.unwrap();
    for _ in 0..10 {
        assert_eq!(refusal(&list).await, Failure::Busy.to_string());
    }
    assert!(!list.0.breaker.is_open());
}
