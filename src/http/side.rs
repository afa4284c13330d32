//! The side door: plain HTTP beside HTTPS.
//!
//! It shows certificate authorities what they ask for, answers probes, sends people to the secure
//! door, and refuses the protocol. A redirect would be worse than a refusal there: clients turn an
//! upload that is sent elsewhere into something else, and take a snapshot for stored that is not.

use super::Seldom;
use super::line::Shown;
use super::wire::{self, Answer, Aside};
use crate::config::Config;
use crate::peer::Peer;
use hyper::header::HOST;
use hyper::{HeaderMap, Uri};
use std::sync::Arc;
use std::time::Instant;

/// Where a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Where the protocol is spoken.
    Main,
    /// Plain HTTP beside HTTPS.
    Side,
    /// Where whoever watches over the server asks.
    Monitor,
}

/// What the side door must know of the certificate that the secure one shows.
pub trait Certificate: Send + Sync {
    /// Whether there is one by now.
    fn is_there(&self) -> bool;
    /// What a certificate authority is to be told that asks for this token.
    fn proof(&self, token: &str) -> Option<String>;
}

/// What is said at the side door.
pub struct SideDoor {
    certificate: Arc<dyn Certificate>,
    base_path: String,
    public_url: Option<String>,
    /// Names that the certificate is for, where it is known beforehand.
    domains: Vec<String>,
    /// The port of the secure door.
    port: u16,
    refused: Seldom,
    strays: Seldom,
}

impl SideDoor {
    /// Of a server with this configuration, whose HTTPS is at `port`.
    pub fn new(config: &Config, port: u16, certificate: Arc<dyn Certificate>) -> SideDoor {
        SideDoor {
            certificate,
            base_path: config.base_path.clone(),
            public_url: config.public_url.clone().filter(|url| url.starts_with("https://")),
            domains: config.acme.domains.clone(),
            // An authority comes to this port only, whatever leads from there to ours.
            port: if config.acme.is_on() { 443 } else { port },
            refused: Seldom::default(),
            strays: Seldom::default(),
        }
    }

    /// What is said to everything but probes.
    pub fn answer(&self, aside: &Aside, target: &Uri, headers: &HeaderMap, peer: Peer) -> Answer {
        match aside {
            Aside::Proof(token) => match self.certificate.proof(token) {
                Some(proof) => wire::proof(proof),
                None => wire::problem(&wire::Problem::NotFound),
            },
            Aside::Protocol => {
                let url = self.client_url(headers);
                if self.refused.is_due(Instant::now()) {
                    log::warn!(
                        "{peer} asked for {} over plain HTTP, which this server refuses and never redirects: on \
                         that device, task config sync.server.url {url}; said at most once a minute",
                        Shown(target.path())
                    );
                }
                wire::insecure(&url)
            }
            Aside::Elsewhere if self.certificate.is_there() => {
                let target = target.path_and_query().map_or("/", |target| target.as_str());
                wire::moved(&format!("{}{target}", self.origin(headers)))
            }
            Aside::Elsewhere => wire::no_certificate(),
        }
    }

    /// Tells of a client that speaks TLS here.
    pub fn warn_of_tls(&self, peer: Peer) {
        if self.strays.is_due(Instant::now()) {
            log::warn!(
                "{peer} speaks TLS to the port for plain HTTP (option http_listen): on that device, task config \
                 sync.server.url {}; said at most once a minute",
                self.client_url(&HeaderMap::new())
            );
        }
    }

    fn client_url(&self, headers: &HeaderMap) -> String {
        self.public_url.clone().unwrap_or_else(|| format!("{}{}", self.origin(headers), self.base_path))
    }

    /// The secure door, without a path.
    fn origin(&self, headers: &HeaderMap) -> String {
        if let Some(url) = &self.public_url {
            let end = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
            return url[..end].to_owned();
        }
        let asked = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(host_of);
        let known = |host: &&str| self.domains.iter().any(|domain| domain.eq_ignore_ascii_case(host));
        let host = match self.domains.first() {
            Some(first) => asked.filter(known).unwrap_or(first),
            None => asked.unwrap_or("NAME-OF-THIS-MACHINE"),
        };
        if self.port == 443 { format!("https://{host}") } else { format!("https://{host}:{}", self.port) }
    }
}

/// A host without its port, if it is one at all: what a client sends becomes part of a URL.
fn host_of(text: &str) -> Option<&str> {
    let is_plain = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if let Some(end) = text.find(']') {
        let inside = text[..end].strip_prefix('[')?;
        return inside.parse::<std::net::Ipv6Addr>().is_ok().then_some(&text[..=end]);
    }
    let host = text.split(':').next()?;
    is_plain(host).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    struct Held(bool);

    impl Certificate for Held {
        fn is_there(&self) -> bool {
            self.0
        }

        fn proof(&self, token: &str) -> Option<String> {
            (token == "token").then(|| "token.thumb".to_owned())
        }
    }

    fn door(is_there: bool, public_url: Option<&str>, domains: &[&str], port: u16) -> SideDoor {
        let config = Config { public_url: public_url.map(str::to_owned), ..Config::default() };
        let domains = domains.iter().map(|domain| domain.to_string()).collect();
        SideDoor { domains, ..SideDoor::new(&config, port, Arc::new(Held(is_there))) }
    }

    fn ask(door: &SideDoor, aside: Aside, target: &str, host: &str) -> (u16, Option<String>, String) {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        let answer = door.answer(&aside, &target.parse().unwrap(), &headers, Peer::Unix);
        let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), location, String::from_utf8(answer.body().clone()).unwrap())
    }

    #[test]
    fn people_are_sent_to_the_secure_door_once_there_is_a_certificate() {
        let location = |door: &SideDoor, host: &str| ask(door, Aside::Elsewhere, "//x/y?z", host).1;
        let to = |url: &str| Some(url.to_owned());
        let any = door(true, None, &[], 443);
        assert_eq!(location(&any, "tasks.example.com:80"), to("https://tasks.example.com//x/y?z"));
        assert_eq!(location(&any, "[::1]:80"), to("https://[::1]//x/y?z"));
        assert_eq!(location(&any, "evil.com/@x"), to("https://NAME-OF-THIS-MACHINE//x/y?z"));
        let named = door(true, None, &["a.example", "b.example"], 8443);
        assert_eq!(location(&named, "B.example"), to("https://B.example:8443//x/y?z"));
        assert_eq!(location(&named, "evil.com"), to("https://a.example:8443//x/y?z"));
        let public = door(true, Some("https://p.example:1/tasks/"), &["a.example"], 8443);
        assert_eq!(location(&public, "a.example"), to("https://p.example:1//x/y?z"));
        let (status, location, _) = ask(&door(false, None, &[], 443), Aside::Elsewhere, "/", "x");
        assert_eq!((status, location), (503, None));
    }

    #[test]
    fn the_protocol_is_refused_with_the_url_to_use() {
        for is_there in [true, false] {
            let door = door(is_there, None, &["a.example"], 443);
            let (status, location, text) = ask(&door, Aside::Protocol, "/v1/client/snapshot", "x");
            assert_eq!((status, location), (400, None));
            assert!(text.contains("https://a.example/"), "{text}");
        }
    }

    #[test]
    fn an_authority_is_told_what_it_asks_for() {
        let proof = |token: &str| ask(&door(false, None, &[], 443), Aside::Proof(token.to_owned()), "/", "x");
        assert_eq!(proof("token"), (200, None, "token.thumb".to_owned()));
        assert_eq!(proof("other").0, 404);
    }
}
