//! HTTP/2 and gRPC as no client of good will speaks them: over raw sockets, to the
//! program as it is built. What is tried is in `tests/http2`; each case there has
//! a server, and a test, of its own here.
//!
//! On SQLite alone: none of it depends on the database.

use std::{path::Path, process::Command};

use crate::{
    clients::{run, tool},
    harness::{
        Kind,
        binary::{Program, Server},
        world,
    },
    process,
};

/// What the server of a case is like.
enum Served {
    AsItIs,
    /// Eight streams on a connection.
    FewStreams,
    /// One login a minute.
    FewLogins,
    /// A connection must begin within 400 ms. Nothing else ends one soon.
    ToWhoBegins,
    /// Without a call it is closed after a second.
    ToWhoCalls,
    /// It is pinged each second, and has one to answer.
    ToWhoAnswers,
    /// To somebody who has logged in.
    ToAnAccount,
    ByTls,
    /// To pages by gRPC-Web, and so by HTTP/1.1.
    ToPages,
}

impl Served {
    async fn start(self) -> (Program, Server, Vec<String>) {
        let mut program = Program::new(Kind::Sqlite).await;
        let settings: &[(&str, &str)] = match self {
            Self::AsItIs | Self::ToAnAccount => &[],
            Self::FewStreams => &[("LISTEN__MAX_CONCURRENT_STREAMS", "8")],
            Self::FewLogins => &[
                ("LIMITS__RATE_LIMITS_ENABLED", "true"),
                ("LIMITS__LOGIN_PER_MINUTE", "1"),
            ],
            Self::ToWhoBegins => &[("LISTEN__HANDSHAKE_TIMEOUT_MS", "400")],
            Self::ToWhoCalls => &[("LISTEN__IDLE_SECONDS", "1")],
            Self::ToWhoAnswers => &[
                ("LISTEN__KEEPALIVE_SECONDS", "1"),
                ("LISTEN__KEEPALIVE_TIMEOUT_SECONDS", "1"),
            ],
            Self::ByTls => &[
                ("LISTEN__TLS_CERTIFICATE_FILE", "chain.pem"),
                ("LISTEN__TLS_KEY_FILE", "key.pem"),
                ("LISTEN__HANDSHAKE_TIMEOUT_MS", "1000"),
            ],
            Self::ToPages => &[
                ("GRPC_WEB__ALLOWED_ORIGINS", "https://app.example.com"),
                ("LISTEN__HANDSHAKE_TIMEOUT_MS", "400"),
            ],
        };
        for (name, value) in settings {
            program = program.set(&format!("COUNTERSIGN_{name}"), value);
        }
        let mut more = Vec::new();
        if matches!(self, Self::ByTls) {
            process::certify(program.folder(), "localhost");
            let chain = program.folder().join("chain.pem");
            more.push(format!("certificate={}", chain.display()));
        }
        let server = program.serve("server").await;
        if matches!(self, Self::ToAnAccount) {
            let client = server.client();
            process::register(&client, "ana@example.com").await;
            let pair = world::login(&client, "ana@example.com", world::PASSWORD).await;
            more.push(format!("token={}", pair.unwrap().access_token));
        }
        (program, server, more)
    }
}

fn driver() -> Command {
    let mut command = Command::new(tool("COUNTERSIGN_TEST_PYTHON"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http2/drive.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs the driver, and returns what it printed.
async fn drive(command: Command) -> Result<String, String> {
    let output = run(command).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !error.contains("ModuleNotFoundError"),
        "{error}scripts/test installs it"
    );
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(error)
    }
}

async fn try_case(name: &str, served: Served) {
    let (_program, server, more) = served.start().await;
    let mut command = driver();
    command
        .arg(name)
        .arg(format!("address={}", server.address))
        .arg(format!("pid={}", server.pid()))
        .args(more);
    let outcome = drive(command).await;
    let panicked = server.log().contains("panicked");
    assert!(!panicked, "{}", server.log_end());
    println!("{}", outcome.unwrap_or_else(|seen| panic!("{seen}")));
}

/// A test for each case of the driver.
macro_rules! cases {
    ($($case:ident: $served:ident,)+) => {
        const CASES: &[&str] = &[$(stringify!($case)),+];

        mod sqlite {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    try_case(stringify!($case), Served::$served).await;
                }
            )+
        }
    };
}

#[tokio::test]
async fn every_case_of_the_driver_has_a_test() {
    let mut command = driver();
    command.arg("--list");
    let listed = drive(command).await.unwrap();
    let mut listed: Vec<_> = listed.lines().collect();
    let mut tested = CASES.to_vec();
    listed.sort_unstable();
    tested.sort_unstable();
    assert_eq!(listed, tested);
}

cases! {
    a_message_that_is_too_large_exhausts: AsItIs,
    messages_that_unpack_to_much: AsItIs,
    what_is_no_message_is_refused: AsItIs,
    a_message_that_is_broken_off_reaches_nobody: AsItIs,
    what_is_no_grpc_is_refused: AsItIs,
    no_way_of_writing_a_path_evades_authorization: AsItIs,
    no_way_of_writing_a_path_evades_a_rate_limit: FewLogins,
    credentials_are_one_value_or_none: ToAnAccount,
    odd_metadata_harms_nobody: AsItIs,
    a_timeout_is_taken_as_it_is_written: AsItIs,
    a_deadline_that_passes_is_exceeded_and_not_cancelled: AsItIs,
    an_answer_before_the_end_of_a_request_stops_it: AsItIs,
    streams_that_are_reset_at_once: AsItIs,
    streams_that_are_reset_a_few_at_a_time: AsItIs,
    streams_that_are_refused: AsItIs,
    resets_made_by_a_window_of_nothing: AsItIs,
    resets_made_by_a_window_that_overflows: AsItIs,
    resets_made_by_a_stream_that_depends_on_itself: AsItIs,
    resets_made_by_data_after_the_end: AsItIs,
    resets_made_by_a_length_that_is_wrong: AsItIs,
    resets_made_by_bad_headers: AsItIs,
    continuations_without_end: AsItIs,
    continuations_with_headers_without_end: AsItIs,
    a_header_without_end: AsItIs,
    a_header_that_unpacks_to_many: AsItIs,
    pings: AsItIs,
    pings_whose_answers_nobody_reads: AsItIs,
    answers_to_pings_that_nobody_sent: AsItIs,
    settings: AsItIs,
    settings_that_say_nothing: AsItIs,
    windows: AsItIs,
    windows_of_a_stream: AsItIs,
    priorities: AsItIs,
    frames_of_no_known_type: AsItIs,
    goodbyes: AsItIs,
    resets_of_a_stream_that_is_over: AsItIs,
    data_that_is_empty: AsItIs,
    data_byte_by_byte: AsItIs,
    data_that_is_all_padding: AsItIs,
    answers_that_nobody_reads: AsItIs,
    large_answers_that_nobody_reads: AsItIs,
    messages_that_never_end: AsItIs,
    connections_that_say_nothing: ToWhoBegins,
    connections_that_begin_and_go: AsItIs,
    tls_1_2_and_1_3_are_served: ByTls,
    older_tls_is_refused: ByTls,
    weak_ciphers_are_refused: ByTls,
    another_protocol_than_h2_is_refused: ByTls,
    plaintext_is_refused: ByTls,
    handshakes_that_are_not_finished: ByTls,
    more_streams_than_allowed_are_refused_and_the_connection_lives: FewStreams,
    what_the_server_says_first: AsItIs,
    a_header_list_over_its_limit_is_refused_and_the_connection_lives: AsItIs,
    a_header_list_far_over_its_limit_ends_the_connection: AsItIs,
    frames_larger_than_allowed_end_the_connection: AsItIs,
    frames_of_a_wrong_size_end_the_connection: AsItIs,
    frames_out_of_place_end_the_connection: AsItIs,
    more_data_than_the_window_allows_is_refused: AsItIs,
    what_is_not_known_is_passed_over: AsItIs,
    priorities_are_passed_over: AsItIs,
    malformed_requests_are_refused: AsItIs,
    trailers_are_not_headers: AsItIs,
    a_preface_that_never_comes_or_is_another: ToWhoBegins,
    a_preface_byte_by_byte_is_cut: ToWhoBegins,
    headers_that_come_slowly_are_cut: ToWhoAnswers,
    headers_of_http_1_that_come_slowly_are_cut: ToPages,
    an_idle_connection_is_closed_and_never_one_with_a_call: ToWhoCalls,
    who_answers_no_ping_is_gone: ToWhoAnswers,
    who_has_said_all_is_gone: ToWhoAnswers,
}
