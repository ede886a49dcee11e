//! Keeps requests in flight, or sends them at a steady rate, and counts what they cost.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::proxies::Proxy;
use crate::histogram::Histogram;
use crate::load::{self, PATIENCE, WARM_UP};
use crate::usage::cpu_time;

/// What a workload cost in one turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Requests, or events.
    pub operations: u64,
    /// Time that they took.
    pub wall_seconds: f64,
    /// Processor time of the proxy; zero if there is none.
    pub proxy_cpu_seconds: f64,
    /// Processor time of the kube-apiserver.
    pub backend_cpu_seconds: f64,
    /// Processor time of this program.
    pub client_cpu_seconds: f64,
    /// Half of the latencies are at most this.
    pub p50_us: f64,
    /// 99 % of the latencies are at most this.
    pub p99_us: f64,
    /// The longest latency.
    pub max_us: f64,
}

impl Measured {
    /// Processor time of the proxy for each operation, in microseconds.
    pub fn proxy_cpu_us(&self) -> f64 {
        self.proxy_cpu_seconds * 1e6 / self.operations as f64
    }

    /// Processor time of the kube-apiserver for each operation, in microseconds.
    pub fn backend_cpu_us(&self) -> f64 {
        self.backend_cpu_seconds * 1e6 / self.operations as f64
    }

    /// Processor time of this program for each operation, in microseconds.
    pub fn client_cpu_us(&self) -> f64 {
        self.client_cpu_seconds * 1e6 / self.operations as f64
    }

    /// The part of its core that the proxy was busy.
    pub fn proxy_load(&self) -> f64 {
        self.proxy_cpu_seconds / self.wall_seconds
    }

    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.wall_seconds
    }
}

/// Reads the clocks around a workload.
pub struct Meter<'a> {
    proxy: Option<&'a Proxy>,
    backend: u32,
    cpu: [Duration; 3],
    begun: Instant,
}

impl<'a> Meter<'a> {
    /// Begins to measure.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn start(proxy: Option<&'a Proxy>, backend: u32) -> Result<Self> {
        Ok(Self { proxy, backend, cpu: cpu(proxy, backend)?, begun: Instant::now() })
    }

    /// Ends it; all answers have come.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn stop(self, operations: u64, latency: &Histogram) -> Result<Measured> {
        let wall_seconds = self.begun.elapsed().as_secs_f64();
        let after = cpu(self.proxy, self.backend)?;
        let [proxy, backend, client] = std::array::from_fn(|index| (after[index] - self.cpu[index]).as_secs_f64());
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        Ok(Measured {
            operations,
            wall_seconds,
            proxy_cpu_seconds: proxy,
            backend_cpu_seconds: backend,
            client_cpu_seconds: client,
            p50_us: us(latency.quantile(0.5)),
            p99_us: us(latency.quantile(0.99)),
            max_us: us(latency.max()),
        })
    }
}

fn cpu(proxy: Option<&Proxy>, backend: u32) -> Result<[Duration; 3]> {
    let proxy = proxy.map_or(Ok(Duration::ZERO), Proxy::cpu_time)?;
    Ok([proxy, cpu_time(backend)?, cpu_time(std::process::id())?])
}

/// Runs operations, so many at a time, for that time ([`load::closed_loop`]).
///
/// # Errors
/// When an operation fails, or the loop hangs.
pub async fn closed_loop(
    proxy: Option<&Proxy>,
    backend: u32,
    in_flight: usize,
    time: Duration,
    operation: impl AsyncFn(usize, u64) -> Result<()>,
) -> Result<Measured> {
    let done = load::closed_loop(in_flight, time, || Meter::start(proxy, backend), operation).await?;
    done.meter.stop(done.operations, &done.latency)
}

/// Begins operations at a steady rate, however long those before take. Latencies count from when an operation was to begin.
///
/// # Errors
/// When an operation fails, or they do not end.
pub async fn open_loop<F>(
    proxy: Option<&Proxy>,
    backend: u32,
    rate: f64,
    time: Duration,
    operation: impl Fn(u64) -> F,
) -> Result<Measured>
where
    F: Future<Output = Result<()>> + 'static,
{
    let operations = (rate * time.as_secs_f64()).ceil() as u64;
    let warm_up = (operations as f64 * WARM_UP) as u64;
    let latency = Rc::new(RefCell::new(Histogram::default()));
    let mut pace = pace(rate, operations);
    let mut running = Vec::new();
    let mut meter = None;
    for number in 0..operations {
        let due = pace.recv().await.context("the pace has ended early")?;
        if number == warm_up {
            meter = Some(Meter::start(proxy, backend)?);
        }
        let (operation, latency) = (operation(number), latency.clone());
        running.push(tokio::task::spawn_local(async move {
            operation.await?;
            if number >= warm_up {
                latency.borrow_mut().record(due.elapsed());
            }
            anyhow::Ok(())
        }));
    }
    let all = async {
        for operation in running {
            operation.await??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.context("requests hang")??;
    meter.context("no operation at all")?.stop(operations - warm_up, &latency.borrow())
}

/// Tells when each operation is due. A thread of its own, because it can sleep for less than the millisecond that the runtime's timers have.
fn pace(rate: f64, operations: u64) -> tokio::sync::mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let begun = Instant::now();
    let run = move || {
        for number in 0..operations {
            let due = begun + Duration::from_secs_f64(number as f64 / rate);
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            if sender.send(due).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("pace".to_owned()).spawn(run).expect("a benchmark can start one more thread");
    receiver
}
