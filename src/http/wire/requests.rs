//! What a request's head asks for.

use super::{Aside, SEGMENT, SNAPSHOT};
use crate::credential::Credential;
use crate::metrics::Transaction;
use crate::protocol::{ClientId, Read, Refusal, VersionId, Write};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use std::borrow::Cow;

const CLIENT_ID: HeaderName = HeaderName::from_static("x-client-id");

/// The methods of whatever is only read.
const READ: &str = "GET, HEAD";

/// What a request's head asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// The text that people, charts and probes look for at the root.
    Banner,
    /// Whether the process answers.
    Health,
    /// Whether the workers and the database answer.
    Ready,
    /// What is counted.
    Metrics,
    /// Readiness with its reasons.
    Verbose,
    /// A transaction that changes nothing.
    Fetch(Fetch),
    /// A transaction that brings a body.
    Upload(Upload),
    /// Something that plain HTTP beside HTTPS has an answer to.
    Aside(Aside),
}

/// A transaction that changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fetch {
    /// GetChildVersion.
    ChildVersion { client: ClientId, parent: VersionId },
    /// GetSnapshot.
    Snapshot { client: ClientId },
}

/// A transaction whose body is still to be read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upload {
    /// The client that asks.
    pub client: ClientId,
    /// How the body is encoded; `None`: not at all.
    pub coding: Option<Coding>,
    target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    History { parent: VersionId },
    Snapshot { version: VersionId },
}

/// The content codings that a request body may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `gzip` or `x-gzip`.
    Gzip,
    /// `deflate`.
    Deflate,
    /// `br`.
    Brotli,
    /// `zstd`.
    Zstd,
}

/// Why a request is answered without any worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// Nothing is served at this path.
    NotFound,
    /// A path of the protocol under a prefix that this server does not serve.
    Prefix(String),
    /// The path takes these methods only.
    Method { allow: &'static str },
    /// No `X-Client-Id`, several, or no UUID in it.
    ClientId,
    /// No UUID where the path must have one.
    PathId,
    /// The body must have this type.
    ContentType(&'static str),
    /// A content coding that this server does not know, or several.
    Coding,
    /// A transfer coding other than `chunked`.
    TransferCoding,
    /// The body is empty.
    EmptyBody,
    /// The body's chunks or its coding are broken.
    BrokenBody,
    /// The body is longer than the limit, in bytes.
    TooLarge { limit: usize },
    /// The body did not arrive in time.
    TimedOut,
    /// No memory for the body became free in time.
    NoMemory,
    /// The client may not use this server.
    Refused(Refusal),
    /// Too many requests came from the request's address.
    TooManyRequests,
    /// Too many wrong credentials came from the request's address.
    TooManyAttempts,
}

impl Ask {
    /// As what it is counted.
    pub fn transaction(&self) -> Transaction {
        match self {
            Ask::Fetch(Fetch::ChildVersion { .. }) => Transaction::ChildVersion,
            Ask::Fetch(Fetch::Snapshot { .. }) => Transaction::Snapshot,
            Ask::Upload(Upload { target: Target::History { .. }, .. }) => Transaction::AddVersion,
            Ask::Upload(Upload { target: Target::Snapshot { .. }, .. }) => Transaction::AddSnapshot,
            _ => Transaction::Other,
        }
    }
}

impl Fetch {
    /// The client that asks.
    pub fn client(self) -> ClientId {
        match self {
            Fetch::ChildVersion { client, .. } | Fetch::Snapshot { client } => client,
        }
    }

    /// The request for the workers, with memory for a body of `room` bytes.
    pub fn read(self, room: usize) -> Read {
        match self {
            Fetch::ChildVersion { client, parent } => Read::GetChildVersion { client, parent, room },
            Fetch::Snapshot { client } => Read::GetSnapshot { client, room },
        }
    }
}

impl Upload {
    /// The transaction, now that its body has been read.
    pub fn with_body(self, body: Vec<u8>) -> Write {
        match self.target {
            Target::History { parent } => Write::AddVersion { client: self.client, parent, segment: body },
            Target::Snapshot { version } => {
                Write::AddSnapshot { client: self.client, version, snapshot: body }
            }
        }
    }
}

/// Reads a request's head. `base` is the path under which the protocol is served; it begins and
/// ends with `/`. `path` comes without a query: one is accepted and ignored.
pub fn ask(base: &str, method: &Method, path: &str, headers: &HeaderMap) -> Result<Ask, Problem> {
    // An encoded path that is "not found" would read as "up to date".
    let path = decoded(path);
    let route = route(base, &path)?;
    route.check(method)?;
    match route {
        Route::Banner => Ok(Ask::Banner),
        Route::Health => Ok(Ask::Health),
        Route::Ready => Ok(Ask::Ready),
        Route::Snapshot => Ok(Ask::Fetch(Fetch::Snapshot { client: client_id(headers)? })),
        Route::ChildVersion(parent) => {
            let client = client_id(headers)?;
            Ok(Ask::Fetch(Fetch::ChildVersion { client, parent: path_id(parent)? }))
        }
        Route::AddVersion(parent) => {
            let client = client_id(headers)?;
            let target = Target::History { parent: path_id(parent)? };
            require_type(headers, SEGMENT)?;
            Ok(Ask::Upload(Upload { client, coding: coding(headers)?, target }))
        }
        Route::AddSnapshot(version) => {
            let client = client_id(headers)?;
            let target = Target::Snapshot { version: path_id(version)? };
            require_type(headers, SNAPSHOT)?;
            Ok(Ask::Upload(Upload { client, coding: coding(headers)?, target }))
        }
    }
}

/// Reads what whoever watches over the server asks for.
pub fn ask_monitor(method: &Method, uri: &Uri) -> Result<Ask, Problem> {
    let is_verbose =
        || uri.query().is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    let ask = match uri.path() {
        "/metrics" => Ask::Metrics,
        "/readyz" if is_verbose() => Ask::Verbose,
        "/readyz" => Ask::Ready,
        "/healthz" => Ask::Health,
        _ => return Err(Problem::NotFound),
    };
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    if is_read { Ok(ask) } else { Err(Problem::Method { allow: READ }) }
}

/// A path without its percent signs; most have none.
pub fn decoded(path: &str) -> Cow<'_, str> {
    match path.contains('%') {
        true => percent_encoding::percent_decode_str(path).decode_utf8_lossy(),
        false => Cow::Borrowed(path),
    }
}

/// What a request brings to show that it comes from a device; `None` where it brings nothing of that
/// kind, or several.
pub fn credential(headers: &HeaderMap) -> Option<Credential> {
    only(headers, header::AUTHORIZATION).and_then(|value| Credential::parse(value.as_bytes()))
}

enum Route<'a> {
    Banner,
    Health,
    Ready,
    AddVersion(&'a str),
    ChildVersion(&'a str),
    AddSnapshot(&'a str),
    Snapshot,
}

impl Route<'_> {
    fn check(&self, method: &Method) -> Result<(), Problem> {
        let (is_allowed, allow) = match self {
            Route::AddVersion(_) | Route::AddSnapshot(_) => (*method == Method::POST, "POST"),
            _ => (matches!(*method, Method::GET | Method::HEAD), READ),
        };
        if is_allowed { Ok(()) } else { Err(Problem::Method { allow }) }
    }
}

fn route<'a>(base: &str, path: &'a str) -> Result<Route<'a>, Problem> {
    match path {
        // Probes and people find these without knowing the base path.
        "/" => return Ok(Route::Banner),
        "/healthz" => return Ok(Route::Health),
        "/readyz" => return Ok(Route::Ready),
        _ => {}
    }
    let under_base = path.strip_prefix(base);
    match under_base {
        Some("") => Ok(Route::Banner),
        Some("healthz") => Ok(Route::Health),
        Some("readyz") => Ok(Route::Ready),
        None if path == base.trim_end_matches('/') => Ok(Route::Banner),
        _ => under_base.and_then(protocol_route).ok_or_else(|| not_served(path)),
    }
}

/// The protocol's own paths, without the base path. A path that names a transaction but no ID is
/// one whose ID is malformed: "not found" would mean something else to a replica.
fn protocol_route(path: &str) -> Option<Route<'_>> {
    let rest = path.strip_prefix("v1/client/")?;
    let (name, id) = rest.split_once('/').unwrap_or((rest, ""));
    match name {
        "add-version" => Some(Route::AddVersion(id)),
        "get-child-version" => Some(Route::ChildVersion(id)),
        "add-snapshot" => Some(Route::AddSnapshot(id)),
        "snapshot" if rest == name => Some(Route::Snapshot),
        _ => None,
    }
}

/// A protocol path under a foreign prefix must not be "not found": a replica would take that for
/// "up to date", and its user would never learn that nothing is synced.
fn not_served(path: &str) -> Problem {
    let prefix = path
        .match_indices("/v1/client/")
        .map(|(at, _)| at + 1)
        .find(|at| protocol_route(&path[*at..]).is_some());
    match prefix {
        Some(end) => Problem::Prefix(path[..end].to_owned()),
        None => Problem::NotFound,
    }
}

fn client_id(headers: &HeaderMap) -> Result<ClientId, Problem> {
    let value = only(headers, CLIENT_ID).ok_or(Problem::ClientId)?;
    value.to_str().ok().and_then(ClientId::parse).ok_or(Problem::ClientId)
}

fn path_id(text: &str) -> Result<VersionId, Problem> {
    VersionId::parse(text).ok_or(Problem::PathId)
}

/// Parameters are ignored, and so is case, as everywhere with media types.
fn require_type(headers: &HeaderMap, wanted: &'static str) -> Result<(), Problem> {
    let given = only(headers, header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.and_then(|given| given.split(';').next());
    match essence {
        Some(essence) if essence.trim().eq_ignore_ascii_case(wanted) => Ok(()),
        _ => Err(Problem::ContentType(wanted)),
    }
}

fn coding(headers: &HeaderMap) -> Result<Option<Coding>, Problem> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        let value = only(headers, header::TRANSFER_ENCODING).map(HeaderValue::as_bytes);
        // What comes before `chunked` would be stored as if it were the body itself.
        value.filter(|value| value.eq_ignore_ascii_case(b"chunked")).ok_or(Problem::TransferCoding)?;
    }
    if !headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(None);
    }
    let value = only(headers, header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    match value.map(str::to_ascii_lowercase).as_deref() {
        Some("identity" | "") => Ok(None),
        Some("gzip" | "x-gzip") => Ok(Some(Coding::Gzip)),
        Some("deflate") => Ok(Some(Coding::Deflate)),
        Some("br") => Ok(Some(Coding::Brotli)),
        Some("zstd") => Ok(Some(Coding::Zstd)),
        _ => Err(Problem::Coding),
    }
}

/// The value of a header that may occur only once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "711D5CF3-0CF0-4EB8-9ECA-6F7F220638C0";
    const PARENT: &str = "e5a4ab60-4f14-4f8e-9f3a-6d3ff6f4e9c1";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn get(base: &str, path: &str) -> Result<Ask, Problem> {
        ask(base, &Method::GET, path, &headers(&[("x-client-id", CLIENT)]))
    }

    fn post(path: &str, extra: &[(&'static str, &str)]) -> Result<Ask, Problem> {
        let mut pairs = vec![("x-client-id", CLIENT)];
        pairs.extend(extra);
        ask("/", &Method::POST, path, &headers(&pairs))
    }

    fn add_version() -> String {
        format!("/v1/client/add-version/{PARENT}")
    }

    fn client() -> ClientId {
        ClientId::parse(CLIENT).unwrap()
    }

    fn parent() -> VersionId {
        VersionId::parse(PARENT).unwrap()
    }

    #[test]
    fn an_encoded_path_is_what_it_stands_for() {
        let ask = |path| ask("/", &Method::GET, path, &HeaderMap::new());
        assert_eq!(ask("/%76%31/c%6Cient/snapshot"), Err(Problem::ClientId));
        assert_eq!(ask("/v1/client/%FF"), Err(Problem::NotFound));
        assert_eq!(ask("/%252e"), Err(Problem::NotFound));
        assert_eq!(ask("/health%7A"), Ok(Ask::Health));
    }

    #[test]
    fn the_four_transactions_are_understood() {
        let child = Fetch::ChildVersion { client: client(), parent: parent() };
        assert_eq!(get("/", &format!("/v1/client/get-child-version/{PARENT}")), Ok(Ask::Fetch(child)));
        assert_eq!(get("/", "/v1/client/snapshot"), Ok(Ask::Fetch(Fetch::Snapshot { client: client() })));
        let target = Target::History { parent: parent() };
        let upload = Upload { client: client(), coding: None, target };
        assert_eq!(post(&add_version(), &[("content-type", SEGMENT)]), Ok(Ask::Upload(upload)));
        let target = Target::Snapshot { version: parent() };
        let upload = Upload { client: client(), coding: None, target };
        let path = format!("/v1/client/add-snapshot/{PARENT}");
        assert_eq!(post(&path, &[("content-type", SNAPSHOT)]), Ok(Ask::Upload(upload)));
    }

    #[test]
    fn a_media_type_may_have_parameters_and_capitals_but_must_be_the_right_one() {
        let typed = |value| post(&add_version(), &[("content-type", value)]);
        assert!(typed("application/vnd.taskchampion.history-segment; charset=utf-8").is_ok());
        assert!(typed("Application/vnd.TaskChampion.history-segment").is_ok());
        assert_eq!(typed(SNAPSHOT), Err(Problem::ContentType(SEGMENT)));
        assert_eq!(typed(""), Err(Problem::ContentType(SEGMENT)));
        assert_eq!(post(&add_version(), &[]), Err(Problem::ContentType(SEGMENT)));
        let twice = [("content-type", SEGMENT), ("content-type", SEGMENT)];
        assert_eq!(post(&add_version(), &twice), Err(Problem::ContentType(SEGMENT)));
    }

    #[test]
    fn the_client_id_is_needed_once_and_takes_every_form_of_a_uuid() {
        let with = |pairs: &[_]| ask("/", &Method::GET, "/v1/client/snapshot", &headers(pairs));
        for form in ["711d5cf30cf04eb89eca6f7f220638c0", "{711d5cf3-0cf0-4eb8-9eca-6f7f220638c0}"] {
            assert!(with(&[("x-client-id", form)]).is_ok(), "{form}");
        }
        assert_eq!(with(&[]), Err(Problem::ClientId));
        assert_eq!(with(&[("x-client-id", "")]), Err(Problem::ClientId));
        assert_eq!(with(&[("x-client-id", "711d5cf3")]), Err(Problem::ClientId));
        assert_eq!(with(&[("x-client-id", CLIENT), ("x-client-id", CLIENT)]), Err(Problem::ClientId));
    }

    #[test]
    fn a_credential_is_brought_once_or_not_at_all() {
        let name = |pairs: &[_]| credential(&headers(pairs)).map(|brought| brought.name().to_owned());
        let basic = ("authorization", "Basic bGFwdG9wOnNlY3JldA==");
        assert_eq!(name(&[basic]).as_deref(), Some("laptop"));
        assert_eq!(name(&[]), None);
        assert_eq!(name(&[basic, basic]), None);
        assert_eq!(name(&[("authorization", "Bearer x")]), None);
    }

    #[test]
    fn a_malformed_id_in_the_path_is_bad_not_missing() {
        for id in ["", "/", "/x", "/e5a4ab60-4f14", "/e5a4ab60-4f14-4f8e-9f3a-6d3ff6f4e9c1/"] {
            let path = format!("/v1/client/get-child-version{id}");
            assert_eq!(get("/", &path), Err(Problem::PathId), "{path}");
        }
    }

    #[test]
    fn wrong_methods_are_told_the_right_ones() {
        let method = |method, path: &str| ask("/", &method, path, &HeaderMap::new());
        assert_eq!(method(Method::GET, &add_version()), Err(Problem::Method { allow: "POST" }));
        let get_only = Err(Problem::Method { allow: "GET, HEAD" });
        assert_eq!(method(Method::POST, "/v1/client/snapshot"), get_only);
        assert_eq!(method(Method::DELETE, "/"), get_only);
        assert_eq!(method(Method::HEAD, "/healthz"), Ok(Ask::Health));
    }

    #[test]
    fn the_base_path_moves_the_protocol_and_leaves_probes_at_the_root() {
        let moved = format!("/tasks/v1/client/get-child-version/{PARENT}");
        assert!(get("/tasks/", &moved).is_ok());
        assert_eq!(get("/tasks/", "/tasks/"), Ok(Ask::Banner));
        assert_eq!(get("/tasks/", "/tasks"), Ok(Ask::Banner));
        assert_eq!(get("/tasks/", "/"), Ok(Ask::Banner));
        assert_eq!(get("/tasks/", "/tasks/readyz"), Ok(Ask::Ready));
        assert_eq!(get("/tasks/", "/readyz"), Ok(Ask::Ready));
        assert_eq!(get("/tasks/", "/healthz"), Ok(Ask::Health));
        assert_eq!(get("/tasks/", "/other"), Err(Problem::NotFound));
    }

    #[test]
    fn protocol_paths_under_a_foreign_prefix_name_the_prefix() {
        let prefix = |text: &str| Err(Problem::Prefix(text.to_owned()));
        assert_eq!(get("/", "/tasks/v1/client/snapshot"), prefix("/tasks/"));
        assert_eq!(get("/", "//v1/client/snapshot"), prefix("//"));
        assert_eq!(get("/tasks/", "/v1/client/snapshot"), prefix("/"));
        assert_eq!(get("/", "/a/v1/client/add-version/x"), prefix("/a/"));
        assert_eq!(get("/", "/v1/client/x/v1/client/snapshot"), prefix("/v1/client/x/"));
        assert_eq!(get("/", "/tasks/v1/client/other"), Err(Problem::NotFound));
        assert_eq!(get("/", "/v1/client/other"), Err(Problem::NotFound));
    }

    #[test]
    fn codings_are_known_by_name_and_only_one_at_a_time() {
        let coded = |value| {
            let ask = post(&add_version(), &[("content-type", SEGMENT), ("content-encoding", value)]);
            ask.map(|ask| match ask {
                Ask::Upload(upload) => upload.coding,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(coded("gzip"), Ok(Some(Coding::Gzip)));
        assert_eq!(coded("X-GZIP"), Ok(Some(Coding::Gzip)));
        assert_eq!(coded("deflate"), Ok(Some(Coding::Deflate)));
        assert_eq!(coded("br"), Ok(Some(Coding::Brotli)));
        assert_eq!(coded("zstd"), Ok(Some(Coding::Zstd)));
        assert_eq!(coded("identity"), Ok(None));
        assert_eq!(coded("gzip, zstd"), Err(Problem::Coding));
        assert_eq!(coded("compress"), Err(Problem::Coding));
    }
}
