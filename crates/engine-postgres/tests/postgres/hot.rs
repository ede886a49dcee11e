//! What commits leave behind in the server.

use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{apply, put};
use kubewharf_engine::{Engine, Table};
use kubewharf_engine_postgres::Postgres;
use kubewharf_testkit::postgres::Postgres as Server;

use crate::stores::options;

#[test]
fn the_head_is_replaced_in_place() {
    const COMMITS: u32 = 300;
    let server = Server::start().unwrap();
    let options = options(&server.url());
    let engine = Postgres::open(options.clone()).unwrap();
    for number in 0..COMMITS {
        apply(&engine, vec![put(Table::Current, "k", number.to_be_bytes())]);
    }
    let count = |table: &str| {
        let text = format!(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = '{}' AND relname = '{table}'",
            options.schema
        );
        let text = server.psql(&text).unwrap();
        let (all, hot) = text.split_once('|').unwrap();
        (all.parse::<u32>().unwrap(), hot.parse::<u32>().unwrap())
    };
    // The server publishes its counts now and then.
    let deadline = Instant::now() + Duration::from_secs(30);
    while count("head").0 < COMMITS {
        assert!(Instant::now() < deadline, "{:?}", count("head"));
        std::thread::sleep(Duration::from_millis(200));
    }
    for table in ["head", "current"] {
        let (all, hot) = count(table);
        assert!(hot * 100 >= all * 97, "{table}: {hot} of {all}");
    }
    let pages = format!("SELECT pg_relation_size('\"{}\".head') / 8192", options.schema);
    assert!(server.psql(&pages).unwrap().parse::<u32>().unwrap() <= 2);
    assert!(engine.size().unwrap().in_use_bytes < 10_000);
}
