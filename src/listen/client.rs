//! What a client's certificate says. That it is good (whose signature, since when,
//! until when) was checked in the handshake; here it is only read.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_cert::{
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
    time::Time,
};

use crate::domain::workload::{Certificate, SubjectName};

/// Reads a certificate; none if it cannot be read, which makes it no credential.
pub(super) fn read(der: &CertificateDer<'_>) -> Option<Certificate> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let fields = &certificate.tbs_certificate;
    let names = match fields.get::<SubjectAltName>().ok()? {
        Some((_, names)) => names.0,
        None => Vec::new(),
    };
    Some(Certificate {
        names: names.iter().filter_map(name).collect(),
        not_before: time(&fields.validity.not_before)?,
        not_after: time(&fields.validity.not_after)?,
    })
}

fn name(name: &GeneralName) -> Option<SubjectName> {
    match name {
        GeneralName::DnsName(name) => Some(SubjectName::dns(name.as_str())),
        GeneralName::UniformResourceIdentifier(uri) => {
            Some(SubjectName::Uri(uri.as_str().to_owned()))
        }
        _ => None,
    }
}

fn time(time: &Time) -> Option<Timestamp> {
    let since = i64::try_from(time.to_unix_duration().as_secs()).ok()?;
    Timestamp::from_second(since).ok()
}
