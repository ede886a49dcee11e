//! Many watches at once.

use std::time::Instant;

use super::*;

const MANY: usize = 10_000;

async fn create_all(client: &Client, requests: impl Iterator<Item = WatchCreateRequest>) {
    let first = client.received();
    let mut count = 0;
    for request in requests {
        client.create(request);
        count += 1;
    }
    client.nth(first + count - 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_of_one_prefix_share_their_bytes() {
    let store = store(1 << 20);
    let client = Client::open(&store, options());
    create_all(&client, (0..MANY).map(|_| range("k", "l"))).await;
    let before = store.published().hub().statistics().ring_bytes;
    put(&store, "k1", &[7; 600]).await;
    client.nth(2 * MANY - 1).await;
    assert!(store.published().hub().statistics().ring_bytes - before < 2_000);
    assert_eq!(store.published().hub().statistics().events_sent, MANY as u64);
    client.end().await;
    store.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_of_other_keys_cost_a_write_nothing() {
    let store = store(1 << 20);
    let client = Client::open(&store, options());
    let key = |number: usize| format!("/key/{number}");
    create_all(&client, (0..MANY).map(|number| range(&key(number), ""))).await;
    let begun = Instant::now();
    for number in 0..200 {
        put(&store, &key(number * 7), b"v").await;
        let response = client.nth(MANY + number).await;
        assert_eq!(response.watch_id, number as i64 * 7);
    }
    // Generous: asking every watch at every write would take far longer.
    assert!(begun.elapsed() < Duration::from_secs(5));
    client.end().await;
    store.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_that_come_back_read_the_log_together() {
    let store = store(0);
    let key = |number: usize| format!("/key/{number:05}");
    let writes = 20_000;
    for batch in 0..writes / 100 {
        let puts = (0..100).map(|number| put_request(&key((batch * 100 + number) % MANY), b"v"));
        let puts = puts.map(|request| store.write(WriteRequest::Put(request), 1));
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap();
        }
    }
    let client = Client::open(&store, options());
    let requests = (0..MANY).map(|number| WatchCreateRequest { start_revision: 2, ..range(&key(number), "") });
    for request in requests {
        client.create(request);
    }
    client.until(|responses| responses.iter().map(|response| response.events.len()).sum::<usize>() == writes).await;
    let mut of: Vec<Vec<i64>> = vec![Vec::new(); MANY];
    for response in client.inbox.received.lock().iter() {
        for (name, revision) in events(response) {
            assert_eq!(name, key(response.watch_id as usize));
            of[response.watch_id as usize].push(revision);
        }
    }
    assert!(of.iter().all(|revisions| revisions.len() == 2 && revisions[0] < revisions[1]));
    client.end().await;
    store.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_get_what_they_watch() {
    let store = store(1 << 20);
    let clients: Vec<_> = (0..MANY).map(|_| Client::open(&store, options())).collect();
    for client in &clients {
        client.create(WatchCreateRequest { prev_kv: true, ..range("k", "l") });
    }
    for client in &clients {
        client.nth(0).await;
    }
    for number in 2..=11 {
        assert_eq!(put(&store, "k1", &[7; 600]).await, number);
    }
    let expected: Vec<_> = (2..=11).map(|revision| ("k1".to_owned(), revision)).collect();
    for client in clients {
        let all = |responses: &[WatchResponse]| -> Vec<_> { responses.iter().flat_map(events).collect() };
        client.until(|responses| all(responses).len() == 10).await;
        assert_eq!(all(&client.inbox.received.lock()), expected);
        client.end().await;
    }
    assert_eq!(store.published().hub().statistics().streams, 0);
    store.close();
}
