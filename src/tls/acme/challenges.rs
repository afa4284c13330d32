//! What the server shows an authority that comes to see whether a name leads here.

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_acme::acme::ACME_TLS_ALPN_NAME;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is shown at the moment. Empty but for the seconds of an attempt.
#[derive(Default)]
pub struct Challenges(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    /// Certificates by name, for the handshakes that an authority makes.
    certificates: Vec<(String, Arc<CertifiedKey>)>,
    /// Proofs by token, for plain HTTP.
    proofs: Vec<(String, String)>,
}

impl Challenges {
    /// Shows a certificate in handshakes for this name.
    pub fn show_certificate(&self, domain: &str, certificate: CertifiedKey) {
        self.shown().certificates.push((domain.to_owned(), Arc::new(certificate)));
    }

    /// Shows a proof to whoever asks for the token.
    pub fn show_proof(&self, token: &str, proof: String) {
        self.shown().proofs.push((token.to_owned(), proof));
    }

    /// Shows nothing any more.
    pub fn clear(&self) {
        *self.shown() = Shown::default();
    }

    /// The proof of a token.
    pub fn proof(&self, token: &str) -> Option<String> {
        self.shown().proofs.iter().rev().find(|(known, _)| known == token).map(|(_, proof)| proof.clone())
    }

    /// What an authority's handshake for this name is answered with.
    pub fn handshake(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let is_asked = |(known, _): &&(String, Arc<CertifiedKey>)| known.eq_ignore_ascii_case(name);
        let certificate = self.shown().certificates.iter().rev().find(is_asked)?.1.clone();
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().ok()?.with_no_client_auth();
        let resolver = SingleCertAndKey::from(CertifiedKey::clone(&certificate));
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ACME_TLS_ALPN_NAME.to_vec()];
        Some(Arc::new(config))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_shown_for_their_token_until_they_are_taken_away() {
        let challenges = Challenges::default();
        challenges.show_proof("a", "old".to_owned());
        challenges.show_proof("a", "new".to_owned());
        assert_eq!(challenges.proof("a").as_deref(), Some("new"));
        assert_eq!(challenges.proof("b"), None);
        assert!(challenges.handshake("a.example").is_none());
        challenges.clear();
        assert_eq!(challenges.proof("a"), None);
    }
}
