//! The server's certificate, and whose certificates clients may show; read again when its files change, so that renewing
//! it needs no restart.
//!
//! The files are looked at by their times, not watched by notification: that
//! works on every file system, and for secrets that are swapped by a link. A
//! pair that cannot be used (half-written, or not yet matching) is logged, and
//! the one in force stays.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::Error;

/// Where the parts are.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    /// Those whose certificates clients may show; none: clients show none.
    pub(super) client_ca: Option<PathBuf>,
}

/// A certificate with its key, whom it trusts, and where all of it comes from.
#[derive(Debug)]
pub(super) struct Certificate {
    files: Files,
    current: ArcSwap<InForce>,
    protocols: Vec<Vec<u8>>,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Stamp>,
}

/// What the files said when they were last read.
#[derive(Debug)]
struct InForce {
    #[cfg(test)]
    certificate: CertificateDer<'static>,
    config: ServerConfig,
}

/// When the files were last changed.
type Stamp = [Option<SystemTime>; 3];

impl Certificate {
    /// Reads the files.
    pub(super) fn load(files: Files) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        // Before reading, so that a change while reading is seen later.
        let seen = files.stamp();
        let current = files.read(&provider)?;
        Ok(Self {
            current: ArcSwap::from_pointee(current),
            files,
            protocols: vec![b"h2".to_vec()],
            provider,
            seen: Mutex::new(seen),
        })
    }

    /// Offers HTTP/1.1 beside HTTP/2.
    pub(super) fn and_http1(&mut self) {
        self.protocols.push(b"http/1.1".to_vec());
    }

    /// Makes handshakes with what is in force now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut config = self.current.load().config.clone();
        config.alpn_protocols.clone_from(&self.protocols);
        Arc::new(config).into()
    }

    /// Reads the files again if they have changed. Handshakes that begin after
    /// it use what they say then, and resume nothing from before: a client whose
    /// CA has gone must show its certificate again.
    pub(super) fn refresh(&self) {
        let stamp = self.files.stamp();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp == *seen {
            return;
        }
        *seen = stamp;
        match self.files.read(&self.provider) {
            Ok(new) => {
                self.current.store(Arc::new(new));
                tracing::info!("the TLS certificate was reloaded");
            }
            Err(error) => {
                let cause = crate::error::chain(&error);
                tracing::error!(
                    cause,
                    "the new TLS certificate cannot be used; the old one stays"
                );
            }
        }
    }
}

impl Files {
    fn stamp(&self) -> Stamp {
        [Some(&self.chain), Some(&self.key), self.client_ca.as_ref()].map(|file| {
            let data = fs::metadata(file?).ok()?;
            data.modified().ok()
        })
    }

    /// TLS 1.3 and 1.2, a pair that belongs together, and clients that
    /// may show a certificate.
    fn read(&self, provider: &Arc<CryptoProvider>) -> Result<InForce, Error> {
        let key = Zeroizing::new(contents(&self.key)?);
        let key =
            PrivateKeyDer::from_pem_slice(&key).map_err(|source| Error::pem(&self.key, &source))?;
        let pair = CertifiedKey::from_der(certificates(&self.chain)?, key, provider);
        let pair = pair.map_err(Error::Tls)?;
        #[cfg(test)]
        let certificate = pair.cert[0].clone();
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?;
        let builder = match &self.client_ca {
            Some(file) => builder.with_client_cert_verifier(clients(file, provider)?),
            None => builder.with_no_client_auth(),
        };
        Ok(InForce {
            #[cfg(test)]
            certificate,
            config: builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        })
    }
}

/// Checks the certificates that clients show. Those who show none are served too.
fn clients(
    file: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(Error::Tls)?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()
        // There is no certificate in it.
        .map_err(|source| Error::pem(file, &source))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = contents(file)?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| Error::pem(file, &source))
}

fn contents(file: &Path) -> Result<Vec<u8>, Error> {
    fs::read(file).map_err(|source| Error::File {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Writes a file whose time no earlier one has, however fast this runs.
    fn write(file: &PathBuf, text: &str) {
        let before = fs::metadata(file).and_then(|data| data.modified());
        fs::write(file, text).unwrap();
        if let Ok(before) = before {
            let file = fs::File::options().write(true).open(file).unwrap();
            file.set_modified(before + Duration::from_secs(1)).unwrap();
        }
    }

    #[test]
    fn a_pair_that_does_not_match_is_refused_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let pair = || rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (first, second) = (pair(), pair());
        write(&chain, &first.cert.pem());
        write(&key, &first.signing_key.serialize_pem());
        let files = || Files {
            chain: chain.clone(),
            key: key.clone(),
            client_ca: None,
        };
        let certificate = Certificate::load(files()).unwrap();
        let in_force = || certificate.current.load().certificate.clone();
        assert_eq!(in_force(), *first.cert.der());

        // Only half of the new pair is there.
        write(&chain, &second.cert.pem());
        certificate.refresh();
        assert_eq!(in_force(), *first.cert.der());
        write(&key, &second.signing_key.serialize_pem());
        certificate.refresh();
        assert_eq!(in_force(), *second.cert.der());

        for garbage in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
            write(&chain, garbage);
            certificate.refresh();
            assert_eq!(in_force(), *second.cert.der());
        }
        fs::remove_file(&key).unwrap();
        certificate.refresh();
        assert_eq!(in_force(), *second.cert.der());
        Certificate::load(files()).unwrap_err();
    }
}
