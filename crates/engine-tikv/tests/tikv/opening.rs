//! Opening: many at once, and what is refused.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{apply, head, put};
use kubewharf_engine::{Head, Table};
use kubewharf_engine_tikv::{OpenError, Options, Tikv};

use crate::stores::options;

pub(crate) fn an_empty_place_is_opened_by_many_at_once() {
    const OPENERS: usize = 6;
    for _ in 0..3 {
        let options = options();
        let start = Barrier::new(OPENERS);
        let heads: Vec<Head> = thread::scope(|scope| {
            let open = || {
                start.wait();
                head(&Tikv::open(options.clone()).unwrap())
            };
            let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(open)).collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect()
        });
        assert_eq!((heads[0].epoch, heads[0].seq, heads[0].revision), (1, 1, 1));
        assert!(heads.iter().all(|head| *head == heads[0]), "one store: {heads:?}");
    }
}

pub(crate) fn a_cluster_that_is_not_there_is_an_error() {
    let closed = kubewharf_testkit::address::free_port();
    let options = Options { read_timeout: Duration::from_millis(500), ..Options::new(format!("tikv://{closed}")) };
    let begun = Instant::now();
    let error = Tikv::open(options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("can't be reached"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let error = Tikv::open(Options::new("tikv://a:1?x=y")).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Url(why) if why.contains('x')), "{error}");
    let error = Tikv::open(Options::new("tikv://a:1?ca=/missing&cert=/c&key=/k")).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Url(why) if why.contains("/missing")), "{error}");
}

/// A PD among several that stands still is passed over.
pub(crate) fn one_pd_that_is_away_is_passed_over() {
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = options();
    let url = options.url.replace("tikv://", &format!("tikv://{},", silent.local_addr().unwrap()));
    let engine = Tikv::open(Options { url, ..options }).unwrap();
    apply(&engine, vec![put(Table::Meta, "k", "v")]);
}
