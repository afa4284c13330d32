//! What happens to a connection before anything is asked on it: who it is from, and whether TLS comes
//! first.

use super::bind::Way;
use super::doors::Guest;
use crate::http::{self, App, Progress, Seldom, Visit, wire};
use crate::peer::Peer;
use crate::peer::proxy::{self, Step};
use crate::tls::Acceptor;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;

/// How long a connection that is turned away may take to hear it.
const FAREWELL: Duration = Duration::from_secs(1);

/// What every connection is given. Cheap to clone.
#[derive(Clone)]
pub struct House {
    app: Arc<App>,
    tls: Option<Arc<Acceptor>>,
    stop: watch::Receiver<bool>,
    /// When it was last said that a proxy's header could not be read.
    garbled: Arc<Seldom>,
}

impl House {
    /// With `tls` those TCP connections speak TLS whose way is not plain.
    pub fn new(app: Arc<App>, tls: Option<Arc<Acceptor>>, stop: watch::Receiver<bool>) -> House {
        House { app, tls, stop, garbled: Arc::default() }
    }

    /// Serves a connection until it ends.
    ///
    /// Most do nothing most of the time, so whatever one is at is boxed: there is room for a handshake only
    /// until it is done.
    pub async fn welcome(self, guest: Guest, way: Way, progress: Arc<Progress>) {
        match guest {
            Guest::Tcp(mut stream, address) => {
                let peer = Box::pin(self.identify(&mut stream, Peer::Tcp(address), &progress)).await;
                let Some(peer) = peer else { return };
                let visit = Visit { peer, entrance: way.entrance, progress, stop: self.stop };
                let tls = self.tls.filter(|_| !way.is_plain);
                let Ok(_counted) = self.app.count(peer) else {
                    return if tls.is_none() {
                        Box::pin(turn_away(&self.app, stream, &visit)).await
                    };
                };
                let Some(tls) = tls else { return Box::pin(self.app.serve(stream, visit)).await };
                let shaken = Box::pin(tls.shake_hands(stream, &visit, &self.app)).await;
                if let Some(stream) = shaken {
                    Box::pin(self.app.serve(stream, visit)).await;
                }
            }
            Guest::Unix(mut stream) => {
                let peer = Box::pin(self.identify(&mut stream, Peer::Unix, &progress)).await;
                let Some(peer) = peer else { return };
                let visit = Visit { peer, entrance: way.entrance, progress, stop: self.stop };
                let Ok(_counted) = self.app.count(peer) else {
                    return Box::pin(turn_away(&self.app, stream, &visit)).await;
                };
                Box::pin(self.app.serve(stream, visit)).await;
            }
        }
    }

    /// Whom a connection is from, where a trusted proxy has to say so first; `None` if it does not.
    async fn identify<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        peer: Peer,
        progress: &Progress,
    ) -> Option<Peer> {
        if !self.app.trust().expects_proxy_header(peer) {
            return Some(peer);
        }
        let mut stop = self.stop.clone();
        let read = tokio::select! {
            read = tokio::time::timeout(self.app.header_timeout(), proxy_header(stream)) => read,
            () = http::soon_after(&mut stop) => return None,
            () = progress.unwanted() => return None,
        };
        let why = match read {
            Ok(Ok(named)) => return Some(named.map_or(peer, Peer::Told)),
            // Whoever looks whether a port is open says nothing.
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionAborted => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        if self.garbled.is_due(Instant::now()) {
            log::warn!(
                "a connection of {peer}, a trusted proxy, does not begin with a header of the PROXY protocol \
                 ({why}) and was closed: let the proxy send it, or set the option real_address to the header that \
                 it sends; said at most once a minute"
            );
        }
        None
    }
}

/// Says that there are too many of this address, without a wait for whoever does not listen.
async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(app: &App, stream: S, visit: &Visit) {
    app.tell_unread(visit.peer, 429, visit.progress.age(Instant::now()));
    let said = http::say(stream, wire::TOO_MANY_CONNECTIONS);
    tokio::select! {
        _ = tokio::time::timeout(FAREWELL, said) => {}
        () = visit.progress.unwanted() => {}
    }
}

/// Reads the header and not one byte more.
async fn proxy_header<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::new();
    loop {
        let more = match proxy::read(&header) {
            Ok(Step::Whole(named)) => return Ok(named),
            Ok(Step::More(more)) => more,
            Err(proxy::Malformed) => return Err(io::Error::new(ErrorKind::InvalidData, "it is malformed")),
        };
        let before = header.len();
        if stream.take(more as u64).read_buf(&mut header).await? == 0 {
            let kind = if before == 0 { ErrorKind::ConnectionAborted } else { ErrorKind::UnexpectedEof };
            return Err(io::Error::new(kind, "it ended early"));
        }
    }
}
