//! The sync server for Taskwarrior 3 and every other TaskChampion program, as a house with rooms.
//!
//! One package, one binary. The library exists for tests, benches and fuzzing, and promises nobody
//! a stable interface.
//!
//! ```text
//!            main ──► cli ──► config/            street door: flags, environment, file → one Config
//!                      │
//!        ┌─────────────┼──────────────┬────────┐
//!    healthcheck    lifecycle      control ◄─ admin   start and stop, signals, systemd, the control
//!                      │ └─► backup ◄───────────┤     socket; what operators do (on the storage)
//!                      │        └─► archive     │     files of backups, and their format
//!          listen ──► tls/ ──► http/ ──► workers async floor: tokio, hyper, rustls live only up here
//!                      │           │
//!      ════════════════╪═══════════╪══════════   the one async/blocking line
//!                      │           ▼
//!                      │        service          blocking floor: no tokio below the line
//!                      │           │
//!                      │        storage/
//!                      ▼           ▼
//!               protocol, credential, peer,      cellar: pure
//!               metrics
//! ```
//!
//! Arrows point down only. A request walks one way and back: [`listen`] (accept, permit, who it is
//! from), [`tls`] (handshake under a deadline, where there is a certificate), [`http`] (head and
//! body under deadlines and limits; its `wire` turns bytes into a [`protocol::Request`]), [`workers`] (bounded queue; full means 503), [`service`] (read facts,
//! decide, apply, in one database transaction), [`protocol`] (the decision), commit, the response,
//! and one log line. **Nothing is answered before the commit that contains it.**
//!
//! | room | what it is for | what it does not know |
//! |---|---|---|
//! | [`protocol`] | IDs, requests, outcomes, and the rules as total functions | clocks, randomness, I/O |
//! | [`credential`] | a device's name and token: read, hashed, compared in constant time | clocks, randomness, I/O, whose the device is |
//! | [`metrics`] | what is counted, in numbers that nobody waits for, and their text | who counts, who asks |
//! | [`peer`] | who is at the other end, and whom proxies are believed to name; the PROXY protocol and forwarding headers as bytes | sockets, HTTP |
//! | [`service`] | the four transactions over a storage transaction | clocks, randomness, which database, HTTP |
//! | [`storage`] | one narrow trait for the server, [`storage::registry`] beside it for operators; transactions are closures, so "forgot to roll back" cannot be written | the protocol's decisions, tokio |
//! | [`storage::sqlite`] | one writer, pooled readers, adoption and migration, faults in words that help | who asks |
//! | [`storage::postgres`] | any number of instances over one database: a row lock on the client, one round trip where SQL allows it, retries, lost answers looked up, large bodies in parts; each connection on a runtime of its own that nobody else sees | who asks, clocks |
//! | [`storage::location`] | which kinds of databases there are, and where one is | what is in them, who asks |
//! | [`storage::contents`] | all that a database holds, as records, out of one and into another | files, formats |
//! | [`storage::copying`] | what is kept under each ID, taken out of one database and put into another, and the note that says so | what differs, what is to be done |
//! | [`transfer`] | one database made the copy of another, while that is in use: what is missing carried, what is too much removed, both compared | which databases, who asks |
//! | [`upkeep`] | what keeps a database in order, in steps: everything looked at, old versions pruned, clients removed | which database, who asks |
//! | [`doctor`] | what a helpful colleague would look at before anything is wrong | as which user, for whom |
//! | [`archive`] | the format of backups: records into bytes and back, checked; pure but for `std::io` and a thread that computes the checksum | databases, files |
//! | [`backup`] | backups as files: written beside their place, verified, named; the thread that makes them by themselves | which database, who asks |
//! | [`workers`] | small reads where they are asked; named threads behind bounded queues for the rest; group commit; the clock and new IDs | HTTP, SQL |
//! | [`http`] | one connection: deadlines, bounded bodies, the memory budget; `wire` is pure and holds every path, header and status | databases, signals |
//! | [`listen`] | TCP and unix sockets, its own and those of the service manager; accept with permits and back-off; a trusted proxy's first words; drain | what is said on a connection |
//! | [`tls`] | the operator's certificate: checked, taken up anew; or those of an authority, got and renewed; handshakes, those who knock at the wrong door | what is said inside |
//! | [`lifecycle`] | the order of start and stop, signals, systemd's notifications and watchdog | requests |
//! | [`daemon`] | going into the background, before any thread | what the process does there |
//! | [`control`] | the control socket: what needs the running server | the network |
//! | [`config`] | every option declared once; flags, environment and file become one [`config::Config`]; all problems at once | what options do |
//! | [`logging`] | the log, behind a bounded queue that never blocks a request | who logs |
//! | [`admin`] | the operator's verbs: as which user, on which database, for people or for programs | the command line, SQL |
//! | [`healthcheck`] | asks a running server whether it is well | the server's inside |
//! | [`cli`] | the command line, built from the option table | everything below its verbs |
//!
//! # Order of start and stop
//!
//! 1. Arguments. Help, version and generated texts are answered and touch nothing.
//! 2. Configuration, all problems at once. Exit code 64 for usage, 78 for configuration.
//! 3. The service manager's sockets, then what can fail visibly: the certificate, the data directory and its
//!    lock, the listeners, the database's migrations, after which it is closed again.
//! 4. The fork, if asked for. Nothing threaded exists before it, no SQLite handle crosses it.
//! 5. The log's thread, which has what was logged until then; without a fork it runs from the
//!    beginning. 6. Storage and worker threads. 7. The runtime, accepting. 8. Readiness.
//! 9. A stop: accept no more, drain under a deadline, join the workers, close the storage.
//!
//! # Habits
//!
//! Time, randomness and environment are arguments. An ordinary refusal is a value; an `Err` means
//! that something is broken. Each fact stands once. The top that answers is the top that logs.
//! A client ID is a credential and is never logged whole. Tests use the real thing or nothing at
//! all. `tests/house.rs` holds the walls.
#![forbid(unsafe_code)]

pub mod admin;
pub mod archive;
pub mod backup;
pub mod cli;
pub mod config;
pub mod control;
pub mod credential;
pub mod daemon;
pub mod doctor;
pub mod healthcheck;
pub mod http;
pub mod lifecycle;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod peer;
pub mod protocol;
pub mod service;
pub mod storage;
pub mod tls;
pub mod transfer;
pub mod upkeep;
pub mod workers;
