//! A TLS client that blocks, for asking this server or one like it.

use super::pem;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, StreamOwned,
};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

/// Who is believed.
#[derive(Clone, Debug, PartialEq)]
pub enum Trust {
    /// Whoever answers. For a listener of one's own: nothing secret is said there, and whether it
    /// serves does not hang on what its certificate's file holds by now.
    Anyone,
    /// Who can show a certificate from a public authority for the host's name; and the holder of
    /// the key to the one in this file.
    Public(Option<PathBuf>),
}

/// Speaks TLS on a connection to `host`, a name or an address.
///
/// The handshake happens at the first write, and fails there where the server is not believed.
pub fn connect(stream: TcpStream, host: &str, trust: &Trust) -> Result<impl Read + Write, String> {
    let host = ServerName::try_from(host.to_owned()).map_err(|_| format!("no host name: {host:?}"))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let verifier = Arc::new(Verifier::new(trust, provider)?);
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![pem::ALPN.to_vec()];
    let session = ClientConnection::new(Arc::new(config), host).map_err(|error| error.to_string())?;
    Ok(StreamOwned::new(session, stream))
}

/// Knows one certificate by sight, if any, and asks the public authorities about others, if at all.
#[derive(Debug)]
struct Verifier {
    known: Option<CertificateDer<'static>>,
    /// `None`: everyone is believed.
    public: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(trust: &Trust, provider: Arc<CryptoProvider>) -> Result<Verifier, String> {
        let Trust::Public(path) = trust else {
            return Ok(Verifier { known: None, public: None, provider });
        };
        let chain = path.as_ref().map(|path| pem::certificates("tls.cert", path)).transpose()?;
        let known = chain.and_then(|chain| chain.into_iter().next());
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let public = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let public = Some(public.map_err(|error| error.to_string())?);
        Ok(Verifier { known, public, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.public {
            _ if self.known.as_ref() == Some(end_entity) => Ok(ServerCertVerified::assertion()),
            Some(public) => public.verify_server_cert(end_entity, intermediates, host, ocsp, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
