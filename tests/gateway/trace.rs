//! Traces that clients have begun.

use http::{HeaderMap, Method, StatusCode};

use crate::fixture::{EVERYTHING, wait};
use crate::mock::Mock;

#[test]
fn the_context_of_a_trace_reaches_the_apiserver_and_the_access_log() {
    const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mock = Mock::start(1, EVERYTHING);
    let parent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", parent.parse().unwrap());
    headers.insert("tracestate", "vendor=opaque".parse().unwrap());
    let ask = |headers: &HeaderMap| {
        mock.runtime.block_on(async {
            let connection = mock.connector().connect().await;
            connection.ask(Method::GET, "/api/v1/nodes", headers, None).await.unwrap()
        })
    };
    assert_eq!(ask(&headers).0, StatusCode::OK);
    let seen = mock.apiservers[0].control.last_headers.lock().clone();
    assert_eq!((&seen["traceparent"], &seen["tracestate"]), (&headers["traceparent"], &headers["tracestate"]));
    // What is no trace is no business of the log.
    headers.insert("traceparent", "00-no-trace-01".parse().unwrap());
    assert_eq!(ask(&headers).0, StatusCode::OK);
    wait("both are logged", || mock.gateway.access_log().len() == 2);
    let log = mock.gateway.access_log();
    assert_eq!(log[0]["trace_id"], TRACE_ID, "{log:?}");
    assert!(log[1].get("trace_id").is_none(), "{log:?}");
}
