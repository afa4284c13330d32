//! Certificates that the server gets by itself: what the operator decides, and what follows from it.

use super::resolve::{Effective, effective_of};
use super::source::Origin;
use super::value::Parsed;
use super::{Config, Endpoint};
use std::path::PathBuf;
use std::time::Duration;

/// The authority that is asked where nobody names one, and its other half for trying things out.
const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";
const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// The longest name that DNS has.
const LONGEST_NAME: usize = 253;

/// Certificates that the server gets by itself; without a domain it gets none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acme {
    /// The names that the certificate is for.
    pub domains: Vec<String>,
    /// Whom the authority may write to, without `mailto:`.
    pub contact: Option<String>,
    /// The URL of the authority's directory.
    pub directory: String,
    /// The authorities that vouch for that URL, instead of the public ones; absolute.
    pub root: Option<PathBuf>,
    /// How the server shows that it has the names.
    pub challenge: Challenge,
    /// How long after a failure the next attempt is made, at least.
    pub retry: Duration,
}

/// How the server shows that it has the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Challenge {
    /// Either, in turn.
    #[default]
    Auto,
    /// In a TLS handshake, which the authority makes at port 443.
    TlsAlpn01,
    /// Over plain HTTP, at port 80.
    Http01,
}

impl Acme {
    /// Whether the server gets certificates by itself.
    pub fn is_on(&self) -> bool {
        !self.domains.is_empty()
    }

    /// Where a certificate can be tried for that nobody trusts: the staging half of the default authority;
    /// of any other there is only the one.
    pub fn for_trial(&self) -> &str {
        if self.directory == PRODUCTION { STAGING } else { &self.directory }
    }
}

/// A name that a certificate can be for.
pub fn domain(text: &str) -> Parsed<String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    if name.starts_with("*.") {
        return Err(
            "has a wildcard, for which authorities want a proof in DNS that this server cannot give; \
                    name every host"
                .to_owned(),
        );
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Err("is an address, not a name".to_owned());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > LONGEST_NAME || !name.split('.').all(is_label) {
        return Err(
            "is no host name of letters, digits, dashes and dots (others are written as xn--…)".to_owned()
        );
    }
    Ok((name.clone(), name))
}

/// An e-mail address.
pub fn contact(text: &str) -> Parsed<String> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"<>,;:\\?".contains(c);
    match address.split_once('@') {
        Some((user, host)) if !user.is_empty() && host.contains('.') && address.chars().all(is_plain) => {
            Ok((address.to_owned(), address.to_owned()))
        }
        _ => Err("is no e-mail address".to_owned()),
    }
}

/// An authority: a word for the default one and its other half, or a URL.
pub fn directory(text: &str) -> Parsed<String> {
    let url = match text {
        "production" => PRODUCTION,
        "staging" => STAGING,
        url => url,
    };
    let host = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if host.is_empty() || host.contains('@') || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("is neither production nor staging nor a URL with https://".to_owned());
    }
    Ok((url.to_owned(), text.to_owned()))
}

/// The way to show that the server has its names.
pub fn challenge(text: &str) -> Parsed<Challenge> {
    let challenge = match text {
        "auto" => Challenge::Auto,
        "tls-alpn-01" => Challenge::TlsAlpn01,
        "http-01" => Challenge::Http01,
        _ => return Err("is none of auto, tls-alpn-01 and http-01".to_owned()),
    };
    Ok((challenge, text.to_owned()))
}

/// With a domain, listeners that nobody named are those that the authority and clients come to.
pub fn follow(config: &mut Config, effective: &mut [Effective]) {
    if !config.acme.is_on() {
        return;
    }
    let mut listen = |key: &str, address: &str| {
        let option = effective.iter_mut().find(|effective| effective.setting.key == key)?;
        if option.origin != Origin::Default {
            return None;
        }
        option.values = vec![address.to_owned()];
        Some(vec![Endpoint::Tcp(address.to_owned())])
    };
    if let Some(listen) = listen("listen", "*:443") {
        config.listen = listen;
    }
    if config.acme.challenge != Challenge::TlsAlpn01
        && let Some(http_listen) = listen("http_listen", "*:80")
    {
        config.http_listen = http_listen;
    }
}

/// What cannot be together.
pub fn problems(config: &Config, effective: &[Effective]) -> Vec<String> {
    let mut problems = Vec::new();
    let given = |key| effective_of(effective, key).filter(|effective| effective.origin != Origin::Default);
    if !config.acme.is_on() {
        let alone = effective.iter().filter(|effective| effective.setting.key.starts_with("acme."));
        problems.extend(alone.filter(|effective| effective.origin != Origin::Default).map(|effective| {
            format!(
                "{} ({}): of no use without acme.domain; give that as well, or leave {0} out",
                effective.setting.key, effective.origin
            )
        }));
        return problems;
    }
    let Some(domain) = given("acme.domain") else { return problems };
    let origin = &domain.origin;
    if let Some(own) = given("tls.cert").or(given("tls.key")) {
        let key = own.setting.key;
        problems.push(format!(
            "acme.domain ({origin}): it cannot be beside {key} ({}), for a server shows either a certificate that \
             it gets by itself or one of your own; leave one of them out",
            own.origin
        ));
    }
    if let Some(connection) = given("connection") {
        problems.push(format!(
            "acme.domain ({origin}): it cannot be beside connection ({}), for servers that share a database would \
             each ask for the certificate, and not answer for each other when the authority looks; put a proxy \
             with a certificate in front of them, or give each tls.cert and tls.key",
            connection.origin
        ));
    }
    if !config.listen.iter().any(|endpoint| matches!(endpoint, Endpoint::Tcp(_)))
        && let Some(listen) = given("listen")
    {
        problems.push(format!(
            "listen ({}): it names no TCP address, and a certificate (acme.domain) is of use on TCP only; leave \
             listen out for ports 443 and 80",
            listen.origin
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::setting::Setting;
    use super::super::{Environment, Sources, resolve, table};
    use super::*;

    fn of<const N: usize>(variables: [(&str, &str); N]) -> Result<Config, String> {
        let environment = Environment::from(variables);
        let resolved = resolve(&Sources { environment, ..Sources::default() });
        resolved.map(|resolved| resolved.config).map_err(|problems| problems.join("\n"))
    }

    fn tcp(address: &str) -> Vec<Endpoint> {
        vec![Endpoint::Tcp(address.to_owned())]
    }

    #[test]
    fn a_domain_is_the_whole_configuration() {
        let config = of([("ACME_DOMAIN", "Tasks.Example.com, b.example.com.")]).unwrap();
        assert_eq!(config.acme.domains, ["tasks.example.com", "b.example.com"]);
        assert_eq!((config.listen, config.http_listen), (tcp("*:443"), tcp("*:80")));
        assert_eq!(config.acme.directory, PRODUCTION);
        assert_eq!(config.acme.for_trial(), STAGING);
    }

    #[test]
    fn listeners_that_the_operator_named_stay() {
        let config =
            of([("ACME_DOMAIN", "a.b"), ("LISTEN", "[::]:8443"), ("HTTP_LISTEN", "[::]:81")]).unwrap();
        assert_eq!((config.listen, config.http_listen), (tcp("[::]:8443"), tcp("[::]:81")));
        let config = of([("ACME_DOMAIN", "a.b"), ("ACME_CHALLENGE", "tls-alpn-01")]).unwrap();
        assert_eq!((config.listen, config.http_listen), (tcp("*:443"), vec![]));
        // What an image has for everyone is a default.
        let config = of([("ACME_DOMAIN", "a.b"), ("SYNC_SERVER_DEFAULT_LISTEN", "0.0.0.0:8080")]).unwrap();
        assert_eq!(config.listen, tcp("*:443"));
        assert_eq!(of([("SYNC_SERVER_DEFAULT_LISTEN", "0.0.0.0:8080")]).unwrap().listen, tcp("0.0.0.0:8080"));
    }

    #[test]
    fn authorities_have_short_names_or_urls() {
        let directory =
            |text| of([("ACME_DOMAIN", "a.b"), ("ACME_DIRECTORY", text)]).map(|c| c.acme.directory);
        assert_eq!(directory("staging").as_deref(), Ok(STAGING));
        assert_eq!(directory("https://ca.lan:14000/dir").as_deref(), Ok("https://ca.lan:14000/dir"));
        for wrong in ["http://ca.lan/dir", "stagin", "https://", "https://a@b/"] {
            assert!(directory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_that_no_certificate_can_be_for_are_refused() {
        for wrong in ["*.example.com", "192.0.2.1", "::1", "a_b.c", "ä.de", "-a.b", "a..b", "https://a.b"] {
            assert!(of([("ACME_DOMAIN", wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn servers_that_share_a_database_get_no_certificates() {
        let environment = Environment::from([("ACME_DOMAIN", "a.b")]);
        let resolved = resolve(&Sources { environment, ..Sources::default() }).unwrap();
        assert!(problems(&resolved.config, &resolved.effective).is_empty());
        let mut effective = resolved.effective;
        effective.retain(|effective| effective.setting.key != "connection");
        let setting = Box::leak(Box::new(Setting { key: "connection", ..table::TABLE[0] }));
        let origin = Origin::Environment("CONNECTION".to_owned());
        effective.push(Effective { setting, values: Vec::new(), origin });
        let told = problems(&resolved.config, &effective).join("\n");
        assert!(told.contains("cannot be beside connection (environment CONNECTION)"), "{told}");
    }

    #[test]
    fn what_cannot_be_together_is_told() {
        let told = of([("ACME_CONTACT", "me@example.com")]).unwrap_err();
        assert!(told.contains("acme.contact (environment ACME_CONTACT): of no use without"), "{told}");
        let told = of([("ACME_DOMAIN", "a.b"), ("TLS_CERT", "/c"), ("TLS_KEY", "/k")]).unwrap_err();
        assert!(told.contains("cannot be beside tls.cert"), "{told}");
        let told = of([("ACME_DOMAIN", "a.b"), ("LISTEN", "unix:/s")]).unwrap_err();
        assert!(told.contains("names no TCP address"), "{told}");
        assert!(of([("ACME_DOMAIN", "a.b"), ("ACME_CONTACT", "not an address")]).is_err());
    }
}
