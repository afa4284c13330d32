//! One order, from the authority's directory to the certificate.

use super::challenges::Challenges;
use super::history::Kind;
use super::words;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::ClientConfig;
use rustls_acme::acme::{
    Account, AcmeError, Auth, AuthStatus, Challenge, ChallengeType, Directory, Identifier, Order, OrderStatus,
};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How often a request is repeated whose nonce the authority does not like: nothing was done then.
const NONCES: usize = 10;

/// How long to wait between two looks at what the authority is doing, at first and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

/// Whom to ask for what.
pub struct Asking<'a> {
    /// How the authority's own server is recognised.
    pub client: &'a Arc<ClientConfig>,
    /// The URL of its directory.
    pub directory: &'a str,
    /// Whom it may write to.
    pub contact: Option<&'a str>,
    /// The key of the account.
    pub account: &'a [u8],
    /// The names that the certificate shall be for.
    pub domains: &'a [String],
}

/// Why there is no certificate.
#[derive(Debug)]
pub struct Failure {
    /// In words.
    pub why: String,
    /// What it is about, as far as that makes a difference.
    pub what: What,
}

/// What a failure is about.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// The server could not show that it has a name: another way may work.
    Proof,
    /// The authority does not take the account any more.
    Account,
    /// Anything else.
    Other,
}

impl From<AcmeError> for Failure {
    fn from(error: AcmeError) -> Failure {
        Failure { why: words::of(&error.to_string()), what: What::Other }
    }
}

impl Asking<'_> {
    /// Orders a certificate and shows the names by `kind`, or another way where the authority does not
    /// offer that one and `others` are fine. Gives the new key and the certificate with its chain, as PEM.
    ///
    /// Waits as long as the authority takes: the caller has a deadline.
    pub async fn order(&self, kind: Kind, others: bool, challenges: &Challenges) -> Result<Vec<u8>, Failure> {
        let client = self.client;
        let directory = Directory::discover(client, self.directory).await.map_err(|error| {
            let why = words::of(&error.to_string());
            Failure { why: format!("{} cannot be asked: {why}", self.directory), what: What::Other }
        })?;
        let contact: Vec<String> = self.contact.iter().map(|contact| format!("mailto:{contact}")).collect();
        let open = || Account::create_with_keypair(client, directory.clone(), &contact, self.account);
        let account = patiently(open).await.map_err(|error| {
            let why = words::of(&error.to_string());
            let is_refused =
                ["unauthorized", "accountDoesNotExist", "deactivated", "revoked", "invalid key pair"];
            let what =
                if is_refused.iter().any(|word| why.contains(word)) { What::Account } else { What::Other };
            Failure { why: format!("the account is refused: {why}"), what }
        })?;
        let ordering = || account.new_order(client, self.domains.to_vec());
        let (url, mut order) = patiently(ordering).await?;
        let mut key = None;
        let mut pause = LOOKS.0;
        loop {
            match order.status {
                OrderStatus::Pending => {
                    for authorization in &order.authorizations {
                        self.prove(&account, authorization, kind, others, challenges).await?;
                    }
                }
                OrderStatus::Ready => {
                    let (request, new) = request(self.domains)?;
                    order = patiently(|| account.finalize(client, &order.finalize, &request)).await?;
                    key = Some(new);
                    continue;
                }
                OrderStatus::Processing => {}
                OrderStatus::Valid { certificate } => {
                    let Some(key) = key else {
                        return Err(other("the authority answers with an order that was filled before"));
                    };
                    let chain = patiently(|| account.certificate(client, &certificate)).await?;
                    return Ok(format!("{}\n{chain}", key.serialize_pem()).into_bytes());
                }
                OrderStatus::Invalid => return Err(refused(&order)),
            }
            rest(&mut pause).await;
            order = patiently(|| account.order(client, &url)).await?;
        }
    }

    /// Shows that this server has one name.
    async fn prove(
        &self,
        account: &Account,
        url: &str,
        kind: Kind,
        others: bool,
        challenges: &Challenges,
    ) -> Result<(), Failure> {
        let client = self.client;
        let mut auth = patiently(|| account.auth(client, url)).await?;
        if matches!(auth.status, AuthStatus::Pending) {
            let Identifier::Dns(domain) = &auth.identifier;
            let kind = offered(&auth, kind, others)?;
            let challenge = match kind {
                Kind::TlsAlpn01 => {
                    let (challenge, certificate) = account.tls_alpn_01(&auth.challenges, domain.clone())?;
                    challenges.show_certificate(domain, certificate);
                    challenge
                }
                Kind::Http01 => {
                    let (challenge, proof) = account.http_01(&auth.challenges)?;
                    challenges.show_proof(&challenge.token, proof);
                    challenge
                }
            };
            patiently(|| account.challenge(client, &challenge.url)).await?;
        }
        let mut pause = LOOKS.0;
        while matches!(auth.status, AuthStatus::Pending) {
            rest(&mut pause).await;
            auth = patiently(|| account.auth(client, url)).await?;
        }
        match auth.status {
            AuthStatus::Valid => Ok(()),
            _ => Err(unproven(&auth)),
        }
    }
}

/// Repeats what failed for want of a good nonce only.
async fn patiently<T, F: Future<Output = Result<T, AcmeError>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, AcmeError> {
    for _ in 0..NONCES {
        match ask().await {
            Err(error) if error.to_string().contains("acme:error:badNonce") => {}
            result => return result,
        }
    }
    ask().await
}

async fn rest(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(LOOKS.1);
}

/// The way to take, of those that the authority offers for a name.
fn offered(auth: &Auth, wanted: Kind, others: bool) -> Result<Kind, Failure> {
    let is_offered = |kind: &Kind| auth.challenges.iter().any(|challenge| kind_of(challenge) == Some(*kind));
    let kinds = if others { vec![wanted, wanted.other()] } else { vec![wanted] };
    kinds.into_iter().find(is_offered).ok_or_else(|| {
        other(&format!(
            "the authority does not offer the challenge {}; set acme.challenge to another",
            wanted.name()
        ))
    })
}

fn kind_of(challenge: &Challenge) -> Option<Kind> {
    match challenge.typ {
        ChallengeType::TlsAlpn01 => Some(Kind::TlsAlpn01),
        ChallengeType::Http01 => Some(Kind::Http01),
        _ => None,
    }
}

/// A new key, and a request for a certificate of it.
fn request(domains: &[String]) -> Result<(Vec<u8>, KeyPair), Failure> {
    let made = || {
        let mut params = CertificateParams::new(domains)?;
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::generate()?;
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok((request, key))
    };
    made().map_err(|error: rcgen::Error| other(&format!("no key can be made: {error}")))
}

fn unproven(auth: &Auth) -> Failure {
    let Identifier::Dns(domain) = &auth.identifier;
    let whys: Vec<String> = auth
        .challenges
        .iter()
        .filter_map(|challenge| {
            let detail = challenge.error.as_ref()?.detail.as_deref().unwrap_or("no reason given");
            Some(format!("{}: {}", kind_of(challenge)?.name(), words::line(detail)))
        })
        .collect();
    let whys = if whys.is_empty() { format!("{:?}", auth.status) } else { whys.join("; ") };
    Failure { why: format!("the authority did not find this server at {domain} ({whys})"), what: What::Proof }
}

fn refused(order: &Order) -> Failure {
    let detail = order.error.as_ref().and_then(|error| error.detail.as_deref()).unwrap_or("no reason given");
    other(&format!("the authority refused the order: {}", words::line(detail)))
}

fn other(why: &str) -> Failure {
    Failure { why: why.to_owned(), what: What::Other }
}
