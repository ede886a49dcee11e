//! What KubeBrain answers differently from etcd on purpose. A difference that is not in this table is a bug, and so is a
//! line of this table that tests do not meet.

/// A request that is answered differently, with the reason.
pub(super) struct Deviation {
    area: &'static str,
    /// The scenario.
    scenario: &'static str,
    /// A part of the request.
    request: &'static str,
    /// A part of KubeBrain's reply.
    reply: &'static str,
    /// Why.
    reason: &'static str,
}

const DEVIATIONS: &[Deviation] = &[];

/// A deviation, and how often it was met.
pub(super) struct Known {
    deviation: &'static Deviation,
    pub(super) seen: usize,
}

impl Known {
    /// Whether it is this one.
    pub(super) fn matches(&self, scenario: &str, request: &str, reply: &str) -> bool {
        let Deviation { scenario: its, request: part, reply: its_reply, .. } = self.deviation;
        scenario == *its && request.contains(part) && reply.contains(its_reply)
    }

    /// It, in words.
    pub(super) fn describe(&self) -> String {
        let Deviation { scenario, request, reply, reason, .. } = self.deviation;
        format!("{scenario}: {request}: {reply} ({reason})")
    }
}

/// Those of one area; none when etcd is compared with itself.
pub(super) fn of(area: &str, compares_brain: bool) -> Vec<Known> {
    let these = DEVIATIONS.iter().filter(|deviation| compares_brain && deviation.area == area);
    these.map(|deviation| Known { deviation, seen: 0 }).collect()
}
