//! Whose certificates a client of ours believes: those of a file, or the
//! system's.

use std::{fmt::Display, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_native_certs::CertificateResult;

/// What a TLS client is set up with; says what is wrong with the setting
/// `ca_file`. It is an error if nobody would be believed. rustls always verifies
/// the server's certificate and name.
pub fn client(setting: &str, ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let roots = match ca_file {
        Some(path) => of_file(path).map_err(|why| format!("{setting} {}: {why}", path.display())),
        None => of_system(rustls_native_certs::load_native_certs())
            .map_err(|why| format!("{why}; set {setting}")),
    };
    with(roots?)
}

/// For a client that may go without TLS: it believes nobody.
pub fn distrustful() -> Result<ClientConfig, String> {
    with(RootCertStore::empty())
}

fn of_file(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(text)? {
        roots.add(certificate.map_err(text)?).map_err(text)?;
    }
    if roots.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(roots)
}

/// Some that cannot be read are no fault while there are others.
fn of_system(found: CertificateResult) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let mut why = vec!["the system has no root certificates".to_owned()];
        why.extend(found.errors.into_iter().map(text));
        return Err(why.join(", "));
    }
    Ok(roots)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn with(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider);
    let versions = versions.with_safe_default_protocol_versions();
    Ok(versions
        .map_err(text)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
