//! One HTTP/1 connection from its first byte to its last.

use super::body::{Reply, Source};
use super::memory::Memory;
use super::progress::{Phase, Progress, Rank};
use super::timed::{Stage, Timed, Watch};
use super::{App, Entrance, wire};
use crate::peer::Peer;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// The status of [`wire::HEAD_TIMED_OUT`].
const HEAD_TIMED_OUT: u16 = 408;

/// A request's head may have this many bytes.
const LARGEST_HEAD: usize = 16 * 1024;

/// What hyper may buffer of a connection in each direction.
const BUFFER: usize = 64 * 1024;

/// After an answer that came before the request was read: how long the rest is still taken and
/// thrown away. Closing at once would make the kernel send a reset, and a reset destroys an answer
/// that the peer has not read yet.
const LINGER: Duration = Duration::from_secs(10);

/// How long what comes before a request may still take once the server stops.
const MOMENT: Duration = Duration::from_secs(1);

/// How a connection came to its end.
enum End {
    /// Everything that hyper had to say has been written.
    Finished,
    /// hyper gave up; if it could, it has said so to the peer.
    Failed(hyper::Error),
    /// A head did not arrive in time.
    HeadTimedOut,
    /// Nothing more is to be said.
    Cut,
}

/// One connection, as those know it who serve it.
#[derive(Clone)]
pub struct Visit {
    /// Who is at the other end.
    pub peer: Peer,
    /// Where it came in.
    pub entrance: Entrance,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Becomes true when the server stops.
    pub stop: watch::Receiver<bool>,
}

/// What all requests of one connection share. In one piece, for those of other connections then do not count
/// the same references.
pub(super) struct Seat {
    pub(super) app: Arc<App>,
    pub(super) peer: Peer,
    /// The peer as the log shows it.
    pub(super) name: String,
    pub(super) entrance: Entrance,
    pub(super) progress: Arc<Progress>,
}

impl App {
    /// Serves one connection until it ends; once it is to stop, until the request in flight has been
    /// answered.
    pub async fn serve<S>(self: Arc<App>, stream: S, visit: Visit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Visit { peer, entrance, progress, stop } = visit;
        let io = TokioIo::new(Timed::new(stream, progress.clone()));
        let (app, name) = (self.clone(), peer.to_string());
        let seat = Arc::new(Seat { app, peer, name, entrance, progress: progress.clone() });
        let service = service_fn(move |request: Request<Incoming>| {
            let seat = seat.clone();
            let (head, incoming) = request.into_parts();
            let mut source = Source::new(incoming);
            // Boxed, for hyper keeps the room for it even while there is no request.
            Box::pin(async move {
                let response = seat.app.answer(&head, &mut source, &seat).await;
                Ok::<Response<Reply>, Infallible>(response)
            })
        });
        let mut builder = http1::Builder::new();
        // hyper's own deadline would also end connections that idle.
        builder.header_read_timeout(None).max_header_size(LARGEST_HEAD).max_buf_size(BUFFER);
        let mut connection = builder.serve_connection(io, service);
        let watch = Watch::new(&self.limits, Instant::now());
        let finish = |connection: Pin<&mut _>| http1::Connection::graceful_shutdown(connection);
        let end = drive(&mut connection, finish, watch, &self.memory, &progress, stop).await;
        let stream = connection.into_parts().io.into_inner().into_inner();
        let took = progress.age(Instant::now());
        progress.enter(Phase::Leaving);
        progress.began(Instant::now(), 0);
        let leave = async {
            match end {
                End::Finished if progress.is_tls() => self.warn_of_tls(peer, entrance),
                End::Finished if progress.must_linger() => linger(stream).await,
                End::Finished | End::Cut => {}
                End::HeadTimedOut => {
                    self.tell_unread(peer, HEAD_TIMED_OUT, took);
                    say(stream, wire::HEAD_TIMED_OUT).await;
                }
                End::Failed(error) => {
                    log::debug!("connection of {peer} ended: {error}");
                    if progress.is_proxied() {
                        self.warn_of_proxy(peer);
                    }
                    if error.is_parse() {
                        if let Some(status) = progress.unread_status() {
                            self.tell_unread(peer, status, took);
                        }
                        linger(stream).await;
                    }
                }
            }
        };
        tokio::select! {
            () = leave => {}
            () = progress.unwanted() => {}
        }
    }

    fn warn_of_tls(&self, peer: Peer, entrance: Entrance) {
        if let (Some(side), Entrance::Side) = (&self.side, entrance) {
            side.warn_of_tls(peer);
        } else if self.strays.is_due(Instant::now()) {
            log::warn!(
                "{peer} speaks TLS, and this listener speaks plain HTTP: change https:// to http:// in the \
                 client's URL, or give the server a certificate (options tls.cert and tls.key); said at most \
                 once a minute"
            );
        }
    }
}

/// Runs the connection and its one timer until either ends it. `finish` makes it end after the
/// request in flight, at once where there is none and none is to be expected.
async fn drive<C>(
    connection: &mut C,
    finish: impl Fn(Pin<&mut C>),
    mut watch: Watch,
    memory: &Memory,
    progress: &Progress,
    mut stop: watch::Receiver<bool>,
) -> End
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    let news = stop.clone();
    // Whoever has just come or was just answered may be asking already, and learns with the answer that no
    // more is to be asked here. The stream that finds out runs in the same task, before this.
    let mut stop = pin!(async move {
        stopped(&mut stop).await;
        let asked =
            poll_fn(|_| if progress.phase() == Phase::Idle { Poll::Pending } else { Poll::Ready(()) });
        let idle = if progress.is_silent() { Duration::ZERO } else { progress.age(Instant::now()) };
        let _ = tokio::time::timeout(MOMENT.saturating_sub(idle), asked).await;
    });
    let (mut is_asked, mut is_stopping) = (false, false);
    let mut timer = pin!(tokio::time::sleep_until(Instant::now().into()));
    let mut is_set = false;
    poll_fn(|cx| {
        if !is_asked {
            progress.attend(cx.waker());
        }
        loop {
            if let Poll::Ready(result) = Pin::new(&mut *connection).poll(cx) {
                return Poll::Ready(result.map_or_else(End::Failed, |()| End::Finished));
            }
            // Once asked, it wakes this task by itself; asking takes a lock that all connections share.
            if !is_stopping && (!is_asked || news.has_changed().unwrap_or(true)) {
                is_asked = true;
                is_stopping = stop.as_mut().poll(cx).is_ready();
                if is_stopping {
                    finish(Pin::new(&mut *connection));
                    continue;
                }
            }
            let now = Instant::now();
            let deadline = watch.deadline(progress, now, memory.is_wanted());
            // Others need the place, unless what this one is at has changed meanwhile.
            if progress.is_unwanted() {
                progress.attend(cx.waker());
                match progress.spare(now) {
                    // Its reader answers.
                    Some((Rank::Slow, _)) if watch.stage() == Stage::Body => {
                        progress.expire();
                        continue;
                    }
                    Some(_) => return Poll::Ready(End::Cut),
                    None => {}
                }
            }
            let Some(deadline) = deadline else { return Poll::Pending };
            if now < deadline {
                let deadline = watch.next_look(progress, now, deadline);
                // The timer is moved only where it would ring too late. Where it rings too early,
                // it is set anew, so that a busy connection hardly ever touches it.
                let rings = timer.deadline().into_std();
                if is_set && now < rings && rings <= deadline {
                    return Poll::Pending;
                }
                is_set = true;
                timer.as_mut().reset(deadline.into());
                ready!(timer.as_mut().poll(cx));
                continue;
            }
            match watch.stage() {
                Stage::Head => return Poll::Ready(End::HeadTimedOut),
                // Its reader answers, once.
                Stage::Body if !progress.is_expired() => progress.expire(),
                _ => return Poll::Ready(End::Cut),
            }
        }
    })
    .await
}

/// Waits until the server stops, and a moment longer: whoever was let in just before is not to lose the
/// connection over it.
pub async fn soon_after(stop: &mut watch::Receiver<bool>) {
    stopped(stop).await;
    tokio::time::sleep(MOMENT).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say it: that is an order, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Tells the peer something that hyper cannot, and ends; within twice ten seconds.
pub async fn say<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, words: &[u8]) {
    let said = async {
        stream.write_all(words).await?;
        stream.shutdown().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, said).await {
        linger(stream).await;
    }
}

/// Takes and throws away what still arrives on a stream that is closed for writing.
async fn linger<S: AsyncRead + Unpin>(mut stream: S) {
    let mut waste = vec![0; BUFFER];
    let drained = async { while let Ok(1..) = stream.read(&mut waste).await {} };
    let _ = tokio::time::timeout(LINGER, drained).await;
}
