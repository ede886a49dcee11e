//! One run: members, clients, and the calamities that befall them.
//!
//! Invariant: everything follows from the seed.

use std::time::Duration;

use super::clock::Clock;
use super::engine::Row;
use super::history::{Answer, Counts, Request};
use super::member::Member;
use super::network::{Address, Happening, Input, MS, Outside, SECOND, Weather};
use super::random::Random;
use super::{Bug, KEYS, OpId};

/// How long after the last fault there must be a leader again: an outcome is pursued for half a minute, by two of them in turn.
const RECOVERY: u64 = 120 * SECOND;

/// What a run is to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) steps: u64,
    pub(super) bug: Option<Bug>,
    /// Whether the engine may lose what it has not confirmed.
    pub(super) is_volatile: bool,
    pub(super) is_traced: bool,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) violation: Option<String>,
    pub(super) steps: u64,
    pub(super) counts: Counts,
    /// Virtual time, in microseconds.
    pub(super) took: u64,
}

struct Seat {
    /// The process, if it runs.
    member: Option<Member>,
    start: u32,
    /// Stopped, and goes on then.
    paused_until: u64,
    clock: Clock,
}

struct Client {
    asked: Option<(OpId, usize)>,
    /// When keys were changed, as far as it knows.
    known: [i64; KEYS],
}

struct World {
    outside: Outside,
    seats: Vec<Seat>,
    clients: Vec<Client>,
    ttl: Duration,
    /// The longest pause between two questions of a client.
    think: u64,
    /// The longest pause between two calamities.
    peace: u64,
}

/// Runs a plan to its end, or to the first violation.
pub(super) fn run(plan: Plan) -> Outcome {
    let mut world = World::new(plan);
    let mut steps = 0;
    while steps < plan.steps && world.outside.history.violation.is_none() && world.outside.engine.broken.is_none() {
        world.step();
        steps += 1;
    }
    if world.outside.history.violation.is_none() && world.outside.engine.broken.is_none() {
        steps += world.recover();
    }
    let Outside { history, engine, .. } = &mut world.outside;
    history.check(engine);
    Outcome { violation: history.violation.take(), steps, counts: history.counts, took: world.outside.now }
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let members = random.between(3, 6);
        let clients = random.between(3, 8);
        let is_rough = random.chance(700);
        let mut per_mille = |end: u64| if is_rough { random.below(end) } else { random.below(end / 10) };
        let (lost, refused, doubled, slow) = (per_mille(100), per_mille(60), per_mille(200), per_mille(100));
        let patience = random.magnitude(20 * MS, 10 * SECOND);
        let weather = Weather { lost, refused, doubled, slow, patience };
        let ttl = Duration::from_micros(random.magnitude(50 * MS, 2 * SECOND));
        let think = random.magnitude(5 * MS, 500 * MS);
        let peace = random.magnitude(300 * MS, 20 * SECOND);
        let mut outside = Outside::new(random, weather, plan.bug, plan.is_volatile, plan.is_traced);
        let seats = (0..members)
            .map(|_| {
                let clock = Clock::new(outside.random.below(1000 * SECOND));
                Seat { member: None, start: 0, paused_until: 0, clock }
            })
            .collect();
        for member in 0..members as usize {
            let at = outside.random.below(SECOND);
            outside.schedule(at, Happening::Restart(member));
        }
        for client in 0..clients as usize {
            outside.schedule(SECOND, Happening::Think(client));
        }
        outside.schedule(2 * SECOND, Happening::Calamity);
        let clients = (0..clients).map(|_| Client { asked: None, known: [0; KEYS] }).collect();
        outside.trace(|| format!("{members} members, time to live {ttl:?}, {weather:?}"));
        Self { outside, seats, clients, ttl, think, peace }
    }

    fn step(&mut self) {
        let Some(what) = self.outside.next() else { return };
        match what {
            Happening::Arrival { from, call, deadline, demand } => self.outside.arrive(from, call, deadline, demand),
            Happening::Input(to, input) => self.deliver(to, input),
            Happening::Think(client) => self.ask(client),
            Happening::GiveUp(client, id) => {
                if self.clients[client].asked.is_some_and(|(asked, _)| asked == id) {
                    self.clients[client].asked = None;
                    self.ask(client);
                }
            }
            Happening::Restart(member) => self.start(member),
            Happening::Calamity => self.calamity(),
        }
        while let Some(id) = self.outside.answered.pop() {
            self.tell(id);
        }
    }

    fn deliver(&mut self, to: Address, input: Input) {
        let seat = &mut self.seats[to.member];
        if to.start.is_some_and(|start| start != seat.start) {
            return;
        }
        let Some(member) = &mut seat.member else {
            if let Input::Request(id) = input {
                // The connection is refused.
                self.outside.answer(id, Answer::NotDone);
            }
            return;
        };
        if self.outside.now < seat.paused_until {
            // Its threads wake up in any order.
            let at = seat.paused_until + self.outside.random.below(5 * MS);
            return self.outside.schedule(at, Happening::Input(to, input));
        }
        member.take(input, &mut self.outside);
        if member.has_failed {
            self.crash(to.member);
        }
    }

    fn start(&mut self, member: usize) {
        let seat = &mut self.seats[member];
        if seat.member.is_none() {
            let me = Address { member, start: Some(seat.start) };
            self.outside.trace(|| format!("{member} starts"));
            seat.member = Some(Member::start(me, seat.clock, self.ttl, &mut self.outside));
        }
    }

    /// Ends a process, whose memory is lost, and starts another one later.
    fn crash(&mut self, member: usize) {
        let seat = &mut self.seats[member];
        let Some(mut process) = seat.member.take() else { return };
        self.outside.trace(|| format!("{member} crashes"));
        seat.clock = *process.clock();
        seat.start += 1;
        seat.paused_until = 0;
        let (was_leading, epoch) = (process.is_leading(), process.epoch());
        let longest = if self.outside.is_calm { 200 * MS } else { 10 * SECOND };
        let later = self.outside.now + self.outside.random.magnitude(20 * MS, longest);
        self.outside.schedule(later, Happening::Restart(member));
        if was_leading {
            self.rumour(epoch);
        }
        for client in 0..self.clients.len() {
            if self.clients[client].asked.is_some_and(|(_, asked)| asked == member) {
                self.clients[client].asked = None;
                let later = self.outside.now + self.outside.random.below(self.think);
                self.outside.schedule(later, Happening::Think(client));
            }
        }
    }

    /// Lets some members know that the leader of an epoch is gone.
    fn rumour(&mut self, epoch: u64) {
        for member in 0..self.seats.len() {
            if self.outside.random.chance(600) {
                let at = self.outside.now + self.outside.random.between(MS, 300 * MS);
                let to = Address { member, start: None };
                self.outside.schedule(at, Happening::Input(to, Input::Gone { epoch }));
            }
        }
    }

    fn calamity(&mut self) {
        if self.outside.is_calm {
            return;
        }
        let now = self.outside.now;
        let mut victim = self.outside.random.place(self.seats.len());
        let leading = self.seats.iter().position(|seat| seat.member.as_ref().is_some_and(Member::is_leading));
        if let Some(leader) = leading
            && self.outside.random.chance(500)
        {
            victim = leader;
        }
        match self.outside.random.below(8) {
            0 | 1 => {
                let pause = self.outside.random.magnitude(MS, 120 * SECOND);
                self.outside.trace(|| format!("{victim} stops for {} ms", pause / MS));
                let seat = &mut self.seats[victim];
                seat.paused_until = seat.paused_until.max(now + pause);
            }
            2 => self.crash(victim),
            3 => {
                let successor = self.outside.random.below(self.seats.len() as u64 + 1);
                self.outside.trace(|| format!("{victim} is to hand over to {successor}"));
                let to = Address { member: victim, start: None };
                self.outside.schedule(now, Happening::Input(to, Input::HandOver { successor }));
            }
            4 => {
                let outage = self.outside.random.magnitude(20 * MS, 60 * SECOND);
                self.outside.trace(|| format!("the engine is out for {} ms", outage / MS));
                self.outside.outage_until = now + outage;
            }
            5 => {
                let (jump, pace) =
                    (self.outside.random.magnitude(MS, 10 * SECOND), self.outside.random.between(512, 2048));
                let seat = &mut self.seats[victim];
                let clock = seat.member.as_mut().map_or(&mut seat.clock, Member::clock);
                clock.adjust(now, jump, pace);
            }
            6 => {
                if let Some(epoch) = self.seats[victim].member.as_ref().map(Member::epoch) {
                    self.rumour(epoch);
                }
            }
            _ => {
                if self.outside.is_volatile {
                    self.outside.history.counts.undone += u64::from(self.outside.engine.crash());
                    self.outside.trace(|| format!("the engine crashes, its head is {:?}", self.outside.engine.head()));
                    self.outside.history.check_loss(&self.outside.engine);
                }
            }
        }
        let next = now + self.outside.random.between(10 * MS, self.peace);
        self.outside.schedule(next, Happening::Calamity);
    }

    /// Lets a client ask the next question.
    fn ask(&mut self, client: usize) {
        let random = &mut self.outside.random;
        if self.clients[client].asked.is_some() {
            return;
        }
        let key = random.place(KEYS);
        let request = match random.below(10) {
            0..3 => Request::Append { key },
            3..6 => {
                let known = self.clients[client].known[key];
                let expected = if random.chance(100) { known - 1 } else { known };
                Request::Swap { key, expected: expected.max(0) }
            }
            6 => Request::Grant,
            _ => Request::Read { key },
        };
        let leaders: Vec<usize> = (0..self.seats.len())
            .filter(|&member| self.seats[member].member.as_ref().is_some_and(Member::is_leading))
            .collect();
        let member = if leaders.is_empty() || random.chance(150) {
            random.place(self.seats.len())
        } else {
            leaders[random.place(leaders.len())]
        };
        let later = self.outside.now + self.outside.random.between(100, 2 * MS);
        let patience = self.outside.random.magnitude(500 * MS, 20 * SECOND);
        let id = self.outside.history.invoke(request);
        self.clients[client].asked = Some((id, member));
        let to = Address { member, start: None };
        self.outside.schedule(later, Happening::Input(to, Input::Request(id)));
        self.outside.schedule(self.outside.now + patience, Happening::GiveUp(client, id));
    }

    /// Lets the client know that its question is answered.
    fn tell(&mut self, id: OpId) {
        let Some(client) = self.clients.iter().position(|client| client.asked.is_some_and(|(asked, _)| asked == id))
        else {
            return;
        };
        self.clients[client].asked = None;
        let mut pause = self.think;
        let request = self.outside.history.request(id);
        if let Request::Append { key } | Request::Swap { key, .. } | Request::Read { key } = request {
            match self.outside.history.answered(id) {
                Some(Answer::Written { revision }) => self.clients[client].known[key] = revision,
                Some(Answer::Found { row: Row { modified, .. } } | Answer::Read { row: Row { modified, .. }, .. }) => {
                    self.clients[client].known[key] = modified;
                }
                _ => pause += 100 * MS,
            }
        }
        let later = self.outside.now + self.outside.random.below(pause);
        self.outside.schedule(later, Happening::Think(client));
    }

    /// Ends the faults, and waits until writes and reads that come after them succeed, and every member follows; gives the steps that it
    /// took.
    fn recover(&mut self) -> u64 {
        let resumed = self.seats.iter().map(|seat| seat.paused_until).max().unwrap_or(0);
        self.outside.is_calm = true;
        self.outside.outage_until = 0;
        let begun = self.outside.now.max(resumed);
        self.outside.trace(|| "the faults end".to_owned());
        let mut steps = 0;
        let mut before = None;
        while self.outside.history.violation.is_none() && self.outside.engine.broken.is_none() {
            self.step();
            steps += 1;
            if before.is_none() && self.outside.now >= begun {
                before = Some((self.outside.history.counts, self.outside.history.floor));
            }
            if let Some((before, floor)) = before {
                let Counts { written, read, .. } = self.outside.history.counts;
                let follows = |seat: &Seat| seat.member.as_ref().is_some_and(|member| member.published() > floor);
                if written >= before.written + 5 && read >= before.read + 5 && self.seats.iter().all(follows) {
                    break;
                }
            }
            if self.outside.now > begun + RECOVERY {
                self.outside.history.fail("not all is well long after the faults have ended".to_owned());
            }
        }
        steps
    }
}
