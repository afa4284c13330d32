//! A bare hyper server as a yardstick, in a process of its own: the same libraries, and nothing behind them.

use crate::Result;
use crate::tls::{self, Certificate};
use crate::wire::Place;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::CACHE_CONTROL;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The hidden argument that makes this program be the server.
pub const ARGUMENT: &str = "bare-hyper";

/// The running process. Killed when dropped.
pub struct Bare {
    child: Child,
    pub place: Place,
    /// The same over TLS.
    pub secure: Place,
}

impl Bare {
    pub fn start(certificate: &Certificate) -> Result<Bare> {
        let fail = |error| format!("the bare server does not start: {error}");
        let program = std::env::current_exe().map_err(fail)?;
        let mut command = Command::new(program);
        command.arg(ARGUMENT).arg(&certificate.cert).arg(&certificate.key);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let nowhere = Place::at(([127, 0, 0, 1], 0).into());
        let mut bare = Bare { child: child.map_err(fail)?, place: nowhere.clone(), secure: nowhere };
        let output = bare.child.stdout.take().ok_or("its output is not piped")?;
        let mut lines = BufReader::new(output).lines();
        let mut place = || Place::parse(&lines.next().ok_or("it ended")?.map_err(fail)?);
        bare.place = place()?;
        bare.secure = place()?.trusting(certificate.client.clone());
        Ok(bare)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input ends: when the process that started this one is gone.
pub fn serve() -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let mut files = std::env::args_os().skip(2).map(PathBuf::from);
    let (Some(cert), Some(key)) = (files.next(), files.next()) else {
        return Err("no certificate".to_owned());
    };
    let acceptor = tls::acceptor(&cert, &key)?;
    runtime.block_on(accept(acceptor)).map_err(|error| format!("the bare server: {error}"))
}

async fn accept(acceptor: TlsAcceptor) -> std::io::Result<()> {
    let (plain, secure) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    println!("http://{}/\nhttps://{}/", plain.local_addr()?, secure.local_addr()?);
    tokio::try_join!(
        accept_at(plain, connection),
        accept_at(secure, |stream| {
            let handshake = acceptor.accept(stream);
            async move {
                if let Ok(stream) = handshake.await {
                    connection(stream).await;
                }
            }
        }),
    )
    .map(|_| ())
}

async fn accept_at<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream));
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let service = service_fn(async |request| answer(&request));
    let mut http = http1::Builder::new();
    // Without hyper's own deadline, which needs a timer. The end of a connection is no news here.
    let _ = http.header_read_timeout(None).serve_connection(TokioIo::new(stream), service).await;
}

/// `/bytes/N` answers N bytes, everything else 404 without a body.
fn answer(request: &Request<Incoming>) -> std::result::Result<Response<Once>, Infallible> {
    let length = request.uri().path().strip_prefix("/bytes/").and_then(|length| length.parse().ok());
    let status = if length.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    // As much work for the allocator as a body read from a database.
    let body = length.map(|length| Bytes::from(vec![b'x'; length]));
    let mut response = Response::new(Once(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store, max-age=0"));
    Ok(response)
}

/// A body in one piece.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
