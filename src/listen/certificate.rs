//! The server's certificate, read again when its files change, so that renewing
//! it needs no restart.
//!
//! The files are looked at by their times, not watched by notification: that
//! works on every file system, and for secrets that are swapped by a link. A
//! pair that cannot be used (half-written, or not yet matching) is logged, and
//! the one in force stays.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::Error;

/// A certificate with its key, and where they come from.
#[derive(Debug)]
pub(super) struct Certificate {
    chain_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Stamp>,
}

/// When the two files were last changed.
type Stamp = [Option<SystemTime>; 2];

impl Certificate {
    /// Reads the files.
    pub(super) fn load(chain_file: PathBuf, key_file: PathBuf) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        // Before reading, so that a change while reading is seen later.
        let seen = stamp(&chain_file, &key_file);
        let current = read(&chain_file, &key_file, &provider)?;
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(current),
            chain_file,
            key_file,
            provider,
            seen: Mutex::new(seen),
        }))
    }

    /// TLS 1.3 and 1.2 with HTTP/2 and this certificate.
    pub(super) fn server_config(self: &Arc<Self>) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Reads the files again if they have changed. Handshakes that begin after
    /// it use the new pair.
    pub(super) fn refresh(&self) {
        let stamp = stamp(&self.chain_file, &self.key_file);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp == *seen {
            return;
        }
        *seen = stamp;
        match read(&self.chain_file, &self.key_file, &self.provider) {
            Ok(pair) => {
                self.current.store(Arc::new(pair));
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

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn stamp(chain_file: &PathBuf, key_file: &PathBuf) -> Stamp {
    [chain_file, key_file].map(|file| fs::metadata(file).and_then(|data| data.modified()).ok())
}

/// A pair that belongs together.
fn read(
    chain_file: &PathBuf,
    key_file: &PathBuf,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let unreadable = |file: &PathBuf| {
        let file = file.clone();
        move |source: io::Error| Error::File { file, source }
    };
    let chain = fs::read(chain_file).map_err(unreadable(chain_file))?;
    let key = fs::read(key_file).map_err(unreadable(key_file))?;
    let key = Zeroizing::new(key);
    let chain = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::pem(chain_file, &source))?;
    let key =
        PrivateKeyDer::from_pem_slice(&key).map_err(|source| Error::pem(key_file, &source))?;
    CertifiedKey::from_der(chain, key, provider).map_err(Error::Tls)
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
        let certificate = Certificate::load(chain.clone(), key.clone()).unwrap();
        let in_force = || certificate.current.load().cert[0].clone();
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
        Certificate::load(chain, key).unwrap_err();
    }
}
