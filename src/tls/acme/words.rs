//! What an authority and the way to it say, as one line for people.

use serde_json::Value;

/// More than this nobody reads.
const LONGEST: usize = 400;

/// The words in an error's text: those of the authority's own problem document or of the system where
/// there are any, the text itself otherwise.
pub fn of(text: &str) -> String {
    line(
        &problem(text).or_else(|| distrust(text)).or_else(|| system(text)).unwrap_or_else(|| text.to_owned()),
    )
}

/// One line of printable characters, and not too long.
pub fn line(text: &str) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let flat = flat.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &flat[..at]),
        None => flat,
    }
}

/// The error's text quotes the answer: a document with a type and a detail.
fn problem(text: &str) -> Option<String> {
    let quoted = &text[text.find("\"{")?..];
    let document: String = serde_json::Deserializer::from_str(quoted).into_iter().next()?.ok()?;
    let document: Value = serde_json::from_str(&document).ok()?;
    let kind = document["type"].as_str().unwrap_or_default();
    let detail = document["detail"].as_str()?;
    Some(format!("{detail} ({})", kind.rsplit(':').next().unwrap_or(kind)))
}

/// Whose certificate is not believed.
fn distrust(text: &str) -> Option<String> {
    let why = &text[text.find("InvalidCertificate(")? + "InvalidCertificate(".len()..];
    let why = why.split([')', ' ']).next().unwrap_or_default();
    Some(format!("its own certificate is not trusted ({why}): does acme.root name who vouches for it?"))
}

/// What the system said, inside of what everyone else made of it.
fn system(text: &str) -> Option<String> {
    let start = text.rfind("message: \"")? + "message: \"".len();
    let end = text[start..].find('"')? + start;
    Some(text[start..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authoritys_problem_is_told_in_its_own_words() {
        let text = r#"http request error: non 2xx http status: 429 "{\n  \"type\": \"urn:ietf:params:acme:error:rateLimited\",\n  \"detail\": \"too many\\ncertificates\",\n  \"status\": 429\n}""#;
        assert_eq!(of(text), "too many certificates (rateLimited)");
    }

    #[test]
    fn the_systems_words_are_found() {
        let text = "http request error: http error: ConnectError(TcpConnect(Os { code: 111, kind: \
                    ConnectionRefused, message: \"Connection refused\" }))";
        assert_eq!(of(text), "Connection refused");
        let text = "ConnectError(TlsConnect(Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }))";
        assert!(of(text).contains("not trusted (UnknownIssuer)"), "{}", of(text));
        assert_eq!(of("io error: strange"), "io error: strange");
        assert_eq!(of("non 2xx http status: 502 \"{no JSON\""), "non 2xx http status: 502 \"{no JSON\"");
    }

    #[test]
    fn no_line_can_be_forged_and_none_is_endless() {
        assert_eq!(line("a\r\nWARN  b\u{7f}"), "a WARN b");
        assert_eq!(line(&"ä".repeat(1000)).chars().count(), LONGEST + 1);
    }
}
