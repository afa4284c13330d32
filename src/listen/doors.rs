//! The listening sockets while they are accepted from.

use super::bind::{Listener, Socket, SocketFile, Way};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};

/// All listening sockets, in the runtime's hands.
pub struct Doors {
    doors: Vec<(Door, Way)>,
    /// Which one is asked first; it changes, so that a busy one does not keep the others waiting.
    first: usize,
}

enum Door {
    Tcp(tokio::net::TcpListener),
    Unix(
        tokio::net::UnixListener,
        #[expect(dead_code, reason = "dropped with the socket")] Option<SocketFile>,
    ),
}

/// Who has come.
pub enum Guest {
    /// From an address.
    Tcp(tokio::net::TcpStream, SocketAddr),
    /// From this machine.
    Unix(tokio::net::UnixStream),
}

impl Doors {
    /// Takes over the sockets.
    pub fn open(listeners: Vec<Listener>) -> Doors {
        let mut doors = Vec::new();
        for listener in listeners {
            let url = listener.url("/");
            let way = listener.way;
            match Door::open(listener) {
                Ok(door) => doors.push((door, way)),
                Err(error) => log::error!("cannot accept connections on {url}: {error}"),
            }
        }
        Doors { doors, first: 0 }
    }

    /// Whether someone is there to be accepted.
    pub fn has_someone_waiting(&self) -> bool {
        let mut sockets: Vec<PollFd<'_>> = self
            .doors
            .iter()
            .map(|(door, _)| PollFd::from_borrowed_fd(door.socket(), PollFlags::IN))
            .collect();
        rustix::event::poll(&mut sockets, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// The next who comes, and which way.
    pub async fn accept(&mut self) -> io::Result<(Guest, Way)> {
        std::future::poll_fn(|cx| {
            for n in 0..self.doors.len() {
                let at = (self.first + n) % self.doors.len();
                let (door, way) = &self.doors[at];
                if let Poll::Ready(result) = door.poll_accept(cx) {
                    self.first = at + 1;
                    return Poll::Ready(result.map(|guest| (guest, *way)));
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Door {
    fn open(listener: Listener) -> io::Result<Door> {
        match listener.socket {
            Socket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Door::Tcp(tokio::net::TcpListener::from_std(listener)?))
            }
            Socket::Unix(listener, file) => {
                listener.set_nonblocking(true)?;
                Ok(Door::Unix(tokio::net::UnixListener::from_std(listener)?, file))
            }
        }
    }

    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Door::Tcp(listener) => listener.as_fd(),
            Door::Unix(listener, _) => listener.as_fd(),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Guest>> {
        match self {
            Door::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, address)| {
                // Answers are written whole: waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                Guest::Tcp(stream, address)
            }),
            Door::Unix(listener, _) => listener.poll_accept(cx).map_ok(|(stream, _)| Guest::Unix(stream)),
        }
    }
}
