//! What is sent, and what happens when it does not arrive: through a proxy that delays and holds back bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{apply, get, head, next_batch, put};
use kubewharf_engine::{CommitError, Engine, Table};
use kubewharf_engine_postgres::{Options, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;

use crate::stores::options;

/// A proxy before a server. Its threads end with the connections.
struct Proxy {
    address: SocketAddr,
    /// Bytes that still pass towards the server; the rest is swallowed, and the connection stays open.
    passing: Arc<AtomicI64>,
}

impl Proxy {
    fn start(server: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind((kubewharf_testkit::address::host(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let passing = Arc::new(AtomicI64::new(i64::MAX));
        let shared = passing.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let unlimited = Arc::new(AtomicI64::new(i64::MAX));
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), delay, shared.clone());
                pass(server, client, delay, unlimited);
            }
        });
        Self { address, passing }
    }

    fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }
}

/// Moves bytes from one to the other, each that long after it came.
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration, passing: Arc<AtomicI64>) {
    to.set_nodelay(true).unwrap();
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let before = passing.fetch_sub(count as i64, Ordering::SeqCst);
            let count = count.min(usize::try_from(before).unwrap_or(0));
            if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_commit_and_a_view_take_one_round_trip_each() {
    const ROUND_TRIP: Duration = Duration::from_millis(200);
    let server = Server::start().unwrap();
    let proxy = Proxy::start(server.address(), ROUND_TRIP / 2);
    for is_pooled in [false, true] {
        let engine = Postgres::open(Options { is_pooled, ..options(&proxy.url()) }).unwrap();
        let batch = |engine: &Postgres| {
            let rows = (0..40_u8).map(|n| put(Table::ALL[usize::from(n) % 5], [n], vec![n; 500]));
            let gone = Table::ALL.map(|table| kubewharf_engine::conformance::delete(table, "gone"));
            next_batch(engine, rows.chain(gone).collect())
        };
        // The first of its kind prepares its statements.
        assert_eq!(engine.commit(&batch(&engine)), Ok(()));
        let batch = batch(&engine);
        let begin = Instant::now();
        assert_eq!(engine.commit(&batch), Ok(()));
        assert!(begin.elapsed() < ROUND_TRIP * 3 / 2, "a commit took {:?}", begin.elapsed());
        let begin = Instant::now();
        let view = engine.snapshot().unwrap();
        assert_eq!(view.head(), Ok(batch.next));
        assert!(begin.elapsed() < ROUND_TRIP * 3 / 2, "a view took {:?}", begin.elapsed());
        let keys: Vec<_> = (0..200_u8).map(|n| [n]).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        view.prefetch(Table::Meta, &keys).unwrap();
        let begin = Instant::now();
        for key in keys {
            view.get(Table::Meta, key, &mut |_| {}).unwrap();
        }
        assert!(begin.elapsed() < ROUND_TRIP, "what was fetched is here");
    }
}

/// A process that dies while it sends a batch, or its network, must not keep others from taking over.
#[test]
fn a_batch_that_arrives_in_part_does_not_keep_the_head_locked() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(server.address(), Duration::ZERO);
    let direct = options(&server.url());
    let through = Options { url: proxy.url(), commit_timeout: Duration::from_secs(2), ..direct.clone() };
    let (broken, other) = (Postgres::open(through).unwrap(), Postgres::open(direct).unwrap());
    apply(&broken, vec![put(Table::Current, "k", "before")]);
    let cut = next_batch(&broken, vec![put(Table::Current, "k", vec![0; 1 << 20])]);
    let mut takeover = next_batch(&other, vec![put(Table::Current, "k", "taken over")]);
    takeover.next.epoch += 1;
    takeover.next.batch_id ^= 1 << 100;
    // The head is moved, and the row does not arrive.
    proxy.passing.store(100 << 10, Ordering::SeqCst);
    thread::scope(|scope| {
        let sender = scope.spawn(|| broken.commit(&cut));
        let locked = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' OR state = 'active' \
                      AND wait_event = 'ClientRead'";
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.psql(locked).unwrap() == "0" {
            assert!(Instant::now() < deadline, "nothing is held up");
        }
        let begin = Instant::now();
        assert_eq!(other.commit(&takeover), Ok(()));
        println!("taken over after {:?}", begin.elapsed());
        let answer = sender.join().unwrap();
        assert!(matches!(answer, Err(CommitError::Unknown(_))), "{answer:?}");
    });
    proxy.passing.store(i64::MAX, Ordering::SeqCst);
    assert_eq!(broken.commit(&cut), Err(CommitError::Fenced(takeover.next)));
    assert_eq!((head(&other), get(&other, Table::Current, b"k")), (takeover.next, Some(b"taken over".to_vec())));
}
