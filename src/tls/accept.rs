//! One connection, from its first byte to the end of its handshake.

use super::Acceptor;
use crate::http::{self, App, Visit, wire};
use crate::peer::Peer;
use std::io::{self, ErrorKind};
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// What came of a connection.
enum Arrival {
    Secure(Box<TlsStream<TcpStream>>),
    /// HTTP without TLS, of which nothing has been read yet.
    Plain(TcpStream),
    /// An authority has seen what it wanted to see.
    Proven,
    /// There is no certificate yet.
    Bare,
}

impl Acceptor {
    /// Shakes hands within the time that a request's head may take; `None` where nothing more is to be said.
    /// Soon after the server is to stop, or once others need its place, a handshake that is not done is given
    /// up.
    pub async fn shake_hands(
        &self,
        stream: TcpStream,
        visit: &Visit,
        app: &App,
    ) -> Option<Box<TlsStream<TcpStream>>> {
        let peer = visit.peer;
        let mut stopped = visit.stop.clone();
        let arrival = tokio::select! {
            arrival = tokio::time::timeout(self.patience, self.receive(stream)) => arrival,
            () = http::soon_after(&mut stopped) => return None,
            () = visit.progress.unwanted() => return None,
        };
        match arrival {
            Ok(Ok(Arrival::Secure(stream))) => return Some(stream),
            Ok(Ok(Arrival::Plain(stream))) => {
                self.warn_of_plain(peer);
                app.tell_unread(peer, 400, visit.progress.age(Instant::now()));
                tokio::select! {
                    () = http::say(stream, wire::NOT_SECURE) => {}
                    () = visit.progress.unwanted() => {}
                }
            }
            Ok(Ok(Arrival::Proven)) => log::debug!("{peer} was shown that this server has its name"),
            Ok(Ok(Arrival::Bare)) => self.warn_of_waiting(peer),
            Ok(Err(error)) => self.tell(peer, &error),
            Err(_) => self.tell(peer, &io::Error::new(ErrorKind::TimedOut, "it took too long")),
        }
        None
    }

    async fn receive(&self, stream: TcpStream) -> io::Result<Arrival> {
        let mut first = [0];
        stream.peek(&mut first).await?;
        // A method. TLS begins with the byte 0x16.
        if first[0].is_ascii_uppercase() {
            return Ok(Arrival::Plain(stream));
        }
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        if let Some(acme) = &self.acme
            && rustls_acme::is_tls_alpn_challenge(&hello.client_hello())
        {
            let name = hello.client_hello().server_name().unwrap_or_default().to_owned();
            let shown = acme.challenges().handshake(&name);
            let shown =
                shown.ok_or_else(|| io::Error::other(format!("nothing is to be shown for {name:?}")))?;
            hello.into_stream(shown).await?.shutdown().await?;
            return Ok(Arrival::Proven);
        }
        let (config, is_there) = self.current();
        match hello.into_stream(config).await {
            Ok(stream) => Ok(Arrival::Secure(Box::new(stream))),
            Err(_) if !is_there => Ok(Arrival::Bare),
            Err(error) => Err(error),
        }
    }

    fn warn_of_plain(&self, peer: Peer) {
        if self.plain.is_due(Instant::now()) {
            log::warn!(
                "{peer} speaks plain HTTP to the HTTPS port: change http:// to https:// in the client's URL \
                 (sync.server.url); said at most once a minute"
            );
        }
    }

    fn warn_of_waiting(&self, peer: Peer) {
        if let Some(acme) = &self.acme
            && self.bare.is_due(Instant::now())
        {
            log::warn!("{peer} was turned away: {}; said at most once a minute", acme.waiting());
        }
    }

    /// Whoever looks whether a port is open, or goes away, did not want a handshake.
    fn tell(&self, peer: Peer, error: &io::Error) {
        let is_meant = !matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
        if is_meant && self.failed.is_due(Instant::now()) {
            log::info!("the TLS handshake with {peer} failed: {error}; said at most once a minute");
        } else {
            log::debug!("the TLS handshake with {peer} failed: {error}");
        }
    }
}
