//! A client with one connection, whose every answer is checked.

use crate::Result;
use crate::wire::{Connection, Id, NIL, Place, Request};
use std::sync::Arc;
use uuid::Uuid;

/// A body of this many bytes; no two bytes beside each other are equal, so that a shift shows.
pub fn body(length: usize) -> Arc<Vec<u8>> {
    Arc::new((0..length).map(|n| (n % 251) as u8).collect())
}

/// A client, its chain's end and its connection.
pub struct Replica {
    place: Place,
    client: String,
    connection: Option<Connection>,
    add: Request,
    child: Request,
    segment: Arc<Vec<u8>>,
    latest: Id,
    /// Of the latest version, once one was added.
    parent: Id,
}

impl Replica {
    /// A client that nobody used before.
    pub async fn new(place: &Place, segment: Arc<Vec<u8>>) -> Result<Replica> {
        Replica::of(place, Uuid::new_v4().to_string(), NIL, segment).await
    }

    /// A client that the server knows already.
    pub async fn of(place: &Place, client: String, latest: Id, segment: Arc<Vec<u8>>) -> Result<Replica> {
        Ok(Replica {
            place: place.clone(),
            connection: Some(Connection::open(place).await?),
            add: Request::add(place, &client, segment.clone()),
            child: Request::child(place, &client),
            client,
            segment,
            latest,
            parent: NIL,
        })
    }

    /// Appends a version.
    pub async fn add(&mut self) -> Result<()> {
        let request = self.add.with(&self.latest);
        let answer = connected(&mut self.connection)?.exchange(request).await?.expect(200, 0)?;
        self.parent = std::mem::replace(&mut self.latest, answer.version()?);
        Ok(())
    }

    /// Appends so many versions; the parent and the ID of each.
    pub async fn grow(&mut self, count: usize) -> Result<Vec<(Id, Id)>> {
        let mut links = Vec::with_capacity(count);
        for _ in 0..count {
            self.add().await?;
            links.push((self.parent, self.latest));
        }
        Ok(links)
    }

    /// Asks for what follows the latest version: nothing.
    pub async fn poll(&mut self) -> Result<()> {
        let request = self.child.with(&self.latest);
        connected(&mut self.connection)?.exchange(request).await?.expect_status(404)?;
        Ok(())
    }

    /// Reads the version that follows `parent`, which must be `version`.
    pub async fn read(&mut self, parent: &Id, version: &Id) -> Result<()> {
        let request = self.child.with(parent);
        let answer = connected(&mut self.connection)?.exchange(request).await?;
        same(&answer.expect(200, self.segment.len())?.version()?, version)
    }

    /// Reads the version that was added last, and compares every byte.
    pub async fn read_latest(&mut self) -> Result<()> {
        let request = self.child.with(&self.parent);
        let (answer, body) = connected(&mut self.connection)?.exchange_whole(request).await?;
        same(&answer.expect(200, self.segment.len())?.version()?, &self.latest)?;
        if body == *self.segment {
            Ok(())
        } else {
            Err("a version has other bytes than were added".to_owned())
        }
    }

    /// Stores this snapshot for the latest version.
    pub async fn add_snapshot(&mut self, snapshot: &mut Request) -> Result<()> {
        let request = snapshot.with(&self.latest);
        connected(&mut self.connection)?.exchange(request).await?.expect(200, 0)?;
        Ok(())
    }

    /// A request that stores this snapshot.
    pub fn snapshot_request(&self, snapshot: Arc<Vec<u8>>) -> Request {
        Request::add_snapshot(&self.place, &self.client, snapshot)
    }

    /// Reads the snapshot, which must be the latest version's and as long as this.
    pub async fn snapshot(&mut self, length: usize) -> Result<()> {
        let request = Request::snapshot(&self.place, &self.client);
        let answer = connected(&mut self.connection)?.exchange(&request).await?.expect(200, length)?;
        same(&answer.version()?, &self.latest)
    }

    /// Reads the snapshot, and compares every byte.
    pub async fn snapshot_whole(&mut self, snapshot: &[u8]) -> Result<()> {
        let request = Request::snapshot(&self.place, &self.client);
        let (answer, body) = connected(&mut self.connection)?.exchange_whole(&request).await?;
        same(&answer.expect(200, snapshot.len())?.version()?, &self.latest)?;
        if body == snapshot { Ok(()) } else { Err("a snapshot has other bytes than were stored".to_owned()) }
    }

    /// Closes the connection and opens another.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.connection = None;
        self.connection = Some(Connection::open(&self.place).await?);
        Ok(())
    }
}

/// There is none after a failure to connect again.
fn connected(connection: &mut Option<Connection>) -> Result<&mut Connection> {
    connection.as_mut().ok_or("no connection is left".to_owned())
}

fn same(got: &Id, expected: &Id) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(format!(
        "expected version {}, got {}",
        String::from_utf8_lossy(expected),
        String::from_utf8_lossy(got)
    ))
}
