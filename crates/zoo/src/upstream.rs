//! Requests to the kube-apiserver behind, with zoo's own credentials.
//!
//! Invariant: a request is sent again only if it was certainly not processed. Who it is on behalf of, the caller has put into its headers.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use kubewharf_kube_api::Status;
use kubewharf_upstream::{
    BearerToken, Class, ClientTls, ClientTlsFiles, EndpointSettings, ExchangeError, Lease, Outcome, Processed,
    SendError, SettingsError, Strategy, UpstreamSettings,
};

use crate::kubeconfig::Kubeconfig;
use crate::limits::UPSTREAM_TRIES_MAX;

/// What zoo calls itself in its own requests.
const OWN_USER_AGENT: &str = concat!("kubewharf-zoo/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There is nobody to ask.
    #[error("the kubeconfig has no usable server")]
    NoEndpoint,
    /// It was certainly not processed.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It may have been processed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer broke off.
    #[error("the answer broke off: {0}")]
    BrokeOff(#[from] h2::Error),
    /// The answer is longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is an error.
    #[error("{method} {path}: {status}: {text}", text = String::from_utf8_lossy(body))]
    Answer {
        /// What was asked.
        method: Method,
        /// Of what.
        path: String,
        /// The answer's status.
        status: StatusCode,
        /// Its body.
        body: Bytes,
    },
    /// The answer is not what it should be.
    #[error("{path}: {problem}")]
    Content {
        /// What was asked for.
        path: String,
        /// What is wrong with the answer.
        problem: String,
    },
}

impl UpstreamError {
    /// The status of the answer, if that is the error.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// What a client is told. The endpoint is not its business.
    #[must_use]
    pub fn to_client(&self) -> Status {
        match self {
            Self::NoEndpoint | Self::Send(_) => {
                Status::service_unavailable("the apiserver can't be reached; try again")
            }
            Self::Timeout(_) => Status::gateway_timeout("the apiserver does not answer", 1),
            _ => Status::internal_error("the apiserver's answer can't be used; the request may have been carried out"),
        }
    }
}

/// The kube-apiserver behind.
pub struct Upstream {
    pool: Arc<kubewharf_upstream::Upstream>,
}

/// An answer whose body is still to come.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    rest: Rest,
}

/// What is still to come of an answer.
enum Rest {
    /// The stream, which lives as long as its lease does.
    Stream(Box<(RecvStream, Lease)>),
    /// Everything, at hand.
    Whole(Option<Bytes>),
}

impl Answer {
    /// An answer that was read already.
    #[must_use]
    pub fn of(whole: Whole) -> Self {
        Self { status: whole.status, headers: whole.headers, rest: Rest::Whole(Some(whole.body)) }
    }

    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    /// When the body breaks off.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        std::future::poll_fn(|context| self.poll_piece(context)).await
    }

    /// The same, for who polls.
    ///
    /// # Errors
    /// As [`Answer::piece`].
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UpstreamError>> {
        let stream = match &mut self.rest {
            Rest::Whole(whole) => return Poll::Ready(Ok(whole.take())),
            Rest::Stream(stream) => &mut stream.0,
        };
        let Some(piece) = ready!(stream.poll_data(context)).transpose()? else { return Poll::Ready(Ok(None)) };
        // Fails only when the stream is over, which the next look tells.
        let _ = stream.flow_control().release_capacity(piece.len());
        Poll::Ready(Ok(Some(piece)))
    }

    /// All of the body.
    ///
    /// # Errors
    /// When the body breaks off or has more than so many bytes.
    pub async fn whole(mut self, bytes_max: usize) -> Result<Whole, UpstreamError> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while let Some(piece) = self.piece().await? {
            bytes += piece.len();
            if bytes > bytes_max {
                return Err(UpstreamError::TooLong(bytes_max));
            }
            pieces.push(piece);
        }
        // Most answers are one piece, which then is not copied.
        let body = if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() };
        Ok(Whole { status: self.status, headers: self.headers, body })
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// All headers but the credentials.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Which connections it goes over.
    pub class: Class,
}

impl Upstream {
    /// Of the server that a kubeconfig names. Nothing is connected yet.
    ///
    /// # Errors
    /// When the kubeconfig's certificates, URL or token can't be used.
    pub fn new(kubeconfig: &Kubeconfig) -> Result<Self, SettingsError> {
        let (certificate_pem, key_pem) =
            kubeconfig.certificate.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.as_slice())).unzip();
        let files = ClientTlsFiles {
            ca_pem: kubeconfig.authorities.as_deref(),
            certificate_pem,
            key_pem,
            server_name: kubeconfig.server_name.as_deref(),
            insecure: false,
        };
        let mut settings = UpstreamSettings::new("upstream");
        settings.endpoints = vec![EndpointSettings::new(kubeconfig.server.trim_end_matches('/').parse()?)];
        settings.tls = Some(ClientTls::new(&files)?);
        settings.bearer_token = kubeconfig.token.as_deref().map(BearerToken::new).transpose()?;
        Ok(Self { pool: kubewharf_upstream::Upstream::new(settings) })
    }

    /// The pool of connections, for upgrades.
    #[must_use]
    pub fn pool(&self) -> &Arc<kubewharf_upstream::Upstream> {
        &self.pool
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When there is no answer; an answer that is an error is none.
    pub async fn send(&self, question: &Question) -> Result<Answer, UpstreamError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let endpoint = self.pool.pick(Strategy::RoundRobin, None, &[], "").ok_or(UpstreamError::NoEndpoint)?;
            let mut request = Request::new(());
            *request.method_mut() = question.method.clone();
            let wrong = |problem: &dyn std::fmt::Display| UpstreamError::Content {
                path: question.target.clone(),
                problem: problem.to_string(),
            };
            let target = question.target.parse().map_err(|error: http::uri::InvalidUri| wrong(&error))?;
            *request.uri_mut() = endpoint.uri(target).map_err(|error| wrong(&error))?;
            *request.headers_mut() = question.headers.clone();
            let mut exchange = match endpoint.send(question.class, request, question.body.is_empty()).await {
                Ok(exchange) => exchange,
                Err(SendError::GoingAway { .. }) if tries < UPSTREAM_TRIES_MAX => continue,
                Err(error) => return Err(error.into()),
            };
            if !question.body.is_empty() {
                // An error here is told by the response, too.
                let _ = exchange.body.send_data(question.body.clone(), true);
            }
            match exchange.response.await {
                Ok(response) => {
                    endpoint.report(Outcome::Answered);
                    let (head, stream) = response.into_parts();
                    let rest = Rest::Stream(Box::new((stream, exchange.lease)));
                    return Ok(Answer { status: head.status, headers: head.headers, rest });
                }
                Err(error) if error.processed == Processed::No && tries < UPSTREAM_TRIES_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Zoo's own request, in JSON; the answer's body.
    ///
    /// # Errors
    /// When there is no answer, or one that is no success.
    pub async fn own(
        &self,
        method: Method,
        target: &str,
        body: &serde_json::Value,
        bytes_max: usize,
    ) -> Result<Bytes, UpstreamError> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.own_as(method, target, "application/json", body, bytes_max).await
    }

    /// Zoo's own change of an object, as a merge patch (RFC 7386); the answer's body. With a `resourceVersion` in its metadata it is refused
    /// with a conflict if the object has changed.
    ///
    /// # Errors
    /// As [`Upstream::own`].
    pub async fn own_merge(
        &self,
        target: &str,
        patch: &serde_json::Value,
        bytes_max: usize,
    ) -> Result<Bytes, UpstreamError> {
        let body = Bytes::from(patch.to_string());
        self.own_as(Method::PATCH, target, "application/merge-patch+json", body, bytes_max).await
    }

    async fn own_as(
        &self,
        method: Method,
        target: &str,
        content_type: &'static str,
        body: Bytes,
        bytes_max: usize,
    ) -> Result<Bytes, UpstreamError> {
        let class = Class::Short;
        let question = Question { method, target: target.to_owned(), headers: own_headers(content_type), body, class };
        let answer = self.send(&question).await?.whole(bytes_max).await?;
        if !answer.status.is_success() {
            let Question { method, target: path, .. } = question;
            return Err(UpstreamError::Answer { method, path, status: answer.status, body: answer.body });
        }
        Ok(answer.body)
    }

    /// The same, read as JSON.
    ///
    /// # Errors
    /// As [`Upstream::own`], and when the answer is no such JSON.
    pub async fn own_json<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: &serde_json::Value,
        bytes_max: usize,
    ) -> Result<T, UpstreamError> {
        let answer = self.own(method, target, body, bytes_max).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| UpstreamError::Content { path: target.to_owned(), problem: error.to_string() })
    }
}

/// Headers of zoo's own requests.
#[must_use]
pub fn own_headers(content_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(OWN_USER_AGENT));
    headers
}
