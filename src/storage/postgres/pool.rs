//! The connections that are open, and what is known while none can be made.

use super::address::Address;
use super::link::Link;
use super::tls::Connector;
use crate::config::Postgres as Habits;
use crate::storage::{Error, Kind, Result};
use r2d2::{HandleError, ManageConnection, PooledConnection};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For so long after an attempt failed nobody waits for another: the pool goes on trying by itself.
const SPELL: Duration = Duration::from_secs(2);

/// Makes connections for the pool.
pub(super) struct Opener {
    address: Arc<Address>,
    connector: Connector,
    habits: Habits,
    last: Last,
}

/// Why and when the last attempt failed; `None` after one that did not.
type Last = Arc<Mutex<Option<(Instant, String)>>>;

pub(super) struct Pool {
    links: r2d2::Pool<Opener>,
    last: Last,
    database: String,
    wait: Duration,
}

pub(super) type Lent = PooledConnection<Opener>;

impl ManageConnection for Opener {
    type Connection = Link;
    type Error = std::io::Error;

    fn connect(&self) -> std::io::Result<Link> {
        let opened = Link::open(&self.address, &self.connector, &self.habits);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match opened {
            Ok(link) => {
                *last = None;
                Ok(link)
            }
            Err(fault) => {
                let why = fault.explain("connecting", &self.address.to_string()).message;
                *last = Some((Instant::now(), why.clone()));
                Err(std::io::Error::other(why))
            }
        }
    }

    fn is_valid(&self, link: &mut Link) -> std::io::Result<()> {
        if link.was_ended() {
            Err(std::io::Error::other("the database ended the connection"))
        } else {
            Ok(())
        }
    }

    /// A transaction that is still open never gets to the next user.
    fn has_broken(&self, link: &mut Link) -> bool {
        link.is_unfit()
    }
}

/// Whoever asks for a connection is told.
#[derive(Debug)]
struct Silent;

impl<E> HandleError<E> for Silent {
    fn handle_error(&self, _error: E) {}
}

impl Pool {
    /// A pool that opens its connections when they are needed.
    pub(super) fn new(address: Arc<Address>, connector: Connector, habits: Habits) -> Pool {
        let (last, database) = (Last::default(), address.to_string());
        let opener = Opener { address, connector, habits, last: last.clone() };
        let links = r2d2::Pool::builder()
            .max_size(u32::try_from(habits.connections).unwrap_or(u32::MAX))
            .min_idle(Some(1))
            .idle_timeout(Some(habits.idle_timeout))
            .max_lifetime(None)
            // Costs no round trip: the connection itself is looked at.
            .test_on_check_out(true)
            .connection_timeout(habits.connect_timeout)
            .error_handler(Box::new(Silent))
            .build_unchecked(opener);
        let wait = habits.connect_timeout;
        Pool { links, last, database, wait }
    }

    /// A connection, or why there is none. Waits only while it may help.
    pub(super) fn get(&self) -> Result<Lent> {
        if let Some(link) = self.links.try_get() {
            return Ok(link);
        }
        if let Some(why) = self.recent_failure() {
            return Err(Error::new(Kind::Unavailable, why));
        }
        // In short pieces: an attempt that fails meanwhile is an answer, too.
        let deadline = Instant::now() + self.wait;
        loop {
            match self.links.get_timeout(Duration::from_millis(100)) {
                Ok(link) => return Ok(link),
                Err(_) => match self.recent_failure() {
                    Some(why) => return Err(Error::new(Kind::Unavailable, why)),
                    None if Instant::now() >= deadline => return Err(self.busy()),
                    None => {}
                },
            }
        }
    }

    /// Why no connection can be made, where there is none that could come back either.
    fn recent_failure(&self) -> Option<String> {
        if self.links.state().connections > 0 {
            return None;
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < SPELL).map(|(_, why)| why.clone())
    }

    fn busy(&self) -> Error {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let more = last.as_ref().map_or(String::new(), |(_, why)| format!("; another cannot be made: {why}"));
        let (database, connections) = (&self.database, self.links.state().connections);
        let message = format!(
            "waiting for a connection: {database}: all {connections} are in use, of at most {} \
             (postgres.connections){more}",
            self.links.max_size()
        );
        Error::new(Kind::Unavailable, message)
    }

    /// The database, for people.
    pub(super) fn database(&self) -> &str {
        &self.database
    }
}
