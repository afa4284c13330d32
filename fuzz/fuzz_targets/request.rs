//! Any head of a request is a transaction that its path and headers really name, or a refusal in
//! one line; and a credential in it names a device that there could be.
#![no_main]

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use sync_server::credential;
use sync_server::http::wire::{self, Ask, Problem};
use sync_server::protocol::Write;

/// The first line is the base path, the second the method, the third the target; then the headers.
fn head(input: &[u8]) -> Option<(String, Method, Uri, HeaderMap)> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let base = format!("/{}/", std::str::from_utf8(lines.next()?).ok()?.trim_matches('/'));
    let method = Method::from_bytes(lines.next()?).ok()?;
    let uri = Uri::try_from(lines.next()?).ok()?;
    let mut headers = HeaderMap::new();
    for line in lines.take(50) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?);
    }
    Some((base.replace("//", "/"), method, uri, headers))
}

fuzz_target!(|input: &[u8]| {
    let Some((base, method, uri, headers)) = head(input) else { return };
    let path = uri.path();
    let named = path.rsplit('/').next().and_then(|id| uuid::Uuid::parse_str(id).ok());
    if let Some(brought) = wire::credential(&headers) {
        assert!(credential::is_name(brought.name()));
    }
    match wire::ask(&base, &method, path, &headers) {
        Ok(Ask::Banner | Ask::Health | Ask::Ready) => assert!(method != Method::POST),
        Ok(Ask::Fetch(fetch)) => {
            assert!(path.starts_with(&base) && headers.contains_key("x-client-id"));
            assert_eq!(fetch.read(7).client(), fetch.client());
        }
        Ok(Ask::Upload(upload)) => {
            assert!(path.starts_with(&base) && method == Method::POST);
            assert_eq!(headers.get_all("x-client-id").iter().count(), 1);
            let (id, body) = match upload.with_body(vec![7]) {
                Write::AddVersion { parent, segment, .. } => (parent.uuid(), segment),
                Write::AddSnapshot { version, snapshot, .. } => (version.uuid(), snapshot),
            };
            assert_eq!((Some(id), body), (named, vec![7]));
        }
        Ok(Ask::Metrics | Ask::Verbose | Ask::Aside(_)) => panic!("that is asked at other listeners"),
        Err(problem) => {
            if let Problem::Prefix(prefix) = &problem {
                assert!(path.starts_with(prefix.as_str()) && *prefix != base, "{prefix:?}");
            }
            let answer = wire::problem(&problem);
            assert!(answer.status().is_client_error(), "{problem:?}");
            assert_eq!(answer.body().iter().filter(|byte| **byte == b'\n').count(), 1);
        }
    }
});
