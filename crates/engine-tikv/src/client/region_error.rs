//! What to do when a store does not answer for a region.
//!
//! Invariant: each of the store's reasons is either corrected in what is remembered of the cluster, or waited out, or final.

use std::time::Duration;

use kubewharf_engine::Cause;

use super::regions::Region;
use super::{Client, unavailable};
use crate::generated::{errorpb, metapb};

/// A store that is busy for longer is asked before.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Why a request was not answered, and what to do.
#[derive(Debug)]
pub(crate) enum Missed {
    /// It is now known where it belongs.
    AtOnce(Cause),
    /// The store may have got it, and nothing came back.
    Lost(Cause),
    /// It may be answered later.
    Again { cause: Cause, at_least: Duration },
    /// It never will.
    Failed(Cause),
}

impl Missed {
    pub(crate) fn again(cause: Cause, at_least: Duration) -> Self {
        Self::Again { cause, at_least }
    }
}

/// What a reason means.
#[derive(Debug, PartialEq)]
enum Meaning {
    /// Another peer leads.
    Leads(metapb::Peer),
    /// There are other regions now.
    Changed(Vec<metapb::Region>),
    /// What is remembered of the region is wrong.
    Moved,
    /// What is remembered of the store is wrong.
    OtherStore,
    /// Not now.
    Later(Duration),
    Full,
    TooLarge,
}

fn meaning(error: &mut errorpb::Error) -> Meaning {
    if let Some(not_leader) = error.not_leader.take() {
        return match not_leader.leader.filter(|leader| leader.id != 0) {
            Some(leader) => Meaning::Leads(leader),
            None => Meaning::Moved,
        };
    }
    if let Some(changed) = error.epoch_not_match.take() {
        return Meaning::Changed(changed.current_regions);
    }
    if let Some(busy) = &error.server_is_busy {
        return Meaning::Later(Duration::from_millis(busy.backoff_ms).clamp(BUSY_PAUSE, BUSY_PAUSE_MAX));
    }
    if error.disk_full.is_some() {
        return Meaning::Full;
    }
    if error.raft_entry_too_large.is_some() {
        return Meaning::TooLarge;
    }
    if error.store_not_match.is_some() {
        return Meaning::OtherStore;
    }
    // The leader, or the region, is about to be ready for it; or the request was refused, or lost, in between.
    let is_passing = error.stale_command.is_some()
        || error.max_timestamp_not_synced.is_some()
        || error.read_index_not_ready.is_some()
        || error.proposal_in_merging_mode.is_some()
        || error.data_is_not_ready.is_some()
        || error.undetermined_result.is_some()
        || error.recovery_in_progress.is_some()
        || error.flashback_in_progress.is_some();
    // All others say that the region, or the peer, is not there; so may reasons that are not known here.
    if is_passing { Meaning::Later(Duration::ZERO) } else { Meaning::Moved }
}

impl Client {
    /// Corrects what is remembered.
    pub(super) fn missed(&self, region: &Region, mut error: errorpb::Error) -> Missed {
        let meaning = meaning(&mut error);
        let why = if error.message.is_empty() { format!("{meaning:?}") } else { error.message };
        let cause = unavailable(format!("region {}: {why}", region.id));
        match meaning {
            Meaning::Leads(leader) => {
                self.regions.set_leader(region, leader);
                Missed::AtOnce(cause)
            }
            Meaning::Changed(current) => {
                self.regions.forget(region);
                let mut is_known = false;
                for current in current {
                    // Whoever answers for them probably leads them.
                    let leader = current.peers.iter().find(|peer| peer.store_id == region.leader.store_id).copied();
                    if let Some(current) = Region::new(&current, leader) {
                        is_known |= current.start <= region.start && current.holds(&region.start);
                        self.regions.insert(current);
                    }
                }
                if is_known { Missed::AtOnce(cause) } else { Missed::again(cause, Duration::ZERO) }
            }
            Meaning::Moved => {
                self.regions.forget(region);
                Missed::again(cause, Duration::ZERO)
            }
            Meaning::OtherStore => {
                self.regions.forget(region);
                self.stores.forget(region.leader.store_id);
                Missed::again(cause, Duration::ZERO)
            }
            Meaning::Later(at_least) => Missed::again(cause, at_least),
            Meaning::Full => Missed::Failed(Cause::NoSpace(cause_text(&cause))),
            Meaning::TooLarge => Missed::Failed(Cause::TooLarge(cause_text(&cause))),
        }
    }
}

fn cause_text(cause: &Cause) -> String {
    match cause {
        Cause::Unavailable(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_meaning() {
        let error = errorpb::Error::default;
        let peer = metapb::Peer { id: 3, store_id: 4, ..Default::default() };
        let led = |leader| errorpb::NotLeader { region_id: 1, leader };
        let current = vec![metapb::Region { id: 9, ..Default::default() }];
        let changed = errorpb::EpochNotMatch { current_regions: current.clone() };
        let busy = |backoff_ms| Some(errorpb::ServerIsBusy { backoff_ms, ..Default::default() });
        let zero = Duration::ZERO;
        for (mut error, expected) in [
            (error(), Meaning::Moved),
            (errorpb::Error { not_leader: Some(led(Some(peer))), ..error() }, Meaning::Leads(peer)),
            (errorpb::Error { not_leader: Some(led(None)), ..error() }, Meaning::Moved),
            (errorpb::Error { not_leader: Some(led(Some(metapb::Peer::default()))), ..error() }, Meaning::Moved),
            (errorpb::Error { epoch_not_match: Some(changed), ..error() }, Meaning::Changed(current)),
            (errorpb::Error { region_not_found: Some(Default::default()), ..error() }, Meaning::Moved),
            (errorpb::Error { key_not_in_region: Some(Default::default()), ..error() }, Meaning::Moved),
            (errorpb::Error { region_not_initialized: Some(Default::default()), ..error() }, Meaning::Moved),
            (errorpb::Error { is_witness: Some(Default::default()), ..error() }, Meaning::Moved),
            (errorpb::Error { mismatch_peer_id: Some(Default::default()), ..error() }, Meaning::Moved),
            (errorpb::Error { store_not_match: Some(Default::default()), ..error() }, Meaning::OtherStore),
            (errorpb::Error { server_is_busy: busy(0), ..error() }, Meaning::Later(BUSY_PAUSE)),
            (errorpb::Error { server_is_busy: busy(700), ..error() }, Meaning::Later(Duration::from_millis(700))),
            (errorpb::Error { server_is_busy: busy(u64::MAX), ..error() }, Meaning::Later(BUSY_PAUSE_MAX)),
            (errorpb::Error { stale_command: Some(Default::default()), ..error() }, Meaning::Later(zero)),
            (errorpb::Error { max_timestamp_not_synced: Some(Default::default()), ..error() }, Meaning::Later(zero)),
            (errorpb::Error { read_index_not_ready: Some(Default::default()), ..error() }, Meaning::Later(zero)),
            (errorpb::Error { proposal_in_merging_mode: Some(Default::default()), ..error() }, Meaning::Later(zero)),
            (errorpb::Error { undetermined_result: Some(Default::default()), ..error() }, Meaning::Later(zero)),
            (errorpb::Error { disk_full: Some(Default::default()), ..error() }, Meaning::Full),
            (errorpb::Error { raft_entry_too_large: Some(Default::default()), ..error() }, Meaning::TooLarge),
        ] {
            assert_eq!(meaning(&mut error), expected, "{error:?}");
        }
    }
}
