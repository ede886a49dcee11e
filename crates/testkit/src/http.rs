//! A small blocking client for the APIs of Kubernetes: JSON requests and watches, with a client's certificate.
//!
//! It knows nothing of Kubernetes but the form of a watch. It never retries: a test sees each answer as it was given.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::error::{Error, Result};
use crate::pki::{Authority, Identity};

/// No request of a test takes longer than this, a watch apart.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer as the server gave it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; text that is no JSON is a string.
    pub body: Value,
    what: String,
}

impl Answer {
    /// The body of an answer with a status of success.
    ///
    /// # Errors
    /// When the status is another one.
    pub fn ok(self) -> Result<Value> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        Err(Error::Request { what: self.what, why: format!("status {}: {}", self.status, self.body) })
    }
}

/// An answer with its headers and whatever its body is.
#[derive(Debug, Clone)]
pub struct Bytes {
    /// The HTTP status.
    pub status: u16,
    /// The headers; names are in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A client of one server. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    /// A client of the server at `base` (such as `https://127.0.0.1:6443`), which `authority` has signed for.
    pub fn new(base: &str, authority: &Authority, identity: &Identity) -> Self {
        Self::with_root(base, authority.certificate(), Some(identity))
    }

    /// A client of a server whose authority is known by its certificate alone, with a certificate of its own or without.
    ///
    /// # Panics
    /// When a certificate or key is no PEM text.
    pub fn with_root(base: &str, root: &str, identity: Option<&Identity>) -> Self {
        let certificate = |pem: &str| Certificate::from_pem(pem.as_bytes()).expect("a certificate is PEM text");
        let own = identity.map(|identity| {
            let key = PrivateKey::from_pem(identity.key.as_bytes()).expect("a key is PEM text");
            ClientCert::new_with_certs(&[certificate(&identity.certificate)], key)
        });
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[certificate(root)]))
            .client_cert(own)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            .timeout_connect(Some(REQUEST_TIMEOUT))
            .max_idle_connections_per_host(64)
            .build();
        Self { agent: config.new_agent(), base: base.to_owned() }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// When there is no answer; an answer with any status is one.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, "", None)
    }

    /// `POST path`, with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send("POST", path, "application/json", Some(body))
    }

    /// `PUT path`, with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send("PUT", path, "application/json", Some(body))
    }

    /// `PATCH path`, with a JSON body of that content type.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn patch(&self, path: &str, content_type: &str, body: &Value) -> Result<Answer> {
        self.send("PATCH", path, content_type, Some(body))
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.send("DELETE", path, "", None)
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: Option<&Value>) -> Result<Answer> {
        let what = format!("{method} {path}");
        let failed = |why: &dyn std::fmt::Display| Error::Request { what: what.clone(), why: why.to_string() };
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if body.is_some() {
            request = request.header("content-type", content_type);
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(text).map_err(|error| failed(&error))?;
        let request = self.agent.configure_request(request).timeout_global(Some(REQUEST_TIMEOUT)).build();
        let mut response = self.agent.run(request).map_err(|error| failed(&error))?;
        let text =
            response.body_mut().with_config().limit(u64::MAX).read_to_string().map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body, what })
    }

    /// Any request, with these headers; the answer as bytes.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Bytes> {
        let failed =
            |why: &dyn std::fmt::Display| Error::Request { what: format!("{method} {path}"), why: why.to_string() };
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|error| failed(&error))?;
        let request = self.agent.configure_request(request).timeout_global(Some(REQUEST_TIMEOUT)).build();
        let response = self.agent.run(request).map_err(|error| failed(&error))?;
        let (head, mut body) = response.into_parts();
        let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = body.with_config().limit(u64::MAX).read_to_vec().map_err(|error| failed(&error))?;
        Ok(Bytes { status: head.status.as_u16(), headers, body })
    }

    /// Opens a watch: `path` holds `watch=1` and whatever else it takes.
    ///
    /// # Errors
    /// When there is no answer, or its status is no success.
    pub fn watch(&self, path: &str) -> Result<Watch> {
        let failed = |why: String| Error::Request { what: format!("GET {path}"), why };
        let response =
            self.agent.get(format!("{}{path}", self.base)).call().map_err(|error| failed(error.to_string()))?;
        let status = response.status().as_u16();
        let reader = BufReader::new(response.into_body().into_reader());
        if status != 200 {
            let text: Vec<String> = reader.lines().map_while(std::result::Result::ok).collect();
            return Err(failed(format!("status {status}: {}", text.join("\n"))));
        }
        let (sender, events) = mpsc::channel();
        // Ends when the server ends the stream, or when it sends something that nobody wants any more.
        std::thread::spawn(move || {
            for line in reader.lines().map_while(std::result::Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { events })
    }
}

/// The events of a watch, in their order.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Value>,
}

/// What came next on a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// An event: `{"type": …, "object": …}`.
    Event(Value),
    /// Nothing within the time that was given.
    Nothing,
    /// The server ended the watch.
    Ended,
}

impl Watch {
    /// Waits for the next event.
    pub fn next(&self, within: Duration) -> Next {
        match self.events.recv_timeout(within) {
            Ok(event) => Next::Event(event),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::Ended,
        }
    }

    /// Waits for the next event and takes anything else for a failed test.
    ///
    /// # Panics
    /// When the watch ends or nothing comes within that time.
    pub fn event(&self, within: Duration) -> Value {
        match self.next(within) {
            Next::Event(event) => event,
            other => panic!("no event within {within:?}: {other:?}"),
        }
    }
}

/// `GET path` of a server that speaks plain HTTP/1.1, such as a store's `/health`: the whole answer, head and body.
///
/// # Errors
/// When there is no answer within a second.
pub fn get_plain(address: &str, path: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    use std::net::ToSocketAddrs;
    let address_found = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address_found, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_plain_answer_is_read_to_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").unwrap();
            line
        });
        assert!(get_plain(&address, "/health").unwrap().ends_with("fine"));
        assert_eq!(server.join().unwrap(), "GET /health HTTP/1.1\r\n");
    }
}
