//! One connection to the server.
//!
//! Job: connect to the first host that takes writes, keep what the server warns of, and run statements, prepared once for the connection or
//! unnamed where a pooler is between.
//!
//! Invariant: a dropped link is a closed socket, whatever was under way on it. One caller uses a link at a time.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_postgres::error::Severity;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, Row, RowStream, SimpleQueryMessage, Socket, Statement,
};

use crate::error::{describe, describe_message, is_permanent};
use crate::sql;
use crate::tls::{Connector, TlsStream};
use crate::url::Target;

/// A parameter of a statement and its type.
pub(crate) type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// Why there is no connection.
pub(crate) struct ConnectError {
    pub(crate) text: String,
    /// Trying again is of no use.
    pub(crate) is_permanent: bool,
}

/// A connection.
pub(crate) struct Link {
    client: Client,
    /// The task that moves bytes.
    driver: AbortHandle,
    warnings: Arc<Mutex<Vec<String>>>,
    /// By their text; `None` where every statement is unnamed.
    statements: Option<Mutex<HashMap<String, Statement>>>,
}

impl Link {
    /// Connects. Runs on a runtime, which then moves the bytes.
    pub(crate) async fn connect(target: &Target, is_pooled: bool) -> Result<Self, ConnectError> {
        let connector = target.tls.connector().map_err(|text| ConnectError { text, is_permanent: false })?;
        let mut failures = Vec::new();
        let mut all_are_permanent = true;
        for host in &target.hosts {
            let attempt = Self::connect_one(target, host, connector.clone(), is_pooled);
            let failure = match tokio::time::timeout(target.connect_timeout, attempt).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) => {
                    all_are_permanent &= is_permanent(&error);
                    describe(&error)
                }
                Err(_) => {
                    all_are_permanent = false;
                    format!("no session within {:?}", target.connect_timeout)
                }
            };
            failures.push(format!("{}: {failure}", name(host)));
        }
        Err(ConnectError { text: failures.join("; "), is_permanent: all_are_permanent })
    }

    async fn connect_one(target: &Target, host: &Config, tls: Connector, is_pooled: bool) -> Result<Self, Error> {
        let mut host = host.clone();
        if let Some(password) = target.passwords.as_ref().and_then(|file| file.password(&host)) {
            host.password(password);
        }
        let (client, connection) = host.connect(tls).await?;
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let driver = tokio::spawn(drive(connection, warnings.clone())).abort_handle();
        let statements = (!is_pooled).then(Mutex::default);
        let link = Self { client, driver, warnings, statements };
        if !is_pooled {
            link.client.batch_execute(sql::SESSION).await?;
        }
        Ok(link)
    }

    /// Whether the connection is known to be lost. One that is not may be lost as well.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// What the server has warned of since the last call.
    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
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
        statements: &Mutex<HashMap<String, Statement>>,
        text: &str,
        types: &[Type],
    ) -> Result<Statement, Error> {
        let known = statements.lock().get(text).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare_typed(text, types).await?;
        statements.lock().insert(text.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Else a connection whose server is silent would stay for as long as that lasts.
        self.driver.abort();
    }
}

/// Moves the connection's bytes until it ends. The server's warnings are kept before what comes behind them is delivered.
async fn drive(mut connection: Connection<Socket, TlsStream>, warnings: Arc<Mutex<Vec<String>>>) {
    loop {
        match std::future::poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                let is_warning =
                    notice.parsed_severity().map_or(notice.severity() == "WARNING", |it| it == Severity::Warning);
                if is_warning {
                    warnings.lock().push(describe_message(&notice));
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = %describe(&error), "a connection to PostgreSQL is lost");
                return;
            }
            None => return,
        }
    }
}

fn name(host: &Config) -> String {
    let port = host.get_ports().first().copied().unwrap_or(5432);
    match (host.get_hosts().first(), host.get_hostaddrs().first()) {
        (Some(tokio_postgres::config::Host::Tcp(name)), _) => format!("{name}:{port}"),
        (Some(tokio_postgres::config::Host::Unix(path)), _) => format!("{}:{port}", path.display()),
        (None, Some(address)) => format!("{address}:{port}"),
        (None, None) => "no host".to_owned(),
    }
}
