//! One behaviour of etcd each.

use kubewharf_engine::Table;

use super::*;
use crate::committer::Trim;
use crate::limits::WATCH_PAGES_BYTES_MAX;
use crate::mvcc::Position;

fn created(watch_id: i64, revision: i64) -> WatchResponse {
    let header = Some(ResponseHeader { revision, ..HEADER });
    WatchResponse { header, watch_id, created: true, ..WatchResponse::default() }
}

fn refused(revision: i64, reason: &str) -> WatchResponse {
    WatchResponse { canceled: true, cancel_reason: reason.to_owned(), ..created(-1, revision) }
}

#[tokio::test]
async fn a_watch_is_created_before_its_events_and_starts_behind_the_revision_that_it_is_told() {
    let store = store(1 << 20);
    put(&store, "a", b"1").await;
    let client = Client::open(&store, options());
    client.create(range("a", ""));
    assert_eq!(client.nth(0).await, created(0, 2));
    put(&store, "a", b"2").await;
    put(&store, "b", b"2").await;
    let response = client.nth(1).await;
    assert_eq!((response.watch_id, revision(&response)), (0, 3));
    assert_eq!(events(&response), [("a".to_owned(), 3)]);
    client.is_silent(2).await;
    assert!(matches!(client.end().await, End::Ending));
    store.close();
}

#[tokio::test]
async fn ids_are_chosen_or_counted_from_zero_and_never_given_twice() {
    let store = store(1 << 20);
    let client = Client::open(&store, options());
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..range("a", "") };
    for (request, answer) in [
        (with_id(1), created(1, 1)),
        (with_id(0), created(0, 1)),
        // 1 is taken.
        (with_id(0), created(2, 1)),
        (with_id(2), refused(1, "mvcc: duplicate watch ID provided on the WatchStream")),
        (with_id(-7), created(-7, 1)),
    ] {
        let number = client.received();
        client.create(request);
        assert_eq!(client.nth(number).await, answer);
    }
    client.cancel(2);
    let canceled = client.nth(5).await;
    assert_eq!(canceled, WatchResponse { created: false, canceled: true, ..created(2, 1) });
    // Unknown ones are not answered.
    client.cancel(2);
    client.cancel(99);
    client.create(with_id(0));
    assert_eq!(client.nth(6).await, created(3, 1));
    client.create(with_id(2));
    assert_eq!(client.nth(7).await, created(2, 1));
    client.end().await;
    store.close();
}

#[tokio::test]
async fn wrong_watches_are_created_and_cancelled_in_one() {
    let store = store(1 << 20);
    put(&store, "a", b"1").await;
    let client = Client::open(&store, options());
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    client.create(WatchCreateRequest { start_revision: -1, ..range("b", "a") });
    assert_eq!(client.nth(0).await, refused(2, compacted));
    client.create(range("b", "a"));
    assert_eq!(client.nth(1).await, refused(2, "mvcc: watcher range is empty"));
    client.create(range("b", "b"));
    assert_eq!(client.nth(2).await, refused(2, "mvcc: watcher range is empty"));
    // None of them took an id.
    client.create(range("", "\0"));
    assert_eq!(client.nth(3).await, created(0, 2));
    client.end().await;
    store.close();
}

#[tokio::test]
async fn a_start_in_the_past_gets_history_and_one_in_the_future_waits() {
    // A ring that has it all, and one that has nothing.
    for ring_bytes in [1 << 20, 0] {
        let store = store(ring_bytes);
        for number in 0..9 {
            put(&store, &format!("k{number}"), b"v").await;
        }
        let client = Client::open(&store, options());
        client.create(WatchCreateRequest { start_revision: 4, ..range("k", "l") });
        assert_eq!(client.nth(0).await, created(0, 10));
        let response = client.nth(1).await;
        let expected: Vec<_> = (4..=10).map(|revision| (format!("k{}", revision - 2), revision)).collect();
        assert_eq!(events(&response), expected);
        assert_eq!(revision(&response), 10);

        client.create(WatchCreateRequest { start_revision: 13, ..range("k", "l") });
        assert_eq!(client.nth(2).await, created(1, 10));
        for _ in 11..=14 {
            put(&store, "k", b"v").await;
        }
        let of = |watch_id: i64, responses: &[WatchResponse]| -> Vec<_> {
            responses.iter().filter(|response| response.watch_id == watch_id).flat_map(events).collect()
        };
        client.until(|responses| of(1, responses).len() == 2).await;
        assert_eq!(of(1, &client.inbox.received.lock()), [("k".to_owned(), 13), ("k".to_owned(), 14)]);
        // A store begins at revision 1, which has no change.
        client.create(WatchCreateRequest { start_revision: 1, ..range("k0", "") });
        client.until(|responses| of(2, responses).len() == 1).await;
        assert_eq!(of(2, &client.inbox.received.lock()), [("k0".to_owned(), 2)]);
        client.end().await;
        store.close();
    }
}

#[tokio::test]
async fn a_watch_below_the_compacted_revision_is_cancelled_as_etcd_does_it() {
    let store = store(1 << 20);
    for number in 0..9 {
        put(&store, "k", &[number]).await;
    }
    compact(&store, 6).await;
    let client = Client::open(&store, options());
    let from = |start_revision| WatchCreateRequest { start_revision, watch_id: 5, prev_kv: true, ..range("k", "") };
    client.create(from(5));
    assert_eq!(client.nth(0).await, created(5, 10));
    let canceled = WatchResponse { canceled: true, compact_revision: 6, created: false, ..created(5, 0) };
    assert_eq!(client.nth(1).await, canceled);
    // Its id is taken until the client cancels it, and no progress is reported.
    client.create(from(6));
    assert_eq!(client.nth(2).await, refused(10, "mvcc: duplicate watch ID provided on the WatchStream"));
    client.ask_for_progress();
    client.is_silent(3).await;
    client.cancel(5);
    assert_eq!(client.nth(3).await, WatchResponse { canceled: true, created: false, ..created(5, 10) });
    client.create(from(6));
    assert_eq!(client.nth(4).await, created(5, 10));
    assert_eq!(events(&client.nth(5).await).len(), 5);
    client.ask_for_progress();
    assert_eq!(client.nth(6).await, WatchResponse { created: false, ..created(-1, 10) });
    client.end().await;
    store.close();
}

#[tokio::test]
async fn the_log_has_previous_values_but_for_the_compacted_revision() {
    let store = store(0);
    for number in 0..9 {
        put(&store, "k", &[number]).await;
    }
    compact(&store, 6).await;
    put(&store, "other", b"pushes all else out of the ring").await;
    let client = Client::open(&store, options());
    client.create(WatchCreateRequest { start_revision: 6, prev_kv: true, ..range("k", "") });
    let response = client.nth(1).await;
    let previous: Vec<_> =
        response.events.iter().map(|event| event.prev_kv.as_ref().map(|previous| previous.value.to_vec())).collect();
    assert_eq!(previous, [None, Some(vec![4]), Some(vec![5]), Some(vec![6]), Some(vec![7])]);
    client.end().await;
    store.close();
}

#[tokio::test]
async fn a_live_watch_is_not_cancelled_by_a_compaction_of_what_it_was_about_to_get() {
    let store = store(1 << 20);
    let client = Client::open(&store, options());
    client.create(range("k", ""));
    client.nth(0).await;
    client.stop_reading_after(0);
    for number in 0..9 {
        put(&store, "k", &[number]).await;
    }
    compact(&store, 10).await;
    client.read_on();
    client.until(|responses| responses.iter().map(|response| response.events.len()).sum::<usize>() == 9).await;
    assert!(!client.inbox.received.lock().iter().any(|response| response.canceled));
    client.end().await;
    store.close();
}

#[tokio::test]
async fn a_slow_client_is_caught_up_from_the_log_and_cancelled_only_below_the_compacted_revision() {
    let store = store(2000);
    let slow = [Client::open(&store, options()), Client::open(&store, options())];
    let quick = Client::open(&store, options());
    for client in slow.iter().chain([&quick]) {
        client.create(WatchCreateRequest { prev_kv: true, ..range("k", "l") });
        client.nth(0).await;
    }
    slow.iter().for_each(|client| client.stop_reading_after(0));
    let all = |responses: &[WatchResponse]| -> Vec<_> { responses.iter().flat_map(events).collect() };
    for number in 0..100 {
        put(&store, &format!("k{number:02}"), &[7; 100]).await;
    }
    let expected: Vec<_> = (0..100).map(|number| (format!("k{number:02}"), number + 2)).collect();
    quick.until(|responses| all(responses).len() == 100).await;
    assert_eq!(all(&quick.inbox.received.lock()), expected, "a slow client slows only itself");
    assert_eq!(slow[0].received(), 1);
    slow[0].read_on();
    slow[0].until(|responses| all(responses).len() == 100).await;
    assert_eq!(all(&slow[0].inbox.received.lock()), expected);

    compact(&store, 90).await;
    slow[1].read_on();
    slow[1].until(|responses| responses.iter().any(|response| response.canceled)).await;
    let received = slow[1].inbox.received.lock().clone();
    // What was already on its way comes first; there is no hole in it.
    let before = all(&received);
    assert_eq!(before, expected[..before.len()]);
    let last = received.last().unwrap();
    assert_eq!((last.compact_revision, last.canceled, revision(last)), (90, true, 0));
    assert!(before.len() < 88);
    assert_eq!(store.published().hub().statistics().slow_watches, 0);
    for client in slow.into_iter().chain([quick]) {
        client.end().await;
    }
    assert_eq!(store.published().hub().statistics().watches, 0);
    assert_eq!(store.published().hub().statistics().streams, 0);
    store.close();
}

#[tokio::test]
async fn filters_leave_puts_or_deletions_out() {
    let store = store(1 << 20);
    let client = Client::open(&store, options());
    for filters in [vec![0], vec![1], vec![0, 1]] {
        client.create(WatchCreateRequest { filters, ..range("k", "") });
    }
    client.nth(2).await;
    put(&store, "k", b"v").await;
    store.write(WriteRequest::DeleteRange(delete_request(b"k", b"")), 1).await.unwrap();
    client.until(|responses| responses.len() >= 5).await;
    let mut got: Vec<_> = (3..5)
        .map(|number| client.response(number))
        .map(|response| (response.watch_id, response.events.len(), response.events[0].clone()))
        .collect();
    got.sort_by_key(|(watch_id, ..)| *watch_id);
    let (deletion, put) = (&got[0].2, &got[1].2);
    assert_eq!((got[0].0, got[1].0), (0, 1));
    assert_eq!((deletion.r#type, put.r#type), (1, 0));
    let kv = deletion.kv.as_ref().unwrap();
    assert_eq!((&kv.key[..], kv.mod_revision, kv.create_revision, kv.version), (&b"k"[..], 3, 0, 0));
    client.is_silent(5).await;
    client.end().await;
    store.close();
}

#[tokio::test]
async fn a_previous_value_is_the_one_before_the_transaction() {
    let everything = || Request::RequestDeleteRange(delete_request(b"a", b"\0"));
    let put_op = |key: &str| Request::RequestPut(put_request(key, b"new"));
    for ring_bytes in [1 << 20, 0] {
        let store = store(ring_bytes);
        put(&store, "a", b"old").await;
        // etcd's check of double writes does not see an open range end.
        let revision = txn(
            &store,
            vec![put_op("a"), put_op("b"), everything(), put_op("a"), everything(), put_op("a"), everything()],
        )
        .await;
        assert_eq!(revision, 3);
        put(&store, "other", b"").await;
        let client = Client::open(&store, options());
        for filters in [vec![], vec![0]] {
            client.create(WatchCreateRequest { start_revision: 3, prev_kv: true, filters, ..range("a", "c") });
        }
        let both = |responses: &[WatchResponse]| responses.iter().filter(|one| !one.events.is_empty()).count() == 2;
        client.until(both).await;
        for response in client.inbox.received.lock().iter().filter(|response| !response.events.is_empty()) {
            let got: Vec<_> = response
                .events
                .iter()
                .map(|event| {
                    let key = String::from_utf8(event.kv.as_ref().unwrap().key.to_vec()).unwrap();
                    let previous = event.prev_kv.as_ref().map(|kv| (kv.value.to_vec(), kv.mod_revision));
                    (event.r#type, key, previous)
                })
                .collect();
            let old = Some((b"old".to_vec(), 2));
            let all = [
                (0, "a", old.clone()),
                (0, "b", None),
                (1, "a", old.clone()),
                (1, "b", None),
                // Created again within the transaction.
                (0, "a", None),
                (1, "a", old.clone()),
                (0, "a", None),
                (1, "a", old.clone()),
            ];
            let expected: Vec<_> = all
                .into_iter()
                .filter(|(kind, ..)| response.watch_id == 0 || *kind == 1)
                .map(|(kind, key, previous)| (kind, key.to_owned(), previous))
                .collect();
            assert_eq!(got, expected);
        }
        client.end().await;
        store.close();
    }
}

#[tokio::test]
async fn a_transaction_comes_in_one_response_unless_fragments_were_asked_for() {
    let store = store(1 << 20);
    let client = Client::open(&store, StreamOptions { fragment_bytes: 400, ..options() });
    client.create(range("k", "l"));
    client.create(WatchCreateRequest { fragment: true, ..range("k", "l") });
    client.nth(1).await;
    let puts = (0..9).map(|number| Request::RequestPut(put_request(&format!("k{number}"), &[7; 200])));
    txn(&store, puts.collect()).await;
    client.until(|responses| responses.iter().map(|response| response.events.len()).sum::<usize>() == 18).await;
    let received = client.inbox.received.lock()[2..].to_vec();
    let whole: Vec<_> = received.iter().filter(|response| response.watch_id == 0).collect();
    assert_eq!(whole.len(), 1);
    assert_eq!((whole[0].events.len(), whole[0].fragment), (9, false));
    let fragments: Vec<_> = received.iter().filter(|response| response.watch_id == 1).collect();
    assert_eq!(fragments.len(), 9, "two events are too much");
    for (number, fragment) in fragments.iter().enumerate() {
        assert_eq!(fragment.events.len(), 1);
        assert_eq!(fragment.fragment, number < 8);
        assert_eq!(revision(fragment), 2);
    }
    client.end().await;
    store.close();
}

#[tokio::test]
async fn progress_is_reported_only_when_all_watches_have_everything() {
    let store = store(1 << 20);
    put(&store, "k", b"v").await;
    let client = Client::open(&store, options());
    // Without watches there is no answer.
    client.ask_for_progress();
    client.is_silent(0).await;
    client.create(range("k", ""));
    client.nth(0).await;
    client.ask_for_progress();
    let progress = |revision| WatchResponse { created: false, ..created(-1, revision) };
    assert_eq!(client.nth(1).await, progress(2));
    // The event comes first, though it is asked for right behind the write.
    for expected in 3..30 {
        put(&store, "k", b"v").await;
        let number = client.received();
        client.ask_for_progress();
        client.until(|responses| responses[number..].contains(&progress(expected))).await;
        let received = client.inbox.received.lock();
        let event = received.iter().position(|response| {
            response.events.iter().any(|event| event.kv.as_ref().unwrap().mod_revision == expected)
        });
        assert!(event.unwrap() < received.len() - 1);
    }
    // Writes elsewhere count as well.
    put(&store, "other", b"v").await;
    let number = client.received();
    client.ask_for_progress();
    assert_eq!(client.nth(number).await, progress(30));
    client.create(WatchCreateRequest { start_revision: 32, ..range("k", "") });
    client.nth(number + 1).await;
    client.ask_for_progress();
    client.is_silent(number + 2).await;
    put(&store, "other", b"v").await;
    put(&store, "other", b"v").await;
    client.ask_for_progress();
    assert_eq!(client.nth(number + 2).await, progress(32));
    client.end().await;
    store.close();
}

#[tokio::test]
async fn a_page_that_a_slow_client_keeps_from_others_is_given_up_and_read_again() {
    const WATCHES: usize = 10;
    let store = store(0);
    let client = Client::open(&store, options());
    for _ in 0..WATCHES {
        client.create(range("k", ""));
    }
    client.nth(WATCHES - 1).await;
    client.stop_reading_after(0);
    for _ in 0..20 {
        put(&store, "k", &[7; 100]).await;
    }
    // The first watch had its event when the client stopped; the others fall behind, and a few get their page.
    client.stop_reading_after(4);
    client.nth(WATCHES + 3).await;
    let pages = &store.published().hub().shared().pages;
    let wait_for = async |bytes: std::ops::Range<usize>| {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !bytes.contains(&pages.held()) && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(bytes.contains(&pages.held()), "{} bytes are held", pages.held());
    };
    wait_for(1..WATCH_PAGES_BYTES_MAX).await;
    let others = pages.hold(WATCH_PAGES_BYTES_MAX);
    wait_for(WATCH_PAGES_BYTES_MAX..WATCH_PAGES_BYTES_MAX + 1).await;
    // A page may have been on its way; it is given up likewise.
    tokio::time::sleep(SILENCE).await;
    wait_for(WATCH_PAGES_BYTES_MAX..WATCH_PAGES_BYTES_MAX + 1).await;
    client.ask_for_progress();
    client.read_on();
    // What the client was about to get comes, and nothing else while there is no memory.
    client.is_silent(WATCHES + 5).await;
    drop(others);
    let progress = WatchResponse { created: false, ..created(-1, 21) };
    client.until(|responses| responses.last() == Some(&progress)).await;
    let received = client.inbox.received.lock().clone();
    let expected: Vec<_> = (2..=21).map(|revision| ("k".to_owned(), revision)).collect();
    for id in 0..WATCHES as i64 {
        let of_watch: Vec<_> = received.iter().filter(|response| response.watch_id == id).flat_map(events).collect();
        assert_eq!(of_watch, expected, "watch {id}");
    }
    client.is_silent(client.received()).await;
    client.end().await;
    store.close();
}

#[tokio::test]
async fn an_idle_watch_that_asked_for_it_is_notified_of_progress_and_one_with_events_is_not() {
    let store = store(1 << 20);
    let client = Client::open(&store, StreamOptions { progress_interval: Duration::ZERO, ..options() });
    client.create(WatchCreateRequest { progress_notify: true, ..range("idle", "") });
    client.create(WatchCreateRequest { progress_notify: true, ..range("busy", "") });
    client.create(WatchCreateRequest { progress_notify: true, start_revision: 1 << 40, ..range("later", "") });
    client.create(range("silent", ""));
    client.nth(3).await;
    let begun = std::time::Instant::now();
    for _ in 0..60 {
        put(&store, "busy", b"v").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let elapsed = begun.elapsed();
    let received = client.inbox.received.lock()[4..].to_vec();
    let notified: Vec<_> = received.iter().filter(|response| response.events.is_empty()).collect();
    // Each interval is 100 to 110 ms.
    assert!(!notified.is_empty());
    assert!(notified.len() as u128 <= elapsed.as_millis() / 100);
    assert!(notified.iter().all(|response| response.watch_id == 0));
    assert!(notified.is_sorted_by_key(|response| revision(response)));
    let number = client.received();
    client
        .until(|responses| {
            responses[number..].iter().any(|response| response.watch_id == 1 && response.events.is_empty())
        })
        .await;
    client.end().await;
    store.close();
}

#[tokio::test]
async fn a_client_that_says_no_more_still_gets_events_and_a_broken_one_ends_the_stream() {
    let store = store(1 << 20);
    let mut client = Client::open(&store, options());
    client.create(range("k", ""));
    client.nth(0).await;
    client.request(RequestUnion::CreateRequest(range("k", "")));
    client.nth(1).await;
    let (other, _) = mpsc::unbounded_channel();
    drop(std::mem::replace(&mut client.requests, other));
    put(&store, "k", b"v").await;
    client.nth(3).await;
    assert!(matches!(client.end().await, End::Ending));

    let client = Client::open(&store, options());
    // Unknown requests are nothing.
    client.requests.send(Ok(WatchRequest::default())).unwrap();
    client.requests.send(Err("broken")).unwrap();
    let end = tokio::time::timeout(PATIENCE, client.stream).await.unwrap().unwrap();
    assert!(matches!(end, End::Request("broken")));
    store.close();
}

#[tokio::test]
async fn a_closed_hub_ends_all_streams_and_those_to_come() {
    let store = store(1 << 20);
    let open = Client::open(&store, options());
    open.create(range("k", ""));
    open.nth(0).await;
    store.published().hub().close("moved");
    let later = Client::open(&store, options());
    for client in [open, later] {
        let end = tokio::time::timeout(PATIENCE, client.stream).await.unwrap().unwrap();
        assert!(matches!(end, End::Closed(why) if &*why == "moved"));
    }
    store.close();
}

#[tokio::test]
async fn a_hole_in_the_log_ends_the_stream_instead_of_being_skipped() {
    let store = store(0);
    for _ in 0..9 {
        put(&store, "k", b"v").await;
    }
    let trim = Trim { log: vec![Position { revision: 5, sub: 0 }], ..Trim::default() };
    store.write(WriteRequest::Trim(trim), 1).await.unwrap();
    assert!(!store.snapshot().unwrap().get(Table::Log, &Position { revision: 5, sub: 0 }.key(), &mut |_| {}).unwrap());
    let client = Client::open(&store, options());
    client.create(WatchCreateRequest { start_revision: 2, ..range("k", "") });
    let end = tokio::time::timeout(PATIENCE, client.stream).await.unwrap().unwrap();
    assert!(matches!(end, End::Failed(Error::Corrupt(text)) if text.contains("revision 4")));
    store.close();
}

#[tokio::test]
async fn marks_and_lost_history_that_are_taken_together_lose_nothing() {
    let store = store(0);
    let client = Client::open(&store, options());
    client.create(range("k", ""));
    client.nth(0).await;
    client.stop_reading_after(0);
    put(&store, "k", b"v").await;
    // The stream now waits for its client, with the next change marked in its mailbox.
    tokio::time::sleep(SILENCE).await;
    put(&store, "k", b"v").await;
    tokio::time::sleep(SILENCE).await;
    // While this thread waits, nobody can match what goes through the ring.
    for _ in 4..=9 {
        let (sender, receiver) = std::sync::mpsc::channel();
        let respond = Box::new(move |result| sender.send(result).unwrap());
        store.submit(WriteRequest::Put(put_request("k", b"v")), 1, respond);
        receiver.recv().unwrap().unwrap();
    }
    tokio::time::sleep(SILENCE).await;
    client.read_on();
    let all = |responses: &[WatchResponse]| -> Vec<_> { responses.iter().flat_map(events).collect() };
    client.until(|responses| all(responses).len() == 8).await;
    let expected: Vec<_> = (2..=9).map(|revision| ("k".to_owned(), revision)).collect();
    assert_eq!(all(&client.inbox.received.lock()), expected);
    client.end().await;
    store.close();
}
