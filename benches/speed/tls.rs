//! One certificate for all servers, and those who trust it and nothing else.

use crate::Result;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// The name that the certificate is for.
pub const NAME: &str = "localhost";

/// A certificate in files, and a client that trusts it.
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client: Arc<ClientConfig>,
}

impl Certificate {
    /// Writes a new one into this directory.
    pub fn new(dir: &Path) -> Result<Certificate> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(told)?;
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).map_err(told)?;
        std::fs::write(&key, made.signing_key.serialize_pem()).map_err(told)?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).map_err(told)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(told)?;
        let mut client = builder.with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Each handshake is a whole one.
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Certificate { cert, key, client: Arc::new(client) })
    }
}

/// What a server needs, with tickets as this package's own has them.
pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor> {
    let cert = CertificateDer::from_pem_file(cert).map_err(told)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(told)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(told)?;
    let mut config = builder.with_no_client_auth().with_single_cert(vec![cert], key).map_err(told)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().map_err(told)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn told(error: impl std::fmt::Display) -> String {
    format!("TLS: {error}")
}
