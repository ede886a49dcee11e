//! Where the database is and how it is reached, from a libpq URL or keyword string.
//!
//! Job: what libpq's users write is understood, also where the client library does not know it: verification of certificates, files,
//! password files. What is not understood is refused by name.
//!
//! Invariant: a session is always one that may write, whatever the text says of `target_session_attrs`; and no error holds a password.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use crate::passfile::PasswordFile;
use crate::tls::{Roots, TlsSettings, Verify};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVES_IDLE: Duration = Duration::from_secs(15);

/// How to connect.
pub(crate) struct Target {
    /// One for each host, to be tried in this order.
    pub(crate) hosts: Vec<Config>,
    pub(crate) tls: TlsSettings,
    /// Asked at each connection that has no password otherwise.
    pub(crate) passwords: Option<PasswordFile>,
    /// For one host, from the first packet until the session is ready.
    pub(crate) connect_timeout: Duration,
    /// The text says that a pooler is between.
    pub(crate) is_pooled: bool,
}

/// What the environment adds.
pub(crate) struct Environment {
    pub(crate) password: Option<String>,
    pub(crate) passfile: Option<PathBuf>,
}

impl Environment {
    pub(crate) fn of_process() -> Self {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
        Self {
            password: std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty()),
            passfile: std::env::var_os("PGPASSFILE").map(PathBuf::from).or(home),
        }
    }
}

impl Target {
    /// Understands the text; the error says what is wrong with which parameter.
    pub(crate) fn parse(text: &str, environment: Environment) -> Result<Self, String> {
        let mut words = Words::parse(text)?;
        let mut tls = TlsSettings::default();
        let mut mode = SslMode::Prefer;
        if let Some(value) = words.take("sslmode") {
            (mode, tls.verify) = match value.as_str() {
                "disable" => (SslMode::Disable, Verify::Nothing),
                "allow" | "prefer" => (SslMode::Prefer, Verify::Nothing),
                "require" => (SslMode::Require, Verify::Nothing),
                "verify-ca" => (SslMode::Require, Verify::Chain),
                "verify-full" => (SslMode::Require, Verify::ChainAndName),
                _ => {
                    return Err(format!("sslmode={value} is none of disable, prefer, require, verify-ca, verify-full"));
                }
            };
        }
        match words.take("sslrootcert").as_deref() {
            None | Some("") => {}
            Some("system") => tls.roots = Roots::System,
            Some(path) => {
                tls.roots = Roots::File(path.into());
                // As libpq: whoever names an authority wants it to count.
                if mode == SslMode::Require && tls.verify == Verify::Nothing {
                    tls.verify = Verify::Chain;
                }
            }
        }
        tls.certificate = words.take_path("sslcert");
        tls.key = words.take_path("sslkey");
        if tls.certificate.is_some() != tls.key.is_some() {
            return Err("sslcert and sslkey go together".to_owned());
        }
        match words.take("target_session_attrs").as_deref() {
            None | Some("any" | "primary" | "read-write") => {}
            Some(other) => return Err(format!("target_session_attrs={other}: the store needs read-write")),
        }
        let is_pooled = match words.take("pgbouncer").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(format!("pgbouncer={other} is neither true nor false")),
        };
        let user_timeout = words.take_number("tcp_user_timeout")?.map(Duration::from_millis);
        if let Some(count) = words.take("keepalives_count") {
            words.put("keepalives_retries", count);
        }
        if let Some(name) = words.take("fallback_application_name")
            && !words.has("application_name")
        {
            words.put("application_name", name);
        }
        // Known to libpq, and of no effect here: text is always UTF-8, and the primary is looked for in the order of the hosts.
        for name in ["client_encoding", "load_balance_hosts", "sslcompression", "sslsni"] {
            words.take(name);
        }
        match words.take("gssencmode").as_deref() {
            None | Some("disable" | "prefer") => {}
            Some(other) => return Err(format!("gssencmode={other} is not supported")),
        }
        let has_idle_time = words.has("keepalives_idle");
        let passfile = words.take_path("passfile").or(environment.passfile);

        let mut config: Config = words.text().parse().map_err(|error| crate::error::describe(&error))?;
        config.ssl_mode(mode).target_session_attrs(TargetSessionAttrs::ReadWrite);
        if let Some(timeout) = user_timeout.filter(|timeout| !timeout.is_zero()) {
            config.tcp_user_timeout(timeout);
        }
        if !has_idle_time {
            config.keepalives_idle(KEEPALIVES_IDLE);
        }
        if config.get_application_name().is_none() {
            config.application_name("kubewharf");
        }
        let mut passwords = None;
        match (config.get_password(), environment.password) {
            (Some(_), _) => {}
            (None, Some(password)) => drop(config.password(password)),
            (None, None) => passwords = passfile.map(PasswordFile::new),
        }
        let connect_timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        config.connect_timeout(connect_timeout);
        Ok(Self { hosts: hosts(&config)?, tls, passwords, connect_timeout, is_pooled })
    }
}

/// The same configuration for each of its hosts alone.
fn hosts(config: &Config) -> Result<Vec<Config>, String> {
    let (names, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err("it names no host".to_owned());
    }
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!("{} hosts and {} hostaddrs", names.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("{count} hosts and {} ports", ports.len()));
    }
    Ok((0..count)
        .map(|at| {
            let mut one = without_hosts(config);
            match names.get(at) {
                Some(tokio_postgres::config::Host::Tcp(name)) => drop(one.host(name)),
                Some(tokio_postgres::config::Host::Unix(path)) => drop(one.host_path(path)),
                None => {}
            }
            if let Some(address) = addresses.get(at) {
                one.hostaddr(*address);
            }
            if let Some(port) = ports.get(at).or(ports.first()) {
                one.port(*port);
            }
            one
        })
        .collect())
}

fn without_hosts(config: &Config) -> Config {
    let mut one = Config::new();
    one.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle());
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(name) = config.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        one.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one
}

/// The text in parts: what comes before the parameters, and these, decoded.
struct Words {
    /// The scheme, user, hosts and database of a URL; `None` for a keyword string.
    base: Option<String>,
    parameters: Vec<(String, String)>,
}

impl Words {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Ok(Self { base: None, parameters: keywords(text)? });
        }
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("a parameter has no `=`")?;
            let decode = |part| percent_decode_str(part).decode_utf8().map(String::from);
            let (name, value) = (decode(name), decode(value));
            parameters.push((
                name.map_err(|_| "a parameter's name is not UTF-8")?,
                value.map_err(|_| "a parameter's value is not UTF-8")?,
            ));
        }
        Ok(Self { base: Some(base.to_owned()), parameters })
    }

    fn has(&self, name: &str) -> bool {
        self.parameters.iter().any(|(its, _)| its == name)
    }

    /// Removes the parameter; the last one counts, as in libpq.
    fn take(&mut self, name: &str) -> Option<String> {
        let mut value = None;
        self.parameters.retain_mut(|(its, its_value)| {
            let is_it = its == name;
            if is_it {
                value = Some(std::mem::take(its_value));
            }
            !is_it
        });
        value
    }

    fn take_path(&mut self, name: &str) -> Option<PathBuf> {
        self.take(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn take_number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let number = |value: String| value.parse().map_err(|_| format!("{name}={value} is no number"));
        self.take(name).map(number).transpose()
    }

    fn put(&mut self, name: &str, value: String) {
        self.parameters.push((name.to_owned(), value));
    }

    /// What is left, as the client library reads it.
    fn text(&self) -> String {
        let encode =
            |value: &str| percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string();
        let quote = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        match &self.base {
            Some(base) => {
                let pairs = self.parameters.iter().map(|(name, value)| format!("{name}={}", encode(value)));
                let pairs: Vec<_> = pairs.collect();
                if pairs.is_empty() { base.clone() } else { format!("{base}?{}", pairs.join("&")) }
            }
            None => {
                let pairs = self.parameters.iter().map(|(name, value)| format!("{name}='{}'", quote(value)));
                pairs.collect::<Vec<_>>().join(" ")
            }
        }
    }
}

/// Reads `name = value` pairs; a value may be quoted, and a backslash takes the next character as it is.
fn keywords(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or("a word has no `=`: neither a URL nor name=value pairs")?;
        let after = after.trim_start();
        let (is_quoted, mut chars) = match after.strip_prefix('\'') {
            Some(after) => (true, after.chars()),
            None => (false, after.chars()),
        };
        let mut value = String::new();
        let mut is_closed = !is_quoted;
        while let Some(next) = chars.next() {
            match next {
                '\\' => value.extend(chars.next()),
                '\'' if is_quoted => {
                    is_closed = true;
                    break;
                }
                space if !is_quoted && space.is_whitespace() => break,
                other => value.push(other),
            }
        }
        if !is_closed {
            return Err("a quoted value has no end".to_owned());
        }
        parameters.push((name.trim().to_owned(), value));
        rest = chars.as_str().trim_start();
    }
    Ok(parameters)
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
