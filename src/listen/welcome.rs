//! What happens to a connection before anything is asked on it: who it is from, and whether TLS comes
//! first.

use super::doors::Guest;
use crate::http::{App, Entrance, Seldom};
use crate::peer::Peer;
use crate::peer::proxy::{self, Step};
use crate::tls::Acceptor;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

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
    /// With `tls` all TCP connections speak TLS, but for those by the side door.
    pub fn new(app: Arc<App>, tls: Option<Arc<Acceptor>>, stop: watch::Receiver<bool>) -> House {
        House { app, tls, stop, garbled: Arc::default() }
    }

    /// Serves a connection until it ends.
    pub async fn welcome(self, guest: Guest, entrance: Entrance) {
        match guest {
            Guest::Tcp(mut stream, address) => {
                let Some(peer) = self.identify(&mut stream, Peer::Tcp(address)).await else { return };
                match self.tls.as_ref().filter(|_| entrance == Entrance::Main) {
                    // Boxed, so that a plain connection's task is not as large as this one's.
                    Some(tls) => Box::pin(tls.serve(stream, peer, self.app.clone(), self.stop)).await,
                    None => self.app.serve(stream, peer, entrance, self.stop).await,
                }
            }
            Guest::Unix(mut stream) => {
                let Some(peer) = self.identify(&mut stream, Peer::Unix).await else { return };
                self.app.serve(stream, peer, entrance, self.stop).await;
            }
        }
    }

    /// Whom a connection is from, where a trusted proxy has to say so first; `None` if it does not.
    async fn identify<S: AsyncRead + Unpin>(&self, stream: &mut S, peer: Peer) -> Option<Peer> {
        if !self.app.trust().expects_proxy_header(peer) {
            return Some(peer);
        }
        let mut stop = self.stop.clone();
        let read = tokio::select! {
            read = tokio::time::timeout(self.app.header_timeout(), proxy_header(stream)) => read,
            _ = stop.wait_for(|stop| *stop) => return None,
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
