//! One connection, used by one thread at a time, where every call has a deadline.
//!
//! The driver's blocking variant waits for a database that hangs for ever. This one drives the same
//! driver on a small runtime of the connection's own, which no other part of the program sees, and
//! sends BEGIN together with the statement behind it.

use super::address::Address;
use super::fault::{Fault, Outcome};
use super::tls::Connector;
use crate::config::Postgres as Habits;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

/// Beside the database's own limit for a statement, so that its word comes first.
const GRACE: Duration = Duration::from_millis(500);

/// How long the end of a connection is waited for.
const CLOSING: Duration = Duration::from_millis(100);

/// How often somebody hears that a long statement goes on.
const SIGN: Duration = Duration::from_millis(200);

/// A value and its type, which spares the database to be asked for it.
pub(super) type Value<'v> = (&'v (dyn ToSql + Sync), Type);

pub(super) struct Link {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    prepares: bool,
    deadline: Duration,
    /// What begins the transaction, until it is sent with its first statement.
    begin: Option<&'static str>,
    is_open: bool,
    /// Whether a statement of the transaction failed, after which the database takes a COMMIT for a
    /// ROLLBACK and calls it a success.
    is_spoiled: bool,
    is_broken: bool,
    /// `None` once it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A thread that looks up a name may take longer than anybody waits; any other is gone then, and no
        // fork meets it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(CLOSING);
        }
    }
}

impl Link {
    /// Connects to the first host that takes us.
    pub(super) fn open(address: &Address, connector: &Connector, habits: &Habits) -> Outcome<Link> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Fault::Lost(error.to_string()))?;
        let mut last = None;
        for host in &address.hosts {
            match runtime.block_on(async { timeout(habits.connect_timeout, connector.connect(host)).await }) {
                Ok(Ok((client, connection))) => {
                    runtime.spawn(connection);
                    let mut link = Link {
                        client,
                        statements: HashMap::new(),
                        prepares: habits.prepare,
                        deadline: habits.statement_timeout + GRACE,
                        begin: None,
                        is_open: false,
                        is_spoiled: false,
                        is_broken: false,
                        runtime: Some(runtime),
                    };
                    link.set_up(habits)?;
                    return Ok(link);
                }
                Ok(Err(error)) => last = Some(Fault::from(error)),
                Err(_) => last = Some(Fault::Late(habits.connect_timeout)),
            }
        }
        Err(last.unwrap_or_else(|| Fault::Lost("no host is named".to_owned())))
    }

    /// Through a pooler, which mixes sessions, nothing can be set for one.
    fn set_up(&mut self, habits: &Habits) -> Outcome<()> {
        if !habits.prepare {
            return Ok(());
        }
        let limit = habits.statement_timeout.as_millis();
        self.batch(&format!(
            "SET statement_timeout = {limit}; SET lock_timeout = {limit};
             SET idle_in_transaction_session_timeout = {}",
            limit * 2
        ))
    }

    /// Whether it must not be used by anybody else.
    pub(super) fn is_unfit(&self) -> bool {
        self.is_broken || self.is_open || self.client.is_closed()
    }

    /// Whether the database ended the connection while nobody used it.
    pub(super) fn was_ended(&self) -> bool {
        if let Some(runtime) = &self.runtime {
            // Twice: once for the system to tell what arrived, once for that to be looked at.
            runtime.block_on(async {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            });
        }
        self.client.is_closed()
    }

    /// How long a statement may take.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Begins a transaction with its first statement.
    pub(super) fn begin(&mut self, begin: &'static str) {
        self.begin = Some(begin);
    }

    /// Commits. A transaction without statements never began.
    pub(super) fn commit(&mut self) -> Outcome<()> {
        if self.begin.take().is_some() || !self.is_open {
            return Ok(());
        }
        if self.is_spoiled {
            self.roll_back();
            return Err(Fault::Odd(
                "a statement of the transaction failed, so it was not committed".to_owned(),
            ));
        }
        let done = self.batch("COMMIT");
        match &done {
            Ok(()) => self.is_open = false,
            // The database rolled back, and said why.
            Err(fault) if !fault.is_unknown() => (self.is_open, self.is_spoiled) = (false, false),
            Err(_) => self.is_broken = true,
        }
        done
    }

    /// Leaves nothing of an open transaction, or the connection is of no use any more.
    pub(super) fn roll_back(&mut self) {
        self.begin = None;
        if !self.is_open || self.is_broken {
            return;
        }
        if self.batch("ROLLBACK").is_ok() {
            (self.is_open, self.is_spoiled) = (false, false);
        } else {
            self.is_broken = true;
        }
    }

    /// One statement and its rows, in one round trip.
    pub(super) fn query(&mut self, sql: &'static str, values: &[Value<'_>]) -> Outcome<Vec<Row>> {
        self.query_within(self.deadline, sql, values)
    }

    /// The same with another deadline.
    pub(super) fn query_within(
        &mut self,
        deadline: Duration,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Outcome<Vec<Row>> {
        let statement = if self.prepares { Some(self.statement(sql, values)?) } else { None };
        let begin = self.begin.take();
        self.is_open |= begin.is_some();
        let client = &self.client;
        let begun = async move {
            match begin {
                Some(begin) => client.batch_execute(begin).await,
                None => Ok(()),
            }
        };
        let asked = async move {
            match statement {
                Some(statement) => {
                    let values: Vec<_> = values.iter().map(|(value, _)| *value).collect();
                    client.query(&statement, &values).await
                }
                None => client.query_typed(sql, values).await,
            }
        };
        let both = async { tokio::join!(biased; begun, asked) };
        let answer = wait(self.runtime.as_ref(), deadline, async {
            let (begun, asked) = both.await;
            begun.and(asked)
        });
        self.learn(answer)
    }

    /// Statements without values and without rows.
    pub(super) fn batch(&mut self, sql: &str) -> Outcome<()> {
        let answer = wait(self.runtime.as_ref(), self.deadline, self.client.batch_execute(sql));
        self.learn(answer)
    }

    /// The same for what may take hours; `sign` is called meanwhile.
    pub(super) fn batch_patiently(&mut self, sql: &str, sign: &dyn Fn()) -> Outcome<()> {
        let Some(runtime) = &self.runtime else { return Err(ended()) };
        let answer = runtime.block_on(async {
            let mut done = std::pin::pin!(self.client.batch_execute(sql));
            loop {
                match timeout(SIGN, &mut done).await {
                    Ok(done) => return done.map_err(Fault::from),
                    Err(_) => sign(),
                }
            }
        });
        self.learn(answer)
    }

    /// Begins a transaction by itself.
    pub(super) fn begin_now(&mut self) -> Outcome<()> {
        self.is_open = true;
        self.batch("BEGIN")
    }

    /// Goes on with the transaction as it was before the statement that failed.
    pub(super) fn back_to_savepoint(&mut self, sql: &str) -> Outcome<()> {
        self.batch(sql)?;
        self.is_spoiled = false;
        Ok(())
    }

    fn statement(&mut self, sql: &'static str, values: &[Value<'_>]) -> Outcome<Statement> {
        if let Entry::Occupied(known) = self.statements.entry(sql) {
            return Ok(known.get().clone());
        }
        let types: Vec<Type> = values.iter().map(|(_, kind)| kind.clone()).collect();
        let prepared = wait(self.runtime.as_ref(), self.deadline, self.client.prepare_typed(sql, &types));
        let statement = self.learn(prepared)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    fn learn<T>(&mut self, answer: Outcome<T>) -> Outcome<T> {
        if let Err(fault) = &answer {
            self.is_broken |= fault.breaks();
            self.is_spoiled |= self.is_open;
            if fault.code().is_some_and(|code| code.code() == "0A000") {
                self.statements.clear();
            }
        }
        answer
    }
}

fn wait<T>(
    runtime: Option<&Runtime>,
    deadline: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Outcome<T> {
    let Some(runtime) = runtime else { return Err(ended()) };
    match runtime.block_on(async { timeout(deadline, work).await }) {
        Ok(done) => done.map_err(Fault::from),
        Err(_) => Err(Fault::Late(deadline)),
    }
}

fn ended() -> Fault {
    Fault::Lost("the connection has ended".to_owned())
}
