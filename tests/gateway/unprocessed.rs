//! Requests that change something, when their apiserver did not begin with them, and when nobody knows.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::fixture::EVERYTHING;
use crate::mock::Mock;

const EACH: usize = 20;

/// One that changes an object of its own, by every verb in turn.
fn change(number: usize) -> (Method, String) {
    let methods = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    (methods[number % methods.len()].clone(), format!("/api/v1/namespaces/team/configmaps/written-{number}"))
}

/// Sends them all, one after another, over one connection; their statuses, and those that were answered with 200.
fn change_all(mock: &Mock) -> (Vec<StatusCode>, BTreeMap<String, u64>) {
    let mut statuses = Vec::new();
    let mut done = BTreeMap::new();
    mock.runtime.block_on(async {
        let connection = mock.connector().connect().await;
        for number in 0..EACH * 4 {
            let (method, target) = change(number);
            let body = (method != Method::DELETE).then(|| Bytes::from(vec![b'x'; 10_000]));
            let (status, body) = connection.ask(method.clone(), &target, &HeaderMap::new(), body).await.unwrap();
            if status == StatusCode::OK {
                done.insert(format!("{method} {target}"), 1);
            } else {
                let text = String::from_utf8_lossy(&body);
                assert!(text.contains("\"kind\":\"Status\""), "{text}");
            }
            statuses.push(status);
        }
    });
    (statuses, done)
}

#[test]
fn what_an_apiserver_refuses_is_done_by_another_once() {
    let mock = Mock::start(2, EVERYTHING);
    mock.apiservers[0].control.refuses.store(true, SeqCst);
    let (_, done) = change_all(&mock);
    assert_eq!(done.len(), EACH * 4);
    assert_eq!(mock.apiservers[1].control.changes.counts(), done);
    assert!(mock.gateway.metric("kubegateway_proxy_retries_total") > 0.0, "nothing was refused");
}

#[test]
fn what_an_apiserver_that_says_goaway_did_not_take_is_done_by_another_once() {
    let going = Handmade::start(Then::GoesAway);
    let mock = Mock::start_beside(&[going.url()], 1, false, EVERYTHING);
    let (_, done) = change_all(&mock);
    assert_eq!(done.len(), EACH * 4);
    assert_eq!(mock.apiservers[0].control.changes.counts(), done);
    assert!(going.changes() > 0, "nothing came to it");
}

#[test]
fn the_only_apiserver_may_say_goaway_and_gets_what_it_did_not_take_again() {
    let only = Handmade::start(Then::GoesAwayEachSecondTime);
    let mock = Mock::start_beside(&[only.url()], 0, false, EVERYTHING);
    let (_, done) = change_all(&mock);
    assert_eq!(done.len(), EACH * 4);
    assert_eq!(only.changes(), done.len() as u64 * 2, "none was sent again");
}

#[test]
fn what_an_apiserver_may_have_begun_with_when_it_dies_is_not_done_again() {
    let dying = Handmade::start(Then::Dies);
    let mock = Mock::start_beside(&[dying.url()], 1, false, EVERYTHING);
    let (statuses, done) = change_all(&mock);
    let lost = statuses.iter().filter(|status| **status == StatusCode::BAD_GATEWAY).count();
    assert_eq!(lost + done.len(), EACH * 4, "{statuses:?}");
    assert_eq!(mock.apiservers[0].control.changes.counts(), done);
    assert!(lost > 0 && dying.changes() == lost as u64, "{} came to it, {lost} were lost", dying.changes());
}

/// HTTP/2 by hand: an apiserver that answers 200 to every GET.
struct Handmade {
    address: SocketAddr,
    changes: Arc<AtomicU64>,
}

/// What it does when another request comes.
#[derive(Clone, Copy)]
enum Then {
    /// It says that it took nothing after the last GET.
    GoesAway,
    /// The same with the first of two; it answers the second with 200.
    GoesAwayEachSecondTime,
    /// It is gone.
    Dies,
}

impl Handmade {
    fn start(then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let changes: Arc<AtomicU64> = Arc::default();
        let seen = changes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let seen = seen.clone();
                // Ends when the gateway does, in the middle of a frame as it may be.
                std::thread::spawn(move || serve(stream.unwrap(), then, &seen));
            }
        });
        Self { address, changes }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn changes(&self) -> u64 {
        self.changes.load(SeqCst)
    }
}

fn serve(mut stream: TcpStream, then: Then, changes: &AtomicU64) -> std::io::Result<()> {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const ACK: u8 = 1;
    const END: u8 = 1 | 4;
    // Entries of HPACK's table; `:method` comes first in a request.
    const GET: u8 = 0x82;
    const STATUS_200: &[u8] = &[0x88];
    let frame = |kind: u8, flags: u8, id: &[u8], payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags][..], id, payload].concat()
    };
    let none = &[0; 4];
    let mut last_get = [0; 4];
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, none, &[]))?;
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload)?;
        let id = &head[5..];
        match (head[3], head[4] & ACK) {
            (HEADERS, _) if payload[0] == GET => {
                last_get.copy_from_slice(id);
                stream.write_all(&frame(HEADERS, END, id, STATUS_200))?;
            }
            (HEADERS, _) => {
                let number = changes.fetch_add(1, SeqCst);
                match then {
                    Then::GoesAwayEachSecondTime if number % 2 == 1 => {
                        stream.write_all(&frame(HEADERS, END, id, STATUS_200))?;
                    }
                    Then::GoesAway | Then::GoesAwayEachSecondTime => {
                        stream.write_all(&frame(GOAWAY, 0, none, &[last_get, [0; 4]].concat()))?;
                    }
                    Then::Dies => return Ok(()),
                }
            }
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, ACK, none, &[]))?,
            (PING, 0) => stream.write_all(&frame(PING, ACK, none, &payload))?,
            _ => {}
        }
    }
}
