//! One kube-apiserver: its connections, its load, its health.
//!
//! Invariant: an endpoint that is removed from its cluster loses no stream. It gets no new connections that last, and
//! lives as long as somebody uses it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, StatusCode, header};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::Upstream;
use crate::balance::{EndpointId, Latency};
use crate::body::read_whole;
use crate::connection::Exchange;
use crate::error::{DialError, Failure, SendError};
use crate::health::{Change, Event, Health, Outcome, State, remember};
use crate::limits::{CONNECTIONS_PER_REQUEST_MAX, PROBE_BYTES_MAX, SLOW_START_SHARE_MIN};
use crate::pool::Pool;
use crate::settings::{Address, BearerToken, Class, EndpointSettings, HealthSettings, PoolSettings};
use crate::tls::ClientTls;
use crate::transport::dial_http1;

/// What all endpoints of a cluster have in common. Replaced as a whole.
pub(crate) struct Options {
    pub(crate) tls: Option<ClientTls>,
    pub(crate) bearer_token: Option<BearerToken>,
    pub(crate) pool: PoolSettings,
    pub(crate) health: HealthSettings,
    pub(crate) slow_start: Duration,
    /// Larger for each change that connections made before must not outlast.
    pub(crate) generation: u64,
}

/// One kube-apiserver.
pub struct Endpoint {
    id: EndpointId,
    address: Address,
    url: Arc<str>,
    scheme: Scheme,
    authority: Option<Authority>,
    cluster: Arc<str>,
    upstream: Weak<Upstream>,
    options: ArcSwap<Options>,
    weight: AtomicU32,
    disabled: AtomicBool,
    retired: AtomicBool,
    pools: [Pool; 3],
    load: Load,
    latency: Latency,
    counters: Counters,
    health: Mutex<Health>,
    /// 0: in rotation. Otherwise the more the worse. Written by [`Upstream`] alone.
    rank: AtomicU32,
    /// Last outcomes, see [`remember`].
    history: AtomicU32,
    created: Instant,
    /// When slow start began, in milliseconds since `created`, plus 1; 0: it is over.
    slow_from_ms: AtomicU64,
    /// Wakes the health task.
    wake: Notify,
    probe_wanted: AtomicBool,
}

/// Streams in flight, by class, and upgraded connections.
#[derive(Debug, Default)]
pub(crate) struct Load {
    streams: [AtomicU32; 3],
    upgrades: AtomicU32,
}

impl Load {
    pub(crate) fn begin(&self, class: Class) {
        self.streams[class.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, class: Class) {
        self.streams[class.index()].fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn streams(&self, class: Class) -> u32 {
        self.streams[class.index()].load(Ordering::Relaxed)
    }
}

/// Totals since the endpoint exists.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) dials: AtomicU64,
    pub(crate) dial_failures: AtomicU64,
    connections_lost: AtomicU64,
    hangs: AtomicU64,
}

/// An endpoint as an administrator sees it.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    /// Its URL.
    pub url: Arc<str>,
    /// Its state.
    pub state: State,
    /// Why it is in this state; empty if it is well.
    pub reason: String,
    /// How long it has been so.
    pub state_age: Duration,
    /// Whether it gets requests.
    pub in_rotation: bool,
    /// Whether an administrator has taken it out.
    pub disabled: bool,
    /// Its configured weight.
    pub weight: u32,
    /// The share of its weight that slow start grants, in percent.
    pub share_percent: u32,
    /// Ordinary requests in flight.
    pub short_in_flight: u32,
    /// Watches in flight.
    pub watch_in_flight: u32,
    /// Long bodies in flight.
    pub bulk_in_flight: u32,
    /// Upgraded connections.
    pub upgrades: u32,
    /// HTTP/2 connections that take streams, by class: ordinary requests, watches, long bodies.
    pub connections: [usize; 3],
    /// Smoothed time to a response's headers, peaks kept for some seconds.
    pub latency: Duration,
    /// Requests since it exists, probes included.
    pub requests: u64,
    /// Times that it went out of health.
    pub ejections: u64,
    /// Connections that were tried.
    pub dials: u64,
    /// Connections that could not be opened.
    pub dial_failures: u64,
    /// Connections that were lost.
    pub connections_lost: u64,
    /// Times that it stopped answering.
    pub hangs: u64,
}

impl Endpoint {
    pub(crate) fn new(
        settings: &EndpointSettings,
        cluster: Arc<str>,
        upstream: Weak<Upstream>,
        options: Arc<Options>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let address = settings.address.clone();
        Arc::new(Self {
            id: address.id(),
            url: address.to_string().into(),
            scheme: address.scheme(),
            authority: address.authority(),
            address,
            cluster,
            upstream,
            options: ArcSwap::new(options),
            weight: AtomicU32::new(settings.weight),
            disabled: AtomicBool::new(settings.disabled),
            retired: AtomicBool::new(false),
            pools: Class::ALL.map(Pool::new),
            load: Load::default(),
            latency: Latency::new(now),
            counters: Counters::default(),
            health: Mutex::new(Health::new(now)),
            rank: AtomicU32::new(0),
            history: AtomicU32::new(0),
            created: now,
            slow_from_ms: AtomicU64::new(0),
            wake: Notify::new(),
            probe_wanted: AtomicBool::new(true),
        })
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its address as a URL, for logs and metrics.
    #[must_use]
    pub fn url(&self) -> &Arc<str> {
        &self.url
    }

    /// The URI of a request to it. Allocates nothing.
    ///
    /// Fails if the endpoint's host can't be part of a URI, which [`Address`] read from a URL rules out.
    pub fn uri(&self, path_and_query: PathAndQuery) -> Result<Uri, http::Error> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority.clone_from(&self.authority);
        parts.path_and_query = Some(path_and_query);
        Ok(Uri::from_parts(parts)?)
    }

    /// True if it gets requests.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.rank() == 0 && !self.is_disabled()
    }

    pub(crate) fn rank(&self) -> u32 {
        self.rank.load(Ordering::Relaxed)
    }

    pub(crate) fn set_rank(&self, rank: u32) {
        self.rank.store(rank, Ordering::Relaxed);
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub(crate) fn options(&self) -> Arc<Options> {
        self.options.load_full()
    }

    pub(crate) fn spread(&self) -> usize {
        self.options.load().pool.spread.max(1) as usize
    }

    pub(crate) fn pool(&self, class: Class) -> &Pool {
        &self.pools[class.index()]
    }

    pub(crate) fn load(&self) -> &Load {
        &self.load
    }

    pub(crate) fn latency(&self) -> &Latency {
        &self.latency
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Puts [`crate::UpstreamSettings::bearer_token`] into a request's headers. [`Endpoint::send`] does it by itself; for upgrades.
    pub fn authorize(&self, headers: &mut HeaderMap) {
        if let Some(token) = &self.options.load().bearer_token {
            headers.insert(header::AUTHORIZATION, token.header().clone());
        }
    }

    /// Sends a request's headers on a free stream; opens connections as needed. The request's URI must be absolute, see
    /// [`Endpoint::uri`]. If `end_of_stream` is false, the body must be written to [`Exchange::body`].
    ///
    /// Waits for a connection or a free stream at most [`PoolSettings::wait_max`]. After an error, the request was
    /// certainly not processed.
    pub async fn send(
        self: &Arc<Self>,
        class: Class,
        mut request: http::Request<()>,
        end_of_stream: bool,
    ) -> Result<Exchange, SendError> {
        self.authorize(request.headers_mut());
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let pool = self.pool(class);
        let mut request = Some(request);
        for _ in 0..CONNECTIONS_PER_REQUEST_MAX {
            let lease = match pool.reserve(self) {
                Some(lease) => lease,
                None => Box::pin(pool.wait(self)).await?,
            };
            match lease.send(&mut request, end_of_stream) {
                None => {}
                Some(Ok(exchange)) => return Ok(exchange),
                Some(Err(error)) if error.is_io() || error.is_go_away() || error.is_reset() => break,
                Some(Err(error)) => {
                    return Err(SendError::Malformed { endpoint: self.url.clone(), source: Arc::new(error) });
                }
            }
        }
        Err(SendError::GoingAway { endpoint: self.url.clone() })
    }

    /// Opens a connection of its own for one HTTP/1.1 upgrade. It shows the same certificate as other connections; the
    /// caller adds the token with [`Endpoint::authorize`]. After an error, nothing was sent.
    pub async fn open_upgrade<B>(self: &Arc<Self>) -> Result<Upgrade<B>, SendError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let failed = |error: DialError| {
            self.counters.dial_failures.fetch_add(1, Ordering::Relaxed);
            self.event(Event::DialFailed(&error));
            SendError::Dial { endpoint: self.url.clone(), source: Arc::new(error) }
        };
        self.load.upgrades.fetch_add(1, Ordering::Relaxed);
        let lease = UpgradeLease { endpoint: self.clone() };
        let options = self.options();
        self.counters.dials.fetch_add(1, Ordering::Relaxed);
        let transport = Box::pin(dial_http1(&self.address, options.tls.as_ref(), options.pool.dial_timeout))
            .await
            .map_err(failed)?;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(transport))
            .await
            .map_err(|error| failed(DialError::Http1(error)))?;
        let url = self.url.clone();
        tokio::spawn(async move {
            // Who uses the connection sees its errors too.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(endpoint = %url, %error, "a connection for an upgrade ended");
            }
        });
        Ok(Upgrade { sender, lease })
    }

    /// What a request came to. Costs a load while all is well.
    pub fn report(self: &Arc<Self>, outcome: Outcome) {
        if outcome == Outcome::Answered && self.history.load(Ordering::Relaxed) == 0 {
            return;
        }
        let failures_max = self.options.load().health.failures_max;
        let mut eject = false;
        // The closure always gives a value, so this can't fail.
        let _ = self.history.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |history| {
            let (history, too_many) = remember(history, outcome, failures_max);
            eject = too_many;
            Some(history)
        });
        if eject {
            self.event(Event::Failing(outcome));
        }
    }

    /// Its share of its weight, in 1/256: less than all of it while it is in slow start.
    pub(crate) fn share(&self) -> u32 {
        let from = self.slow_from_ms.load(Ordering::Relaxed);
        if from == 0 {
            return 256;
        }
        let passed = self.age_ms().saturating_sub(from - 1);
        let whole = u64::try_from(self.options.load().slow_start.as_millis()).unwrap_or(u64::MAX);
        if passed >= whole {
            self.slow_from_ms.store(0, Ordering::Relaxed);
            return 256;
        }
        let grown = u64::from(256 - SLOW_START_SHARE_MIN) * passed / whole;
        SLOW_START_SHARE_MIN + grown as u32
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes in what happened, and does what follows from it.
    pub(crate) fn event(self: &Arc<Self>, event: Event<'_>) {
        match event {
            Event::Lost(_) => drop(self.counters.connections_lost.fetch_add(1, Ordering::Relaxed)),
            Event::Hung => drop(self.counters.hangs.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
        if self.is_retired() {
            return;
        }
        let options = self.options();
        let (change, reason) = {
            let mut health = self.health.lock();
            let change = health.apply(event, &options.health, Instant::now());
            let reason = if change == Change::Out { health.reason().to_owned() } else { String::new() };
            (change, reason)
        };
        let (cluster, endpoint) = (&self.cluster, &self.url);
        match change {
            Change::Nothing => {}
            Change::Probe => self.probe_now(),
            Change::Out => {
                self.history.store(0, Ordering::Relaxed);
                self.rerank();
                tracing::warn!(%cluster, %endpoint, reason, in_rotation = self.is_available(), "an endpoint is unwell");
                if matches!(event, Event::Lost(_) | Event::Hung | Event::NoConnection) {
                    self.probe_now();
                } else {
                    self.wake.notify_one();
                }
            }
            Change::Back { slowly } => {
                self.history.store(0, Ordering::Relaxed);
                if slowly && !options.slow_start.is_zero() {
                    self.slow_from_ms.store(self.age_ms() + 1, Ordering::Relaxed);
                }
                self.rerank();
                tracing::info!(%cluster, %endpoint, "an endpoint is well again");
            }
        }
    }

    fn rerank(&self) {
        if let Some(upstream) = self.upstream.upgrade() {
            upstream.rerank();
        }
    }

    /// State and badness, for ranking.
    pub(crate) fn health(&self) -> (State, u32) {
        let health = self.health.lock();
        (health.state(), health.badness())
    }

    pub(crate) fn probe_now(&self) {
        self.probe_wanted.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Takes over new settings.
    pub(crate) fn update(&self, settings: &EndpointSettings, options: Arc<Options>) {
        self.weight.store(settings.weight, Ordering::Relaxed);
        let enabled = self.disabled.swap(settings.disabled, Ordering::Relaxed) && !settings.disabled;
        let old = self.options.swap(options.clone());
        if old.generation != options.generation {
            for pool in &self.pools {
                pool.drain();
            }
        }
        if enabled || old.generation != options.generation {
            self.probe_now();
        } else {
            self.wake.notify_one();
        }
    }

    /// It is no longer part of its cluster: its streams end by themselves, then it is gone.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        for pool in &self.pools {
            pool.drain();
        }
        self.wake.notify_one();
    }

    /// Probes it until it is retired.
    pub(crate) async fn keep_health(self: Arc<Self>) {
        while !self.is_retired() {
            if !self.probe_wanted.swap(false, Ordering::SeqCst) {
                let options = self.options();
                let idle =
                    self.is_disabled() || (options.health.interval.is_zero() && self.health.lock().state().is_up());
                let pause = self.health.lock().next_probe(&options.health, Instant::now());
                tokio::select! {
                    () = self.wake.notified() => continue,
                    () = tokio::time::sleep(pause), if !idle => {}
                }
            }
            if self.is_disabled() {
                continue;
            }
            self.health.lock().count_probe();
            let options = self.options();
            if options.health.interval.is_zero() {
                self.event(Event::TimeOver);
                continue;
            }
            match timeout(options.health.timeout, Box::pin(self.probe(&options.health.path))).await {
                Ok(Some(status)) => self.event(Event::ProbeAnswered(status)),
                Ok(None) => {}
                Err(_) => self.event(Event::ProbeUnanswered),
            }
        }
    }

    /// Asks the endpoint how it is. `None`: what happened has been told by whom it happened to.
    async fn probe(self: &Arc<Self>, path: &PathAndQuery) -> Option<StatusCode> {
        let mut request = http::Request::new(());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = self.uri(path.clone()).ok()?;
        let exchange = self.send(Class::Short, request, true).await.ok()?;
        // Nobody waits for the answer: what hangs is asked again soon.
        let mut response = match exchange.response.abandon_when_hung(Some(|| true)).await {
            Ok(response) => response,
            Err(error) if matches!(error.failure, Failure::Reset(_) | Failure::Refused) => {
                self.event(Event::ProbeUnanswered);
                return None;
            }
            Err(_) => return None,
        };
        // To its end, so that the stream ends without a reset. The status is known, whatever comes.
        let _ = read_whole(response.body_mut(), PROBE_BYTES_MAX).await;
        Some(response.status())
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> EndpointStatus {
        let (state, reason, since, ejections) = {
            let health = self.health.lock();
            (health.state(), health.reason().to_owned(), health.since(), health.ejections())
        };
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EndpointStatus {
            url: self.url.clone(),
            state,
            reason,
            state_age: since.elapsed(),
            in_rotation: self.is_available(),
            disabled: self.is_disabled(),
            weight: self.weight(),
            share_percent: self.share() * 100 / 256,
            short_in_flight: self.load.streams(Class::Short),
            watch_in_flight: self.load.streams(Class::Watch),
            bulk_in_flight: self.load.streams(Class::Bulk),
            upgrades: self.load.upgrades.load(Ordering::Relaxed),
            connections: Class::ALL.map(|class| self.pool(class).connections()),
            latency: self.latency.now(),
            requests: total(&self.counters.requests),
            ejections,
            dials: total(&self.counters.dials),
            dial_failures: total(&self.counters.dial_failures),
            connections_lost: total(&self.counters.connections_lost),
            hangs: total(&self.counters.hangs),
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Endpoint").field("url", &self.url).field("rank", &self.rank()).finish_non_exhaustive()
    }
}

/// A connection for one upgrade.
pub struct Upgrade<B> {
    /// Sends the request; hyper's `upgrade::on` the response gives the bytes.
    pub sender: http1::SendRequest<B>,
    /// To be kept until the upgraded connection ends.
    pub lease: UpgradeLease,
}

/// An upgraded connection that counts as load.
pub struct UpgradeLease {
    endpoint: Arc<Endpoint>,
}

impl UpgradeLease {
    /// The endpoint at the other end.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for UpgradeLease {
    fn drop(&mut self) {
        self.endpoint.load.upgrades.fetch_sub(1, Ordering::Relaxed);
    }
}
