//! What an outcome, or a request that led to none, looks like on the wire.

use super::{Problem, SEGMENT, SNAPSHOT};
use crate::protocol::{Outcome, Refusal, Urgency, VersionId};
use crate::storage::Kind;
use crate::workers::Failure;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// As Prometheus wants its text.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store, max-age=0");
const CODINGS: HeaderValue = HeaderValue::from_static("gzip, deflate, br, zstd");
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"TaskChampion sync server\", charset=\"UTF-8\"");
/// Seconds. Stock clients ignore it; proxies and people do not.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");

pub(super) const VERSION_ID: HeaderName = HeaderName::from_static("x-version-id");
pub(super) const PARENT_VERSION_ID: HeaderName = HeaderName::from_static("x-parent-version-id");
pub(super) const SNAPSHOT_REQUEST: HeaderName = HeaderName::from_static("x-snapshot-request");

/// What a connection gets, written without hyper, whose request's head is not complete in time.
pub const HEAD_TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
    connection: close\r\n\
    cache-control: no-store, max-age=0\r\n\
    content-length: 0\r\n\r\n";

/// What a connection gets whose address has too many of them.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\n\
    connection: close\r\n\
    cache-control: no-store, max-age=0\r\n\
    retry-after: 10\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 66\r\n\r\n\
    Too many connections are open from this address; try again later.\n";

/// What plain HTTP gets where TLS is spoken.
pub const NOT_SECURE: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    connection: close\r\n\
    cache-control: no-store, max-age=0\r\n\
    content-type: text/plain\r\n\
    content-length: 66\r\n\r\n\
    This port speaks TLS: use https:// instead of http:// in the URL.\n";

/// An answer whose body is whole and has no reservation yet.
pub type Answer = Response<Vec<u8>>;

/// The answer to a transaction that the workers carried out.
pub fn outcome(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Added { version, urgency } => added(version, urgency),
        Outcome::Conflict { latest } => {
            let mut answer = empty(StatusCode::CONFLICT);
            answer.headers_mut().insert(PARENT_VERSION_ID, id_value(latest));
            answer
        }
        Outcome::Child { version, parent, segment } => {
            let mut answer = stored(version, SEGMENT, segment);
            answer.headers_mut().insert(PARENT_VERSION_ID, id_value(parent));
            answer
        }
        Outcome::Snapshot { version, snapshot } => stored(version, SNAPSHOT, snapshot),
        Outcome::UpToDate | Outcome::NoSnapshot | Outcome::NoSuchClient => empty(StatusCode::NOT_FOUND),
        Outcome::Gone => empty(StatusCode::GONE),
        // A dropped snapshot is a success on the wire: anything else fails the user's whole sync.
        Outcome::SnapshotStored | Outcome::SnapshotHeld | Outcome::SnapshotDropped(_) => {
            empty(StatusCode::OK)
        }
        Outcome::Refused(refusal) => problem(&Problem::Refused(refusal)),
        Outcome::NeedsRoom { .. } => problem(&Problem::NoMemory),
    }
}

/// The answer to GetSnapshot whose body follows in pieces.
pub fn snapshot_head(version: VersionId) -> Answer {
    stored(version, SNAPSHOT, Vec::new())
}

/// The answer to a transaction that the workers could not carry out, whose reason is the operator's.
pub fn failure(failure: &Failure) -> Answer {
    match failure {
        Failure::Busy => later("The server is overloaded; try again later."),
        Failure::Stopped => later("The server is stopping; try again later."),
        Failure::Storage(error) => match error.kind {
            Kind::Full | Kind::Busy | Kind::Unavailable => {
                later("The server cannot reach or write its database at the moment; try again later.")
            }
            Kind::Corrupt | Kind::Newer | Kind::Other => {
                text(StatusCode::INTERNAL_SERVER_ERROR, "The server failed; its log has the details.")
            }
        },
    }
}

/// The answer to a request that no worker saw.
pub fn problem(problem: &Problem) -> Answer {
    let bad = |line| text(StatusCode::BAD_REQUEST, line);
    match problem {
        Problem::NotFound => text(StatusCode::NOT_FOUND, "There is nothing at this path."),
        Problem::Prefix(_) => bad("The sync protocol is not served under this path: \
             check the client's server URL against the server's base path."),
        Problem::Method { allow } => {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "This path does not take this method.");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            answer
        }
        Problem::ClientId => bad("The header X-Client-Id must be there once and hold a UUID."),
        Problem::PathId => bad("The path must end in a UUID."),
        Problem::ContentType(wanted) => bad(&format!("The Content-Type must be {wanted}.")),
        Problem::Coding => {
            let line = "The Content-Encoding must be gzip, deflate, br, zstd or none.";
            let mut answer = text(StatusCode::UNSUPPORTED_MEDIA_TYPE, line);
            answer.headers_mut().insert(header::ACCEPT_ENCODING, CODINGS);
            answer
        }
        Problem::TransferCoding => {
            text(StatusCode::NOT_IMPLEMENTED, "The only Transfer-Encoding that this server takes is chunked.")
        }
        Problem::EmptyBody => bad("The body is empty."),
        Problem::BrokenBody => bad("The body is broken: its chunks or its Content-Encoding."),
        Problem::TooLarge { limit } => {
            let line = format!("The body is larger than this server takes: {limit} bytes.");
            text(StatusCode::PAYLOAD_TOO_LARGE, &line)
        }
        Problem::TimedOut => text(StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time."),
        Problem::NoMemory => later("The server has too many bodies in flight; try again later."),
        Problem::Refused(Refusal::NotAllowed) => {
            text(StatusCode::FORBIDDEN, "This client is not allowed to use this server.")
        }
        Problem::Refused(Refusal::UnknownClient) => {
            text(StatusCode::FORBIDDEN, "This server does not know this client and creates none.")
        }
        Problem::Refused(Refusal::NoCredential) => {
            let line = "This server needs the name and token of a device in the client's server URL.";
            let mut answer = text(StatusCode::UNAUTHORIZED, line);
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
            answer
        }
        Problem::TooManyAttempts => too_many("wrong names and tokens"),
        Problem::TooManyRequests => too_many("requests"),
        Problem::Refused(Refusal::Suspended) => text(StatusCode::FORBIDDEN, "This client is suspended."),
        Problem::Refused(Refusal::Leaving) => {
            text(StatusCode::FORBIDDEN, "This client is being removed, or its history is.")
        }
    }
}

/// Whether this is the answer to a request without a valid credential.
pub fn wants_credential(answer: &Answer) -> bool {
    answer.status() == StatusCode::UNAUTHORIZED
}

/// The answer at the root.
pub fn banner() -> Answer {
    text(StatusCode::OK, concat!("TaskChampion sync server v", env!("CARGO_PKG_VERSION")))
}

/// All that is counted.
pub fn metrics(page: String) -> Answer {
    let mut answer = empty(StatusCode::OK);
    answer.headers_mut().insert(header::CONTENT_TYPE, METRICS);
    *answer.body_mut() = page.into_bytes();
    answer
}

/// Readiness with its reasons.
pub fn report(is_well: bool, reasons: String) -> Answer {
    let mut answer = health(is_well);
    *answer.body_mut() = reasons.into_bytes();
    answer
}

/// The answer to a probe.
pub fn health(is_well: bool) -> Answer {
    if is_well { text(StatusCode::OK, "ok") } else { later("The server cannot answer requests.") }
}

/// The answer to the protocol where it is not secure; `url` is the one to use.
pub fn insecure(url: &str) -> Answer {
    text(StatusCode::BAD_REQUEST, &format!("The sync protocol is served over HTTPS only: use {url}"))
}

/// Sends people to a URL.
pub fn moved(url: &str) -> Answer {
    let Ok(location) = HeaderValue::from_str(url) else { return problem(&Problem::NotFound) };
    let mut answer = text(StatusCode::MOVED_PERMANENTLY, "This is served over HTTPS only.");
    answer.headers_mut().insert(header::LOCATION, location);
    answer
}

/// The answer to people while there is no secure door to send them to.
pub fn no_certificate() -> Answer {
    later("This server is still waiting for its certificate; try again later.")
}

/// What a certificate authority compares, byte for byte.
pub fn proof(proof: String) -> Answer {
    let mut answer = empty(StatusCode::OK);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    *answer.body_mut() = proof.into_bytes();
    answer
}

fn added(version: VersionId, urgency: Urgency) -> Answer {
    let mut answer = empty(StatusCode::OK);
    let headers = answer.headers_mut();
    headers.insert(VERSION_ID, id_value(version));
    match urgency {
        Urgency::None => {}
        Urgency::Low => {
            headers.insert(SNAPSHOT_REQUEST, HeaderValue::from_static("urgency=low"));
        }
        Urgency::High => {
            headers.insert(SNAPSHOT_REQUEST, HeaderValue::from_static("urgency=high"));
        }
    }
    answer
}

fn stored(version: VersionId, media_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = empty(StatusCode::OK);
    *answer.body_mut() = body;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(VERSION_ID, id_value(version));
    answer
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Vec::new());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    answer
}

fn text(status: StatusCode, line: &str) -> Answer {
    let mut answer = empty(status);
    answer.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    *answer.body_mut() = format!("{line}\n").into_bytes();
    answer
}

fn too_many(what: &str) -> Answer {
    let line = format!("Too many {what} came from this address; try again later.");
    let mut answer = text(StatusCode::TOO_MANY_REQUESTS, &line);
    answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    answer
}

fn later(line: &str) -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, line);
    answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    answer
}

fn id_value(id: VersionId) -> HeaderValue {
    let uuid: Uuid = id.uuid();
    let mut buffer = [0; Hyphenated::LENGTH];
    let text = uuid.hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).expect("hexadecimal digits and dashes are valid in a header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Error;

    const PARENT: &str = "e5a4ab60-4f14-4f8e-9f3a-6d3ff6f4e9c1";

    fn parent() -> VersionId {
        VersionId::parse(PARENT).unwrap()
    }

    fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
        answer.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn every_outcome_has_the_status_and_headers_that_clients_need() {
        let version = parent();
        let child = outcome(Outcome::Child { version, parent: VersionId::NIL, segment: b"seg".to_vec() });
        assert_eq!(child.status(), 200);
        assert_eq!(header(&child, "content-type"), Some(SEGMENT));
        assert_eq!(header(&child, "x-version-id"), Some(PARENT));
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(header(&child, "x-parent-version-id"), Some(nil));
        assert_eq!(child.body(), b"seg");

        let added = outcome(Outcome::Added { version, urgency: Urgency::None });
        assert_eq!((added.status().as_u16(), header(&added, "x-version-id")), (200, Some(PARENT)));
        assert_eq!(header(&added, "x-snapshot-request"), None);
        let low = outcome(Outcome::Added { version, urgency: Urgency::Low });
        assert_eq!(header(&low, "x-snapshot-request"), Some("urgency=low"));
        let high = outcome(Outcome::Added { version, urgency: Urgency::High });
        assert_eq!(header(&high, "x-snapshot-request"), Some("urgency=high"));

        let conflict = outcome(Outcome::Conflict { latest: version });
        assert_eq!(
            (conflict.status().as_u16(), header(&conflict, "x-parent-version-id")),
            (409, Some(PARENT))
        );
        for (status, given) in [
            (404, Outcome::UpToDate),
            (404, Outcome::NoSnapshot),
            (404, Outcome::NoSuchClient),
            (410, Outcome::Gone),
            (200, Outcome::SnapshotStored),
            (200, Outcome::SnapshotHeld),
            (403, Outcome::Refused(Refusal::UnknownClient)),
            (403, Outcome::Refused(Refusal::Suspended)),
            (403, Outcome::Refused(Refusal::Leaving)),
            (401, Outcome::Refused(Refusal::NoCredential)),
        ] {
            let answer = outcome(given.clone());
            assert_eq!(answer.status(), status, "{given:?}");
            assert_eq!(header(&answer, "cache-control"), Some("no-store, max-age=0"));
        }
    }

    #[test]
    fn failures_never_tell_what_failed() {
        let storage = |kind| failure(&Failure::Storage(Error::new(kind, "/secret/path is full")));
        for kind in [Kind::Full, Kind::Busy, Kind::Unavailable] {
            let answer = storage(kind);
            assert_eq!(answer.status(), 503);
            assert!(header(&answer, "retry-after").is_some());
            assert!(!String::from_utf8_lossy(answer.body()).contains("secret"));
        }
        assert_eq!(storage(Kind::Corrupt).status(), 500);
        assert_eq!(failure(&Failure::Busy).status(), 503);
    }

    #[test]
    fn a_missing_credential_is_asked_for_by_its_scheme() {
        let answer = outcome(Outcome::Refused(Refusal::NoCredential));
        assert!(wants_credential(&answer));
        assert!(header(&answer, "www-authenticate").is_some_and(|value| value.starts_with("Basic realm=\"")));
        let answer = problem(&Problem::TooManyAttempts);
        assert_eq!((answer.status().as_u16(), wants_credential(&answer)), (429, false));
        assert!(header(&answer, "retry-after").is_some());
    }

    #[test]
    fn texts_are_one_line() {
        let many = [
            Problem::NotFound,
            Problem::Prefix("/x/".to_owned()),
            Problem::ClientId,
            Problem::ContentType(SEGMENT),
            Problem::TooLarge { limit: 7 },
        ];
        for answer in many.iter().map(problem).chain([banner(), health(true), health(false)]) {
            let text = String::from_utf8(answer.body().clone()).unwrap();
            assert_eq!(text.find('\n'), Some(text.len() - 1), "{text:?}");
        }
    }
}
