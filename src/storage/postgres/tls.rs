//! TLS to the database, as the connection string asks for it.

use super::address::{Address, Check, Tls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Connects with TLS where it is wanted.
#[derive(Clone)]
pub(super) struct Connector(MakeRustlsConnect);

impl Connector {
    /// Reads the files that the connection string names.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn new(address: &Address) -> Result<Connector, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = verifier(&address.tls, provider.clone())?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be used: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match &address.tls.own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert, "sslcert")?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("sslkey {}: {error}", key.display()))?;
                let own = config.with_client_auth_cert(chain, key);
                own.map_err(|error| format!("sslcert {}: {error}", cert.display()))?
            }
        };
        Ok(Connector(MakeRustlsConnect::new(config)))
    }

    /// Connects to one host and gives what keeps the connection going.
    pub(super) async fn connect(
        &self,
        host: &Config,
    ) -> Result<(Client, impl Future<Output = ()> + Send + 'static), tokio_postgres::Error> {
        let (client, connection) = host.connect(self.0.clone()).await?;
        // Whoever waits for an answer hears how it ended.
        Ok((client, async move { drop(connection.await) }))
    }
}

fn certificates(path: &Path, word: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |why: String| format!("{word} {}: {why}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let all: Result<Vec<_>, _> = read.collect();
    let all = all.map_err(|error| failed(error.to_string()))?;
    if all.is_empty() { Err(failed("no certificate is in it".to_owned())) } else { Ok(all) }
}

fn verifier(tls: &Tls, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    if tls.check == Check::Nothing {
        return Ok(Arc::new(Lenient { inner: None, provider }));
    }
    let mut roots = RootCertStore::empty();
    match &tls.root {
        Some(path) => {
            for certificate in certificates(path, "sslrootcert")? {
                roots.add(certificate).map_err(|error| format!("sslrootcert {}: {error}", path.display()))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let strict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let strict = strict.map_err(|error| format!("sslrootcert: {error}"))?;
    if tls.check == Check::Host {
        return Ok(strict);
    }
    Ok(Arc::new(Lenient { inner: Some(strict), provider }))
}

/// Takes certificates for any host, from any authority or from those that are known. The handshake
/// is signed all the same.
#[derive(Debug)]
struct Lenient {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Said only after the authority was found to be right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
