//! An etcd and the store under test, with the same history.
//!
//! Invariant: between two scenarios both stores have no key and no lease, and stand at the same revision, so that the
//! same request means the same to both. A store that went another way in one scenario is brought back before the next.

use std::time::Instant;

use kubewharf_etcd_api::etcdserverpb::{LeaseLeasesRequest, LeaseRevokeRequest, RangeRequest};
use kubewharf_testkit::store::Store;

use super::deviations;
use super::recorder::{Entry, Recorder, shown, within};
use crate::client::{Client, delete, delete_range, get, put};

/// How many differences of one scenario are shown.
const SHOWN_DIFFERENCES: usize = 5;

/// The two stores.
pub(super) struct Pair {
    pub(super) etcd: Recorder,
    pub(super) ours: Recorder,
    differences: Vec<Difference>,
    // Last, so that clients end before what they talk to.
    stores: [Store; 2],
}

/// A request that the two stores answered differently.
struct Difference {
    scenario: String,
    etcd: Option<Entry>,
    ours: Option<Entry>,
}

impl Pair {
    /// Starts both with these flags added.
    pub(super) fn start(flags: &[&str]) -> Self {
        // The oracle's own disk does not matter here.
        let with =
            |more: &[&'static str]| -> Vec<String> { flags.iter().chain(more).map(|&flag| flag.to_owned()).collect() };
        let etcd = Store::etcd(&with(&["--unsafe-no-fsync", "--log-level=error"])).expect("etcd starts");
        let ours = Store::start(&with(&["--log-level=error"])).expect("the store under test starts");
        let recorder = |store: &Store| Recorder::new(Client::new(&store.url()));
        Self { etcd: recorder(&etcd), ours: recorder(&ours), differences: Vec::new(), stores: [etcd, ours] }
    }

    /// Where the two are reached, as host and port: etcd first.
    pub(super) fn addresses(&self) -> [String; 2] {
        self.stores.each_ref().map(|store| store.address().to_owned())
    }

    /// Kills the store under test and starts it again.
    pub(super) fn kill_ours(&mut self) {
        self.stores[1].kill_and_start().expect("a killed store starts again");
        self.ours.ids.restarted();
    }

    /// Runs a scenario on both at the same time and compares what each answered.
    pub(super) async fn same(&mut self, scenario: &str, run: impl AsyncFn(&mut Recorder)) {
        self.settle().await;
        let begun = Instant::now();
        tokio::join!(run(&mut self.etcd), run(&mut self.ours));
        eprintln!("{scenario}: {:.1?}", begun.elapsed());
        self.compare(scenario);
    }

    /// Compares what was recorded since the last comparison; says whether it was the same.
    pub(super) fn compare(&mut self, scenario: &str) -> bool {
        let (etcd, ours) = (self.etcd.take(), self.ours.take());
        assert!(!etcd.is_empty(), "{scenario}: nothing was recorded");
        let before = self.differences.len();
        for at in 0..etcd.len().max(ours.len()) {
            let (etcd, ours) = (etcd.get(at).cloned(), ours.get(at).cloned());
            if etcd != ours {
                self.differences.push(Difference { scenario: scenario.to_owned(), etcd, ours });
            }
        }
        self.differences.len() == before
    }

    /// Removes all keys and leases of both and brings both to the same revision.
    pub(super) async fn settle(&mut self) {
        let mut revisions = [0; 2];
        for (recorder, revision) in [&mut self.etcd, &mut self.ours].into_iter().zip(&mut revisions) {
            let client = &mut recorder.client;
            let leases = within(client.lease.lease_leases(LeaseLeasesRequest {})).await.expect("leases can be listed");
            for lease in leases.leases {
                // It may end by itself meanwhile.
                let _ = within(client.lease.lease_revoke(LeaseRevokeRequest { id: lease.id })).await;
            }
            let reply = within(client.kv.delete_range(delete_range("\0", "\0"))).await.expect("all can be deleted");
            *revision = reply.header.expect("replies have headers").revision;
        }
        let goal = revisions[0].max(revisions[1]) + 2;
        for (recorder, revision) in [&mut self.etcd, &mut self.ours].into_iter().zip(revisions) {
            let client = &mut recorder.client;
            for _ in revision..goal - 1 {
                within(client.kv.put(put("settle", ""))).await.expect("a key can be put");
            }
            within(client.kv.delete_range(delete("settle"))).await.expect("a key can be deleted");
            let reply = within(client.kv.range(RangeRequest { count_only: true, ..get("settle") })).await;
            recorder.base = reply.expect("a key can be read").header.expect("replies have headers").revision;
            assert_eq!(recorder.base, goal, "a put or a delete of an existing key did not move the revision by one");
            recorder.take();
        }
    }

    /// Ends the comparison.
    ///
    /// # Panics
    /// When there was a difference that is not a known deviation, or a known deviation was not there any more.
    pub(super) fn finish(self, area: &str) {
        let mut known = deviations::of(area, self.stores[1].kind());
        let mut unknown: Vec<&Difference> = Vec::new();
        for difference in &self.differences {
            let request = difference.etcd.as_ref().or(difference.ours.as_ref()).map_or("", |entry| &entry.request);
            let reply = difference.ours.as_ref().map_or("", |entry| &entry.reply);
            match known.iter_mut().find(|known| known.matches(&difference.scenario, request, reply)) {
                Some(known) => known.seen += 1,
                None => unknown.push(difference),
            }
        }
        let gone: Vec<_> = known.iter().filter(|known| known.seen == 0).map(|known| known.describe()).collect();
        let mut scenarios: Vec<(&str, Vec<&Difference>)> = Vec::new();
        for &difference in &unknown {
            match scenarios.last_mut() {
                Some((scenario, differences)) if *scenario == difference.scenario => differences.push(difference),
                _ => scenarios.push((&difference.scenario, vec![difference])),
            }
        }
        let texts: Vec<String> =
            scenarios.iter().map(|(scenario, differences)| describe(scenario, differences)).collect();
        assert!(unknown.is_empty(), "{} differences from etcd:\n{}", unknown.len(), texts.join("\n"));
        assert!(gone.is_empty(), "known deviations that are not there any more:\n{}", gone.join("\n"));
    }
}

fn describe(scenario: &str, differences: &[&Difference]) -> String {
    let mut text = format!("## {scenario}: {} differences\n", differences.len());
    for Difference { etcd, ours, .. } in differences.iter().take(SHOWN_DIFFERENCES) {
        let request = |entry: &Option<Entry>| entry.as_ref().map_or("nothing", |entry| &entry.request).to_owned();
        let (theirs, ours_request) = (request(etcd), request(ours));
        if theirs == ours_request {
            text += &format!("request: {theirs}\n");
        } else {
            text += &format!("request to etcd: {theirs}\nrequest to ours: {ours_request}\n");
        }
        let reply = |entry: &Option<Entry>| entry.as_ref().map_or("", |entry| &entry.reply).to_owned();
        text += &shown_difference(&reply(etcd), &reply(ours));
    }
    text
}

/// Both texts without the lines that begin and end both.
fn shown_difference(etcd: &str, ours: &str) -> String {
    let (etcd, ours): (Vec<&str>, Vec<&str>) = (etcd.lines().collect(), ours.lines().collect());
    let head = etcd.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    let left = etcd.len().min(ours.len()) - head;
    let tail = etcd.iter().rev().zip(ours.iter().rev()).take(left).take_while(|(a, b)| a == b).count();
    let middle = |lines: &[&str]| shown(&lines[head.saturating_sub(2)..lines.len() - tail].join("\n"));
    format!("etcd (from line {head}):\n{}\nours:\n{}\n", middle(&etcd), middle(&ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_without_what_is_the_same() {
        let text = shown_difference("a\nb\nc\nd\ne\nf", "a\nb\nc\nX\ne\nf");
        assert_eq!(text, "etcd (from line 3):\nb\nc\nd\nours:\nb\nc\nX\n");
        assert!(shown_difference("a", "a\nb").contains("ours:\na\nb"));
    }
}
