//! What all measurements share: the options, a place on the disk, the yardsticks, the large databases.

use crate::bare::Bare;
use crate::cluster::Cluster;
use crate::options::{Options, Subject};
use crate::prefill::Prefilled;
use crate::server::Server;
use crate::tls::Certificate;
use crate::{Result, disk};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tempfile::TempDir;

pub struct Stage<'a> {
    pub options: &'a Options,
    root: TempDir,
    bare: Bare,
    certificate: Certificate,
    prefilled: RefCell<BTreeMap<(usize, usize), Rc<Prefilled>>>,
    cluster: Option<Cluster>,
    databases: Cell<usize>,
}

impl Stage<'_> {
    pub fn new(options: &Options) -> Result<Stage<'_>> {
        let root = tempfile::Builder::new().prefix("speed-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let root = root.map_err(|error| format!("{}: {error}", env!("CARGO_TARGET_TMPDIR")))?;
        disk::check(root.path())?;
        let cluster = if options.postgres { Some(start_postgres()?) } else { None };
        let certificate = Certificate::new(root.path())?;
        let bare = Bare::start(&certificate)?;
        let (prefilled, databases) = (RefCell::default(), Cell::new(0));
        Ok(Stage { options, root, bare, certificate, prefilled, cluster, databases })
    }

    /// The length of a load.
    pub fn length(&self) -> Duration {
        self.options.length
    }

    /// A directory for everything that must not outlive the run.
    pub fn dir(&self) -> &Path {
        self.root.path()
    }

    pub fn bare(&self) -> &Bare {
        &self.bare
    }

    /// Starts a server without any data.
    pub fn start(&self, subject: &Subject) -> Result<Server> {
        Server::start(subject, self.dir(), self.new_database().as_deref(), |_| Ok(()))
    }

    /// The Postgres, where there is one.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// An empty database in it.
    fn new_database(&self) -> Option<String> {
        let cluster = self.cluster.as_ref()?;
        self.databases.set(self.databases.get() + 1);
        let name = format!("speed_{}", self.databases.get());
        cluster.sql("postgres", &format!("CREATE DATABASE {name}"));
        Some(cluster.uri(&name))
    }

    /// Starts this package's own server without any data, with a certificate and these flags.
    pub fn start_secure(&self, subject: &Subject, flags: &[&str]) -> Result<Server> {
        Server::start_secure(subject, self.dir(), &self.certificate, flags)
    }

    /// Starts a server on a copy of this database.
    pub fn start_on(&self, subject: &Subject, database: &Prefilled) -> Result<Server> {
        Server::start(subject, self.dir(), None, |dir| database.copy_into(dir))
    }

    /// So many clients with so many versions each; made when first asked for.
    pub fn prefilled(&self, clients: usize, versions_each: usize) -> Result<Rc<Prefilled>> {
        let key = (clients, versions_each);
        if let Some(made) = self.prefilled.borrow().get(&key) {
            return Ok(made.clone());
        }
        let made = Rc::new(Prefilled::new(self.dir(), clients, versions_each)?);
        self.prefilled.borrow_mut().insert(key, made.clone());
        Ok(made)
    }
}

/// As durable as it is in life.
fn start_postgres() -> Result<Cluster> {
    let cluster = Cluster::start(&["fsync=on"]).ok_or("there is no Postgres below /usr/lib/postgresql")?;
    disk::check(&cluster.data())?;
    Ok(cluster)
}
