//! What is asked for where plain HTTP is only an aside.

use super::Ask;
use super::requests::decoded;
use hyper::{HeaderMap, Method};

/// Where a certificate authority looks for a proof.
const PROOFS: &str = "/.well-known/acme-challenge/";

/// What a request is about where the protocol is not served.
#[derive(Clone, Debug, PartialEq)]
pub enum Aside {
    /// A certificate authority wants the proof of this token.
    Proof(String),
    /// The protocol, or something like it.
    Protocol,
    /// Anything else.
    Elsewhere,
}

/// Reads what is asked for beside HTTPS.
pub fn ask(base: &str, method: &Method, path: &str) -> Ask {
    let path = decoded(path);
    // An upload to wherever would be broken by a redirect, too.
    if is_protocol(&path) || !matches!(*method, Method::GET | Method::HEAD) {
        return Ask::Aside(Aside::Protocol);
    }
    if let Some(token) = path.strip_prefix(PROOFS) {
        return Ask::Aside(Aside::Proof(token.to_owned()));
    }
    match super::ask(base, method, &path, &HeaderMap::new()) {
        Ok(probe @ (Ask::Health | Ask::Ready)) => probe,
        _ => Ask::Aside(Aside::Elsewhere),
    }
}

/// Under any prefix, and whatever stands between its segments.
fn is_protocol(path: &str) -> bool {
    path.split('/').any(|segment| segment.eq_ignore_ascii_case("v1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Ask {
        ask("/tasks/", &Method::GET, path)
    }

    #[test]
    fn the_protocol_is_known_under_any_prefix() {
        for path in [
            "/v1/client/snapshot",
            "/tasks/v1/client/add-version/x",
            "/a/b/v1/client/get-child-version/x",
            "//v1//client//snapshot",
            "/%76%31/client/snapshot",
            "/V1/client",
            "/v1",
        ] {
            assert_eq!(get(path), Ask::Aside(Aside::Protocol), "{path}");
        }
        assert_eq!(ask("/", &Method::POST, "/"), Ask::Aside(Aside::Protocol));
    }

    #[test]
    fn probes_and_proofs_are_answered_and_the_rest_goes_elsewhere() {
        assert_eq!(get("/healthz"), Ask::Health);
        assert_eq!(get("/tasks/readyz"), Ask::Ready);
        assert_eq!(get("/.well-known/acme-challenge/a_-1"), Ask::Aside(Aside::Proof("a_-1".to_owned())));
        for path in ["/", "/tasks/", "/v2", "/.well-known/", "/favicon.ico"] {
            assert_eq!(get(path), Ask::Aside(Aside::Elsewhere), "{path}");
        }
    }
}
