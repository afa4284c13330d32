//! Programs in web pages, as far as a browser lets them: what it asks and is told, on the real program.

use crate::util::{NIL, Replica, Response, SEGMENT, SNAPSHOT, Server};

const PAGE: &str = "https://tasks.example.org";

/// Header names as a browser's list of them has them.
fn list(response: &Response, header: &str) -> Vec<String> {
    let value = response.header(header).unwrap_or_else(|| panic!("no {header}: {response:?}"));
    value.split(", ").map(str::to_ascii_lowercase).collect()
}

/// Whether a browser would let this page's program send the request, which it asks first.
fn may_send(server: &Server, origin: &str, method: &str, path: &str, headers: &[&str]) -> bool {
    let wanted = headers.join(",");
    let ask = [
        ("Origin", origin),
        ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", &wanted),
    ];
    let answer = server.request("OPTIONS", path, &ask, b"");
    assert_eq!(answer.header("cache-control"), Some("no-store, max-age=0"));
    if answer.header("access-control-allow-origin") != Some(origin) {
        assert!(answer.headers.keys().all(|name| !name.starts_with("access-control-")), "{answer:?}");
        return false;
    }
    assert_eq!(answer.header("vary"), Some("Origin"));
    if answer.status != 204 {
        return false;
    }
    let (methods, allowed) =
        (list(&answer, "access-control-allow-methods"), list(&answer, "access-control-allow-headers"));
    methods.contains(&method.to_ascii_lowercase())
        && headers.iter().all(|header| allowed.contains(&header.to_ascii_lowercase()))
}

#[test]
fn a_named_page_syncs() {
    let server =
        Server::start(&["--cors-origins", &format!("http://localhost:8000,{PAGE}"), "--base-path=/t"]);
    let client = uuid::Uuid::new_v4().to_string();
    let page = [("Origin", PAGE), ("X-Client-Id", &*client)];
    let readable = |answer: &Response, names: &[&str]| {
        assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("Origin"));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        let exposed = list(answer, "access-control-expose-headers");
        for name in names {
            assert!(
                answer.header(name).is_some() && exposed.contains(&name.to_string()),
                "{name}: {answer:?}"
            );
        }
    };
    let add = format!("/t/v1/client/add-version/{NIL}");
    assert!(may_send(&server, PAGE, "POST", &add, &["X-Client-Id", "Content-Type", "Authorization"]));
    let typed = [page[0], page[1], ("Content-Type", SEGMENT)];
    let added = server.request("POST", &add, &typed, b"segment");
    assert_eq!(added.status, 200);
    readable(&added, &["x-version-id", "x-snapshot-request"]);
    let version = added.version();
    let conflict = server.request("POST", &add, &typed, b"segment");
    assert_eq!(conflict.status, 409);
    readable(&conflict, &["x-parent-version-id"]);

    let child = format!("/t/v1/client/get-child-version/{NIL}");
    assert!(may_send(&server, PAGE, "GET", &child, &["X-Client-Id"]));
    let fetched = server.request("GET", &child, &page, b"");
    assert_eq!((fetched.status, &*fetched.body), (200, &b"segment"[..]));
    readable(&fetched, &["x-version-id", "x-parent-version-id"]);

    let snapshot = format!("/t/v1/client/add-snapshot/{version}");
    assert!(may_send(&server, PAGE, "POST", &snapshot, &["x-client-id", "content-type"]));
    let typed = [page[0], page[1], ("Content-Type", SNAPSHOT)];
    let stored = server.request("POST", &snapshot, &typed, b"state");
    assert_eq!(stored.status, 200);
    readable(&stored, &[]);
    assert!(may_send(&server, PAGE, "GET", "/t/v1/client/snapshot", &["X-Client-Id"]));
    let got = server.request("GET", "/t/v1/client/snapshot", &page, b"");
    assert_eq!((got.status, &*got.body), (200, &b"state"[..]));
    readable(&got, &["x-version-id"]);
    // What is refused can be read, too, and says why.
    let refused = server.request("GET", "/t/v1/client/get-child-version/x", &page, b"");
    assert_eq!((refused.status, refused.text()), (400, "The path must end in a UUID.\n".to_owned()));
    readable(&refused, &[]);

    assert!(may_send(&server, "http://localhost:8000", "POST", &add, &["X-Client-Id"]));
    assert!(!may_send(&server, PAGE, "DELETE", &add, &[]));
    assert!(!may_send(&server, PAGE, "POST", &add, &["X-Other"]));
    assert!(!may_send(&server, PAGE, "GET", "/v1/client/snapshot", &["X-Client-Id"]), "another prefix");
}

#[test]
fn others_are_told_nothing() {
    let add = format!("/v1/client/add-version/{NIL}");
    let named = Server::start(&["--cors-origins", PAGE]);
    for origin in
        ["https://evil.example", "http://tasks.example.org", "https://tasks.example.org.evil.example", "null"]
    {
        assert!(!may_send(&named, origin, "POST", &add, &["X-Client-Id"]), "{origin}");
        let answer = named.request("GET", "/", &[("Origin", origin)], b"");
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None), "{origin}");
        assert_eq!(answer.header("vary"), Some("Origin"), "a cache keeps them apart");
    }
    // Clients that are no browsers get what they always got.
    let mut replica = Replica::of_new_client(&named);
    assert_eq!(replica.add_version(NIL, b"segment").header("access-control-allow-origin"), None);

    let off = Server::start(&[]);
    assert!(!may_send(&off, PAGE, "POST", &add, &["X-Client-Id"]));
    let answer = off.request("OPTIONS", &add, &[("Origin", PAGE)], b"");
    assert_eq!((answer.status, answer.header("allow"), answer.header("vary")), (405, Some("POST"), None));
}

#[test]
fn a_browser_asks_without_the_credential_that_the_request_will_have() {
    let server = Server::start(&["--cors-origins", "*", "--require-device", "--no-create-clients"]);
    let path = "/v1/client/snapshot";
    let ask = [("Origin", PAGE), ("Access-Control-Request-Method", "GET")];
    let asked = server.request("OPTIONS", path, &ask, b"");
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (204, Some("*")));
    let client = uuid::Uuid::new_v4().to_string();
    let refused = server.request("GET", path, &[("Origin", PAGE), ("X-Client-Id", &client)], b"");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
}
