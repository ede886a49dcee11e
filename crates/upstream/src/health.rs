//! Whether an endpoint can be used: a state machine without clocks or I/O.
//!
//! Invariant: an endpoint goes out of rotation only for what it did itself: it can't be reached, hangs, says that it is
//! not ready, or failed several of the last requests that were put to it. Being busy (429) never counts.
//!
//! Two kinds of "out" differ in what follows. An endpoint that can't be reached or hangs is of no use to anyone, and
//! comes back with the first good probe. One that answers but badly is still better than nothing: [`crate::Upstream`]
//! keeps at least half of the endpoints in rotation, the least bad of these among them.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::error::DialError;
use crate::limits::{BLIP, OUTCOMES_REMEMBERED, PROBE_RETRY_MIN, PROBE_TIMEOUTS_MAX};
use crate::settings::HealthSettings;

/// The state of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not probed yet; used like one that is well.
    Fresh,
    /// Well.
    Up,
    /// It failed too many requests; out for a time that grows with each repetition.
    Ejected,
    /// Its probe answers with an error, or not in time.
    NotReady,
    /// It can't be connected to, or has lost its connections.
    Unreachable,
    /// It takes bytes and answers nothing.
    Hung,
}

impl State {
    /// A word for metrics and the admin page.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Up => "up",
            Self::Ejected => "ejected",
            Self::NotReady => "not_ready",
            Self::Unreachable => "unreachable",
            Self::Hung => "hung",
        }
    }

    pub(crate) fn is_up(self) -> bool {
        matches!(self, Self::Fresh | Self::Up)
    }

    /// True if requests to it can only fail.
    pub(crate) fn is_away(self) -> bool {
        matches!(self, Self::Unreachable | Self::Hung)
    }
}

/// What a request to an endpoint came to, as far as it tells something about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, whatever it said; 429 too.
    Answered,
    /// 503 for a resource that every kube-apiserver serves itself. Not for one of an aggregated API.
    Unavailable,
    /// No response before the deadline of this try.
    Deadline,
    /// The stream broke, and the connection did not.
    Broken,
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    Connected,
    DialFailed(&'a DialError),
    /// Requests waited for a connection, and the dial is still running.
    NoConnection,
    Lost(&'a str),
    Hung,
    StallOver,
    ProbeAnswered(StatusCode),
    ProbeUnanswered,
    /// Too many of the last requests failed, and the last one so.
    Failing(Outcome),
    /// There are no probes, and the time of being out is over.
    TimeOver,
}

/// The state with its history.
#[derive(Debug)]
pub(crate) struct Health {
    state: State,
    since: Instant,
    reason: String,
    /// Not back before.
    until: Instant,
    /// How often it was out lately.
    strikes: u32,
    ejections: u64,
    probe_timeouts: u32,
    /// A probe has found it ready before. Until then an answer that is none, such as 403, may be all that this client is ever told.
    has_been_ready: bool,
    /// Probes since it went out.
    retries: u32,
}

/// Whether a probe was neither answered nor put off for being one too many.
fn is_no_answer(status: StatusCode) -> bool {
    !status.is_success() && status != StatusCode::TOO_MANY_REQUESTS
}

/// What an event changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// Nothing yet, but a probe is worth its while.
    Probe,
    /// Out of rotation, or out for another reason.
    Out,
    /// Back; after a real absence, not a blip, if true.
    Back {
        slowly: bool,
    },
}

impl Health {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: State::Fresh,
            since: now,
            reason: String::new(),
            until: now,
            strikes: 0,
            ejections: 0,
            probe_timeouts: 0,
            has_been_ready: false,
            retries: 0,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Why it is out; empty if it is not.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn ejections(&self) -> u64 {
        self.ejections
    }

    /// The more the worse, 0 for one that is well. Comparable among endpoints.
    pub(crate) fn badness(&self) -> u32 {
        let kind = match self.state {
            State::Fresh | State::Up => return 0,
            State::Ejected => 1,
            State::NotReady => 2,
            State::Unreachable => 3,
            State::Hung => 4,
        };
        kind * 1000 + self.strikes.min(999)
    }

    /// Takes an event in.
    pub(crate) fn apply(&mut self, event: Event<'_>, settings: &HealthSettings, now: Instant) -> Change {
        match event {
            Event::Connected | Event::StallOver if self.state.is_away() => Change::Probe,
            Event::Connected | Event::StallOver => Change::Nothing,
            // What a hung endpoint does not do is no news.
            Event::DialFailed(DialError::Timeout { .. }) | Event::NoConnection | Event::Lost(_)
                if self.state == State::Hung =>
            {
                Change::Nothing
            }
            Event::DialFailed(error) => self.go(State::Unreachable, settings, now, || error.to_string()),
            Event::NoConnection => {
                self.go(State::Unreachable, settings, now, || "no connection comes up in time".into())
            }
            Event::Lost(reason) => self.go(State::Unreachable, settings, now, || format!("connection lost: {reason}")),
            Event::Hung => self.go(State::Hung, settings, now, || "it does not answer pings".into()),
            // A kube-apiserver that has just begun forbids everything until it has read who may do what.
            Event::ProbeAnswered(status) if status.is_server_error() || self.has_been_ready && is_no_answer(status) => {
                let path = settings.path.as_str();
                self.probe_timeouts = 0;
                self.go(State::NotReady, settings, now, || format!("{path} answers {}", status.as_u16()))
            }
            Event::ProbeAnswered(status) => {
                self.has_been_ready |= status.is_success();
                self.well(now)
            }
            Event::TimeOver => self.well(now),
            Event::ProbeUnanswered => {
                self.probe_timeouts += 1;
                if self.probe_timeouts < PROBE_TIMEOUTS_MAX {
                    return Change::Nothing;
                }
                let timeout_ms = settings.timeout.as_millis();
                self.go(State::NotReady, settings, now, || {
                    format!("{} does not answer within {timeout_ms} ms", settings.path.as_str())
                })
            }
            Event::Failing(_) if !self.state.is_up() => Change::Nothing,
            Event::Failing(outcome) => {
                let change = self.go(State::Ejected, settings, now, || {
                    let what = match outcome {
                        Outcome::Answered | Outcome::Unavailable => "answered 503",
                        Outcome::Deadline => "got no answer in time",
                        Outcome::Broken => "broke off",
                    };
                    format!(
                        "{} of the last {OUTCOMES_REMEMBERED} requests failed; the last one {what}",
                        settings.failures_max
                    )
                });
                // This absence is no blip, and is counted at once: it lasts by its own rule.
                self.strike(settings, now);
                change
            }
        }
    }

    fn go(&mut self, state: State, settings: &HealthSettings, now: Instant, reason: impl FnOnce() -> String) -> Change {
        if self.state == state {
            return Change::Nothing;
        }
        if self.state.is_up() {
            if now.saturating_duration_since(self.since) > settings.ejection_max * 2 {
                self.strikes = 0;
            }
            self.ejections += 1;
            self.retries = 0;
            self.since = now;
            // Once is forgiven as soon as it is over; who keeps coming and going is believed later each time.
            self.until = now + self.pause(settings, self.strikes);
        }
        self.state = state;
        self.reason = reason();
        Change::Out
    }

    fn strike(&mut self, settings: &HealthSettings, now: Instant) {
        self.strikes = self.strikes.saturating_add(1);
        self.until = now + self.pause(settings, self.strikes);
    }

    fn pause(&self, settings: &HealthSettings, strikes: u32) -> Duration {
        if strikes == 0 {
            return Duration::ZERO;
        }
        settings.ejection_min.saturating_mul(1 << (strikes - 1).min(20)).min(settings.ejection_max)
    }

    fn well(&mut self, now: Instant) -> Change {
        self.probe_timeouts = 0;
        match self.state {
            State::Up => Change::Nothing,
            State::Fresh => {
                self.state = State::Up;
                Change::Nothing
            }
            _ if now < self.until => Change::Nothing,
            state => {
                let slowly = now.saturating_duration_since(self.since) >= BLIP;
                if slowly && state != State::Ejected {
                    self.strikes = self.strikes.saturating_add(1);
                }
                self.state = State::Up;
                self.since = now;
                self.reason.clear();
                Change::Back { slowly }
            }
        }
    }

    /// How long until the next probe, seen from `now`.
    pub(crate) fn next_probe(&self, settings: &HealthSettings, now: Instant) -> Duration {
        let interval = if settings.interval.is_zero() { settings.ejection_min } else { settings.interval };
        if self.state.is_up() {
            return interval;
        }
        let retry = PROBE_RETRY_MIN.saturating_mul(1 << self.retries.min(10)).min(interval);
        retry.max(self.until.saturating_duration_since(now))
    }

    /// A probe is made.
    pub(crate) fn count_probe(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }
}

/// The last outcomes of an endpoint's requests, newest in the lowest bit; 1 is bad. True in the second place: too many
/// are bad.
pub(crate) fn remember(history: u32, outcome: Outcome, failures_max: u32) -> (u32, bool) {
    let bad = u32::from(outcome != Outcome::Answered);
    let history = ((history << 1) | bad) & ((1 << OUTCOMES_REMEMBERED) - 1);
    (history, bad == 1 && failures_max > 0 && history.count_ones() >= failures_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> HealthSettings {
        HealthSettings::default()
    }

    const OK: Event<'static> = Event::ProbeAnswered(StatusCode::OK);

    #[test]
    fn an_endpoint_that_is_lost_and_found_at_once_has_no_slow_start_and_no_strike() {
        let begin = Instant::now();
        let mut health = Health::new(begin);
        for round in 0..5 {
            let now = begin + Duration::from_secs(round);
            assert_eq!(health.apply(Event::Lost("reset"), &settings(), now), Change::Out);
            assert_eq!(health.apply(Event::Lost("reset"), &settings(), now), Change::Nothing);
            assert_eq!(health.state(), State::Unreachable);
            let later = now + Duration::from_millis(3);
            assert_eq!(health.apply(OK, &settings(), later), Change::Back { slowly: false });
            assert_eq!(health.state(), State::Up);
        }
        assert_eq!(health.ejections(), 5);
    }

    #[test]
    fn bad_outcomes_eject_for_a_time_that_doubles_up_to_its_maximum_whatever_the_probe_says() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        let mut lengths = Vec::new();
        for _ in 0..8 {
            assert_eq!(health.apply(Event::Failing(Outcome::Unavailable), &settings(), now), Change::Out);
            let out_at = now;
            while health.apply(OK, &settings(), now) == Change::Nothing {
                now += Duration::from_secs(1);
            }
            lengths.push((now - out_at).as_secs());
            now += Duration::from_secs(1);
        }
        assert_eq!(lengths, [3, 6, 12, 24, 48, 60, 60, 60]);
        now += settings().ejection_max * 3;
        health.apply(OK, &settings(), now);
        health.apply(Event::Failing(Outcome::Deadline), &settings(), now);
        assert_eq!(health.apply(OK, &settings(), now + Duration::from_secs(3)), Change::Back { slowly: true });
    }

    #[test]
    fn an_endpoint_that_keeps_going_away_is_believed_later_each_time() {
        let mut now = Instant::now();
        let mut health = Health::new(now);
        let refused = DialError::NoTls;
        for expected_s in [2, 3, 6, 12] {
            health.apply(Event::DialFailed(&refused), &settings(), now);
            let out_at = now;
            now += Duration::from_secs(2);
            while health.apply(OK, &settings(), now) == Change::Nothing {
                now += Duration::from_secs(1);
            }
            assert_eq!((now - out_at).as_secs(), expected_s);
            now += Duration::from_secs(1);
        }
    }

    #[test]
    fn a_probe_counts_by_what_it_says() {
        let now = Instant::now();
        for (status, state) in [
            (200, State::Up),
            (401, State::Up),
            (403, State::Up),
            (404, State::Up),
            (429, State::Up),
            (500, State::NotReady),
        ] {
            let probe = Event::ProbeAnswered(StatusCode::from_u16(status).expect("a status"));
            let mut health = Health::new(now);
            health.apply(probe, &settings(), now);
            assert_eq!(health.state(), state, "{status}");
            // Where it is known what a good answer is, nothing less will do.
            let mut health = Health::new(now);
            health.apply(OK, &settings(), now);
            health.apply(Event::Lost("reset"), &settings(), now);
            health.apply(probe, &settings(), now);
            let is_well = matches!(status, 200 | 429);
            assert_eq!(health.state(), if is_well { State::Up } else { State::NotReady }, "{status}");
            health.apply(OK, &settings(), now + Duration::from_secs(60));
            assert_eq!(health.state(), State::Up, "{status}");
        }
        let mut health = Health::new(now);
        assert_eq!(health.apply(Event::ProbeUnanswered, &settings(), now), Change::Nothing);
        health.apply(OK, &settings(), now);
        assert_eq!(health.apply(Event::ProbeUnanswered, &settings(), now), Change::Nothing);
        assert_eq!(health.apply(Event::ProbeUnanswered, &settings(), now), Change::Out);
        assert!(health.reason().contains("/readyz"), "{}", health.reason());
    }

    #[test]
    fn probes_come_fast_after_a_loss_and_then_more_slowly() {
        let now = Instant::now();
        let mut health = Health::new(now);
        assert_eq!(health.next_probe(&settings(), now), Duration::from_secs(5));
        health.apply(Event::Hung, &settings(), now);
        let waits: Vec<u128> = (0..7)
            .map(|_| {
                let wait = health.next_probe(&settings(), now);
                health.count_probe();
                wait.as_millis()
            })
            .collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
    }

    #[test]
    fn only_several_bad_outcomes_among_the_last_eject() {
        let mut history = 0;
        for round in 0..200 {
            // One in eight is bad: never three among sixteen.
            let outcome = if round % 8 == 0 { Outcome::Unavailable } else { Outcome::Answered };
            let (next, eject) = remember(history, outcome, 3);
            assert!(!eject);
            history = next;
        }
        let (history, _) = remember(0, Outcome::Deadline, 3);
        let (history, _) = remember(history, Outcome::Broken, 3);
        let (history, eject) = remember(history, Outcome::Answered, 3);
        assert!(!eject);
        assert!(remember(history, Outcome::Unavailable, 3).1);
        assert!(!remember(history, Outcome::Unavailable, 0).1);
    }
}
