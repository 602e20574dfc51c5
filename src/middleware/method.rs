//! Default deny: lets a request pass if it is a well-formed gRPC call of an RPC
//! that has a row in the access table.
//!
//! The router behind would also take a GET and a path with a query, and hand
//! other kinds of body to the decoder.

use http::{HeaderMap, Method, Request, header::CONTENT_TYPE};

use super::access::Row;
use crate::error::{Error, Reason, Result};

const GRPC: &str = "application/grpc";

/// Checks method, path and content type.
pub fn check<B>(request: Request<B>) -> Result<Request<B>> {
    row(&request)?;
    if request.method() != Method::POST || request.uri().query().is_some() {
        return Err(Reason::MethodUnknown.into());
    }
    if !is_grpc(request.headers()) {
        return Err(Error::invalid("content-type", "must be application/grpc"));
    }
    Ok(request)
}

/// The row of the RPC that a request names.
pub fn row<B>(request: &Request<B>) -> Result<&'static Row> {
    match request.extensions().get::<&'static Row>() {
        Some(row) => Ok(row),
        None => Err(Reason::MethodUnknown.into()),
    }
}

/// `application/grpc`, with or without `+proto` and parameters.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let Some(Ok(value)) = values.next().map(|value| value.to_str()) else {
        return false;
    };
    let format = value.strip_prefix(GRPC).map(|rest| {
        let rest = rest.strip_prefix("+proto").unwrap_or(rest);
        rest.is_empty() || rest.starts_with(';')
    });
    values.next().is_none() && format == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_protobuf_over_grpc_is_grpc() {
        for (values, good) in [
            (&["application/grpc"][..], true),
            (&["application/grpc+proto"], true),
            (&["application/grpc;charset=utf-8"], true),
            (&[], false),
            (&["application/grpc", "application/grpc"], false),
            (&["application/grpc+json"], false),
            (&["application/grpc-web"], false),
            (&["application/grpc-web+proto"], false),
            (&["application/json"], false),
            (&[""], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_TYPE, value.parse().unwrap());
            }
            assert_eq!(is_grpc(&headers), good, "{values:?}");
        }
    }
}
