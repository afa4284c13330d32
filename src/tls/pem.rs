//! From PEM files to what a TLS server needs, checked.

use super::{Report, at};
use crate::config;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The one protocol that is spoken inside.
pub const ALPN: &[u8] = b"http/1.1";

/// A certificate may be warned of this long before its end, unless it lives so shortly that two thirds of
/// its life come later.
const ENDING: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The hosts that it is for.
    pub names: Vec<String>,
    /// The beginning of its life.
    pub from: SystemTime,
    /// The end of its life.
    pub until: SystemTime,
}

impl Facts {
    /// Reads a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Facts, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let (from, until) = (time(parsed.validity().not_before), time(parsed.validity().not_after));
        Ok(Facts { names: names(&parsed), from, until })
    }

    /// How long it lives altogether.
    pub fn life(&self) -> Duration {
        self.until.duration_since(self.from).unwrap_or_default()
    }

    /// When to get another one.
    pub fn renewal(&self) -> SystemTime {
        self.until - self.life() / 3
    }

    /// Whether its end is so near that someone should look after it.
    pub fn is_ending(&self, now: SystemTime) -> bool {
        self.until.duration_since(now).is_ok_and(|left| left < ENDING.min(self.life() / 6))
    }
}

/// A certificate that can be served.
pub struct Loaded {
    /// How.
    pub config: Arc<ServerConfig>,
    /// What it says of itself.
    pub facts: Facts,
}

/// Reads the files and checks that they fit together; `now` decides what is expired.
pub fn load(files: &config::Tls, now: SystemTime) -> Result<(Loaded, Report), String> {
    let (Some(cert), Some(key)) = (&files.cert, &files.key) else {
        return Err("tls.cert and tls.key belong together".to_owned());
    };
    let chain = certificates("tls.cert", cert)?;
    let facts = Facts::of(&chain[0]).map_err(|error| {
        format!("tls.cert: the first certificate in {} cannot be read: {error}", cert.display())
    })?;
    let (summary, mut warnings) = describe(cert, &facts, now);
    let provider = Arc::new(ring::default_provider());
    let certified = CertifiedKey::from_der(chain, private_key(key)?, &provider)
        .map_err(|error| misfit(cert, key, &error))?;
    warnings.extend(exposure(key));
    let config = server(certified, files.client_ca.as_deref(), &provider)?;
    Ok((Loaded { config: Arc::new(config), facts }, Report { summary, warnings }))
}

/// The same of a key and a certificate with its chain that an authority gave.
pub fn issued(text: &[u8], client_ca: Option<&Path>) -> Result<Loaded, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| format!("no sound PEM: {error}"))?;
    let first = chain.first().ok_or("there is no certificate in it")?;
    let facts = Facts::of(first)?;
    let key = PrivateKeyDer::from_pem_slice(text).map_err(|error| format!("no key: {error}"))?;
    let provider = Arc::new(ring::default_provider());
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| error.to_string())?;
    Ok(Loaded { config: Arc::new(server(certified, client_ca, &provider)?), facts })
}

/// What is spoken while there is no certificate: a handshake, up to the alert that says so.
pub fn none() -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(NoCertificate))))
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// Whether the authorities for clients can be used, if any are named.
pub fn check_client_ca(path: Option<&Path>) -> Result<(), String> {
    let provider = Arc::new(ring::default_provider());
    path.map_or(Ok(()), |path| client_verifier(path, &provider).map(drop))
}

/// The certificates of a file, at least one.
pub fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(option, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(format!("{option}: {} holds no certificate in PEM form", path.display()))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{option}: {} is no sound PEM file: {error}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read("tls.key", path)?;
    let shown = path.display();
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if text.windows(9).any(|word| word == b"ENCRYPTED") => {
            Err(format!("tls.key: the key in {shown} has a passphrase: take it off with `openssl pkey`"))
        }
        Err(pem::Error::NoItemsFound) => {
            Err(format!("tls.key: {shown} holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1)"))
        }
        Err(error) => Err(format!("tls.key: {shown} is no sound PEM file: {error}")),
    }
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| {
        let us = rustix::process::geteuid().as_raw();
        format!("{option}: cannot read {}: {error}; uid {us} must be able to read it", path.display())
    })
}

fn misfit(cert: &Path, key: &Path, error: &Error) -> String {
    let (cert, key) = (cert.display(), key.display());
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
            "tls.key: the key in {key} does not belong to the first certificate in {cert} (tls.cert); \
             give the key that belongs to it, and put the server's own certificate first"
        ),
        Error::InvalidCertificate(_) => {
            format!("tls.cert: the certificate in {cert} cannot be used: {error}")
        }
        _ => format!(
            "tls.key: the key in {key} cannot be used: {error}; RSA of 2048 to 8192 bits, ECDSA on P-256 or \
             P-384, and Ed25519 can"
        ),
    }
}

fn server(
    certified: CertifiedKey,
    client_ca: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, String> {
    let failed = |error: Error| format!("tls.cert: TLS cannot be set up: {error}");
    let verifier = client_ca.map(|path| client_verifier(path, provider)).transpose()?;
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Keys of its own for each set of files: a ticket is worth as much as the certificate that its
    // client showed, and that one's authority may have been taken off the list.
    config.ticketer = ring::Ticketer::new().map_err(failed)?;
    Ok(config)
}

fn client_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let failed = |why: String| format!("tls.client_ca: {} cannot be used: {why}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.client_ca", path)? {
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    builder.build().map_err(|error| failed(error.to_string()))
}

/// One line on the certificate, and what is wrong with it that does not keep it from being served.
pub fn describe(path: &Path, facts: &Facts, now: SystemTime) -> (String, Vec<String>) {
    let Facts { names, from, until } = facts;
    let shown = path.display();
    let mut warnings = Vec::new();
    if names.is_empty() {
        warnings.push(format!(
            "tls.cert: the certificate in {shown} names no host (subjectAltName): clients will refuse it"
        ));
    }
    if *until < now {
        warnings.push(format!(
            "tls.cert: THE CERTIFICATE in {shown} EXPIRED on {}: clients will refuse it; put a new one there, it \
             is taken up by itself",
            at(*until)
        ));
    }
    if facts.is_ending(now) {
        warnings.push(format!(
            "tls.cert: the certificate in {shown} ends at {}: put a new one there, it is taken up by itself",
            at(*until)
        ));
    }
    if *from > now {
        warnings.push(format!(
            "tls.cert: the certificate in {shown} is not valid before {}: until then clients will refuse it; is \
             the clock of this machine right?",
            at(*from)
        ));
    }
    let names = if names.is_empty() { "no host".to_owned() } else { names.join(", ") };
    (format!("certificate for {names}, valid until {}, from {shown}", at(*until)), warnings)
}

/// The hosts that a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.escape_debug().to_string()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// A certificate may be valid from before 1970; that much precision is not needed.
fn time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0))
}

/// Who else can read the key.
fn exposure(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| {
        let shown = path.display();
        format!("tls.key: every user of this machine can read {shown}; run chmod o-r {shown}")
    })
}
