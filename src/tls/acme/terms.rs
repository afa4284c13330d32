//! The URL of an authority's terms, which it names in its directory.

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory is much smaller, in bytes.
const LARGEST: u64 = 256 * 1024;

/// Asks for it; `None` where the authority names none, or does not answer. Blocks.
pub fn url(directory: &str, client: &Arc<ClientConfig>) -> Option<String> {
    let (authority, path) = directory.strip_prefix("https://")?.split_once('/')?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let address = if has_port { authority.to_owned() } else { format!("{authority}:443") };
    let host = address.rsplit_once(':')?.0.trim_start_matches('[').trim_end_matches(']').to_owned();
    let socket = address.to_socket_addrs().ok()?.find_map(|address| {
        let socket = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).and(socket.set_write_timeout(Some(PATIENCE))).ok()?;
        Some(socket)
    })?;
    let session = ClientConnection::new(client.clone(), ServerName::try_from(host).ok()?).ok()?;
    let mut stream = StreamOwned::new(session, socket);
    // The older version of HTTP knows no chunks.
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // Some servers close without a word, after all of the answer.
    let _ = stream.take(LARGEST).read_to_end(&mut answer);
    let answer = String::from_utf8(answer).ok()?;
    let directory: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let url = directory["meta"]["termsOfService"].as_str()?;
    (url.contains(':') && url.bytes().all(|byte| byte.is_ascii_graphic())).then(|| url.to_owned())
}
