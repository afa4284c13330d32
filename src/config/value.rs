//! From the text of one value to the value. Pure.
//!
//! Every function gives the value and its text as `config show` prints it, or says in a few words
//! what is wrong, to be put behind the offending text: "is not a whole number".

use super::{Connection, Endpoint};
use crate::protocol::ClientId;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The value and its canonical text, or what is wrong.
pub type Parsed<T> = Result<(T, String), String>;

/// A body must fit into one row of the database, and SQLite's rows end at 1,000,000,000 bytes.
const LARGEST_BODY: u64 = 900 << 20;

/// No deadline is longer than a day: more is a slip of the pen.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What is done more rarely is not done in time.
const RAREST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// An address to listen at: `localhost:8080`, `[::1]:8080`, `unix:/run/sync.sock`.
pub fn endpoint(text: &str, cwd: &Path) -> Parsed<Endpoint> {
    if let Some(socket) = text.strip_prefix("unix:") {
        let (socket, shown) = path(socket, cwd)?;
        return Ok((Endpoint::Unix(socket), format!("unix:{shown}")));
    }
    tcp_endpoint(text)
}

/// The same without unix sockets.
pub fn tcp_endpoint(text: &str) -> Parsed<Endpoint> {
    if text.contains('/') {
        return Err("is not an address and a port (and no URL)".to_owned());
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("has no port".to_owned());
    };
    if port.parse::<u16>().is_err() || port.starts_with('+') {
        return Err("has no port from 0 to 65535 at its end".to_owned());
    }
    check_host(host)?;
    Ok((Endpoint::Tcp(text.to_owned()), text.to_owned()))
}

fn check_host(host: &str) -> Result<(), String> {
    if host == "*" {
        return Ok(());
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err("has no IPv6 address between its brackets".to_owned()),
        };
    }
    if host.is_empty() {
        return Err("has no host (all addresses are *)".to_owned());
    }
    if host.contains(':') {
        return Err("has an IPv6 address without brackets".to_owned());
    }
    let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err("has no valid IPv4 address".to_owned());
    }
    if !host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_')) {
        return Err("has no valid host name".to_owned());
    }
    Ok(())
}

/// The path under which the protocol is served, with `/` at both ends.
pub fn base_path(text: &str) -> Parsed<String> {
    let inner = text.trim_matches('/');
    if inner.is_empty() {
        return if text.len() == 1 { same("/".to_owned()) } else { Err("is not a path".to_owned()) };
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    for segment in inner.split('/') {
        if segment.is_empty() || segment == "." || segment == ".." {
            return Err("has an empty or dotted segment".to_owned());
        }
        if !segment.chars().all(plain) {
            return Err("has other characters than letters, digits, and - . _ ~ /".to_owned());
        }
    }
    same(format!("/{inner}/"))
}

/// A URL for people and their programs, with `/` at its end.
pub fn url(text: &str) -> Parsed<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err("does not begin with http:// or https://".to_owned());
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    if host.contains('@') {
        return Err("holds a name or a password".to_owned());
    }
    if rest.contains(['?', '#']) || rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("has a query, a fragment or white space".to_owned());
    }
    same(format!("{}/", text.trim_end_matches('/')))
}

/// Where a Postgres is, as libpq takes it: a URI, or keys and values.
pub fn connection(text: &str) -> Parsed<Connection> {
    let is_uri = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
    if !is_uri && (text.contains("://") || !text.contains('=')) {
        return Err("is neither a URI that begins with postgresql:// nor made of keys and values".to_owned());
    }
    Ok((Connection(text.to_owned()), text.to_owned()))
}

/// A path, made absolute against the working directory.
pub fn path(text: &str, cwd: &Path) -> Parsed<PathBuf> {
    if text.is_empty() || text.contains('\0') {
        return Err("is not a path".to_owned());
    }
    if text == "~" || text.starts_with("~/") {
        return Err("begins with ~, which nobody expands here".to_owned());
    }
    let path: PathBuf = cwd.join(text).components().collect();
    let shown = path.display().to_string();
    Ok((path, shown))
}

/// One client ID.
pub fn client_id(text: &str) -> Parsed<ClientId> {
    match ClientId::parse(text) {
        Some(client) => Ok((client, client.uuid().to_string())),
        None => Err("is not a UUID".to_owned()),
    }
}

/// Characters that a label may have.
const LONGEST_LABEL: usize = 64;

/// What people call a client: it must be told from other names, and printed. Says what is wrong in
/// whole words, since a label that is a client ID must not be shown.
pub fn label(text: &str) -> Parsed<String> {
    let length = text.chars().count();
    if length == 0 || length > LONGEST_LABEL {
        return Err(format!("the label {text:?} does not have 1 to {LONGEST_LABEL} characters"));
    }
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err(format!("the label {text:?} begins or ends with a blank, or has control characters"));
    }
    if ClientId::parse(text).is_some() {
        return Err("the label looks like a client ID and would name another client".to_owned());
    }
    same(text.to_owned())
}

/// Yes or no in any of the usual spellings.
pub fn switch(text: &str) -> Parsed<bool> {
    let value = match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "t" | "y" => true,
        "false" | "no" | "off" | "0" | "f" | "n" => false,
        _ => return Err("is neither true nor false".to_owned()),
    };
    Ok((value, value.to_string()))
}

/// A whole number from 0 up.
pub fn number(text: &str) -> Parsed<u32> {
    match u32::from_str(text) {
        Ok(number) => Ok((number, number.to_string())),
        Err(_) => Err(format!("is not a whole number from 0 to {}", u32::MAX)),
    }
}

/// How many of something there may be, at least one.
pub fn count(text: &str) -> Parsed<usize> {
    match u32::from_str(text) {
        Ok(0) | Err(_) => Err(format!("is not a whole number from 1 to {}", u32::MAX)),
        Ok(number) => Ok((number as usize, number.to_string())),
    }
}

/// Days that versions are kept at least: a device may be away for a month.
const SHORTEST_RETENTION: u32 = 30;

/// Days that versions are kept at most: a century.
const LONGEST_RETENTION: u32 = 36_500;

/// The origin of a web page, as browsers send it: `https://tasks.example.org`.
pub fn origin(text: &str) -> Parsed<String> {
    if text == "*" {
        return Ok((text.to_owned(), text.to_owned()));
    }
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err("is no origin, which has a scheme and a host".to_owned());
    };
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_authority = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if authority.contains('/') {
        return Err("has a path or a slash at its end, which no origin has".to_owned());
    }
    let is_sound = !scheme.is_empty() && scheme.chars().all(is_scheme);
    if !is_sound || authority.is_empty() || !authority.chars().all(is_authority) {
        return Err("is no origin, which has a scheme, a host and perhaps a port".to_owned());
    }
    let origin = text.to_ascii_lowercase();
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "https" => ":443",
        "http" => ":80",
        _ => "",
    };
    // Browsers leave it out.
    let origin = origin.strip_suffix(usual).unwrap_or(&origin).to_owned();
    Ok((origin.clone(), origin))
}

/// The mode of a socket's file: `660`, `0666`.
pub fn mode(text: &str) -> Parsed<u32> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 && mode & 0o222 == 0 => {
            Err("lets nobody connect, for that takes the right to write".to_owned())
        }
        Ok(mode) if is_octal && mode <= 0o777 => Ok((mode, format!("{mode:03o}"))),
        _ => Err("is no mode from 000 to 777".to_owned()),
    }
}

/// The name or number of a group.
pub fn group(text: &str) -> Parsed<String> {
    let is_name = |c: char| !c.is_whitespace() && !c.is_control() && !":,/".contains(c);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(is_name) {
        return Err("is no name of a group".to_owned());
    }
    Ok((text.to_owned(), text.to_owned()))
}

/// A number of days after which old versions may go.
pub fn retention(text: &str) -> Parsed<u32> {
    match u32::from_str(text) {
        Ok(days) if (SHORTEST_RETENTION..=LONGEST_RETENTION).contains(&days) => Ok((days, days.to_string())),
        Ok(days) if days < SHORTEST_RETENTION => Err(format!(
            "is less than {SHORTEST_RETENTION}: devices that were away for longer could not sync any more"
        )),
        _ => Err(format!("is not a whole number of days from {SHORTEST_RETENTION} to {LONGEST_RETENTION}")),
    }
}

/// A size in bytes: `100MiB`, `1GB`, `4096`.
pub fn size(text: &str) -> Parsed<usize> {
    let bytes = bytesize::ByteSize::from_str(text).map_err(|_| "is not a size".to_owned())?.as_u64();
    match usize::try_from(bytes) {
        Ok(0) => Err("is no size to work with".to_owned()),
        Ok(bytes) => Ok((bytes, text.to_owned())),
        Err(_) => Err("is more than this machine can address".to_owned()),
    }
}

/// The size of one body.
pub fn body_size(text: &str) -> Parsed<usize> {
    let (bytes, shown) = size(text)?;
    if bytes as u64 > LARGEST_BODY {
        return Err("is more than a row of the database can hold, which is 900MiB".to_owned());
    }
    Ok((bytes, shown))
}

/// A time of more than nothing: `30s`, `1m 30s`, `500ms`.
pub fn duration(text: &str) -> Parsed<Duration> {
    match duration_or_none(text)? {
        (Duration::ZERO, _) => Err("leaves no time at all".to_owned()),
        parsed => Ok(parsed),
    }
}

/// A time, or `0s`.
pub fn duration_or_none(text: &str) -> Parsed<Duration> {
    let duration = humantime::parse_duration(text).map_err(|_| "is not a time with its unit".to_owned())?;
    if duration > LONGEST {
        return Err("is more than a day".to_owned());
    }
    Ok((duration, humantime::format_duration(duration).to_string()))
}

/// How often something is done: a second to a year.
pub fn interval(text: &str) -> Parsed<Duration> {
    let interval = humantime::parse_duration(text).map_err(|_| "is not a time with its unit".to_owned())?;
    if interval < Duration::from_secs(1) || interval > RAREST {
        return Err("is not within a second and a year".to_owned());
    }
    Ok((interval, humantime::format_duration(interval).to_string()))
}

/// Log directives as RUST_LOG has them.
pub fn directives(text: &str) -> Parsed<String> {
    if env_filter::Builder::new().try_parse(text).is_err() {
        return Err("is not a list of log levels".to_owned());
    }
    let levels = text.split('/').next().unwrap_or_default();
    match levels.split(',').map(str::trim).find(|directive| !is_meant(directive)) {
        Some(directive) => Err(format!("names a level that there is not, {directive:?}")),
        None => same(text.to_owned()),
    }
}

/// A word alone may be a module, all of which is then logged, and nothing else: a mistyped level
/// would silence the log.
fn is_meant(directive: &str) -> bool {
    let is_level = directive.parse::<log::LevelFilter>().is_ok();
    is_level || directive.contains('=') || directive.is_empty() || directive.starts_with("sync_server")
}

fn same(text: String) -> Parsed<String> {
    Ok((text.clone(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(text: &str) -> Endpoint {
        endpoint(text, Path::new("/here")).unwrap_or_else(|why| panic!("{text:?} {why}")).0
    }

    #[test]
    fn an_endpoint_is_a_host_name_an_address_or_a_socket() {
        for text in ["localhost:8080", "127.0.0.1:0", "[::1]:8080", "tasks.example.org:65535"] {
            assert_eq!(accepts(text), Endpoint::Tcp(text.to_owned()));
        }
        assert_eq!(accepts("unix:/run/s.sock"), Endpoint::Unix(PathBuf::from("/run/s.sock")));
        assert_eq!(accepts("unix:run/s.sock"), Endpoint::Unix(PathBuf::from("/here/run/s.sock")));
    }

    #[test]
    fn what_is_no_endpoint_is_told_apart() {
        for (text, why) in [
            ("8080", "has no port"),
            (":8080", "has no host"),
            ("localhost", "has no port"),
            ("localhost:", "has no port"),
            ("localhost:65536", "has no port from"),
            ("localhost:+80", "has no port from"),
            ("::1:8080", "without brackets"),
            ("[::1:8080", "without brackets"),
            ("[1.2.3.4]:80", "no IPv6 address"),
            ("1.2.3.456:80", "no valid IPv4"),
            ("http://localhost:8080", "no URL"),
            ("host name:80", "no valid host name"),
            ("unix:", "is not a path"),
        ] {
            let told = endpoint(text, Path::new("/")).expect_err(text);
            assert!(told.contains(why), "{text:?} {told}");
        }
    }

    #[test]
    fn a_base_path_gets_its_slashes() {
        for (text, shown) in [("/", "/"), ("tasks", "/tasks/"), ("/a/b", "/a/b/"), ("/a/b/", "/a/b/")] {
            assert_eq!(base_path(text).expect(text).0, shown);
        }
        for text in ["", "//", "/a//b", "/../a", "/a b/", "/ä/", "/a?b"] {
            base_path(text).expect_err(text);
        }
    }

    #[test]
    fn a_url_gets_its_slash_and_holds_no_secret() {
        assert_eq!(url("https://tasks.example.org").expect("a URL").0, "https://tasks.example.org/");
        assert_eq!(url("http://[::1]:80/t/").expect("a URL").0, "http://[::1]:80/t/");
        for text in
            ["tasks.example.org", "ftp://a", "https://", "https://a:b@c/", "https://a/?b", "http://a b"]
        {
            url(text).expect_err(text);
        }
    }

    #[test]
    fn relative_paths_become_absolute() {
        assert_eq!(path("./data/", Path::new("/here")).expect("a path").1, "/here/data");
        assert_eq!(path("/data", Path::new("/here")).expect("a path").1, "/data");
        for text in ["", "~/data", "a\0b"] {
            path(text, Path::new("/here")).expect_err(text);
        }
    }

    #[test]
    fn sizes_are_binary_where_their_unit_is() {
        assert_eq!(size("100MiB").expect("a size").0, 104_857_600);
        assert_eq!(size("1 kB").expect("a size").0, 1000);
        assert_eq!(size("77").expect("a size").0, 77);
        for text in ["", "0", "-1", "many", "1.5.5MiB", "10 apples"] {
            size(text).expect_err(text);
        }
        body_size("900MiB").expect("it fits");
        body_size("901MiB").expect_err("it does not fit");
    }

    #[test]
    fn a_time_has_a_unit_and_an_end() {
        assert_eq!(duration("1m 30s").expect("a time"), (Duration::from_secs(90), "1m 30s".to_owned()));
        assert_eq!(duration_or_none("0s").expect("a time").0, Duration::ZERO);
        for text in ["", "30", "0s", "2days", "-1s", "99999999999999999999years"] {
            duration(text).expect_err(text);
        }
    }

    #[test]
    fn a_retention_is_a_month_at_least() {
        assert_eq!(retention("30"), Ok((30, "30".to_owned())));
        for text in ["", "0", "29", "-1", "30d", "36501", "99999999999"] {
            retention(text).expect_err(text);
        }
    }

    #[test]
    fn an_origin_is_what_browsers_send() {
        for (text, sent) in [
            ("https://Tasks.Example.org", "https://tasks.example.org"),
            ("https://tasks.example.org:443", "https://tasks.example.org"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:8000", "http://localhost:8000"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("*", "*"),
        ] {
            assert_eq!(origin(text).expect(text).0, sent);
        }
        for text in [
            "",
            "null",
            "tasks.example.org",
            "https://",
            "https://a/",
            "https://a/b",
            "https://*.a",
            "https://a b",
        ] {
            origin(text).expect_err(text);
        }
    }

    #[test]
    fn a_mode_lets_someone_connect() {
        for (text, value) in [("660", 0o660), ("0666", 0o666), ("700", 0o700), ("020", 0o020)] {
            assert_eq!(mode(text), Ok((value, format!("{value:03o}"))));
        }
        for text in ["", "66", "1777", "668", "rw", "0o660", "+660", "00660", "440"] {
            mode(text).expect_err(text);
        }
        assert_eq!(group("www-data").expect("a name").0, "www-data");
        for text in ["", "a b", "-1", "a:b"] {
            group(text).expect_err(text);
        }
    }

    #[test]
    fn an_interval_may_be_days() {
        assert_eq!(interval("2days").expect("an interval").0, Duration::from_secs(2 * 86_400));
        for text in ["", "0s", "999ms", "24", "2years"] {
            interval(text).expect_err(text);
        }
    }

    #[test]
    fn a_switch_takes_the_usual_words() {
        for text in ["true", "YES", "on", "1"] {
            assert!(switch(text).expect(text).0);
        }
        for text in ["false", "No", "off", "0"] {
            assert!(!switch(text).expect(text).0);
        }
        switch("maybe").expect_err("neither");
    }

    #[test]
    fn log_directives_are_levels_by_module() {
        for text in
            ["info", "off", "INFO,", "warn,sync_server::http=debug", "sync_server::http", "hyper=trace,warn"]
        {
            directives(text).expect(text);
        }
        for text in ["info,sync_server=loud", "a=b=c", "loud", "infos,sync_server=debug"] {
            directives(text).expect_err(text);
        }
    }
}
