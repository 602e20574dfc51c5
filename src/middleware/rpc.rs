//! The RPCs that are served, by their paths: each with its row, and with its
//! metrics at hand. To find a metric by its labels for each call costs more than
//! the counting.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Counter, Histogram};
use tonic::Code;

use super::access::Row;

/// The label of paths that have no row: they are made up by callers.
const UNKNOWN: &str = "unknown";

/// How many codes there are.
const CODES: usize = Code::Unauthenticated as usize + 1;

/// All of them.
#[derive(Debug)]
pub(super) struct Rpcs {
    served: HashMap<&'static str, Arc<Rpc>>,
    unknown: Arc<Rpc>,
}

/// One of them, or whatever has no row.
#[derive(Debug)]
pub(super) struct Rpc {
    pub(super) row: Option<&'static Row>,
    /// Its name in logs and metrics.
    pub(super) name: &'static str,
    seconds: OnceLock<Histogram>,
    /// By code; a metric is there from its first call on.
    ended: [OnceLock<Counter>; CODES],
}

impl Rpcs {
    /// Those with these rows.
    pub(super) fn new(rows: &'static [Row]) -> Self {
        let rpc = |row: &'static Row| (row.path, Arc::new(Rpc::new(Some(row))));
        Self {
            served: rows.iter().map(rpc).collect(),
            unknown: Arc::new(Rpc::new(None)),
        }
    }

    /// The one with this path.
    pub(super) fn find(&self, path: &str) -> &Arc<Rpc> {
        self.served.get(path).unwrap_or(&self.unknown)
    }
}

impl Rpc {
    fn new(row: Option<&'static Row>) -> Self {
        Self {
            row,
            name: row.map_or(UNKNOWN, Row::rpc),
            seconds: OnceLock::new(),
            ended: [const { OnceLock::new() }; CODES],
        }
    }

    /// Counts a call that ended.
    pub(super) fn count(&self, code: Code, duration: Duration) {
        let (rpc, code_name) = (self.name, name(code));
        if let Some(ended) = self.ended.get(code as usize) {
            let counter = || metrics::counter!("countersign_requests_total", "rpc" => rpc, "code" => code_name);
            ended.get_or_init(counter).increment(1);
        }
        let histogram = || metrics::histogram!("countersign_request_seconds", "rpc" => rpc);
        self.seconds.get_or_init(histogram).record(duration);
    }
}

/// A code's name, as the gRPC documentation writes it.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::access::ROWS;

    #[test]
    fn an_rpc_is_found_by_its_exact_path_only() {
        let rpcs = Rpcs::new(ROWS);
        let login = rpcs.find("/countersign.v1.AuthService/Login");
        assert_eq!(login.name, "countersign.v1.AuthService/Login");
        let row = login.row.unwrap();
        assert_eq!(row.service(), "countersign.v1.AuthService");
        for path in [
            "",
            "/",
            "/countersign.v1.AuthService/login",
            "/countersign.v1.AuthService/Login/",
        ] {
            assert_eq!(rpcs.find(path).row, None, "{path}");
        }
    }

    #[test]
    fn each_code_has_a_place() {
        let rpcs = Rpcs::new(ROWS);
        let codes = (0..).map(Code::from_i32);
        // What is beyond the last one is Unknown again.
        let last = codes
            .skip(3)
            .position(|code| code == Code::Unknown)
            .unwrap()
            + 3;
        assert_eq!(last, CODES);
        for code in (0..).map(Code::from_i32).take(CODES) {
            rpcs.unknown.count(code, Duration::ZERO);
        }
        assert!(rpcs.unknown.ended.iter().all(|ended| ended.get().is_some()));
    }
}
