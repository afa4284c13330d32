//! Clients for a load, each with a connection of its own.

use crate::Result;
use crate::load::together;
use crate::prefill::Known;
use crate::replica::{Replica, body};
use crate::server::Server;
use crate::wire::Id;

/// Clients that the server does not know, each with a connection.
pub async fn fresh(server: &Server, count: usize) -> Result<Vec<Replica>> {
    let segment = body(1024);
    let mut replicas = Vec::new();
    for _ in 0..count {
        replicas.push(Replica::new(&server.place, segment.clone()).await?);
    }
    Ok(replicas)
}

/// Clients of the server's database, each with a connection.
pub async fn returning(server: &Server, clients: impl Iterator<Item = &Known>) -> Result<Vec<Replica>> {
    let segment = body(1024);
    let mut replicas = Vec::new();
    for known in clients {
        let client = known.client.clone();
        replicas.push(Replica::of(&server.place, client, known.latest, segment.clone()).await?);
    }
    Ok(replicas)
}

/// A client with each of its versions' parent and ID.
pub type Grown = (Replica, Vec<(Id, Id)>);

/// New clients with so many versions of this size each. Their connections are new too: those that
/// waited for the others might have been closed.
pub async fn grown(server: &Server, count: usize, size: usize, versions: usize) -> Result<Vec<Grown>> {
    let segment = body(size);
    let mut tasks = Vec::new();
    for _ in 0..count {
        let mut replica = Replica::new(&server.place, segment.clone()).await?;
        tasks.push(async move {
            let links = replica.grow(versions).await?;
            replica.read_latest().await?;
            Ok((replica, links))
        });
    }
    let mut grown: Vec<Grown> = together(tasks).await?;
    for (replica, _) in &mut grown {
        replica.reconnect().await?;
    }
    Ok(grown)
}
