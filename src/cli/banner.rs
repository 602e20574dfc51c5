//! What `serve` tells a person at the first start: what it made, and what to
//! try first. The log says the rest.

use std::{fmt::Write, net::SocketAddr, path::Path};

use crate::config::{Config, Profile, data_dir::Prepared};

/// The text for standard error; none in production, nor from the second start
/// on.
pub fn banner(config: &Config, prepared: &Prepared) -> Option<String> {
    if config.profile == Profile::Production || prepared.made.is_empty() {
        return None;
    }
    let mut text = format!("Countersign {} begins here. Made:\n", super::VERSION);
    for (path, mode) in &prepared.made {
        let note = if mode & 0o100 == 0 {
            "  the master key: without it the database is worth nothing"
        } else {
            ""
        };
        // Writing to a string does not fail.
        writeln!(text, "  {}  ({mode:04o}){note}", path.display()).ok();
    }
    let listen = &config.listen;
    let target = target(&listen.address, listen.tls_certificate_file.as_deref());
    write!(
        text,
        "
gRPC on {}, JWKS, health and metrics on http://{}. Try:

  grpcurl {target} list
  grpcurl -d '{{\"email\": \"ana@example.com\", \"password\": \"a long walk by the sea\"}}' \\
    {target} countersign.v1.AuthService/Register

An administrator is made by `countersign user create --email … --role admin`.
",
        listen.address, config.http.address
    )
    .ok();
    Some(text)
}

/// How grpcurl is told where to call.
fn target(address: &str, certificate: Option<&Path>) -> String {
    let security = match certificate {
        Some(path) => format!("-cacert {}", path.display()),
        None => "-plaintext".to_owned(),
    };
    if let Some(path) = address.strip_prefix("unix:") {
        return format!("{security} -unix {path}");
    }
    // Every address of this host is reached by its loopback one.
    let address = match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() => format!("127.0.0.1:{}", socket.port()),
        _ => address.to_owned(),
    };
    format!("{security} {address}")
}
