//! One connection to the server.
//!
//! Job: connect to the first host that takes writes, keep what the server warns of, and run statements, prepared once for the connection or
//! unnamed where a pooler is between.
//!
//! Invariant: a dropped link is a closed socket, whatever was under way on it. One caller uses a link at a time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_util::TryStreamExt;
use tokio_postgres::config::Host;
use tokio_postgres::error::Severity;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, Row, RowStream, SimpleQueryMessage, Statement};

use crate::error::{describe, describe_message, is_permanent};
use crate::socket::{Socket, Waiter};
use crate::sql;
use crate::tls::{Connector, TlsStream};
use crate::url::Target;
use crate::wait::{self, Bell};

/// A parameter of a statement and its type.
pub(crate) type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// Why there is no connection.
pub(crate) struct ConnectError {
    pub(crate) text: String,
    /// Trying again is of no use.
    pub(crate) is_permanent: bool,
}

impl ConnectError {
    fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_permanent: false }
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        Self { text: describe(&error), is_permanent: is_permanent(&error) }
    }
}

/// A connection.
pub(crate) struct Link {
    client: Client,
    /// Moves bytes when it is polled; `None` once it has ended.
    connection: RefCell<Option<Connection<Socket, TlsStream>>>,
    waiter: Waiter,
    bell: Bell,
    warnings: RefCell<Vec<String>>,
    /// By their text; `None` where every statement is unnamed.
    statements: Option<RefCell<HashMap<String, Statement>>>,
}

impl Link {
    /// Connects. Blocks for at most the target's time for each host, and for as long as it takes to look up its name.
    pub(crate) fn connect(target: &Target, is_pooled: bool) -> Result<Self, ConnectError> {
        let connector = target.tls.connector().map_err(ConnectError::passing)?;
        let mut failures = Vec::new();
        let mut all_are_permanent = true;
        for host in &target.hosts {
            match Self::connect_one(target, host, &connector, is_pooled) {
                Ok(link) => return Ok(link),
                Err(failure) => {
                    all_are_permanent &= failure.is_permanent;
                    failures.push(format!("{}: {}", name(host), failure.text));
                }
            }
        }
        Err(ConnectError { text: failures.join("; "), is_permanent: all_are_permanent })
    }

    fn connect_one(target: &Target, host: &Config, tls: &Connector, is_pooled: bool) -> Result<Self, ConnectError> {
        let late = || ConnectError::passing(format!("no session within {:?}", target.connect_timeout));
        let mut host = host.clone();
        if let Some(password) = target.passwords.as_ref().and_then(|file| file.password(&host)) {
            host.password(password);
        }
        let deadline = Instant::now() + target.connect_timeout;
        let (socket, waiter) =
            Socket::connect(&host, deadline).map_err(|error| ConnectError::passing(error.to_string()))?;
        let server_name = match (host.get_hosts().first(), host.get_hostaddrs().first()) {
            (Some(Host::Tcp(name)), _) => name.clone(),
            (_, Some(address)) => address.to_string(),
            _ => String::new(),
        };
        let connects = host.connect_raw(socket, tls.named(server_name));
        let bell = Bell::default();
        let (client, connection) = wait::until(deadline, &waiter, &bell, connects, |_| {}).ok_or_else(late)??;
        let statements = (!is_pooled).then(RefCell::default);
        let connection = RefCell::new(Some(connection));
        let link = Self { client, connection, waiter, bell, warnings: RefCell::default(), statements };
        let is_read_only = link.wait(deadline, link.simple("SHOW transaction_read_only")).ok_or_else(late)??;
        if is_read_only.first() == Some(&Some("on".to_owned())) {
            return Err(ConnectError::passing("the server takes no writes"));
        }
        if !is_pooled {
            link.wait(deadline, link.simple(sql::SESSION)).ok_or_else(late)??;
        }
        Ok(link)
    }

    /// Waits for what is asked of this connection, and moves its bytes; `None` if there is no answer by the deadline. Whatever is asked is sent
    /// even if the deadline is over; what several futures that are polled as one ask, is sent as one.
    pub(crate) fn wait<T>(&self, deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
        wait::until(deadline, &self.waiter, &self.bell, future, |context| self.move_bytes(context))
    }

    /// What the future has already, for which nothing has to be moved.
    pub(crate) fn at_hand<T>(&self, mut future: impl Future<Output = T> + Unpin) -> Option<T> {
        match Pin::new(&mut future).poll(&mut self.bell.context()) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    /// Moves the bytes that can be moved without waiting, and keeps what the server warns of.
    fn move_bytes(&self, context: &mut Context<'_>) {
        let mut slot = self.connection.borrow_mut();
        while let Some(connection) = &mut *slot {
            match connection.poll_message(context) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                    let is_warning =
                        notice.parsed_severity().map_or(notice.severity() == "WARNING", |it| it == Severity::Warning);
                    if is_warning {
                        self.warnings.borrow_mut().push(describe_message(&notice));
                    }
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(error = %describe(&error), "a connection to PostgreSQL is lost");
                    *slot = None;
                }
                Poll::Ready(None) => *slot = None,
            }
        }
    }

    /// Takes in what has come while nobody waited, and tells whether it was not the end.
    pub(crate) fn is_usable(&self) -> bool {
        self.waiter.look_again();
        self.move_bytes(&mut Context::from_waker(Waker::noop()));
        !self.is_closed()
    }

    /// Whether the connection is known to be lost. One that is not may be lost as well.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.borrow().is_none() || self.client.is_closed()
    }

    /// What the server has warned of since the last call.
    pub(crate) fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// Runs statements as one message, and returns the fields of the last row. What comes behind one that fails is not run.
    pub(crate) async fn simple(&self, text: &str) -> Result<Vec<Option<String>>, Error> {
        let messages = self.client.simple_query(text).await?;
        let row = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(row.map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).unwrap_or_default())
    }

    /// Prepares a statement, where statements are prepared, if it is not.
    pub(crate) async fn prepare(&self, text: &str, types: &[Type]) -> Result<(), Error> {
        if let Some(statements) = &self.statements {
            self.prepared(statements, text, types).await?;
        }
        Ok(())
    }

    /// Begins to read the rows of a statement.
    pub(crate) async fn stream(&self, text: &str, parameters: &[Parameter<'_>]) -> Result<RowStream, Error> {
        let Some(statements) = &self.statements else {
            return self.client.query_typed_raw(text, parameters.iter().cloned()).await;
        };
        let types: Vec<Type> = parameters.iter().map(|(_, its_type)| its_type.clone()).collect();
        let statement = self.prepared(statements, text, &types).await?;
        self.client.query_raw(&statement, parameters.iter().map(|(value, _)| *value)).await
    }

    /// Runs a statement and returns its rows.
    pub(crate) async fn rows(&self, text: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Error> {
        self.stream(text, parameters).await?.try_collect().await
    }

    async fn prepared(
        &self,
        statements: &RefCell<HashMap<String, Statement>>,
        text: &str,
        types: &[Type],
    ) -> Result<Statement, Error> {
        let known = statements.borrow().get(text).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare_typed(text, types).await?;
        statements.borrow_mut().insert(text.to_owned(), statement.clone());
        Ok(statement)
    }
}

fn name(host: &Config) -> String {
    let port = host.get_ports().first().copied().unwrap_or(5432);
    match (host.get_hosts().first(), host.get_hostaddrs().first()) {
        (Some(Host::Tcp(name)), _) => format!("{name}:{port}"),
        (Some(Host::Unix(path)), _) => format!("{}:{port}", path.display()),
        (None, Some(address)) => format!("{address}:{port}"),
        (None, None) => "no host".to_owned(),
    }
}
