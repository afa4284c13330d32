//! What browsers want to hear before a program in a web page may ask: the CORS protocol of the Fetch
//! standard.

use super::{Answer, PARENT_VERSION_ID, Problem, SNAPSHOT_REQUEST, VERSION_ID, answers};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};

/// Headers that a program may send, beside those that every page may.
const REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("X-Client-Id, Content-Type, Content-Encoding, Authorization");

/// How long a browser may remember what it was told, in seconds: most remember it for two hours at most.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");

const ORIGIN: HeaderValue = HeaderValue::from_static("Origin");

/// Whose programs may ask: the origins of their pages.
pub struct Cors {
    origins: Vec<String>,
    /// Headers of answers that a program may read, beside those that every page may.
    exposed: HeaderValue,
}

impl Cors {
    /// Of these origins; `*` is every one. Of none, nothing is said at all.
    pub fn new(origins: &[String]) -> Cors {
        let exposed =
            [VERSION_ID, PARENT_VERSION_ID, SNAPSHOT_REQUEST].map(|name| name.to_string()).join(", ");
        let exposed = HeaderValue::try_from(exposed).expect("names of headers and commas");
        Cors { origins: origins.to_vec(), exposed }
    }

    /// The answer to a browser that asks whether a request may be made, which knows no method but those that
    /// the path takes.
    pub fn preflight(&self, problem: &Problem, headers: &HeaderMap) -> Option<Answer> {
        let Problem::Method { allow } = problem else { return None };
        headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        self.allowed(headers)?;
        let mut answer = answers::empty(StatusCode::NO_CONTENT);
        let told = answer.headers_mut();
        told.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(allow));
        told.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        told.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
        Some(answer)
    }

    /// Says in an answer whether the page that asked may read it.
    pub fn tell(&self, headers: &HeaderMap, answer: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        if !self.is_any() {
            answer.insert(header::VARY, ORIGIN);
        }
        if let Some(origin) = self.allowed(headers) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed.clone());
        }
    }

    fn is_any(&self) -> bool {
        self.origins.iter().any(|origin| origin == "*")
    }

    /// What is said of the request's origin, where it is an allowed one.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        if self.is_any() {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(origin: &'static str) -> HeaderMap {
        let method = (header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static(origin)), method])
    }

    fn told(cors: &Cors, origin: &'static str) -> (Option<HeaderValue>, Option<HeaderValue>) {
        let mut answer = HeaderMap::new();
        cors.tell(&asked(origin), &mut answer);
        (answer.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN), answer.remove(header::VARY))
    }

    #[test]
    fn only_the_very_origin_is_allowed() {
        let cors = Cors::new(&["https://tasks.example.org".to_owned(), "capacitor://localhost".to_owned()]);
        let vary = Some(ORIGIN);
        for origin in ["https://tasks.example.org", "capacitor://localhost"] {
            assert_eq!(told(&cors, origin), (Some(HeaderValue::from_static(origin)), vary.clone()));
        }
        for origin in [
            "http://tasks.example.org",
            "https://tasks.example.org:8443",
            "https://tasks.example.org.evil.example",
            "https://evil.tasks.example.org",
            "https://tasks.example.or",
            "null",
            "*",
            "",
        ] {
            assert_eq!(told(&cors, origin), (None, vary.clone()), "{origin}");
            assert!(cors.preflight(&Problem::Method { allow: "POST" }, &asked(origin)).is_none());
        }
        assert_eq!(told(&Cors::new(&[]), "https://tasks.example.org"), (None, None));
        let star = Some(HeaderValue::from_static("*"));
        assert_eq!(told(&Cors::new(&["*".to_owned()]), "null"), (star, None));
    }

    #[test]
    fn a_browser_is_told_what_the_path_takes() {
        let cors = Cors::new(&["https://a.example".to_owned()]);
        let headers = asked("https://a.example");
        let answer = cors.preflight(&Problem::Method { allow: "POST" }, &headers).expect("an answer");
        assert_eq!(answer.status(), 204);
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_METHODS], "POST");
        assert!(cors.preflight(&Problem::NotFound, &headers).is_none());
        let mut headers = headers;
        headers.remove(header::ACCESS_CONTROL_REQUEST_METHOD);
        assert!(cors.preflight(&Problem::Method { allow: "POST" }, &headers).is_none(), "nobody asks ahead");
    }
}
