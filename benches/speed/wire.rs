//! Just enough HTTP to load a server: prebuilt requests, and of an answer only what must be checked.

use crate::Result;
use crate::tls::NAME;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A version's ID as the wire has it.
pub type Id = [u8; 36];

pub const NIL: Id = *b"00000000-0000-0000-0000-000000000000";

const SEGMENT: &str = "application/vnd.taskchampion.history-segment";
const SNAPSHOT: &str = "application/vnd.taskchampion.snapshot";

/// Bodies above this are not copied behind their request's head.
const SMALL: usize = 128 * 1024;

const BUFFER: usize = 128 * 1024;

thread_local! {
    /// One for all connections of a thread: it stays in the processor's cache, so that the load costs little
    /// beside the server, and many connections take little memory.
    static BUFFER_OF_ALL: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Where a server is.
#[derive(Clone)]
pub struct Place {
    address: SocketAddr,
    /// The path before `v1/`; begins and ends with `/`.
    base: String,
    /// Who speaks TLS to it.
    client: Option<Arc<ClientConfig>>,
}

impl Place {
    pub fn at(address: SocketAddr) -> Place {
        Place { address, base: "/".to_owned(), client: None }
    }

    /// Takes `http://host:port` with or without a path.
    pub fn parse(url: &str) -> Result<Place> {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let rest = rest.ok_or(format!("{url}: not an http:// URL"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut addresses = host.to_socket_addrs().map_err(|error| format!("{url}: {error}"))?;
        let address = addresses.next().ok_or(format!("{url}: no address"))?;
        let slash = if path.is_empty() || path.ends_with('/') { "" } else { "/" };
        Ok(Place { address, base: format!("/{path}{slash}"), client: None })
    }

    /// The same over TLS.
    pub fn trusting(self, client: Arc<ClientConfig>) -> Place {
        Place { client: Some(client), ..self }
    }
}

/// A request that can be sent again and again; where its path ends in an ID, with another one each time.
pub struct Request {
    head: Vec<u8>,
    id_at: usize,
    body: Arc<Vec<u8>>,
}

impl Request {
    pub fn child(place: &Place, client: &str) -> Request {
        Request::new("GET", place, "v1/client/get-child-version/", true, client, None)
    }

    pub fn add(place: &Place, client: &str, segment: Arc<Vec<u8>>) -> Request {
        Request::new("POST", place, "v1/client/add-version/", true, client, Some((SEGMENT, segment)))
    }

    pub fn snapshot(place: &Place, client: &str) -> Request {
        Request::new("GET", place, "v1/client/snapshot", false, client, None)
    }

    pub fn add_snapshot(place: &Place, client: &str, snapshot: Arc<Vec<u8>>) -> Request {
        Request::new("POST", place, "v1/client/add-snapshot/", true, client, Some((SNAPSHOT, snapshot)))
    }

    /// A GET of any path, with the headers of the others.
    pub fn path(place: &Place, path: &str) -> Request {
        Request::new("GET", place, path, false, "-", None)
    }

    fn new(
        method: &str,
        place: &Place,
        path: &str,
        with_id: bool,
        client: &str,
        body: Option<(&str, Arc<Vec<u8>>)>,
    ) -> Request {
        let mut head = format!("{method} {}{path}", place.base);
        let id_at = head.len();
        if with_id {
            head.push_str(str::from_utf8(&NIL).expect("it is ASCII"));
        }
        head.push_str(&format!(" HTTP/1.1\r\nHost: {}\r\nX-Client-Id: {client}\r\n", place.address));
        if let Some((kind, bytes)) = &body {
            head.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", bytes.len()));
        }
        head.push_str("\r\n");
        let mut request = Request { head: head.into_bytes(), id_at, body: Arc::default() };
        match body {
            Some((_, bytes)) if bytes.len() > SMALL => request.body = bytes,
            Some((_, bytes)) => request.head.extend_from_slice(&bytes),
            None => {}
        }
        request
    }

    /// Puts this ID into the path.
    pub fn with(&mut self, id: &Id) -> &Request {
        self.head[self.id_at..self.id_at + id.len()].copy_from_slice(id);
        self
    }
}

/// Of an answer only what is checked.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The length of the body in bytes.
    pub length: usize,
    /// `X-Version-Id`.
    pub version: Option<Id>,
}

impl Answer {
    /// Fails unless the answer is this.
    pub fn expect(self, status: u16, length: usize) -> Result<Answer> {
        if self.status == status && self.length == length {
            return Ok(self);
        }
        Err(format!("expected status {status} and {length} bytes, got {} and {}", self.status, self.length))
    }

    /// Fails unless the status is this.
    pub fn expect_status(self, status: u16) -> Result<Answer> {
        if self.status == status { Ok(self) } else { Err(format!("expected {status}, got {}", self.status)) }
    }

    pub fn version(&self) -> Result<Id> {
        self.version.ok_or(format!("a {} without X-Version-Id", self.status))
    }
}

/// One kept-alive connection.
pub struct Connection {
    stream: Stream,
    /// The head of an answer that did not come in one piece.
    begun: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Secure(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.write_all(bytes).await,
            Stream::Secure(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }
}

impl Connection {
    pub async fn open(place: &Place) -> Result<Connection> {
        Connection::open_with(place, None).await
    }

    /// From this address.
    pub async fn open_from(place: &Place, source: Ipv4Addr) -> Result<Connection> {
        Connection::open_with(place, Some(source)).await
    }

    async fn open_with(place: &Place, source: Option<Ipv4Addr>) -> Result<Connection> {
        let fail = |error| format!("connecting to {}: {error}", place.address);
        let stream = connect(place.address, source).await.map_err(fail)?;
        stream.set_nodelay(true).map_err(fail)?;
        let stream = match &place.client {
            None => Stream::Plain(stream),
            Some(client) => {
                let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(client.clone());
                Stream::Secure(Box::new(connector.connect(name, stream).await.map_err(fail)?))
            }
        };
        Ok(Connection { stream, begun: Vec::new() })
    }

    /// Sends a request and reads its answer, without keeping the body.
    pub async fn exchange(&mut self, request: &Request) -> Result<Answer> {
        self.send(request).await?;
        self.answer(|_| ()).await
    }

    /// The same; the body is kept.
    pub async fn exchange_whole(&mut self, request: &Request) -> Result<(Answer, Vec<u8>)> {
        self.send(request).await?;
        let mut body = Vec::new();
        let answer = self.answer(|part| body.extend_from_slice(part)).await?;
        Ok((answer, body))
    }

    async fn send(&mut self, request: &Request) -> Result<()> {
        let mut sent = self.stream.write_all(&request.head).await;
        if sent.is_ok() && !request.body.is_empty() {
            sent = self.stream.write_all(&request.body).await;
        }
        let Err(error) = sent else { return Ok(()) };
        // A server that refuses a body early says why before it closes the connection.
        let answer = self.answer(|_| ()).await;
        Err(format!("sending: {error}; the answer was {answer:?}"))
    }

    async fn answer(&mut self, mut keep: impl FnMut(&[u8])) -> Result<Answer> {
        let mut begun = std::mem::take(&mut self.begun);
        let (answer, mut left) = loop {
            let found = self
                .read(|bytes| {
                    let whole = match begun.is_empty() {
                        true => bytes,
                        false => {
                            begun.extend_from_slice(bytes);
                            &begun
                        }
                    };
                    let found = begins(whole, &mut keep);
                    if found.is_none() && begun.is_empty() {
                        begun.extend_from_slice(bytes);
                    }
                    found
                })
                .await?;
            if let Some(found) = found {
                break found?;
            }
        };
        begun.clear();
        self.begun = begun;
        while left > 0 {
            let read = self
                .read(|bytes| {
                    keep(bytes);
                    bytes.len()
                })
                .await?;
            left = left.checked_sub(read).ok_or(TOO_LONG)?;
        }
        Ok(answer)
    }

    /// Waits for bytes and looks at them.
    async fn read<T>(&mut self, mut look: impl FnMut(&[u8]) -> T) -> Result<T> {
        let stream = &mut self.stream;
        let read = poll_fn(|cx| {
            BUFFER_OF_ALL.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                let result = ready!(stream.poll_read(cx, &mut buffer));
                let bytes = buffer.filled();
                Poll::Ready(result.map(|()| (!bytes.is_empty()).then(|| look(bytes))))
            })
        });
        match read.await {
            Ok(Some(looked)) => Ok(looked),
            Ok(None) => Err("the server closed the connection instead of answering".to_owned()),
            Err(error) => Err(format!("reading an answer: {error}")),
        }
    }
}

async fn connect(address: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(address).await };
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(address).await
}

const TOO_LONG: &str = "more bytes than Content-Length says";

/// The answer that begins here and how many bytes of its body are missing, once its head is whole.
fn begins(bytes: &[u8], keep: &mut impl FnMut(&[u8])) -> Option<Result<(Answer, usize)>> {
    let (head, body) = bytes.split_at(head_end(bytes)?);
    keep(body);
    Some(parse(head).and_then(|answer| {
        let left = answer.length.checked_sub(body.len()).ok_or(TOO_LONG)?;
        Ok((answer, left))
    }))
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn parse(head: &[u8]) -> Result<Answer> {
    let bad = || format!("not an answer: {:?}", String::from_utf8_lossy(head));
    let status = head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| number(rest.get(..3)?)).ok_or_else(bad)?;
    let mut length = None;
    let mut version = None;
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(value) = value_of(line, b"content-length: ") {
            length = number(value);
        } else if let Some(value) = value_of(line, b"x-version-id: ") {
            version = value.try_into().ok();
        }
    }
    let status = u16::try_from(status).map_err(|_| bad())?;
    Ok(Answer { status, length: length.ok_or_else(bad)?, version })
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, value) = line.split_at_checked(name.len())?;
    found.eq_ignore_ascii_case(name).then_some(value)
}

fn number(digits: &[u8]) -> Option<usize> {
    str::from_utf8(digits).ok()?.parse().ok()
}
